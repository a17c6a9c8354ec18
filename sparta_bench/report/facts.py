"""What records say, as far as they do: values, cells by model, and tables of all of them; and the
cards: of each table scores beside the paper's, a verdict, and what is missing."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sparta_bench.config.rules import is_number
from sparta_bench.paper import number_of
from sparta_bench.records.record import Cell, Excluded, Record
from sparta_bench.tables.build import beside_paper
from sparta_bench.tables.paper_tables import (
    LAYOUTS,
    MISSING,
    At,
    Layout,
    cell_order,
    lines_and_tasks,
    model_order,
    row_name,
    score_of,
    spread_of,
    task_name,
)
from sparta_bench.tables.protocol import TINY_MODELS
from sparta_bench.tables.select import Chosen, Selection, Spread
from sparta_bench.tables.table import Table, table_of
from sparta_bench.tables.views import like_lora
from sparta_bench.text import as_bytes, as_duration, counted, plain, shortened, signed

METHODS = ("full_ft", "sparta", "sparta_vo", "lora", "head")  # those with a colour of their own
EXAMPLES = 3  # paths that are named for each reason
MOST_ROWS = 200  # of failed runs; more are counted
MAX_ROWS, MAX_COLUMNS = 12, 8  # of a card; the tables have all

Names = tuple[tuple[str, str], ...]  # of rows, with their tones


# ------------------------------------------------------------------------------- of a record
def number(value: Any) -> float | None:
    """A finite number as a float, or None: records may hold anything."""
    return float(value) if is_number(value) else None


def training_value(record: Record, key: str) -> float | None:
    """A number of the record's `training`, or None where it is missing or of another type."""
    return number(_mapping(record.raw["training"]).get(key))


def training_seconds(record: Record) -> float | None:
    """Seconds of training without evaluations, but with Head's one pass for its features."""
    seconds = training_value(record, "seconds")
    return seconds and seconds + (training_value(record, "features_seconds") or 0.0)


def peak_bytes(record: Record) -> float | None:
    return training_value(record, "peak_memory_bytes")


def median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def device_of(record: Record) -> str:
    """Name, kind, threads and processes: what times must have in common to be compared."""
    environment = _mapping(record.raw["environment"])
    device = _mapping(environment.get("device"))
    parts = [plain(device.get("type") or "?")]
    if device.get("type") == "cpu" and device.get("threads") is not None:
        threads = shortened(device["threads"], 8)
        parts.append("1 thread" if threads == "1" else f"{threads} threads")
    if environment.get("processes") not in (None, 1):
        parts.append(f"{shortened(environment['processes'], 8)} processes")
    return f"{shortened(device.get('name') or 'unknown device', 60)} ({', '.join(parts)})"


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _said(value: Any) -> str:
    return "not recorded" if value is None else shortened(value, 60)


# --------------------------------------------------------------------------------- of a cell
def tone_of(method: str) -> str:
    """The name of a method's colour: `lora` for a cell's `lora r=16`."""
    first = method.partition(" ")[0]
    return first if first in METHODS else "other"


def task_of(task: str) -> str:
    return shortened(task_name(task), 40)


def name_of(chosen: Chosen) -> str:
    return shortened(row_name(chosen.cell.method, chosen.cell.density), 40)


def share_of(chosen: Chosen) -> float:
    """Scalars trained over all scalars of the model, 0 to 1."""
    total = statistics.fmean(run.raw["parameters"]["total"] for run in chosen.runs)
    return chosen.trained / total if total else 0.0


def test_score(chosen: Chosen) -> Spread:
    """Accuracy or mcc × 100 of the runs shown."""
    return chosen.over_seeds("test", score_of(chosen.cell.task)).times(100.0)


class Group(NamedTuple):
    """The cells of one model in their order, and the failed runs of each cell. Embedded models are
    those in the package, which say nothing about the paper's."""

    model: str
    cells: list[Chosen]
    failed: dict[Cell, list[Record]]

    @property
    def embedded(self) -> bool:
        return self.model in TINY_MODELS

    @property
    def name(self) -> str:
        """The model's name, as a heading has it."""
        return shortened(self.model, 60) + (" (embedded tiny model)" if self.embedded else "")

    def tasks(self) -> dict[str, list[Chosen]]:
        by_task: dict[str, list[Chosen]] = defaultdict(list)
        for chosen in self.cells:
            by_task[chosen.cell.task].append(chosen)
        return by_task


def groups_of(selection: Selection, records: Iterable[Record]) -> list[Group]:
    """Real models first, then the embedded ones; both in the paper's order, then by name."""
    failed: dict[Cell, list[Record]] = defaultdict(list)
    for record in records:
        if record.status == "failed":
            failed[record.cell].append(record)
    groups: dict[str, Group] = {}
    for cell in sorted(selection.cells, key=cell_order):
        group = groups.setdefault(cell.model, Group(cell.model, [], failed))
        group.cells.append(selection.cells[cell])
    return sorted(groups.values(), key=lambda one: (one.embedded, model_order(one.model)))


# ------------------------------------------------------------------------------------ tables
def numbers_table(group: Group) -> Table:
    """The numbers behind a model's figures, one row a cell."""
    heads = ("Task", "Method", "scalars", "share, %", "dev loss", "test loss", "acc., %",
             "mcc × 100", "time", "memory", "seeds", "settings", "failed")  # fmt: skip
    note = (
        "Scalars: how many were trained. Scores and losses: mean ± standard deviation over "
        "seeds. Time: of training without evaluations, the median, and so the highest use of "
        "memory. Settings: how many were compared by dev loss. Failed: runs of any setting."
    )
    scores = (("loss", 3, "dev"), ("loss", 3, "test"), ("accuracy", 1, "test"), ("mcc", 1, "test"))
    rows = []
    for one in group.cells:
        values = [MISSING] * 8
        if one.runs:
            seconds, peak = (median(map(of, one.runs)) for of in (training_seconds, peak_bytes))
            values = [f"{one.trained:,.0f}", f"{100 * share_of(one):.3g}"]
            # without the star, which the notes of other tables explain
            values += [spread_of(one, *what, with_n=False).rstrip("*") for what in scores]
            values.append(MISSING if seconds is None else as_duration(seconds, 1))
            values.append(MISSING if peak is None else as_bytes(peak))
        # settings that a race has run, or those compared
        tried = sum(map(bool, one.raced)) or one.settings_compared
        counts = map(str, (len(one.runs), tried, one.failed))
        rows.append((task_of(one.cell.task), name_of(one), *values, *counts))
    return table_of("numbers", f"The numbers of {group.name}", heads, rows, note)


def failures(failed: Iterable[Record], folders: Sequence[Path]) -> Table:
    """Which runs failed and what they said, in the order of the tables."""
    ordered = sorted(failed, key=lambda run: (*cell_order(run.cell), run.seed, run.run_id))
    rows = []
    for run in ordered[:MOST_ROWS]:
        error = _mapping(run.raw.get("error"))
        message = shortened(error.get("message") or "no message", 300)
        model, task, method, density = run.cell
        rows.append((model, task_name(task), row_name(method, density), str(run.seed),
                     _said(error.get("type")), message, _shown(run.path, folders)))  # fmt: skip
    rest = len(ordered) - len(rows)
    note = f"{counted(rest, 'other failed run is', 'other failed runs are')} not listed."
    heads = ("Model", "Task", "Method", "Seed", "Error", "Message", "Record")
    return table_of("failures", "Failed runs", heads, rows, *([note] if rest else []))


def reasons(excluded: Iterable[Excluded], folders: Sequence[Path]) -> Table:
    """Why records are left out, with some of their folders."""
    by_reason: dict[str, list[Path]] = defaultdict(list)
    for item in excluded:
        by_reason[item.reason].append(item.path)
    rows = []
    for reason, paths in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0])):
        where = ", ".join(_shown(path, folders) for path in paths[:EXAMPLES])
        more = f" and {len(paths) - EXAMPLES:,} more" if len(paths) > EXAMPLES else ""
        rows.append((reason, f"{len(paths):,}", where + more))
    return table_of("left-out", "Left out, and why", ("Reason", "Records", "Where"), rows)


def last_parts(folder: Path) -> str:
    """The folder as it was given, but of an absolute one its name: pages travel."""
    return (folder.name or "/") if folder.is_absolute() else str(folder)


def _shown(path: Path, folders: Iterable[Path]) -> str:
    """A record's folder, from the report's folder on."""
    for folder in folders:
        if path.is_relative_to(folder):
            return str(Path(last_parts(folder)) / path.relative_to(folder).parent)
    return str(path.parent)


def days_of(records: Iterable[Record]) -> str:
    """The first and the last day (UTC) on which a record was made, as far as they say."""
    moments = (record.raw.get(key) for record in records for key in ("started", "finished"))
    days = sorted({at[:10] for at in moments if isinstance(at, str) and len(at) >= 10})
    return " to ".join(dict.fromkeys([days[0], days[-1]])) if days else ""


def environments(records: Iterable[Record]) -> Table:
    by_name: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for name, value in _environment(record):
            by_name[name][value] += 1
    rows = []
    for name, counts in by_name.items():
        values = [
            value if len(counts) == 1 else f"{value} ({counted(count, 'record')})"
            for value, count in sorted(counts.items())
        ]
        rows.append((name, "; ".join(values)))
    heads = ("What", "Values in the records")
    return table_of("environment", "Where the records were made", heads, rows)


def _environment(record: Record) -> Iterator[tuple[str, str]]:
    environment = _mapping(record.raw["environment"])
    dtypes = _mapping(environment.get("dtypes"))
    model, trained = _said(dtypes.get("model")), _said(dtypes.get("trained"))
    dirty = ", with changes" if environment.get("dirty") else ""
    yield "device", device_of(record)
    yield "platform", _said(environment.get("platform"))
    yield "dtype", f"weights {model}, trained values {trained}"
    yield "git revision", _said(environment.get("git_revision"))[:12] + dirty
    yield "protocol", _said(record.raw.get("protocol"))
    for package, version in _mapping(environment.get("versions")).items():
        yield shortened(package, 30), _said(version)


# ------------------------------------------------------------------------------------- cards
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
    cards = [_of_layout(layout, cells) for layout in LAYOUTS if (cells := layout.take(rest))]
    for model in sorted({cell.model for cell in rest}, key=model_order):
        cards.append(_of_model(model, {cell: rest[cell] for cell in rest if cell.model == model}))
    return sorted(cards, key=lambda card: card.embedded)


def tables_without_runs(selection: Selection) -> list[str]:
    """Names of the paper's tables that have no record at all."""
    papers = (layout for layout in LAYOUTS if not layout.tiny)
    return [f"Table {one.number}" for one in papers if not one.take(dict(selection.cells))]


def _of_layout(layout: Layout, found: Mapping[At, Chosen]) -> Card:
    printed: dict[At, str] = {}
    lacking: dict[str, list[str]] = {}
    for row, line in enumerate(layout.rows):
        for column, head in enumerate(layout.columns):
            printed[row, column] = layout.paper(line, head, score_of(head.task))
            if (row, column) not in found or not found[row, column].runs:
                lacking.setdefault(layout.name(row, found), []).append(head.head)
    missing = f"All {len(printed)} cells have runs."
    if lacking:
        said = "; ".join(
            f"{name}: {'all' if len(heads) == len(layout.columns) else ', '.join(heads)}"
            for name, heads in lacking.items()
        )
        gone = sum(map(len, lacking.values()))
        missing = f"{gone} of {len(printed)} cells without a completed run: {said}."
    rows = tuple(
        (shortened(layout.name(row, found), 18), tone_of(line.method))
        for row, line in enumerate(layout.rows)
    )
    title = f"{'Like ' * layout.tiny}Table {layout.number}: {layout.title}"
    heads = tuple(column.head.removeprefix("tiny-") for column in layout.columns)
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
    """SpaRTA against LoRA, where they train about equally many scalars; else which method has the
    highest mean in which columns."""
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
    if total := sum(counts.values()):
        said = ", ".join(f"{name} on {count}" for name, count in counts.items() if count)
        by = "level: within their spread over seeds"
        by = "one seed each: this may be chance" if one_seed else by
        what = "SpaRTA beside LoRA with as many trained scalars, test scores"
        return f"{what}: {said} of {total} ({by})."
    best: dict[str, list[str]] = defaultdict(list)
    for column, head in enumerate(heads):
        means = {row: test_score(one).mean for (row, at), one in done.items() if at == column}
        if means:
            best[rows[max(means, key=lambda row: means[row])][0]].append(head)
    said = "; ".join(f"{name} on {', '.join(on)}" for name, on in best.items())
    return f"Highest mean test score: {said}." if best else "No run completed."
