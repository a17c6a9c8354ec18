"""Ranks as the paper lays them out (Tables 7 and 8): layers of equal rank in one row."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from sparta_bench.ranks.spectrum import Change, Changes
from sparta_bench.tables.table import Heading, Table

# the order of the paper's rows; kinds that it has not come after these, by name
KINDS = (
    "tokens embed",
    "self attn q proj",
    "self attn k proj",
    "self attn v proj",
    "self attn o proj",
    "mlp gate proj",
    "mlp up proj",
    "mlp down proj",
)
NAMES = {"embed_tokens": KINDS[0], "lm_head": "untied lm head"}


class _Group(NamedTuple):
    """What the matrices of a row have in common, in the order that sorts the rows."""

    order: tuple[int, str]
    ranks: tuple[tuple[int, int], ...]  # ours and the paper's of each tuned model; -1 for none
    shape: tuple[int, int]


class Place(NamedTuple):
    """What a matrix is called in the paper, and the layer it is in (null: in none)."""

    kind: str
    layer: int | None


def place_of(name: str) -> Place:
    """The place of a tensor by its name in the backbone: `layers.3.self_attn.q_proj.weight` is
    "self attn q proj" of layer 3."""
    plain = name.removesuffix(".weight")
    match = re.fullmatch(r"(.*\.)?[a-z]+\.(\d+)\.(.+)", plain)
    if match is None:
        return Place(NAMES.get(plain) or _words(plain), None)
    return Place(_words((match[1] or "") + match[3]), int(match[2]))


def _words(name: str) -> str:
    return re.sub(r"[._]+", " ", name)


def kind_order(kind: str) -> tuple[int, str]:
    """What sorts kinds as the paper has them, the vocabulary head last."""
    if kind == NAMES["lm_head"]:
        return len(KINDS) + 1, kind
    return KINDS.index(kind) if kind in KINDS else len(KINDS), kind


def as_ranges(layers: Sequence[int]) -> str:
    """Rising numbers as in the paper: `1,3-5,7,8`. Two neighbours are no range."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs]
    return ",".join(parts)


def rank_table(found: Sequence[Changes], title: str, notes: tuple[str, ...] = ()) -> Table:
    """One row for the layers in which a matrix has the same ranks, one group of columns for each
    tuned model; within a kind the lowest rank comes first, as in the paper.

    Where other values differ between a row's layers, the lowest and the highest stand. A matrix
    that a tuned model lacks has dashes in its columns.
    """
    by_key = [{change.key: change for change in one.changes} for one in found]
    body = []
    for group, keys in sorted(_grouped(found, by_key).items()):
        layers = sorted(layer for key in keys if (layer := place_of(key).layer) is not None)
        here = [[changes[key] for key in keys if key in changes] for changes in by_key]
        tolerance = next(change for changes in here for change in changes).relative_tolerance()
        cells = [group.order[1], f"[{group.shape[0]}, {group.shape[1]}]", as_ranges(layers) or "-"]
        cells.append(f"{tolerance:.1e}")
        for one, changes, (_, printed) in zip(found, here, group.ranks, strict=True):
            cells += _cells(changes, printed if one.printed else None)
        body.append(tuple(cells))
    return Table("ranks", title, _headings(found), tuple(body), notes)


def _grouped(
    found: Sequence[Changes], by_key: Sequence[Mapping[str, Change]]
) -> dict[_Group, list[str]]:
    """The matrices of each row, by name in the backbone."""
    groups: dict[_Group, list[str]] = {}
    for key in {key for changes in by_key for key in changes}:
        here = [changes.get(key) for changes in by_key]
        shape = next(change.shape for change in here if change is not None)
        ranks = tuple(
            (-1 if change is None else change.rank(), one.printed.get(key, -1))
            for one, change in zip(found, here, strict=True)
        )
        group = _Group(kind_order(place_of(key).kind), ranks, shape)
        groups.setdefault(group, []).append(key)
    return groups


def _headings(found: Sequence[Changes]) -> tuple[tuple[Heading, ...], ...]:
    names = ["weight matrix", "dims", "layers", "tolerance / largest"]
    above = [Heading("", len(names))]
    for one in found:
        paper = ["rank in the paper", "deficiency in the paper"] if one.printed else []
        own = ["rank", "rank deficiency", *paper, "above rounding", "stable rank", "changed, %"]
        above.append(Heading(one.label, len(own)))
        names += own
    below = tuple(map(Heading, names))
    return (tuple(above), below) if len(found) > 1 else (below,)


def _cells(changes: Sequence[Change], printed: int | None) -> list[str]:
    """Of the layers of a row, all of one rank. `printed` is the paper's (-1: none for these), and
    null where the paper has none at all."""
    if not changes:
        return ["–"] * (5 if printed is None else 7)
    shortest = min(changes[0].shape)
    cells = _rank_cells(changes[0].rank(), shortest)
    if printed is not None:
        cells += _rank_cells(printed, shortest) if printed >= 0 else ["–", "–"]
    stable = [change.stable_rank for change in changes if change.stable_rank is not None]
    return [
        *cells,
        _span([change.rank_above_rounding for change in changes], str),
        _span(stable, lambda value: f"{value:.1f}"),
        _span([change.share_changed for change in changes], lambda value: f"{100 * value:.3g}"),
    ]


def _rank_cells(rank: int, shortest: int) -> list[str]:
    return [str(rank), str(shortest - rank) if rank < shortest else "0 (full rank)"]


def _span(values: Sequence[float], text: Callable[[float], str]) -> str:
    """One value, or the lowest and the highest; a dash for none."""
    if not values:
        return "–"
    low, high = text(min(values)), text(max(values))
    return low if low == high else f"{low} to {high}"
