"""From a selection of records to tables: the paper's, the tiny models', and other models'; and what
`sparta-bench tables` says beside them."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from sparta_bench.paper import half_unit, number_of, results_of, rows_of
from sparta_bench.records.read import settings_text
from sparta_bench.records.record import Cell, Excluded
from sparta_bench.tables.merge_tables import Merge
from sparta_bench.tables.paper_tables import (
    LAYOUTS,
    MISSING,
    SCALE,
    At,
    Layout,
    lines_and_tasks,
    mean_of,
    model_order,
    rate_text,
    row_name,
    score_of,
    spread_of,
    task_name,
)
from sparta_bench.tables.protocol import MODELS, TINY_MODELS
from sparta_bench.tables.select import Chosen, Selection
from sparta_bench.tables.setup_tables import COUNTED
from sparta_bench.tables.table import Heading, Table, as_markdown, flat_headings, table_of
from sparta_bench.tables.views import views_of
from sparta_bench.text import counted, signed

TINY_NOTE = (
    "Tiny models: 0.2 million parameters, on generated text. They show that the code "
    "does what it should, and say nothing about the paper's models."
)
SPREAD_NOTE = "Mean ± standard deviation (seeds); accuracy and mcc × 100."
WITHIN_NOTE = (
    "Difference: ours less the paper's. Within: whether the paper's value lies no further from "
    "our mean than our standard deviation and half a unit of its last digit; one seed has no "
    "spread."
)
HEADS = {"loss": "loss", "accuracy": "acc.", "mcc": "mcc"}
MOST_NAMED = 6  # cells with another number of seeds than most


def build_tables(selection: Selection) -> list[Table]:
    """Every table that has a record: the paper's, the tiny and other models', and comparisons."""
    rest = dict(selection.cells)
    tables: list[Table] = []
    for layout in LAYOUTS:
        if cells_of := layout.take(rest):
            for table in _tables_of(layout, cells_of, selection):
                notes = (TINY_NOTE, *table.notes) if layout.tiny else table.notes
                tables.append(replace(table, notes=notes))
    for cells, own in ((rest, True), (selection.cells, False)):
        for model in sorted({cell.model for cell in cells}, key=model_order):
            of_model = {cell: chosen for cell, chosen in cells.items() if cell.model == model}
            made = _model_tables(model, of_model, selection) if own else views_of(model, of_model)
            for table in made:
                if model in TINY_MODELS:
                    title = f"{table.title} (tiny model, generated text)"
                    table = replace(table, title=title, notes=(TINY_NOTE, *table.notes))
                tables.append(table)
    # keys that can name files, each once, on file systems that fold case too
    seen: set[str] = set()
    for index, table in enumerate(tables):
        key = plain = re.sub(r"[^A-Za-z0-9._+-]", "-", table.key)[:100]
        number = 1
        while key.lower() in seen:
            number += 1
            key = f"{plain}-{number}"
        seen.add(key.lower())
        tables[index] = replace(table, key=key)
    return tables


# ---------------------------------------------------------------------------------------- notes
def _notes(
    cells: Sequence[Chosen], columns: Sequence[tuple[str, str]], by_model: bool,
    selection: Selection,
) -> list[str]:  # fmt: skip
    """What became of the records of one table, whose columns are of a model and a task each."""

    def name_of(cell: Cell) -> str:
        where = cell.model if by_model else task_name(cell.task)
        return f"{row_name(cell.method, cell.density)} on {where}"

    notes = []
    by_number: dict[int, list[Cell]] = defaultdict(list)
    for chosen in cells:
        if chosen.runs:
            by_number[len(chosen.runs)].append(chosen.cell)
    if by_number:
        most = max(by_number, key=lambda number: (len(by_number[number]), number))
        others = [
            f"{number} for {name_of(cell)}"
            for number in sorted(by_number)
            if number != most
            for cell in by_number[number]
        ]
        if len(others) > MOST_NAMED:
            others = [f"another number for {len(others)} cells"]
        notes.append("; ".join([f"Seeds: {most}", *others]) + ".")
    names = {chosen.cell for chosen in cells}
    parts = [f"{counted(sum(len(chosen.runs) for chosen in cells), 'record')} used"]
    counts = {
        "of settings with a higher dev loss": sum(r.cell in names for r in selection.not_selected),
        "failed": sum(chosen.failed for chosen in cells),
        "stopped by a race": sum(chosen.stopped for chosen in cells),
    }
    parts += [f"{count:,} {what}" for what, count in counts.items() if count]
    notes.append("; ".join(parts) + ".")
    if raced := [chosen for chosen in cells if chosen.raced]:
        seeds = sorted({len(chosen.runs) for chosen in raced})
        of = f" of {counted(len(raced), 'cell')}" if len(raced) > 1 else ""
        best = f"{' or '.join(map(str, seeds))} {'seed' if seeds == [1] else 'seeds'} of the best"
        statuses = settings_text(status for chosen in raced for status in chosen.raced)
        notes.append(f"Raced (search=race){of}: {statuses}; {best}.")
    for chosen in cells:
        if ahead := chosen.ahead:  # it looks better than the one shown, and was not compared
            train = ahead.runs[0].train
            notes.append(
                f"* {name_of(chosen.cell)}: rate {rate_text(train['learning_rate'])}, batch size "
                f"{train['batch_size']:g}, epochs {train['epochs']:g} was not compared, since it "
                f"has {counted(len(ahead.runs), 'seed')} and the setting shown "
                f"{len(chosen.runs)}; its dev loss is lower"
                f"{' on the same seeds' if ahead.paired else ''}: {ahead.loss:.4f}, not "
                f"{ahead.shown_loss:.4f}. Run its other seeds."
            )
    excluded = Counter(
        one.reason
        for column in columns
        for one in selection.excluded
        if one.cell is not None and (one.cell.model, one.cell.task) == column
    )
    if excluded:
        why = "; ".join(f"{number:,}: {reason}" for reason, number in excluded.most_common())
        notes.append(f"{counted(excluded.total(), 'record')} left out: {why}.")
    return notes


# ------------------------------------------------------------- the paper's, and the tiny models'
def _tables_of(layout: Layout, found: Mapping[At, Chosen], selection: Selection) -> list[Table]:
    name = f"Our Table {layout.number}"
    if layout.tiny:
        name = f"Table {layout.number} with tiny models (0.2 million parameters, generated text)"
    by_column = sorted(found.items(), key=lambda item: item[0][::-1])
    columns = [(column.model, column.task) for column in layout.columns]
    cells = [chosen for _, chosen in by_column]
    about = _notes(cells, columns, layout.groups == "Model", selection)
    printed = Table(
        layout.key,
        f"{name}: test loss and accuracy of {layout.title}",
        # as the paper has them; Table 3 names density and method apart
        _headings(
            [(column.head, column.task) for column in layout.columns],
            ("Adaptation", "density (%)") if layout.number == 3 else ("",),
        ),
        tuple(_printed_row(layout, row, found) for row in range(len(layout.rows))),
        (*_density_notes(layout, found), *about),
    )
    lines = [(layout.columns[column].head, chosen) for (_, column), chosen in by_column]
    title = f"{name}: settings chosen for {layout.title}"
    make = _spread_table if layout.tiny else _beside
    return [printed, make(layout, name, found), _settings(layout.key, title, layout.groups, lines)]


def _headings(
    columns: Iterable[tuple[str, str]], first: tuple[str, ...] = ("",)
) -> tuple[tuple[Heading, ...], ...]:
    """Of columns with a heading and a task each, after columns for names."""
    over, under = [Heading("")] * len(first), [Heading(text) for text in first]
    for head, task in columns:
        over.append(Heading(head, 2))
        under += [Heading("loss"), Heading(HEADS[score_of(task)])]
    return tuple(over), tuple(under)


def _printed_row(layout: Layout, number: int, found: Mapping[At, Chosen]) -> tuple[str, ...]:
    row, unit = layout.rows[number], "%" if layout.number == 3 else ""
    cells = [layout.name(number, found) if layout.tiny else layout.label(row)]
    if layout.number == 3:
        ours = layout.densities(number, found) or MISSING
        cells = [layout.label(row), ours if layout.tiny else results_of(3)[row.id]["density"]]
    for index, column in enumerate(layout.columns):
        chosen = found.get((number, index))
        cells.append(mean_of(chosen, "loss", layout.loss_digits))
        cells.append(mean_of(chosen, score_of(column.task), 1, unit))
    return tuple(cells)


def _density_notes(layout: Layout, found: Mapping[At, Chosen]) -> list[str]:
    number = [row.id for row in layout.rows].index("sparta-lora")
    density = layout.densities(number, found)
    if layout.tiny:
        return [f"SpaRTA ({density}) has about LoRA's parameter count."]
    notes = [
        f"The third row of SpaRTA ran with a density of {density}, which gives about "
        "LoRA's parameter count: the experiment that the paper has in this row."
    ]
    named = {row["table"]: row["printed"] for row in rows_of("printed_models")}
    heading = named.get(str(layout.number), "")
    if "gemma-2-2b" in heading:
        model = f"google/{layout.columns[0].model}"
        notes.append(f"The paper's heading says {heading}; its counts are those of {model}.")
    return notes


def _beside(layout: Layout, name: str, found: Mapping[At, Chosen]) -> Table:
    """Ours and the paper's: a line for each column and row of the table."""
    four = ("ours", "paper", "difference", "within")
    headings = (
        (Heading(""), Heading(""), Heading("loss", 4), Heading(_scores(layout), 4)),
        (Heading(layout.groups), Heading("Adaptation"), *map(Heading, four * 2)),
    )
    rows = []
    for index, column in enumerate(layout.columns):
        for number, row in enumerate(layout.rows):
            cells, chosen = [column.head, layout.name(number, found)], found.get((number, index))
            for metric in ("loss", score_of(column.task)):
                printed = layout.paper(row, column, metric)
                # one more than the paper has
                digits = len(printed.removesuffix("%").partition(".")[2]) + 1
                cells += [spread_of(chosen, metric, digits), printed]
                if chosen is None or not chosen.runs:
                    cells += [MISSING, MISSING]
                    continue
                off, within = beside_paper(chosen, metric, printed)
                judged = MISSING if within is None else "yes" if within else "no"
                cells += [signed(off, digits), judged]
            rows.append(tuple(cells))
    title = f"{name} beside the paper: {layout.title}"
    return Table(f"{layout.key}-beside", title, headings, tuple(rows), (SPREAD_NOTE, WITHIN_NOTE))


def _scores(layout: Layout) -> str:
    return " or ".join(dict.fromkeys(HEADS[score_of(column.task)] for column in layout.columns))


def beside_paper(chosen: Chosen, metric: str, printed: str) -> tuple[float, bool | None]:
    """Ours less the paper's, as the paper prints it, and whether that is within our standard
    deviation and what the paper's rounding can hide; None of one seed, which has no spread."""
    spread = chosen.over_seeds("test", metric).times(SCALE[metric])
    off = spread.mean - number_of(printed)
    # a value on the very edge is within, whatever the last bit of the difference
    room = None if spread.std is None else spread.std + half_unit(printed) + 1e-9
    return off, None if room is None else abs(off) <= room


def _spread_table(layout: Layout, name: str, found: Mapping[At, Chosen]) -> Table:
    """The tiny models' second form. It has no values of the paper, which are not comparable."""
    rows = []
    for index in sorted({index for _, index in found}):
        column = layout.columns[index]
        for number in range(len(layout.rows)):
            chosen = found.get((number, index))
            loss = spread_of(chosen, "loss", layout.loss_digits + 1)
            score = spread_of(chosen, score_of(column.task), 2)
            rows.append((column.head, layout.name(number, found), loss, score))
    heads = (layout.groups, "Adaptation", "loss", _scores(layout))
    title = f"{name} with standard deviations: {layout.title}"
    return table_of(f"{layout.key}-spread", title, heads, rows, SPREAD_NOTE)


# -------------------------------------------------------------------------------- other models'
def _model_tables(model: str, found: Mapping[Cell, Chosen], selection: Selection) -> list[Table]:
    """One model's cells that stand in none of the paper's tables, in the same layout."""
    lines, tasks = lines_and_tasks(found)
    with_n = len({len(chosen.runs) for chosen in found.values() if chosen.runs}) > 1
    headings = _headings([(task_name(task) + _cap(task, found), task) for task in tasks])
    rows = []
    for line in lines:
        cells = [row_name(*line)]
        for task in tasks:
            chosen = found.get(Cell(model, task, *line))
            cells.append(spread_of(chosen, "loss", 3, with_n=with_n))
            cells.append(spread_of(chosen, score_of(task), 1, with_n=with_n))
        rows.append(tuple(cells))
    about = _notes([*found.values()], [(model, task) for task in tasks], False, selection)
    notes = (SPREAD_NOTE if with_n else SPREAD_NOTE.replace(" (seeds)", ""), *about)
    title = f"{model}: test loss and accuracy"
    if model in (*MODELS, *TINY_MODELS):
        title += " of runs that have no place in the paper's tables"
    ordered = [
        (task_name(task), found[cell])
        for task in tasks
        for line in lines
        if (cell := Cell(model, task, *line)) in found
    ]
    return [
        Table(f"model-{model}", title, headings, tuple(rows), notes),
        _settings(f"model-{model}", f"{model}: settings chosen", "Task", ordered),
    ]


def _settings(key: str, title: str, groups: str, lines: list[tuple[str, Chosen]]) -> Table:
    heads = ("learning rate", "batch size", "epochs", "scalars trained", "settings compared",
             "dev loss")  # fmt: skip
    rows = []
    for head, chosen in lines:
        if chosen.runs:
            train, cell = chosen.runs[0].train, chosen.cell
            raced = settings_text(chosen.raced) if chosen.raced else ""
            rows.append((
                head, row_name(cell.method, cell.density), rate_text(train["learning_rate"]),
                f"{train['batch_size']:g}", f"{train['epochs']:g}", f"{chosen.trained:,.0f}",
                raced or f"{chosen.settings_compared:,}", spread_of(chosen, "loss", 4, "dev"),
            ))  # fmt: skip
    note = (
        "Of the settings compared, the one with the lowest mean dev loss is shown; no test score "
        "took part in the choice."
    )
    return table_of(f"settings-{key}", title, (groups, "Adaptation", *heads), rows, note)


def _cap(task: str, found: Mapping[Cell, Chosen]) -> str:
    """What of the examples training used, in a heading: ` (first 16,000)` or ` (16,000 drawn)`."""
    caps = set()
    for cell, chosen in found.items():
        for run in chosen.runs if cell.task == task else ():
            settings, data = run.raw["config"]["task"], run.raw["data"]
            cap = settings.get("max_train_examples")
            drawn = settings.get("cap_takes") == "random"
            text = f"{cap:,} drawn" if drawn and cap else f"first {cap:,}" if cap else "all"
            caps.add(text if data["train"] + data["train_dropped"] == cap else "all")
    return "" if caps <= {"all"} else f" ({' or '.join(sorted(caps))})"


# ------------------------------------------------------------------- what is said of the records
def summary(read: int, unread: Sequence[Excluded], selection: Selection) -> str:
    """How many records were found, used and left out, and why."""
    excluded = [*selection.excluded, *unread]
    failed = sum(chosen.failed for chosen in selection.cells.values())
    stopped = sum(chosen.stopped for chosen in selection.cells.values())
    raced = f"{stopped:,} stopped by a race, " if stopped else ""
    line = (
        f"{counted(read + len(unread), 'record')} found: {selection.used:,} used, "
        f"{len(selection.not_selected):,} of settings with a higher dev loss, "
        f"{failed:,} failed, {raced}{len(excluded):,} left out."
    )
    reasons = Counter(one.reason for one in excluded).most_common()
    return "\n".join([line, *(f"- left out, {number:,}: {reason}" for reason, number in reasons)])


def missing(tables: Sequence[Table]) -> list[str]:
    """Which of the paper's tables there was nothing for."""
    keys = {table.key for table in tables}
    lines = []
    for what, numbers in {
        "records": [one.number for one in LAYOUTS if not one.tiny],
        "plans": list(COUNTED),
    }.items():
        if lacking := [str(number) for number in numbers if f"table{number}" not in keys]:
            lines.append(f"no {what} for the paper's tables: {', '.join(lacking)}")
    return lines


def merge_notes(merges: Mapping[str, Sequence[Merge]], unread: Sequence[Excluded]) -> list[str]:
    """How many pairs of merged runs there were, and why others were left out."""
    if not merges and not unread:
        return []
    pairs = f"{counted(sum(map(len, merges.values())), 'pair')} of merged runs"
    counts = Counter(left.reason for left in unread).most_common()
    return ["; ".join([pairs, *(f"{number:,} left out: {reason}" for reason, number in counts)])]


def overview(tables: Sequence[Table], summary: str, notes: Sequence[str]) -> str:
    """The text of `tables.md`: the summary, the notes and all tables."""
    lines = "\n".join([summary, *(f"- {note}" for note in notes)])
    return "\n".join(["# Tables\n", lines + "\n", *map(as_markdown, tables)])


def tables_as_json(
    tables: Sequence[Table],
    read: int,
    unread: Sequence[Excluded],
    selection: Selection,
    faults: Sequence[str],
) -> str:
    """The tables, and the counts of records, as one JSON object."""
    excluded = [*selection.excluded, *unread]
    records = {
        "found": read + len(unread),
        "used": selection.used,
        "outdone": len(selection.not_selected),
        "failed": sum(chosen.failed for chosen in selection.cells.values()),
        "stopped": sum(chosen.stopped for chosen in selection.cells.values()),
        "left_out": [{"path": str(one.path), "reason": one.reason} for one in excluded],
    }
    listed = [
        {"key": table.key, "title": table.title, "headings": flat_headings(table),
         "rows": table.rows, "notes": table.notes}
        for table in tables
    ]  # fmt: skip
    value = {"records": records, "plans_not_read": list(faults), "tables": listed}
    return json.dumps(value, indent=2)
