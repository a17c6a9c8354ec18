"""Where two trained models changed the same entries of their base, and with which signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from sparta_bench.adapters.changes import SparseDelta
from sparta_bench.adapters.merging.merge_methods import changed_indices
from sparta_bench.adapters.merging.task_vectors import Base
from sparta_bench.adapters.read_folder import TaskVector


@dataclass
class Overlap:
    """Of two models, over all tensors of the backbone.

    `changed` counts the entries that each changed, `shared` those that both did, and `conflicts`
    the shared ones with opposite signs; `shared_by_chance` is what independent choices of as many
    entries in each tensor would share. Of shared entries with random signs half conflict.
    """

    names: tuple[str, str]
    changed: list[int]
    shared: int = 0
    shared_by_chance: float = 0.0
    conflicts: int = 0

    def add(self, one: SparseDelta, other: SparseDelta, size: int) -> None:
        """Count in a tensor of that many entries."""
        first = second = 0
        for indices in changed_indices([one, other], size):
            signs = [delta.at(indices).sign() for delta in (one, other)]
            first += int(signs[0].count_nonzero())
            second += int(signs[1].count_nonzero())
            product = signs[0] * signs[1]
            self.shared += int(product.count_nonzero())
            self.conflicts += int((product < 0).sum())
        self.changed = [self.changed[0] + first, self.changed[1] + second]
        self.shared_by_chance += first * second / size

    def as_dict(self) -> dict[str, Any]:
        """For records."""
        conflicts = self.shared / 2
        return asdict(self) | {"names": list(self.names), "conflicts_by_chance": conflicts}


def overlaps_of(sources: Sequence[TaskVector], base: Base) -> list[Overlap]:
    """Return the overlap of each two."""
    overlaps = []
    for one, other in combinations(sources, 2):
        overlap = Overlap((one.name, other.name), [0, 0])
        for name, value in base.values.items():
            overlap.add(one.delta(name, value), other.delta(name, value), value.numel())
        overlaps.append(overlap)
    return overlaps


def as_text(overlaps: Sequence[Overlap]) -> str:
    """A line for each two models."""
    return "\n".join(
        f"{one.names[0]} ({one.changed[0]:,} changed) and {one.names[1]} ({one.changed[1]:,}): "
        f"{one.shared:,} shared, {one.shared_by_chance:,.0f} by chance; "
        f"{one.conflicts:,} with opposite signs, {one.shared / 2:,.0f} by chance"
        for one in overlaps
    )
