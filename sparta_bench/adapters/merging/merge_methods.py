"""How the changes of several models become one change, entry by entry (section 8 and beyond)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparta_bench.sparta.merge import rounded_sum
from sparta_bench.sparta.sample import sample_indices

_BLOCK = 1 << 22  # entries of a tensor that are combined at a time, where all of them changed


@dataclass(frozen=True)
class Rule:
    """How to combine.

    Attributes
    ----------
    how
        `sum`: the (weighted) sum; `ties`: of each entry the mean of the changes that have the sign
        of their sum (Yadav et al., 2023; nothing is trimmed first).
    weights
        One for each model, by which its changes are multiplied before all else; null: 1.
    keep
        DARE (Yu et al., 2024): each changed entry is kept with this probability, and divided by
        it; null: all are kept.
    seed
        Of that draw.
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
        """A weight for each of so many models."""
        return [1.0] * count if self.weights is None else list(self.weights)


class SparseDelta(NamedTuple):
    """What changed in a tensor: `values` at flat, sorted `places`; null places: everywhere."""

    places: Tensor | None
    values: Tensor

    def at(self, places: Tensor) -> Tensor:
        """The changes (float64) at flat places; zero where there is none."""
        if self.places is None:
            return self.values.view(-1)[places].double()
        found = torch.zeros(len(places), dtype=torch.float64)
        if len(self.places):
            near = torch.searchsorted(self.places, places).clamp_(max=len(self.places) - 1)
            hit = self.places[near] == places
            found[hit] = self.values[near[hit]].double()
        return found


Changes = Mapping[str, Callable[[Tensor], SparseDelta]]  # by tensor: from the base's to the change


def thin(entries: SparseDelta, keep: float, seed: int, name: str) -> SparseDelta:
    """DARE's drop and rescale. `name` tells one model's tensor from all others."""
    chosen = sample_indices(entries.values.numel(), keep, seed, name).long()
    values = entries.values.view(-1)[chosen].double() / keep
    return SparseDelta(chosen if entries.places is None else entries.places[chosen], values)


def combine(base: Tensor, changes: Sequence[SparseDelta], rule: Rule) -> Tensor:
    """The tensor with the combined change in it: round(base + change), rounded once, where it is
    not zero; everything else keeps its bits. Shape and dtype are the base's."""
    out = base.detach().reshape(-1).clone()
    weights = torch.tensor(rule.weights_of(len(changes)), dtype=torch.float64)
    for places in changed_places(changes, base.numel()):
        stacked = torch.stack([entries.at(places) for entries in changes])
        change = _combined(stacked, weights, rule.how)
        moved = change != 0
        where = places[moved]
        out[where] = rounded_sum(out[where], change[moved])
    return out.view_as(base)


def changed_places(changes: Sequence[SparseDelta], size: int) -> Iterator[Tensor]:
    """The flat places that any of them may change in a tensor of that many entries: at once where
    these are few, else block by block."""
    sparse = [entries.places for entries in changes if entries.places is not None]
    if len(sparse) == len(changes):
        yield torch.unique(torch.cat(sparse)) if sparse else torch.empty(0, dtype=torch.int64)
        return
    for start in range(0, size, _BLOCK):
        yield torch.arange(start, min(start + _BLOCK, size))


def _combined(stacked: Tensor, weights: Tensor, how: str) -> Tensor:
    """One change from those of the models (models x entries)."""
    from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge

    weighted = stacked * weights[:, None]
    if how == "sum":
        return weighted.sum(dim=0)
    elected: Tensor = disjoint_merge(weighted, calculate_majority_sign_mask(weighted))
    return elected
