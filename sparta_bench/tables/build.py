"""From a selection of records to tables: the paper's, the embedded twins', and other models'."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

from sparta_bench.paper import half_unit, number_of, results_of, rows_of
from sparta_bench.records.record import Cell
from sparta_bench.tables.format import (
    MISSING,
    SCALE,
    count,
    mean_of,
    rate_text,
    seeds_differ,
    signed,
    spread_of,
)
from sparta_bench.tables.paper_tables import (
    LAYOUTS,
    Layout,
    Row,
    percent,
    row_name,
    score_of,
    task_name,
)
from sparta_bench.tables.protocol import MODELS, TWIN_MODELS
from sparta_bench.tables.select import Chosen, Selection
from sparta_bench.tables.table import Heading, Table
from sparta_bench.tables.views import lines_and_tasks, views_of

TWIN_NOTE = (
    "Embedded twins: models of 0.2 million parameters on generated text. They show that the code "
    "does what it should, and say nothing about the paper's models."
)
SPREAD_NOTE = "Mean ± standard deviation (seeds); accuracy and mcc × 100."
HEADS = {"loss": "loss", "accuracy": "acc.", "mcc": "mcc"}


def build_tables(selection: Selection) -> list[Table]:
    """Every table that has a record: the paper's, their twins, other models', and comparisons."""
    usage = _Usage(selection)
    tables: list[Table] = []
    rest = dict(selection.cells)
    for layout in LAYOUTS:
        cells = [layout.cell(row, column) for column in layout.columns for row in layout.rows]
        found = {cell: rest.pop(cell) for cell in cells if cell in rest}
        if found:
            tables += _tables_of(layout, found, usage)
    for model in sorted({cell.model for cell in rest}, key=_model_order):
        tables += _model_tables(model, {c: rest[c] for c in rest if c.model == model}, usage)
    for model in sorted({cell.model for cell in selection.cells}, key=_model_order):
        of_model = {cell: selection.cells[cell] for cell in selection.cells if cell.model == model}
        tables += [_of_model(table, model) for table in views_of(model, of_model)]
    return _unlike_keys(tables)


class _Usage:
    """What became of the records, by cell, and by model and task."""

    def __init__(self, selection: Selection) -> None:
        self.not_selected = Counter(record.cell for record in selection.not_selected)
        self.excluded: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for left in selection.excluded:
            if left.cell is not None:
                self.excluded[left.cell.model, left.cell.task][left.reason] += 1

    def notes(
        self, cells: dict[Cell, Chosen], places: Iterable[tuple[str, str]], split_by: str
    ) -> tuple[str, ...]:
        """Of the cells of one table, whose columns are the `places` (model and task)."""
        used = sum(len(chosen.runs) for chosen in cells.values())
        not_selected = sum(self.not_selected[cell] for cell in cells)
        failed = sum(chosen.failed for chosen in cells.values())
        excluded: Counter[str] = Counter()
        for place in places:
            excluded += self.excluded.get(place, Counter())
        parts = [f"{count(used, 'record')} used"]
        if not_selected:
            parts.append(f"{not_selected:,} of settings with a higher dev loss")
        if failed:
            parts.append(f"{failed:,} failed")
        notes = [*_seed_notes(cells, split_by), "; ".join(parts) + "."]
        if excluded:
            why = "; ".join(f"{number:,}: {reason}" for reason, number in excluded.most_common())
            notes.append(f"{count(excluded.total(), 'record')} left out: {why}.")
        return tuple(notes)


def _seed_notes(cells: dict[Cell, Chosen], split_by: str) -> list[str]:
    by_number: dict[int, list[Cell]] = defaultdict(list)
    for cell, chosen in cells.items():
        if chosen.runs:
            by_number[len(chosen.runs)].append(cell)
    if not by_number:
        return []
    most = max(by_number, key=lambda number: (len(by_number[number]), number))
    others = [
        f"{number} for {_cell_name(cell, split_by)}"
        for number in sorted(by_number)
        if number != most
        for cell in by_number[number]
    ]
    told = "; ".join(others) if len(others) <= 6 else f"another number for {len(others)} cells"
    return [f"Seeds: {most}" + (f"; {told}." if others else ".")]


def _cell_name(cell: Cell, split_by: str) -> str:
    where = cell.model if split_by == "model" else task_name(cell.task)
    return f"{row_name(cell.method, cell.density)} on {where}"


# ------------------------------------------------------------------- the paper's, and the twins'
def _tables_of(layout: Layout, found: dict[Cell, Chosen], usage: _Usage) -> list[Table]:
    places = [(column.model, column.task) for column in layout.columns]
    about = usage.notes(found, places, layout.groups.lower())
    name = f"Our Table {layout.number}"
    if layout.twins:
        name = f"Twin of Table {layout.number} (0.2 million parameters, generated text)"
    title = f"{name}: test loss and accuracy of {layout.title}"
    tables = [
        Table(
            layout.key,
            title,
            _printed_headings(layout),
            tuple(_printed_row(layout, row, found) for row in layout.rows),
            (*_density_notes(layout), *about),
        ),
        _spread_table(layout, name, found) if layout.twins else _beside(layout, name, found),
        _settings(
            f"settings-{layout.key}",
            f"{name}: settings chosen for {layout.title}",
            layout.groups,
            [
                (column.head, layout.cell(row, column))
                for column in layout.columns
                for row in layout.rows
            ],
            found,
        ),
    ]
    return [_marked(table, layout.twins) for table in tables]


def _printed_headings(layout: Layout) -> tuple[tuple[Heading, ...], ...]:
    """As the paper has them; Table 3 names density and method apart."""
    first = ("Adaptation", "density (%)") if layout.number == 3 else ("",)
    over = [Heading("")] * len(first) + [Heading(column.head, 2) for column in layout.columns]
    under = [Heading(text) for text in first]
    for column in layout.columns:
        under += [Heading("loss"), Heading(HEADS[score_of(column.task)])]
    return tuple(over), tuple(under)


def _printed_row(layout: Layout, row: Row, found: dict[Cell, Chosen]) -> tuple[str, ...]:
    unit = ""
    cells = [row_name(row.method, row.density) if layout.twins else layout.label(row)]
    if layout.number == 3:
        unit = "%"
        density = MISSING if row.density is None else percent(row.density)
        cells = [layout.label(row), density if layout.twins else results_of(3)[row.id]["density"]]
    for column in layout.columns:
        chosen = found.get(layout.cell(row, column))
        cells.append(mean_of(chosen, "loss", layout.loss_digits))
        cells.append(mean_of(chosen, score_of(column.task), 1, unit))
    return tuple(cells)


def _density_notes(layout: Layout) -> tuple[str, ...]:
    density = next(row.density for row in layout.rows if row.id == "sparta-lora")
    assert density is not None
    if layout.twins:
        return (f"SpaRTA ({percent(density)}) has about LoRA's parameter count.",)
    notes = [
        f"The third row of SpaRTA ran with a density of {percent(density)}, which gives about "
        "LoRA's parameter count: the experiment that the paper has in this row."
    ]
    named = {row["table"]: row["printed"] for row in rows_of("printed_models")}
    if "gemma-2-2b" in named.get(str(layout.number), ""):
        notes.append(
            f"The paper's heading says {named[str(layout.number)]}; its counts are those of "
            f"google/{layout.columns[0].model}."
        )
    return tuple(notes)


def _beside(layout: Layout, name: str, found: dict[Cell, Chosen]) -> Table:
    """Ours and the paper's: a line for each column and row of the table."""
    four = ("ours", "paper", "difference", "within")
    scores = dict.fromkeys(HEADS[score_of(column.task)] for column in layout.columns)
    headings = (
        (Heading(""), Heading(""), Heading("loss", 4), Heading(" or ".join(scores), 4)),
        (Heading(layout.groups), Heading("Adaptation"), *map(Heading, four * 2)),
    )
    rows = []
    for column in layout.columns:
        for row in layout.rows:
            chosen = found.get(layout.cell(row, column))
            cells = [column.head, row_name(row.method, row.density)]
            for metric in ("loss", score_of(column.task)):
                cells += _four(chosen, metric, layout.paper(row, column, metric))
            rows.append(tuple(cells))
    notes = (
        SPREAD_NOTE,
        "Difference: ours less the paper's. Within: whether the paper's value lies no further from "
        "our mean than our standard deviation and half a unit of its last digit; one seed has no "
        "spread.",
    )
    return Table(
        f"{layout.key}-beside",
        f"{name} beside the paper: {layout.title}",
        headings,
        tuple(rows),
        notes,
    )


def _four(chosen: Chosen | None, metric: str, printed: str) -> tuple[str, str, str, str]:
    digits = len(printed.removesuffix("%").partition(".")[2]) + 1  # one more than the paper has
    ours = spread_of(chosen, metric, digits)
    if chosen is None or not chosen.runs:
        return ours, printed, MISSING, MISSING
    spread = chosen.over_seeds("test", metric)
    off = SCALE[metric] * spread.mean - number_of(printed)
    if spread.std is None:
        return ours, printed, signed(off, digits), MISSING
    # a value on the very edge is within, whatever the last bit of the difference
    within = abs(off) <= SCALE[metric] * spread.std + half_unit(printed) + 1e-9
    return ours, printed, signed(off, digits), "yes" if within else "no"


def _spread_table(layout: Layout, name: str, found: dict[Cell, Chosen]) -> Table:
    """The twins' second form: nothing of the paper's is beside it, for it is not comparable."""
    scores = dict.fromkeys(HEADS[score_of(column.task)] for column in layout.columns)
    heads = (layout.groups, "Adaptation", "loss", " or ".join(scores))
    with_runs = {(cell.model, cell.task) for cell in found}
    rows = []
    for column in layout.columns:
        if (column.model, column.task) not in with_runs:
            continue
        for row in layout.rows:
            chosen = found.get(layout.cell(row, column))
            loss = spread_of(chosen, "loss", layout.loss_digits + 1)
            score = spread_of(chosen, score_of(column.task), 2)
            rows.append((column.head, row_name(row.method, row.density), loss, score))
    return Table(
        f"{layout.key}-spread",
        f"{name} with standard deviations: {layout.title}",
        (tuple(map(Heading, heads)),),
        tuple(rows),
        (SPREAD_NOTE,),
    )


def _settings(
    key: str, title: str, groups: str, lines: list[tuple[str, Cell]], found: dict[Cell, Chosen]
) -> Table:
    heads = (
        "learning rate",
        "batch size",
        "epochs",
        "scalars trained",
        "settings compared",
        "dev loss",
    )
    rows = []
    for head, cell in lines:
        chosen = found.get(cell)
        if chosen is None or not chosen.runs:
            continue
        train = chosen.runs[0].train
        trained = [run.raw["parameters"]["trainable"] for run in chosen.runs]
        rows.append(
            (
                head,
                row_name(cell.method, cell.density),
                rate_text(train["learning_rate"]),
                f"{train['batch_size']:g}",
                f"{train['epochs']:g}",
                f"{round(sum(trained) / len(trained)):,}",
                f"{chosen.settings_compared:,}",
                spread_of(chosen, "loss", 4, "dev"),
            )
        )
    notes = (
        "Of the settings compared, the one with the lowest mean dev loss is shown; no test score "
        "took part in the choice.",
    )
    headings = (tuple(map(Heading, (groups, "Adaptation", *heads))),)
    return Table(key, title, headings, tuple(rows), notes)


# ------------------------------------------------------------------------------- other models
def _model_tables(model: str, found: dict[Cell, Chosen], usage: _Usage) -> list[Table]:
    """One model's cells that stand in none of the paper's tables, in the same layout."""
    lines, tasks = lines_and_tasks(found)
    over, under = [Heading("")], [Heading("")]
    for task in tasks:
        over.append(Heading(task_name(task) + _cap(task, found), 2))
        under += [Heading("loss"), Heading(HEADS[score_of(task)])]
    with_n = seeds_differ(found.values())
    rows = []
    for method, density in lines:
        cells = [row_name(method, density)]
        for task in tasks:
            chosen = found.get(Cell(model, task, method, density))
            for metric, digits in (("loss", 3), (score_of(task), 1)):
                cells.append(spread_of(chosen, metric, digits, with_n=with_n))
        rows.append(tuple(cells))
    about = usage.notes(found, [(model, task) for task in tasks], "task")
    notes = (SPREAD_NOTE if with_n else SPREAD_NOTE.replace(" (seeds)", ""), *about)
    title = f"{model}: test loss and accuracy"
    if model in (*MODELS, *TWIN_MODELS):
        title += " of runs that have no place in the paper's tables"
    places = [
        (task_name(task), Cell(model, task, method, density))
        for task in tasks
        for method, density in lines
    ]
    tables = [
        Table(f"model-{model}", title, (tuple(over), tuple(under)), tuple(rows), notes),
        _settings(f"settings-model-{model}", f"{model}: settings chosen", "Task", places, found),
    ]
    return [_of_model(table, model) for table in tables]


def _of_model(table: Table, model: str) -> Table:
    if model not in TWIN_MODELS:
        return table
    return _marked(replace(table, title=f"{table.title} (embedded twin, generated text)"), True)


def _cap(task: str, found: dict[Cell, Chosen]) -> str:
    """` (first 16,000)` where training used a part of the examples, in a heading."""
    caps = set()
    for cell, chosen in found.items():
        for run in chosen.runs if cell.task == task else ():
            cap = run.raw["config"]["task"].get("max_train_examples")
            data = run.raw["data"]
            caps.add(cap if data["train"] + data["train_dropped"] == cap else None)
    if caps <= {None}:
        return ""
    return (
        f" ({' or '.join('all' if c is None else f'first {c:,}' for c in sorted(caps, key=str))})"
    )


def _model_order(model: str) -> tuple[int, str]:
    order = (*MODELS, *TWIN_MODELS)
    return (order.index(model) if model in order else len(order)), model


def _marked(table: Table, twins: bool) -> Table:
    """The table; a twin's with the note that tells it from the paper's, first."""
    return replace(table, notes=(TWIN_NOTE, *table.notes)) if twins else table


def _unlike_keys(tables: list[Table]) -> list[Table]:
    """Keys that can name files, each once, on file systems that fold case too."""
    seen: set[str] = set()
    named = []
    for table in tables:
        key = plain = re.sub(r"[^A-Za-z0-9._+-]", "-", table.key)[:100]
        number = 1
        while key.lower() in seen:
            number += 1
            key = f"{plain}-{number}"
        seen.add(key.lower())
        named.append(replace(table, key=key))
    return named
