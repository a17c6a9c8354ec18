"""A run that was cut off goes on where it was: one file, no pickle, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparta_bench.data.tensor_cache import read_kept, write_kept


@dataclass(frozen=True)
class Checkpoint:
    """The file with the state of a run. `made_by` (`run_id` and `versions`, by package) says who
    may go on from it: a result must not be half of one run or version, half of another."""

    path: Path
    made_by: dict[str, Any]

    def save(self, progress: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write tensors and JSON-able progress. Raises OSError and keeps the last file if it
        cannot."""
        dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_kept(self.path, dense, json.dumps([self.made_by, progress]))

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | str | None:
        """What `save` wrote; the reason why no run can go on from it; None if there is none."""
        if not self.path.exists():
            return None
        kept = read_kept(self.path)
        if kept is None:
            return "cannot be read, or is not as it was written"
        made_by, progress = json.loads(kept[1])
        return self._difference(made_by) or (progress, kept[0])

    def _difference(self, made_by: Any) -> str | None:
        if made_by == self.made_by:
            return None
        if not isinstance(made_by, dict) or made_by.get("run_id") != self.made_by["run_id"]:
            return "is of another run"
        theirs, ours = dict(made_by.get("versions") or {}), self.made_by["versions"]
        names = [name for name in ours if theirs.get(name) != ours[name]]
        parts = [f"{name} {theirs.get(name)}, here {ours[name]}" for name in names]
        return f"is of other versions ({'; '.join(parts)})"


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by the parameter's number and the state's name."""
    return {
        f"optimizer.{number}.{name}": torch.as_tensor(value)
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give the state of `optimizer_tensors` back to the optimizer."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".", 2)
            state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
