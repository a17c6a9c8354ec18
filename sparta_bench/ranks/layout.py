"""Ranks as the paper lays them out (Tables 7 and 8): layers of equal rank in one row."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sparta_bench.ranks.spectrum import Change
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
# the columns that each tuned model has
OWN = ("rank", "rank deficiency", "tolerance / largest", "above rounding", "stable rank")
NAMES = {"embed_tokens": KINDS[0], "lm_head": "untied lm head"}


class _Group(NamedTuple):
    """What the matrices of a row have in common, in the order that sorts the rows."""

    order: tuple[int, str]
    ranks: tuple[int, ...]
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


def rank_table(
    changes: Sequence[Sequence[Change]],
    labels: Sequence[str],
    title: str,
    notes: tuple[str, ...] = (),
) -> Table:
    """One row for the layers in which a matrix has the same ranks, one group of columns for each
    tuned model; within a kind the lowest rank comes first, as in the paper.

    Where values differ between a row's layers, the lowest and the highest stand. A matrix that a
    tuned model lacks has dashes in its columns.
    """
    by_key = [{change.key: change for change in found} for found in changes]
    groups: dict[_Group, list[str]] = {}
    for key in {key for found in by_key for key in found}:
        here = [found.get(key) for found in by_key]
        shape = next(change.shape for change in here if change is not None)
        ranks = tuple(-1 if change is None else change.rank() for change in here)
        group = _Group(kind_order(place_of(key).kind), ranks, shape)
        groups.setdefault(group, []).append(key)
    body = []
    for group, keys in sorted(groups.items()):
        layers = sorted(layer for key in keys if (layer := place_of(key).layer) is not None)
        cells = [group.order[1], f"[{group.shape[0]}, {group.shape[1]}]", as_ranges(layers) or "-"]
        for found in by_key:
            cells += _cells([found[key] for key in keys if key in found])
        body.append(tuple(cells))
    names = ("weight matrix", "dims", "layers", *OWN * len(labels))
    headings: list[tuple[Heading, ...]] = [tuple(Heading(name) for name in names)]
    if len(labels) > 1:
        above = [Heading(label, len(OWN)) for label in labels]
        headings.insert(0, (Heading("", len(names) - len(OWN) * len(labels)), *above))
    return Table("ranks", title, tuple(headings), tuple(body), notes)


def _cells(changes: Sequence[Change]) -> tuple[str, ...]:
    """Of layers with one rank."""
    if not changes:
        return ("–",) * len(OWN)
    first = changes[0]
    deficiency = min(first.shape) - first.rank()
    return (
        str(first.rank()),
        str(deficiency) if deficiency else "0 (full rank)",
        f"{first.relative_tolerance():.1e}",
        _span([change.rank_above_rounding for change in changes], str),
        _span([c.stable_rank for c in changes if c.stable_rank is not None], lambda v: f"{v:.1f}"),
    )


def _span(values: Sequence[float], text: Callable[[float], str]) -> str:
    """One value, or the lowest and the highest; a dash for none."""
    if not values:
        return "–"
    low, high = text(min(values)), text(max(values))
    return low if low == high else f"{low} to {high}"
