"""Where two trained models changed the same entries of their base, and with which signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from sparta_bench.merge.rules import Entries
from sparta_bench.merge.sources import Base, Source


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

    def add(self, one: Entries, other: Entries, size: int) -> None:
        """Take in a tensor of that many entries."""
        first, second = _nonzero(one), _nonzero(other)
        self.changed[0] += len(first.values)
        self.changed[1] += len(second.values)
        self.shared_by_chance += len(first.values) * len(second.values) / size
        assert first.places is not None
        beside = second.at(first.places)
        self.shared += int((beside != 0).sum())
        self.conflicts += int((beside.sign() * first.values.sign() < 0).sum())

    def as_dict(self) -> dict[str, Any]:
        """For records."""
        conflicts = self.shared / 2
        return asdict(self) | {"names": list(self.names), "conflicts_by_chance": conflicts}


def _nonzero(entries: Entries) -> Entries:
    values = entries.values.reshape(-1)
    moved = values != 0
    places = moved.nonzero().view(-1) if entries.places is None else entries.places[moved]
    return Entries(places, values[moved])


def overlaps_of(sources: Sequence[Source], base: Base) -> list[Overlap]:
    """Of each two."""
    found = []
    for one, other in combinations(sources, 2):
        overlap = Overlap((one.name, other.name), [0, 0])
        for name, value in base.values.items():
            overlap.add(one.entries(name, value), other.entries(name, value), value.numel())
        found.append(overlap)
    return found


def as_text(overlaps: Sequence[Overlap]) -> str:
    """A line for each two models."""
    return "\n".join(
        f"{one.names[0]} ({one.changed[0]:,} changed) and {one.names[1]} ({one.changed[1]:,}): "
        f"{one.shared:,} shared, {one.shared_by_chance:,.0f} by chance; "
        f"{one.conflicts:,} with opposite signs, {one.shared / 2:,.0f} by chance"
        for one in overlaps
    )
