"""What training changed in one tensor of its base: chosen entries, a low-rank product, or all."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparta_bench.errors import InputError
from sparta_bench.models.stored_tensors import Checkpoint
from sparta_bench.sparta.merge import rounded_sum
from sparta_bench.sparta.store import is_finite


class SparseDelta(NamedTuple):
    """A change entry by entry: `values` at flat, sorted `indices`; None: at all of them."""

    indices: Tensor | None
    values: Tensor

    def at(self, indices: Tensor) -> Tensor:
        """Return the change (float64) at flat indices; zero where there is none."""
        if self.indices is None:
            return self.values.view(-1)[indices].double()
        change = torch.zeros(len(indices), dtype=torch.float64)
        if len(self.indices):
            nearest = torch.searchsorted(self.indices, indices)
            nearest.clamp_(max=len(self.indices) - 1)
            hit = self.indices[nearest] == indices
            change[hit] = self.values[nearest[hit]].double()
        return change

    def delta(self, base: Tensor) -> SparseDelta:
        """Return the change of the whole tensor, of which the base holds these values."""
        return self

    def tuned(self, base: Tensor, start: int) -> Tensor:
        """Return rows with the change in them; `base` holds the base's, the first of which is row
        `start`. Entries are round(original + delta), as `sparta.merge` writes them."""
        assert self.indices is not None
        first = start * base.shape[1]
        ends = torch.tensor([first, first + base.numel()])
        low, high = torch.searchsorted(self.indices, ends).tolist()
        own = self.indices[low:high] - first
        flat = base.reshape(-1).clone()
        flat[own] = rounded_sum(flat[own], self.values[low:high])
        return flat.view_as(base)


NO_CHANGE = SparseDelta(torch.empty(0, dtype=torch.int64), torch.empty(0))


class LowRank(NamedTuple):
    """LoRA's change: scale · B A."""

    a: Tensor
    b: Tensor
    scale: float

    def delta(self, base: Tensor) -> SparseDelta:
        """As `SparseDelta.delta`, at least in float32."""
        return SparseDelta(None, self._product(self.b))

    def tuned(self, base: Tensor, start: int) -> Tensor:
        """As `SparseDelta.tuned`, rounded as peft rounds on a CPU (of a block of rows the product's
        last bit may differ from that in the whole)."""
        change = self._product(self.b[start : start + len(base)]).to(self.a.dtype)
        rows = base.clone()
        rows += change  # rounds once where the change is wider than the weight
        return rows

    def _product(self, b: Tensor) -> Tensor:
        wide = torch.promote_types(self.a.dtype, torch.float32)
        return self.scale * (b.to(wide) @ self.a.to(wide))


class Tuned(NamedTuple):
    """A tensor of a whole model, read from its file when it is asked for."""

    checkpoint: Checkpoint
    name: str

    def delta(self, base: Tensor) -> SparseDelta:
        """As `SparseDelta.delta`; raises InputError if a value is not finite."""
        tuned = self.tuned(base, 0)
        if not is_finite(tuned):
            raise InputError(f"{self.checkpoint.label}: {self.name} does not hold finite numbers")
        # of float32 in float64, so that base + difference is the tuned value again
        wide = torch.float64 if base.dtype == torch.float32 else torch.float32
        return SparseDelta(None, tuned.to(wide).sub_(base))

    def tuned(self, base: Tensor, start: int) -> Tensor:
        """As `SparseDelta.tuned`: what the file holds."""
        return self.checkpoint.rows(self.name, start, start + len(base))


Change = SparseDelta | LowRank | Tuned
