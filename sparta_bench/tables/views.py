"""What the paper lacks: ranks with ties, a test of SpaRTA against LoRA, score over density."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from sparta_bench.records.record import Cell
from sparta_bench.tables.format import MISSING, SCALE, signed, spread_of
from sparta_bench.tables.paper_tables import LAYOUTS, percent, row_name, score_of, task_name
from sparta_bench.tables.protocol import TASKS, TWIN_TASKS
from sparta_bench.tables.select import Chosen, Spread
from sparta_bench.tables.student import Paired, holm, paired_test
from sparta_bench.tables.table import Heading, Table

Line = tuple[str, float | None]  # method and density
METHOD_ORDER = ("full_ft", "sparta", "lora", "head")
SAME_COUNT = 0.1  # two methods have "equal parameter counts" within this share of LoRA's


def lines_and_tasks(cells: Iterable[Cell]) -> tuple[list[Line], list[str]]:
    """Methods and densities in the paper's order of rows, and tasks in that of its columns."""
    found = list(cells)
    lines = sorted({(cell.method, cell.density) for cell in found}, key=line_order)
    order = (*TASKS, *TWIN_TASKS)
    tasks = sorted(
        {cell.task for cell in found},
        key=lambda task: (order.index(task) if task in order else len(order), task),
    )
    return lines, tasks


def line_order(line: Line) -> tuple[int, str, float]:
    """What sorts methods and densities as the paper has its rows."""
    method, density = line
    place = METHOD_ORDER.index(method) if method in METHOD_ORDER else len(METHOD_ORDER)
    return place, method, -(density or 0.0)


def views_of(model: str, cells: dict[Cell, Chosen]) -> list[Table]:
    """The comparisons within one model for which there are records enough."""
    done = {cell: chosen for cell, chosen in cells.items() if chosen.runs}
    tables = [_ranks(model, done), _against_lora(model, done), _over_density(model, done)]
    return [table for table in tables if table is not None]


# --------------------------------------------------------------------------------------- ranks
def _ranks(model: str, done: dict[Cell, Chosen]) -> Table | None:
    order = sorted(done, key=lambda cell: line_order((cell.method, cell.density)))
    names = list(dict.fromkeys(map(_rank_name, order)))
    tasks = lines_and_tasks(done)[1]
    if len(names) < 2:
        return None
    by_task: list[dict[str, int]] = []
    for task in tasks:
        of_task = {cell: chosen for cell, chosen in done.items() if cell.task == task}
        by_task.append(
            ranks_of(
                {
                    _rank_name(cell): chosen.over_seeds("test", score_of(task))
                    for cell, chosen in of_task.items()
                }
            )
        )
    with_mean = len(tasks) > 1
    rows = []
    for name in names:
        ranks = [found.get(name) for found in by_task]
        row = [name, *(MISSING if rank is None else str(rank) for rank in ranks)]
        if with_mean:
            full = [rank for rank in ranks if rank is not None]
            row.append(f"{statistics.fmean(full):.1f}" if len(full) == len(ranks) else MISSING)
        rows.append(tuple(row))
    heads = ("", *map(task_name, tasks), *(("mean",) if with_mean else ()))
    notes = [
        "By the mean test score (accuracy; mcc for COLA), 1 is the best. A method shares the rank "
        "of the best one of a group if its mean is no further below than the larger of their two "
        "standard deviations over seeds."
    ]
    if any(len(chosen.runs) == 1 for chosen in done.values()):
        notes.append("Where there is one seed no tie can be told, and its rank may be chance.")
    title = f"{model}: ranks of the methods"
    return Table(f"ranks-{model}", title, (tuple(map(Heading, heads)),), tuple(rows), tuple(notes))


# IMDB's density at LoRA's count is not quite that of GLUE's tables, and yet the same row.
_AT_LORAS_COUNT = {
    layout.cell(row, column)
    for layout in LAYOUTS
    for row in layout.rows
    if row.id == "sparta-lora"
    for column in layout.columns
}


def _rank_name(cell: Cell) -> str:
    if cell in _AT_LORAS_COUNT:
        return "SpaRTA (LoRA's count)"
    return row_name(cell.method, cell.density)


def ranks_of(scores: dict[str, Spread]) -> dict[str, int]:
    """1 for the highest mean; ties as the note of the table says, then as many places are left."""
    ranks: dict[str, int] = {}
    leader = ""
    for place, name in enumerate(sorted(scores, key=lambda name: -scores[name].mean), start=1):
        if leader and _tied(scores[leader], scores[name]):
            ranks[name] = ranks[leader]
        else:
            ranks[name], leader = place, name
    return ranks


def _tied(best: Spread, other: Spread) -> bool:
    return best.mean - other.mean <= max(best.std or 0.0, other.std or 0.0) + 1e-12


# ------------------------------------------------------------------------------- SpaRTA and LoRA
@dataclass(frozen=True, slots=True)
class _Comparison:
    task: str
    metric: str
    density: float
    test: Paired


def _against_lora(model: str, done: dict[Cell, Chosen]) -> Table | None:
    found: list[_Comparison] = []
    for task in lines_and_tasks(done)[1]:
        lora = done.get(Cell(model, task, "lora", None))
        sparta = None if lora is None else _like_lora(lora, done)
        if lora is None or sparta is None:
            continue
        for metric in ("loss", score_of(task)):
            differences = _differences(sparta, lora, metric)
            density = sparta.cell.density
            if differences and density is not None:
                found.append(_Comparison(task, metric, density, paired_test(differences)))
    if not found:
        return None
    adjusted = _adjusted(found)
    rows = tuple(_comparison_row(one, p) for one, p in zip(found, adjusted, strict=True))
    heads = ("Task", "metric", "SpaRTA", "seeds", "SpaRTA less LoRA", "95 % interval", "t", "p",
             "p, Holm")  # fmt: skip
    notes = (
        f"SpaRTA with LoRA's parameter count (within {SAME_COUNT:.0%}) less LoRA, on test, paired "
        "by the seeds that both have; accuracy and mcc × 100. A negative difference of the loss "
        "and a positive one of the score speak for SpaRTA.",
        "Paired t test, two-sided, n - 1 degrees of freedom; Holm's correction over the tasks of "
        "this table, for loss and score apart. With three seeds it rests on the differences being "
        "normal, which three values cannot show; a test without that assumption (sign flips) "
        "cannot come below p = 0.25 then. Read the interval first. It is about seeds alone: the "
        "test set is the same in all runs, and its own sampling error is not in it.",
    )
    title = f"{model}: SpaRTA against LoRA at equal parameter count"
    return Table(f"lora-{model}", title, (tuple(map(Heading, heads)),), rows, notes)


def _like_lora(lora: Chosen, done: dict[Cell, Chosen]) -> Chosen | None:
    """The SpaRTA of that model and task whose number of trained scalars is nearest to LoRA's."""
    wanted = _trained(lora)
    near = [
        chosen
        for cell, chosen in done.items()
        if (cell.model, cell.task, cell.method) == (lora.cell.model, lora.cell.task, "sparta")
        and abs(_trained(chosen) - wanted) <= SAME_COUNT * wanted
    ]
    return min(near, key=lambda chosen: abs(_trained(chosen) - wanted), default=None)


def _trained(chosen: Chosen) -> float:
    return statistics.fmean(run.raw["parameters"]["trainable"] for run in chosen.runs)


def _differences(first: Chosen, second: Chosen, metric: str) -> list[float]:
    """By the seeds that both have, as the paper prints the metric."""
    by_seed = {run.seed: run for run in second.runs}
    return [
        SCALE[metric] * (run.score("test", metric) - by_seed[run.seed].score("test", metric))
        for run in first.runs
        if run.seed in by_seed
    ]


def _adjusted(found: list[_Comparison]) -> list[float | None]:
    adjusted: list[float | None] = [None] * len(found)
    for is_loss in (True, False):
        family = [
            (place, one.test.p)
            for place, one in enumerate(found)
            if (one.metric == "loss") == is_loss and one.test.p is not None
        ]
        for (place, _), p in zip(family, holm([p for _, p in family]), strict=True):
            adjusted[place] = p
    return adjusted


def _comparison_row(one: _Comparison, adjusted: float | None) -> tuple[str, ...]:
    test, digits = one.test, 4 if one.metric == "loss" else 2
    interval = MISSING
    if test.half_interval is not None:
        low, high = test.mean - test.half_interval, test.mean + test.half_interval
        interval = f"{signed(low, digits)} to {signed(high, digits)}"
    return (
        task_name(one.task),
        one.metric,
        percent(one.density),
        str(test.n),
        signed(test.mean, digits),
        interval,
        MISSING if test.t is None else signed(test.t, 2),
        _p_text(test.p),
        _p_text(adjusted),
    )


def _p_text(p: float | None) -> str:
    if p is None:
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


# ---------------------------------------------------------------------------- score over density
def _over_density(model: str, done: dict[Cell, Chosen]) -> Table | None:
    lines, tasks = lines_and_tasks(
        cell for cell in done if cell.method == "sparta" and cell.density is not None
    )
    if len(lines) < 2:
        return None
    rows = tuple(
        (
            percent(density or 0.0),
            *(
                spread_of(done.get(Cell(model, task, method, density)), score_of(task), 1)
                for task in tasks
            ),
        )
        for method, density in lines
    )
    heads = ("density", *map(task_name, tasks))
    title = f"{model}: SpaRTA's test score over density"
    notes = ("Accuracy, for COLA mcc, × 100: mean ± standard deviation (seeds).",)
    return Table(f"density-{model}", title, (tuple(map(Heading, heads)),), rows, notes)
