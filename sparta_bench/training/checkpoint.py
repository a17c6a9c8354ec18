"""A run that was cut off goes on where it was: one file, no pickle, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparta_bench.files import read_kept, write_kept


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


def optimizer_tensors(optimizer: Optimizer, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimizer's state by the number of a value and the state's name. `values` are what the
    optimizer changes, in its order; it may hold several that follow each other as one tensor."""
    states = optimizer.state_dict()["state"]
    tensors: dict[str, Tensor] = {}
    for number, numbers in enumerate(_numbers_of(optimizer, values)):
        for name, state in states.get(number, {}).items():
            parts = _split(torch.as_tensor(state), [*values.values()], numbers)
            tensors |= {
                f"optimizer.{n}.{name}": part for n, part in zip(numbers, parts, strict=True)
            }
    return tensors


def restore_optimizer(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]
) -> None:
    """Give the state of `optimizer_tensors` back to the optimizer."""
    by_name: dict[str, dict[int, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, own_number, name = key.split(".", 2)
            by_name.setdefault(name, {})[int(own_number)] = tensor
    state: dict[int, dict[str, Tensor]] = {}
    for number, numbers in enumerate(_numbers_of(optimizer, values)):
        for name, parts in by_name.items():
            own = [parts[n] for n in numbers if n in parts]
            if own:
                joined = torch.cat(own) if len(own) > 1 and own[0].dim() else own[0]
                state.setdefault(number, {})[name] = joined
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _numbers_of(optimizer: Optimizer, values: Mapping[str, Tensor]) -> Iterator[list[int]]:
    """For each of the optimizer's tensors the numbers of the values that it holds."""
    sizes = [value.numel() for value in values.values()]
    first = 0
    for group in optimizer.param_groups:
        for tensor in group["params"]:
            last = first + 1
            while sum(sizes[first:last]) < tensor.numel():
                last += 1
            yield [*range(first, last)]
            first = last


def _split(state: Tensor, values: Sequence[Tensor], numbers: Sequence[int]) -> Sequence[Tensor]:
    """A state's parts by value; one number, such as that of steps, is the same for all."""
    if len(numbers) == 1:
        return [state]
    if state.dim() == 0:
        return [state.clone() for _ in numbers]  # files hold no tensor under two names
    return torch.split(state, [values[n].numel() for n in numbers])
