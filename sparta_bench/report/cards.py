"""What came out, table by table: scores beside the paper's, a verdict, and what is missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sparta_bench.paper import number_of
from sparta_bench.records.record import Cell
from sparta_bench.report.facts import tone_of
from sparta_bench.tables.build import beside_paper
from sparta_bench.tables.paper_tables import (
    LAYOUTS,
    At,
    Layout,
    lines_and_tasks,
    model_order,
    row_name,
    score_of,
    task_name,
)
from sparta_bench.tables.protocol import TINY_MODELS
from sparta_bench.tables.select import Chosen, Selection, Spread
from sparta_bench.tables.views import like_lora
from sparta_bench.text import counted, shortened, signed

Names = tuple[tuple[str, str], ...]  # of rows, with their tones
MAX_ROWS, MAX_COLUMNS = 12, 8  # of a picture; the tables have all


class Difference(NamedTuple):
    """Ours less what it is compared with, in points; `within` our spread, None of one seed."""

    points: float
    within: bool | None


@dataclass(frozen=True, slots=True)
class Card:
    """One table as a picture: rows are methods with a tone, columns tasks or models.

    `scores` (in points), `printed` (of the paper) and `differences` are by row and column; what is
    not there has no entry. Differences are to the paper's values, or to the first row.
    """

    key: str
    title: str
    embedded: bool
    rows: Names
    columns: tuple[str, ...]
    scores: Mapping[At, Spread]
    printed: Mapping[At, float]
    differences: Mapping[At, Difference]
    verdict: str
    missing: str


def cards_of(selection: Selection) -> list[Card]:
    """The paper's tables that have a record, other models; then the same of embedded models."""
    rest = dict(selection.cells)
    cards = [_of_layout(layout, found) for layout in LAYOUTS if (found := layout.take(rest))]
    for model in sorted({cell.model for cell in rest}, key=model_order):
        cards.append(_of_model(model, {cell: rest[cell] for cell in rest if cell.model == model}))
    return sorted(cards, key=lambda card: card.embedded)


def tables_without_runs(selection: Selection) -> list[str]:
    """Names of the paper's tables that have no record at all."""
    return [
        f"Table {layout.number}"
        for layout in LAYOUTS
        if not layout.tiny and not layout.take(dict(selection.cells))
    ]


def test_score(chosen: Chosen) -> Spread:
    """Accuracy or mcc × 100 of the runs shown."""
    return chosen.over_seeds("test", score_of(chosen.cell.task)).times(100.0)


def _of_layout(layout: Layout, found: Mapping[At, Chosen]) -> Card:
    printed = {
        (row, column): layout.paper(line, head, score_of(head.task))
        for row, line in enumerate(layout.rows)
        for column, head in enumerate(layout.columns)
    }
    rows = tuple(
        (shortened(layout.name(row, found), 18), tone_of(line.method))
        for row, line in enumerate(layout.rows)
    )
    title = f"{'Like ' * layout.tiny}Table {layout.number}: {layout.title}"
    heads = tuple(column.head.removeprefix("tiny-") for column in layout.columns)
    missing = _missing(layout, found)
    return _card(layout.key, title, rows, heads, found, missing, {} if layout.tiny else printed)


def _of_model(model: str, cells: Mapping[Cell, Chosen]) -> Card:
    lines, tasks = lines_and_tasks(cells)
    more = {"more method": len(lines) - MAX_ROWS, "more task": len(tasks) - MAX_COLUMNS}
    said = " and ".join(counted(count, what) for what, count in more.items() if count > 0)
    lines, tasks = lines[:MAX_ROWS], tasks[:MAX_COLUMNS]
    found = {
        (row, column): cells[cell]
        for row, line in enumerate(lines)
        for column, task in enumerate(tasks)
        if (cell := Cell(model, task, *line)) in cells
    }
    rows = tuple((shortened(row_name(*line), 18), tone_of(line[0])) for line in lines)
    heads = tuple(shortened(task_name(task), 10) for task in tasks)
    title = shortened(model, 40) + (", other runs" if model in TINY_MODELS else "")
    missing = f"Not in the picture: {said}." if said else ""
    return _card(f"model {model}", title, rows, heads, found, missing, {})


def _card(
    key: str, title: str, rows: Names, heads: tuple[str, ...], found: Mapping[At, Chosen],
    missing: str, printed: Mapping[At, str],
) -> Card:  # fmt: skip
    """Without values of the paper the differences are to the first row."""
    done = {at: chosen for at, chosen in found.items() if chosen.runs}
    scores = {at: test_score(chosen) for at, chosen in done.items()}
    embedded = any(chosen.cell.model in TINY_MODELS for chosen in found.values())
    if printed:
        differences = {
            at: Difference(*beside_paper(chosen, score_of(chosen.cell.task), printed[at]))
            for at, chosen in done.items()
        }
        verdict = _verdict_on_paper(differences, rows, heads)
    else:
        differences = {
            (row, column): Difference(score.mean - first.mean, _level(score, first))
            for (row, column), score in scores.items()
            if row > 0 and (first := scores.get((0, column))) is not None
        }
        verdict = _verdict_on_lora(done, rows, heads)
    paper = {at: number_of(text) for at, text in printed.items()}
    return Card(key, title, embedded, rows, heads, scores, paper, differences, verdict, missing)


def _level(one: Spread, other: Spread) -> bool | None:
    """Whether two means differ by no more than their spread; None where there is none."""
    if one.std is None and other.std is None:
        return None
    return one.is_level_with(other, 1e-9)


# ---------------------------------------------------------------------------------- verdicts
def _verdict_on_paper(
    differences: Mapping[At, Difference], rows: Names, heads: Sequence[str]
) -> str:
    if not differences:
        return "No run completed."
    row, column = max(differences, key=lambda at: (abs(differences[at].points), at))
    largest = f"{signed(differences[row, column].points)} points ({rows[row][0]}, {heads[column]})"
    judged = [one.within for one in differences.values() if one.within is not None]
    if not judged:
        return f"One seed each, so there is no spread; the largest difference is {largest}."
    agree = "agrees" if len(judged) == 1 else "agree"
    return (
        f"{sum(judged)} of {counted(len(judged), 'score')} {agree} with the paper within our "
        f"spread over seeds; the largest difference is {largest}."
    )


def _verdict_on_lora(done: Mapping[At, Chosen], rows: Names, heads: Sequence[str]) -> str:
    """SpaRTA against LoRA, where they train about equally many scalars."""
    counts = {"level": 0, "ahead": 0, "behind": 0}
    one_seed = False
    by_cell = {chosen.cell: chosen for chosen in done.values()}
    for lora in by_cell.values():
        sparta = like_lora(lora, by_cell) if lora.cell.method == "lora" else None
        if sparta is not None:
            ours, theirs = test_score(sparta), test_score(lora)
            level = _level(ours, theirs)
            one_seed |= level is None
            ahead = "ahead" if ours.mean > theirs.mean else "behind"
            counts["level" if level or ours.mean == theirs.mean else ahead] += 1
    total = sum(counts.values())
    if not total:
        return _best(done, rows, heads)
    said = ", ".join(f"{name} on {count}" for name, count in counts.items() if count)
    by = "level: within their spread over seeds"
    by = "one seed each: this may be chance" if one_seed else by
    return (
        f"SpaRTA beside LoRA with as many trained scalars, test scores: {said} of {total} ({by})."
    )


def _best(done: Mapping[At, Chosen], rows: Sequence[tuple[str, str]], heads: Sequence[str]) -> str:
    """Which method has the highest mean in which columns."""
    best: dict[str, list[str]] = defaultdict(list)
    for column, head in enumerate(heads):
        means = {row: test_score(one).mean for (row, at), one in done.items() if at == column}
        if means:
            best[rows[max(means, key=lambda row: means[row])][0]].append(head)
    said = "; ".join(f"{name} on {', '.join(on)}" for name, on in best.items())
    return f"Highest mean test score: {said}." if best else "No run completed."


def _missing(layout: Layout, found: Mapping[At, Chosen]) -> str:
    """Which cells of the table have no completed run, row by row."""
    lacking: dict[str, list[str]] = {}
    for row in range(len(layout.rows)):
        without = [
            column.head
            for place, column in enumerate(layout.columns)
            if (row, place) not in found or not found[row, place].runs
        ]
        if without:
            lacking[layout.name(row, found)] = without
    cells = len(layout.rows) * len(layout.columns)
    if not lacking:
        return f"All {cells} cells have runs."
    said = "; ".join(
        f"{name}: {'all' if len(heads) == len(layout.columns) else ', '.join(heads)}"
        for name, heads in lacking.items()
    )
    gone = sum(map(len, lacking.values()))
    return f"{gone} of {cells} cells without a completed run: {said}."
