"""What the training loop knows of a method: values that train, and how they reach the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparta_bench.sparta.sharded import mesh_of, rows_of, sharded, whole

HEAD = "head.weight"


class Trained:
    """The values that an optimizer changes, by name; the head is `head.weight`.

    The values are the model's own parameters; a method that keeps them beside the model overrides
    `write`. `base_fingerprint` is that of the backbone (`sparta.store.fingerprint_of`), `kernels`
    says which code computes (`SpartaAdapter.kernels`). `sharded` holds, by name, the DTensors of
    which a value is this process's rows alone; other values are the same in every process.
    """

    kernels: dict[str, str] | None = None

    def __init__(
        self,
        values: dict[str, nn.Parameter],
        sampled: int | None = None,
        base_fingerprint: str | None = None,
        sharded: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        self.values, self.sampled, self.base_fingerprint = values, sampled, base_fingerprint
        self.sharded = dict(sharded or {})
        for value in values.values():
            value.requires_grad_(True)

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Optimizer groups; the head is never decayed."""
        body = [value for name, value in self.values.items() if name != HEAD]
        groups: list[dict[str, Any]] = []
        if body:
            groups.append({"params": body, "weight_decay": weight_decay})
        groups.append({"params": [self.values[HEAD]], "weight_decay": 0.0})
        if self.sharded:  # random bits round rows by process, and the head alike in all
            rank = mesh_of(next(iter(self.sharded.values()))).get_local_rank()
            groups[0]["stream"], groups[1]["stream"] = 1 + rank, 0
        return groups

    def has_gradient(self) -> dict[str, bool]:
        """Which values have had a gradient in the first step, by name."""
        return {name: value.grad is not None for name, value in self.values.items()}

    def write(self) -> None:
        """Bring the values into the model's weights; called after every change of the values."""

    @property
    def trainable(self) -> int:
        """How many scalars train, head included."""
        return sum(value.numel() for value in {**self.values, **self.sharded}.values())

    @property
    def only_head(self) -> bool:
        """Whether nothing but the head trains, so that the backbone stays as it was loaded."""
        return self.values.keys() == {HEAD}

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of all values, on the CPU."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self.values.items()}

    @torch.no_grad()
    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        """Go back to a snapshot."""
        for name, value in self.values.items():
            value.copy_(snapshot[name])
        self.write()

    def whole(self, name: str, rows: Tensor) -> Tensor:
        """The value of this name, or a tensor of its shape, from the rows of all processes, which
        call this together."""
        like = self.sharded.get(name)
        if like is None or rows.shape != self.values[name].shape:  # one number, such as of steps
            return rows
        return whole(sharded(rows.to(like.device), mesh_of(like), like.shape))

    def rows(self, name: str, value: Tensor) -> Tensor:
        """This process's rows of what `whole` returns."""
        like = self.sharded.get(name)
        if like is None or value.shape != like.shape:
            return value
        first, last = rows_of(len(value), mesh_of(like))
        return value[first:last].clone()

    def lost_to_rounding(self) -> float | None:
        """Share of the changes that the weights' dtype swallows; None where nothing is merged."""
        return None

    def adapter(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and description of what is saved beside the result; None: nothing small is."""
        return self.snapshot(), {"base_fingerprint": self.base_fingerprint}

    def merge_and_unload(self) -> None:
        """Make the backbone plain, with all changes in its own weights."""

    def unload(self) -> bool:
        """Give the backbone back bit for bit, before any `merge_and_unload`; False: impossible."""
        return True
