"""Ranks as the paper lays them out (Tables 7 and 8): layers of equal rank in one row."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from sparta_bench.analysis.ranks.spectrum import MatrixChange, ModelChanges
from sparta_bench.paper import rows_of
from sparta_bench.tables.table import Heading, Table

# the order of the paper's rows; kinds that it has not come after these, by name
KINDS = (
    "tokens embed", "self attn q proj", "self attn k proj", "self attn v proj",
    "self attn o proj", "mlp gate proj", "mlp up proj", "mlp down proj",
)  # fmt: skip
NAMES = {"embed_tokens": KINDS[0], "lm_head": "untied lm head"}


class Place(NamedTuple):
    """What a matrix is called in the paper, and the layer it is in (None: in none)."""

    kind: str
    layer: int | None


def place_of(name: str) -> Place:
    """Return the place of a tensor by its name in the backbone: `layers.3.self_attn.q_proj.weight`
    is "self attn q proj" of layer 3."""
    plain = name.removesuffix(".weight")
    # the first number is the layer's; a later one is that of an expert, say
    match = re.fullmatch(r"((?:[^.]+\.)*?)[a-z]+\.(\d+)\.(.+)", plain)
    if match is None:
        return Place(NAMES.get(plain) or _words(plain), None)
    return Place(_words(match[1] + match[3]), int(match[2]))


def _words(name: str) -> str:
    return re.sub(r"[._]+", " ", name)


def kind_order(kind: str) -> tuple[int, str]:
    """What sorts kinds as the paper has them, the vocabulary head last."""
    unknown = len(KINDS) + (kind == NAMES["lm_head"])
    return KINDS.index(kind) if kind in KINDS else unknown, kind


def as_ranges(layers: Sequence[int]) -> str:
    """Rising numbers as in the paper: `1,3-5,7,8`. Two neighbours are no range."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs
    )


def rank_table(models: Sequence[ModelChanges], title: str, notes: tuple[str, ...] = ()) -> Table:
    """One row for the layers in which a model's matrix has one rank, as in the paper: the lowest
    rank first. Of several models, the rows of one kind of matrix stand together.

    Where other values differ between a row's layers, the lowest and the highest stand.
    """
    # by what the matrices of a row have in common, in the order that sorts the rows; a printed
    # rank of -1 is none
    rows: dict[tuple[tuple[int, str], int, int, int, tuple[int, int]], list[MatrixChange]] = {}
    for number, model in enumerate(models):
        for change in model.changes:
            kind = kind_order(place_of(change.key).kind)
            printed = model.printed.get(change.key, -1)
            row = (kind, number, change.rank(), printed, change.shape)
            rows.setdefault(row, []).append(change)
    several, paper = len(models) > 1, any(model.printed for model in models)
    names = ["weight matrix", "dims", *["tuned"] * several, "layers", "rank", "rank deficiency"]
    names += ["rank in the paper", "deficiency in the paper"] * paper
    names += ["above rounding", "stable rank", "changed, %", "tolerance / largest"]
    body = [
        (
            kind,
            f"[{shape[0]}, {shape[1]}]",
            *[models[number].label] * several,
            _layers(changes),
            *_rank(rank, shape),
            *_rank(printed, shape) * paper,
            *_values(changes),
        )
        for ((_, kind), number, rank, printed, shape), changes in sorted(
            rows.items(), key=lambda item: item[0]
        )
    ]
    return Table("ranks", title, (tuple(map(Heading, names)),), tuple(body), notes)


def _layers(changes: Sequence[MatrixChange]) -> str:
    layers = [layer for change in changes if (layer := place_of(change.key).layer) is not None]
    return as_ranges(sorted(layers)) or "-"


def _rank(rank: int, shape: tuple[int, int]) -> tuple[str, str]:
    """Rank and deficiency; dashes for none."""
    if rank < 0:
        return "–", "–"
    deficiency = min(shape) - rank
    return str(rank), str(deficiency) if deficiency else "0 (full rank)"


def _values(changes: Sequence[MatrixChange]) -> tuple[str, ...]:
    """What may differ between the matrices of a row, and their tolerance."""
    stable = [change.stable_rank for change in changes if change.stable_rank is not None]
    shares = [100 * change.changed / math.prod(change.shape) for change in changes]
    return (
        _span([change.rank_above_rounding for change in changes], str),
        _span(stable, lambda value: f"{value:.1f}"),
        _span(shares, lambda value: f"{value:.3g}"),
        f"{changes[0].relative_tolerance():.1e}",
    )


def _span(values: Sequence[float], text: Callable[[float], str]) -> str:
    """One value, or the lowest and the highest; a dash for none."""
    if not values:
        return "–"
    low, high = text(min(values)), text(max(values))
    return low if low == high else f"{low} to {high}"


# ------------------------------------------------------------------------ the paper's ranks
# base and tuned model by their names in conf/model, and the files of the table
TABLES = {("gemma-2b", "gemma-2b-it"): "table7", ("mistral-7b", "mistral-7b-it"): "table8"}
# what they are called on the hub, where that differs
ON_THE_HUB = {"Mistral-7B-v0.3": "mistral-7b", "Mistral-7B-Instruct-v0.3": "mistral-7b-it"}


def printed_ranks(base: str, tuned: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the paper's rank for each of these matrices (by name in the backbone) that it has in
    this shape; empty where the names are not those of one of its pairs.

    Table 8 prints the vocabulary head's shape turned, so the order of rows and columns is not
    compared.
    """
    table = TABLES.get((ON_THE_HUB.get(base, base), ON_THE_HUB.get(tuned, tuned)))
    printed = {
        (row["matrix"], layer): (sorted((int(row["rows"]), int(row["columns"]))), int(row["rank"]))
        for row in (rows_of(table) if table else [])
        for layer in _numbers(row["layers"])
    }
    ranks = {}
    for key, shape in shapes.items():
        printed_shape, rank = printed.get(place_of(key), (None, 0))
        if sorted(shape) == printed_shape:
            ranks[key] = rank
    return ranks


def _numbers(text: str) -> Iterator[int | None]:
    """Of "1,3-5"; None, once, for "-"."""
    if text == "-":
        yield None
        return
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
