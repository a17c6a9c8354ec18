"""From a selection of records to tables: the paper's, the tiny models', and other models'."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from sparta_bench.paper import half_unit, number_of, results_of, rows_of
from sparta_bench.records.races import settings_text
from sparta_bench.records.record import Cell
from sparta_bench.tables.format import (
    MISSING,
    SCALE,
    mean_of,
    rate_text,
    seeds_differ,
    spread_of,
)
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
from sparta_bench.tables.protocol import MODELS, TINY_MODELS
from sparta_bench.tables.select import Ahead, Chosen, Selection
from sparta_bench.tables.table import Heading, Table, table_of
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
    usage = _Usage(selection)
    rest = dict(selection.cells)
    tables: list[Table] = []
    for layout in LAYOUTS:
        if found := layout.take(rest):
            tables += [_marked(table, layout.tiny) for table in _tables_of(layout, found, usage)]
    for cells, make in ((rest, usage.model_tables), (selection.cells, views_of)):
        for model in sorted({cell.model for cell in cells}, key=model_order):
            of_model = {cell: chosen for cell, chosen in cells.items() if cell.model == model}
            tables += [_of_model(table, model) for table in make(model, of_model)]
    return _with_own_keys(tables)


class _Usage:
    """What became of the records, by cell, and by model and task."""

    def __init__(self, selection: Selection) -> None:
        self.not_selected = Counter(record.cell for record in selection.not_selected)
        self.excluded: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for left in selection.excluded:
            if left.cell is not None:
                self.excluded[left.cell.model, left.cell.task][left.reason] += 1

    def notes(
        self, found: Iterable[Chosen], columns: Iterable[tuple[str, str]], by_model: bool
    ) -> list[str]:
        """Of the cells of one table, whose columns are of a model and a task each."""
        cells = list(found)
        not_selected = sum(self.not_selected[chosen.cell] for chosen in cells)
        failed = sum(chosen.failed for chosen in cells)
        parts = [f"{counted(sum(len(chosen.runs) for chosen in cells), 'record')} used"]
        if not_selected:
            parts.append(f"{not_selected:,} of settings with a higher dev loss")
        if failed:
            parts.append(f"{failed:,} failed")
        if stopped := sum(chosen.stopped for chosen in cells):
            parts.append(f"{stopped:,} stopped by a race")
        notes = [*_seed_notes(cells, by_model), "; ".join(parts) + "."]
        notes += _race_notes(cells)
        notes += [_ahead_note(one, one.ahead, by_model) for one in cells if one.ahead]
        excluded = sum((self.excluded.get(at, Counter()) for at in columns), Counter[str]())
        if excluded:
            why = "; ".join(f"{number:,}: {reason}" for reason, number in excluded.most_common())
            notes.append(f"{counted(excluded.total(), 'record')} left out: {why}.")
        return notes

    def model_tables(self, model: str, found: dict[Cell, Chosen]) -> list[Table]:
        """One model's cells that stand in none of the paper's tables, in the same layout."""
        lines, tasks = lines_and_tasks(found)
        with_n = seeds_differ(found.values())
        headings = _headings([(task_name(task) + _cap(task, found), task) for task in tasks])
        rows = []
        for line in lines:
            cells = [row_name(*line)]
            for task in tasks:
                chosen = found.get(Cell(model, task, *line))
                cells.append(spread_of(chosen, "loss", 3, with_n=with_n))
                cells.append(spread_of(chosen, score_of(task), 1, with_n=with_n))
            rows.append(tuple(cells))
        about = self.notes(found.values(), [(model, task) for task in tasks], by_model=False)
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


def _race_notes(cells: Iterable[Chosen]) -> list[str]:
    """What the races of the cells have compared, all taken together."""
    raced = [chosen for chosen in cells if chosen.raced]
    if not raced:
        return []
    seeds = sorted({len(chosen.runs) for chosen in raced})
    statuses = (status for chosen in raced for status in chosen.raced)
    cells_text = f" of {counted(len(raced), 'cell')}" if len(raced) > 1 else ""
    best = f"{' or '.join(map(str, seeds))} {'seed' if seeds == [1] else 'seeds'} of the best"
    return [f"Raced (search=race){cells_text}: {settings_text(statuses)}; {best}."]


def _ahead_note(chosen: Chosen, ahead: Ahead, by_model: bool) -> str:
    """Which setting looks better than the one shown, and was not compared."""
    cell, train = chosen.cell, ahead.runs[0].train
    return (
        f"* {row_name(cell.method, cell.density)} on "
        f"{cell.model if by_model else task_name(cell.task)}: rate "
        f"{rate_text(train['learning_rate'])}, batch size {train['batch_size']:g}, epochs "
        f"{train['epochs']:g} was not compared, since it has {counted(len(ahead.runs), 'seed')} "
        f"and the setting shown {len(chosen.runs)}; its dev loss is lower"
        f"{' on the same seeds' if ahead.paired else ''}: {ahead.loss:.4f}, not "
        f"{ahead.shown_loss:.4f}. Run its other seeds."
    )


def _seed_notes(cells: list[Chosen], by_model: bool) -> list[str]:
    by_number: dict[int, list[Cell]] = defaultdict(list)
    for chosen in cells:
        if chosen.runs:
            by_number[len(chosen.runs)].append(chosen.cell)
    if not by_number:
        return []
    most = max(by_number, key=lambda number: (len(by_number[number]), number))
    others = [
        f"{number} for {row_name(cell.method, cell.density)} on "
        + (cell.model if by_model else task_name(cell.task))
        for number in sorted(by_number)
        if number != most
        for cell in by_number[number]
    ]
    if len(others) > MOST_NAMED:
        others = [f"another number for {len(others)} cells"]
    return ["; ".join([f"Seeds: {most}", *others]) + "."]


# ------------------------------------------------------------- the paper's, and the tiny models'
def _tables_of(layout: Layout, found: dict[At, Chosen], usage: _Usage) -> list[Table]:
    name = f"Our Table {layout.number}"
    if layout.tiny:
        name = f"Table {layout.number} with tiny models (0.2 million parameters, generated text)"
    by_column = sorted(found.items(), key=lambda item: item[0][::-1])
    about = usage.notes(
        (chosen for _, chosen in by_column),
        [(column.model, column.task) for column in layout.columns],
        layout.groups == "Model",
    )
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
    for place, column in enumerate(layout.columns):
        chosen = found.get((number, place))
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
    if "gemma-2-2b" in named.get(str(layout.number), ""):
        notes.append(
            f"The paper's heading says {named[str(layout.number)]}; its counts are those of "
            f"google/{layout.columns[0].model}."
        )
    return notes


def _beside(layout: Layout, name: str, found: Mapping[At, Chosen]) -> Table:
    """Ours and the paper's: a line for each column and row of the table."""
    four = ("ours", "paper", "difference", "within")
    headings = (
        (Heading(""), Heading(""), Heading("loss", 4), Heading(_scores(layout), 4)),
        (Heading(layout.groups), Heading("Adaptation"), *map(Heading, four * 2)),
    )
    rows = []
    for place, column in enumerate(layout.columns):
        for number, row in enumerate(layout.rows):
            cells = [column.head, layout.name(number, found)]
            for metric in ("loss", score_of(column.task)):
                printed = layout.paper(row, column, metric)
                cells += _four(found.get((number, place)), metric, printed)
            rows.append(tuple(cells))
    title = f"{name} beside the paper: {layout.title}"
    return Table(f"{layout.key}-beside", title, headings, tuple(rows), (SPREAD_NOTE, WITHIN_NOTE))


def _scores(layout: Layout) -> str:
    return " or ".join(dict.fromkeys(HEADS[score_of(column.task)] for column in layout.columns))


def _four(chosen: Chosen | None, metric: str, printed: str) -> tuple[str, str, str, str]:
    digits = len(printed.removesuffix("%").partition(".")[2]) + 1  # one more than the paper has
    ours = spread_of(chosen, metric, digits)
    if chosen is None or not chosen.runs:
        return ours, printed, MISSING, MISSING
    off, within = beside_paper(chosen, metric, printed)
    judged = MISSING if within is None else "yes" if within else "no"
    return ours, printed, signed(off, digits), judged


def beside_paper(chosen: Chosen, metric: str, printed: str) -> tuple[float, bool | None]:
    """Ours less the paper's, as the paper prints it, and whether that is within our standard
    deviation and what the paper's rounding can hide; None of one seed, which has no spread."""
    spread = chosen.over_seeds("test", metric).times(SCALE[metric])
    off = spread.mean - number_of(printed)
    if spread.std is None:
        return off, None
    # a value on the very edge is within, whatever the last bit of the difference
    return off, abs(off) <= spread.std + half_unit(printed) + 1e-9


def _spread_table(layout: Layout, name: str, found: Mapping[At, Chosen]) -> Table:
    """The tiny models' second form. It has no values of the paper, which are not comparable."""
    rows = []
    for place in sorted({place for _, place in found}):
        column = layout.columns[place]
        for number in range(len(layout.rows)):
            chosen = found.get((number, place))
            loss = spread_of(chosen, "loss", layout.loss_digits + 1)
            score = spread_of(chosen, score_of(column.task), 2)
            rows.append((column.head, layout.name(number, found), loss, score))
    heads = (layout.groups, "Adaptation", "loss", _scores(layout))
    title = f"{name} with standard deviations: {layout.title}"
    return table_of(f"{layout.key}-spread", title, heads, rows, SPREAD_NOTE)


def _settings(key: str, title: str, groups: str, lines: list[tuple[str, Chosen]]) -> Table:
    heads = ("learning rate", "batch size", "epochs", "scalars trained", "settings compared",
             "dev loss")  # fmt: skip
    rows = []
    for head, chosen in lines:
        if not chosen.runs:
            continue
        train = chosen.runs[0].train
        rows.append(
            (
                head,
                row_name(chosen.cell.method, chosen.cell.density),
                rate_text(train["learning_rate"]),
                f"{train['batch_size']:g}",
                f"{train['epochs']:g}",
                f"{chosen.trained:,.0f}",
                settings_text(chosen.raced) if chosen.raced else f"{chosen.settings_compared:,}",
                spread_of(chosen, "loss", 4, "dev"),
            )
        )
    note = (
        "Of the settings compared, the one with the lowest mean dev loss is shown; no test score "
        "took part in the choice."
    )
    return table_of(f"settings-{key}", title, (groups, "Adaptation", *heads), rows, note)


def _of_model(table: Table, model: str) -> Table:
    if model not in TINY_MODELS:
        return table
    return _marked(replace(table, title=f"{table.title} (tiny model, generated text)"), True)


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


def _marked(table: Table, tiny: bool) -> Table:
    """The table; a tiny model's begins with the note that says so."""
    return replace(table, notes=(TINY_NOTE, *table.notes)) if tiny else table


def _with_own_keys(tables: list[Table]) -> list[Table]:
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
