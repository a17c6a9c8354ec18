"""A cut-off run goes on where it was: one file, no pickle, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparta_bench.kept import read_kept, write_kept


def save_checkpoint(path: Path, progress: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors with JSON-able progress beside them, in one safetensors file."""
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_kept(path, dense, json.dumps(progress))


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """What `save_checkpoint` wrote, or null if there is none that is as it was written."""
    kept = read_kept(path)
    return None if kept is None else (json.loads(kept[1]), kept[0])


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by place of the parameter and name."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{place}.{name}": torch.as_tensor(value)
        for place, values in state.items()
        for name, value in values.items()
    }


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimizer the state of `optimizer_tensors` back."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, place, name = key.split(".", 2)
            state.setdefault(int(place), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
