"""How the changes of several models become one change, entry by entry (section 8 and beyond)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sparta_bench.adapters.changes import SparseDelta
from sparta_bench.sparta.merge import rounded_sum
from sparta_bench.sparta.sample import sample_indices

_BLOCK = 1 << 22  # entries of a tensor that are combined at a time, where all of them changed


@dataclass(frozen=True)
class Rule:
    """How to combine.

    `how`: `sum`, or `ties`: of each entry the mean of the changes that have the sign of their sum
    (Yadav et al., 2023; nothing is trimmed first). `weights` multiply each model's changes before
    all else; None: 1. `keep` is DARE's (Yu et al., 2024): each changed entry is kept with this
    probability, drawn from `seed`, and divided by it; None: all are kept.
    """

    how: str = "sum"
    weights: tuple[float, ...] | None = None
    keep: float | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """For people."""
        kept = "" if self.keep is None else f"dare {self.keep:g}, "
        weights = "" if self.weights is None else f" of {', '.join(f'{w:g}' for w in self.weights)}"
        return f"{kept}{self.how}{weights}"

    def as_dict(self) -> dict[str, Any]:
        """For records."""
        return asdict(self)

    def weights_of(self, count: int) -> list[float]:
        """Return a weight for each of so many models."""
        return [1.0] * count if self.weights is None else list(self.weights)


def thin(delta: SparseDelta, keep: float, seed: int, name: str) -> SparseDelta:
    """Apply DARE's drop and rescale. `name` tells one model's tensor from all others."""
    chosen = sample_indices(delta.values.numel(), keep, seed, name).long()
    values = delta.values.view(-1)[chosen].double() / keep
    return SparseDelta(chosen if delta.indices is None else delta.indices[chosen], values)


def combine(base: Tensor, deltas: Sequence[SparseDelta], rule: Rule) -> Tensor:
    """Return the tensor with the combined change: round(base + change), rounded once, where it is
    not zero; everything else keeps its bits. Shape and dtype are the base's."""
    out = base.detach().reshape(-1).clone()
    weights = torch.tensor(rule.weights_of(len(deltas)), dtype=torch.float64)
    for indices in changed_indices(deltas, base.numel()):
        stacked = torch.stack([delta.at(indices) for delta in deltas])
        change = _combined(stacked * weights[:, None], rule.how)
        moved = change != 0
        own = indices[moved]
        out[own] = rounded_sum(out[own], change[moved])
    return out.view_as(base)


def changed_indices(deltas: Sequence[SparseDelta], size: int) -> Iterator[Tensor]:
    """Yield the flat indices that any of them may change in a tensor of that many entries: at once
    where these are few, else block by block."""
    sparse = [delta.indices for delta in deltas if delta.indices is not None]
    if len(sparse) == len(deltas):
        yield torch.unique(torch.cat(sparse)) if sparse else torch.empty(0, dtype=torch.int64)
        return
    for start in range(0, size, _BLOCK):
        yield torch.arange(start, min(start + _BLOCK, size))


def _combined(weighted: Tensor, how: str) -> Tensor:
    """Make one change of those of the models (models x entries)."""
    from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge

    if how == "sum":
        return weighted.sum(dim=0)
    elected: Tensor = disjoint_merge(weighted, calculate_majority_sign_mask(weighted))
    return elected
