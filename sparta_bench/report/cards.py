"""What came out, table by table: scores beside the paper's, a verdict, and what is missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sparta_bench.paper import half_unit, number_of
from sparta_bench.records.record import Cell
from sparta_bench.report.groups import is_embedded, number, tone_of, trained_of
from sparta_bench.tables.paper_tables import LAYOUTS, Layout, Row, row_name, score_of, task_name
from sparta_bench.tables.protocol import TWIN_MODELS
from sparta_bench.tables.select import Chosen, Selection
from sparta_bench.tables.views import lines_and_tasks
from sparta_bench.text import counted, shortened

MAX_ROWS, MAX_COLUMNS = 12, 8  # of a picture; the tables have all
EQUAL = 0.1  # counts of trained scalars that differ by less are called equal


class Score(NamedTuple):
    """Test accuracy or mcc × 100 of n seeds; `std` is None for one seed."""

    mean: float
    std: float | None
    n: int


class Difference(NamedTuple):
    """Ours less what it is compared with, in points; `within` our spread, None of one seed."""

    points: float
    within: bool | None


@dataclass(frozen=True, slots=True)
class Card:
    """One table as a picture: rows are methods, columns tasks or models.

    `scores`, `printed` (of the paper) and `differences` are by row and column; what is not there
    has no entry. Differences are to the paper's values, or to the first row where there are none.
    """

    key: str
    title: str
    embedded: bool
    rows: tuple[str, ...]
    tones: tuple[str, ...]
    columns: tuple[str, ...]
    scores: Mapping[tuple[int, int], Score]
    printed: Mapping[tuple[int, int], float]
    differences: Mapping[tuple[int, int], Difference]
    verdict: str
    missing: str

    @property
    def against(self) -> str:
        """What the differences are to."""
        return "the paper" if self.printed else self.rows[0]


def cards_of(selection: Selection) -> list[Card]:
    """The paper's tables that have a record, other models; then the same of embedded models."""
    cards = []
    rest = dict(selection.cells)
    for layout in LAYOUTS:
        lines = [[layout.cell(row, column) for column in layout.columns] for row in layout.rows]
        found = {cell: rest.pop(cell) for line in lines for cell in line if cell in rest}
        if found:
            cards.append(_of_layout(layout, lines, found))
    by_model: dict[str, dict[Cell, Chosen]] = defaultdict(dict)
    for cell, chosen in rest.items():
        by_model[cell.model][cell] = chosen
    cards += [_of_model(model, by_model[model]) for model in sorted(by_model)]
    return sorted(cards, key=lambda card: card.embedded)


def tables_without_runs(selection: Selection) -> list[str]:
    """Names of the paper's tables that have no record at all."""
    return [
        f"Table {layout.number}"
        for layout in LAYOUTS
        if not layout.twins
        and not any(
            layout.cell(row, column) in selection.cells
            for row in layout.rows
            for column in layout.columns
        )
    ]


def _of_layout(layout: Layout, lines: list[list[Cell]], found: dict[Cell, Chosen]) -> Card:
    printed = {} if layout.twins else _printed(layout)
    heads = [column.head for column in layout.columns]
    if layout.twins:
        title = f"Like Table {layout.number}: {layout.title}"
        heads = [head.removeprefix("tiny-") for head in heads]
    else:
        title = f"Table {layout.number}: {layout.title}"
    missing = _missing(layout, found)
    return _card(layout.key, title, layout.twins, lines, heads, found, printed, missing)


def _of_model(model: str, found: dict[Cell, Chosen]) -> Card:
    lines, tasks = lines_and_tasks(found)
    cells = [[Cell(model, task, *line) for task in tasks[:MAX_COLUMNS]] for line in lines]
    embedded = model in TWIN_MODELS or any(
        is_embedded(run) for c in found.values() for run in c.runs
    )
    title = shortened(model, 40) + (", other runs" if model in TWIN_MODELS else "")
    more = []
    if len(lines) > MAX_ROWS:
        more.append(counted(len(lines) - MAX_ROWS, "more method", "more methods"))
    if len(tasks) > MAX_COLUMNS:
        more.append(counted(len(tasks) - MAX_COLUMNS, "more task", "more tasks"))
    missing = f"Not in the picture: {' and '.join(more)}." if more else ""
    heads = [shortened(task_name(task), 10) for task in tasks[:MAX_COLUMNS]]
    return _card(f"model {model}", title, embedded, cells[:MAX_ROWS], heads, found, {}, missing)


def _card(
    key: str,
    title: str,
    embedded: bool,
    lines: Sequence[Sequence[Cell]],
    heads: Sequence[str],
    found: Mapping[Cell, Chosen],
    printed: Mapping[tuple[int, int], str],
    missing: str,
) -> Card:
    chosen = {
        (row, column): found[cell]
        for row, line in enumerate(lines)
        for column, cell in enumerate(line)
        if cell in found and found[cell].runs
    }
    scores = {at: score for at, one in chosen.items() if (score := test_score(one)) is not None}
    differences = dict(
        _from_paper(scores, printed) if printed else _from_first_row(scores, len(heads))
    )
    return Card(
        key,
        title,
        embedded,
        tuple(shortened(row_name(line[0].method, line[0].density), 18) for line in lines),
        tuple(tone_of(line[0].method) for line in lines),
        tuple(heads),
        scores,
        {at: number_of(text) for at, text in printed.items()},
        differences,
        _verdict_on_paper(differences, lines, heads)
        if printed
        else _verdict_on_lora(chosen, heads),
        missing,
    )


def test_score(chosen: Chosen) -> Score | None:
    """Of the runs shown; None where it is no finite number."""
    spread = chosen.over_seeds("test", score_of(chosen.cell.task))
    mean = number(100 * spread.mean)
    return None if mean is None else Score(mean, spread.std and 100 * spread.std, spread.n)


def _printed(layout: Layout) -> dict[tuple[int, int], str]:
    return {
        (row, column): layout.paper(line, head, score_of(head.task))
        for row, line in enumerate(layout.rows)
        for column, head in enumerate(layout.columns)
    }


# ------------------------------------------------------------------------------- differences
def _from_paper(
    scores: Mapping[tuple[int, int], Score], printed: Mapping[tuple[int, int], str]
) -> Iterator[tuple[tuple[int, int], Difference]]:
    """Within: no further than our standard deviation and what the paper's rounding can hide."""
    for at, score in scores.items():
        points = score.mean - number_of(printed[at])
        room = None if score.std is None else score.std + half_unit(printed[at]) + 1e-9
        yield at, Difference(points, None if room is None else abs(points) <= room)


def _from_first_row(
    scores: Mapping[tuple[int, int], Score], columns: int
) -> Iterator[tuple[tuple[int, int], Difference]]:
    """Within: no further than the larger of the two standard deviations."""
    for column in range(columns):
        first = scores.get((0, column))
        for (row, where), score in scores.items():
            if first is not None and where == column and row > 0:
                points = score.mean - first.mean
                yield (row, column), Difference(points, _level(score, first))


def _level(one: Score, other: Score) -> bool | None:
    """Whether two means differ by no more than their spread; None where there is none."""
    if one.std is None and other.std is None:
        return None
    return abs(one.mean - other.mean) <= max(one.std or 0.0, other.std or 0.0) + 1e-9


# ---------------------------------------------------------------------------------- verdicts
def _verdict_on_paper(
    differences: Mapping[tuple[int, int], Difference],
    lines: Sequence[Sequence[Cell]],
    heads: Sequence[str],
) -> str:
    if not differences:
        return "No run completed."
    row, column = max(differences, key=lambda at: (abs(differences[at].points), at))
    name = row_name(lines[row][0].method, lines[row][0].density)
    largest = f"{signed(differences[row, column].points)} points ({name}, {heads[column]})"
    judged = [one.within for one in differences.values() if one.within is not None]
    if not judged:
        return f"One seed each, so there is no spread; the largest difference is {largest}."
    scores = counted(len(judged), "score", "scores")
    agree = "agrees" if len(judged) == 1 else "agree"
    return (
        f"{sum(judged)} of {scores} {agree} with the paper within our spread over seeds; the "
        f"largest difference is {largest}."
    )


def _verdict_on_lora(chosen: Mapping[tuple[int, int], Chosen], heads: Sequence[str]) -> str:
    """SpaRTA against LoRA, where they train about equally many scalars."""
    if not chosen:
        return "No run completed."
    counts = {"level": 0, "ahead": 0, "behind": 0}
    one_seed = False
    for column in sorted({column for _, column in chosen}):
        here = [one for (_, where), one in chosen.items() if where == column]
        pair = _equal_pair(here)
        scores = [] if pair is None else [score for one in pair if (score := test_score(one))]
        if len(scores) == 2:
            sparta, lora = scores
            level = _level(sparta, lora)
            one_seed |= level is None
            ahead = "ahead" if sparta.mean > lora.mean else "behind"
            counts["level" if level or sparta.mean == lora.mean else ahead] += 1
    total = sum(counts.values())
    if not total:
        return _best(chosen, heads)
    said = ", ".join(f"{name} on {count}" for name, count in counts.items() if count)
    by = (
        "one seed each: this may be chance" if one_seed else "level: within their spread over seeds"
    )
    return (
        f"SpaRTA beside LoRA with as many trained scalars, test scores: {said} of {total} ({by})."
    )


def _best(chosen: Mapping[tuple[int, int], Chosen], heads: Sequence[str]) -> str:
    """Which method has the highest mean in which columns."""
    best: dict[str, list[str]] = defaultdict(list)
    for column, head in enumerate(heads):
        scores = [
            (score.mean, row_name(one.cell.method, one.cell.density))
            for (_, where), one in chosen.items()
            if where == column and (score := test_score(one)) is not None
        ]
        if scores:
            best[max(scores)[1]].append(head)
    said = "; ".join(f"{shortened(name, 40)} on {', '.join(on)}" for name, on in best.items())
    return f"Highest mean test score: {said}." if best else "No run has a score."


def _equal_pair(chosen: Iterable[Chosen]) -> tuple[Chosen, Chosen] | None:
    """SpaRTA and LoRA of about as many trained scalars; None where there are no such two."""
    found = [(one, trained) for one in chosen if (trained := trained_of(one))]
    for lora, wanted in found:
        if lora.cell.method == "lora":
            near = [
                (abs(count - wanted), one)
                for one, count in found
                if one.cell.method == "sparta" and abs(count - wanted) <= EQUAL * wanted
            ]
            if near:
                return min(near, key=lambda pair: pair[0])[1], lora
    return None


def _missing(layout: Layout, found: Mapping[Cell, Chosen]) -> str:
    """Which cells of the table have no completed run, row by row."""
    lacking: dict[Row, list[str]] = defaultdict(list)
    for row in layout.rows:
        for column in layout.columns:
            chosen = found.get(layout.cell(row, column))
            if chosen is None or not chosen.runs:
                lacking[row].append(column.head)
    cells, gone = len(layout.rows) * len(layout.columns), sum(map(len, lacking.values()))
    if not gone:
        return f"All {cells} cells have runs."
    said = "; ".join(
        f"{row_name(row.method, row.density)}: "
        + ("all" if len(heads) == len(layout.columns) else ", ".join(heads))
        for row, heads in lacking.items()
    )
    return f"{gone} of {cells} cells without a completed run: {said}."


def signed(points: float) -> str:
    """`+0.4`, `−1.2`, `0.0`."""
    text = f"{points:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")
