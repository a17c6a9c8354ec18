"""Ranks as the paper lays them out (Tables 7 and 8), layers of equal rank in one row, and the
spectra of the changes, one panel for each kind of matrix."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sparta_bench.analysis.ranks.spectrum import MatrixChange, ModelChanges
from sparta_bench.paper import rows_of
from sparta_bench.report.plots import MARKS, TONES, Figure, Frame, Key, Lines, Panel
from sparta_bench.tables.table import Table, table_of
from sparta_bench.text import counted

# the order of the paper's rows; kinds that it has not come after these, by name
KINDS = (
    "tokens embed", "self attn q proj", "self attn k proj", "self attn v proj",
    "self attn o proj", "mlp gate proj", "mlp up proj", "mlp down proj",
)  # fmt: skip
NAMES = {"embed_tokens": KINDS[0], "lm_head": "untied lm head"}
# base and tuned model by their names in conf/model, and the files of the table
TABLES = {("gemma-2b", "gemma-2b-it"): "table7", ("mistral-7b", "mistral-7b-it"): "table8"}
# what they are called on the hub, where that differs
ON_THE_HUB = {"Mistral-7B-v0.3": "mistral-7b", "Mistral-7B-Instruct-v0.3": "mistral-7b-it"}
POINTS, MARKED = 120, 4  # of a curve, and how many of them carry its marker
SPARE_TONES = ("other", "head", "sparta_vo", "muted", "bad")  # for what no method is known of


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
    words = re.sub(r"[._]+", " ", match[1] + match[3] if match else plain)
    return Place(words, int(match[2])) if match else Place(NAMES.get(plain) or words, None)


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


# ------------------------------------------------------------------------------------- table
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
    body = []
    for (order, number, rank, printed, shape), changes in sorted(rows.items(), key=lambda x: x[0]):
        layers = [layer for change in changes if (layer := place_of(change.key).layer) is not None]
        stable = [change.stable_rank for change in changes if change.stable_rank is not None]
        shares = [100 * change.changed / math.prod(shape) for change in changes]
        body.append((
            order[1], f"[{shape[0]}, {shape[1]}]", *[models[number].label] * several,
            as_ranges(sorted(layers)) or "-", *_rank(rank, shape), *_rank(printed, shape) * paper,
            _span([change.rank_above_rounding for change in changes], str),
            _span(stable, lambda value: f"{value:.1f}"),
            _span(shares, lambda value: f"{value:.3g}"),
            f"{changes[0].relative_tolerance():.1e}",
        ))  # fmt: skip
    return table_of("ranks", title, names, body, *notes)


def _rank(rank: int, shape: tuple[int, int]) -> tuple[str, str]:
    """Rank and deficiency; dashes for none."""
    if rank < 0:
        return "–", "–"
    deficiency = min(shape) - rank
    return str(rank), str(deficiency) if deficiency else "0 (full rank)"


def _span(values: Sequence[float], text: Callable[[float], str]) -> str:
    """One value, or the lowest and the highest; a dash for none."""
    if not values:
        return "–"
    low, high = text(min(values)), text(max(values))
    return low if low == high else f"{low} to {high}"


# ------------------------------------------------------------------------------------ figure
def spectra(name: str, title: str, shown: Sequence[ModelChanges]) -> Figure:
    """Draw singular values over the largest, both axes logarithmic; of several layers the median.
    What did not change has no curve. The dashed line is the tolerance, below which none counts."""
    kinds = {place_of(change.key).kind for one in shown for change in one.changes}
    tones: list[str] = []
    for one in shown:  # a method's own colour for its first model, spare ones in turn for others
        spare = [tone for tone in SPARE_TONES if tone not in tones]
        own = one.method in TONES and one.method not in tones
        tones.append(str(one.method) if own else (spare or SPARE_TONES)[0])
    panels = (_panel(kind, shown, tones) for kind in sorted(kinds, key=kind_order))
    legend = [
        Key(one.label, tone, MARKS.get(tone, "o")) for one, tone in zip(shown, tones, strict=True)
    ]
    legend.append(Key("tolerance", "muted", style="--"))
    return Figure(name, title, tuple(panel for panel in panels if panel), tuple(legend))


def _panel(kind: str, shown: Sequence[ModelChanges], tones: Sequence[str]) -> Panel | None:
    """None where none of the models changed it."""
    curves, layers = [], 0
    for one, tone in zip(shown, tones, strict=True):
        of_kind = [change for change in one.changes if place_of(change.key).kind == kind]
        if changed := [change for change in of_kind if change.largest > 0]:
            # over layers the median of each singular value over the largest of its layer (float64)
            shortest = min(len(change.values) for change in changed)
            relative = [one.values[:shortest].double().numpy() / one.largest for one in changed]
            curves.append((tone, np.asarray(np.median(np.stack(relative), axis=0))))
            tolerance = changed[0].relative_tolerance()
            layers = max(layers, len(changed))
    if not curves:
        return None
    floor = tolerance / 100  # below that is nothing but noise
    longest = max(len(values) for _, values in curves)
    lines = [Lines([1, longest], [tolerance] * 2, "muted", {"ls": "--", "lw": 1})]
    for tone, values in curves:
        # thinned evenly on a logarithmic axis
        end = int((values > floor).sum())
        numbers = np.unique(np.geomspace(1, end, min(POINTS, end)).round().astype(int))
        marked = np.unique(np.linspace(0, len(numbers) - 1, MARKED).astype(int)).tolist()
        look = {"marker": MARKS.get(tone, "o"), "markevery": marked, "markersize": 4}
        lines.append(Lines(numbers.tolist(), values[numbers - 1].tolist(), tone, look))

    def draw(frame: Frame) -> None:
        x, y = (0.8, 1.2 * longest), (floor / 1.5, 1.5)
        frame.chart(lines, "singular value, by size", log_x=True, log_y=True, x=x, y=y)

    note = f"over the largest, median of {counted(layers, 'layer')}"
    alt = f"Singular values of the change of {kind} over the largest"
    return Panel(kind, note, alt, draw)
