"""What the paper lacks: ranks with ties, a test of SpaRTA against LoRA, score over density."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparta_bench.records.record import Cell
from sparta_bench.tables.paper_tables import (
    LAYOUTS,
    MISSING,
    SCALE,
    lines_and_tasks,
    percent,
    row_name,
    score_of,
    spread_of,
    task_name,
)
from sparta_bench.tables.select import Chosen, Spread
from sparta_bench.tables.table import Table, table_of
from sparta_bench.text import signed

SAME_COUNT = 0.1  # two methods have "equal parameter counts" within this share of LoRA's


def views_of(model: str, cells: Mapping[Cell, Chosen]) -> list[Table]:
    """The comparisons within one model for which there are records enough."""
    done = {cell: chosen for cell, chosen in cells.items() if chosen.runs}
    tables = [_ranks(model, done), _against_lora(model, done), _over_density(model, done)]
    return [table for table in tables if table is not None]


# --------------------------------------------------------------------------------------- ranks
def _ranks(model: str, done: Mapping[Cell, Chosen]) -> Table | None:
    lines, tasks = lines_and_tasks(done)
    at_loras_count = {  # what a table of the paper, or of tiny models, has in that row
        chosen.cell
        for layout in LAYOUTS
        for (row, _), chosen in layout.take(dict(done)).items()
        if layout.rows[row].id == "sparta-lora"
    }
    by_task: dict[str, dict[str, Spread]] = {task: {} for task in tasks}
    names: dict[str, None] = {}
    for line in lines:
        for task in tasks:
            cell = Cell(model, task, *line)
            if cell in done:
                # IMDB's density at LoRA's count is not quite that of GLUE's, and yet the same row
                name = "SpaRTA (LoRA's count)" if cell in at_loras_count else row_name(*line)
                names[name] = None
                by_task[task][name] = done[cell].over_seeds("test", score_of(task))
    if len(names) < 2:
        return None
    rows = []
    for name in names:
        ranks = [ranks_of(scores).get(name) for scores in by_task.values()]
        full = [rank for rank in ranks if rank is not None]
        row = [name, *(MISSING if rank is None else str(rank) for rank in ranks)]
        if len(tasks) > 1:
            row.append(f"{statistics.fmean(full):.1f}" if len(full) == len(ranks) else MISSING)
        rows.append(row)
    heads = ("", *map(task_name, tasks), *(("mean",) if len(tasks) > 1 else ()))
    notes = [
        "By the mean test score (accuracy; mcc for COLA), 1 is the best. A method shares the rank "
        "of the best one of a group if its mean is no further below than the larger of their two "
        "standard deviations over seeds."
    ]
    if any(len(chosen.runs) == 1 for chosen in done.values()):
        notes.append("Where there is one seed no tie can be told, and its rank may be chance.")
    return table_of(f"ranks-{model}", f"{model}: ranks of the methods", heads, rows, *notes)


def ranks_of(scores: Mapping[str, Spread]) -> dict[str, int]:
    """1 for the highest mean; ties as the note of the table says, then as many ranks are left."""
    ranks: dict[str, int] = {}
    leader = ""
    for rank, name in enumerate(sorted(scores, key=lambda name: -scores[name].mean), start=1):
        if leader and scores[leader].is_level_with(scores[name], 1e-12):
            ranks[name] = ranks[leader]
        else:
            ranks[name], leader = rank, name
    return ranks


# ------------------------------------------------------------------------------- SpaRTA and LoRA
@dataclass(frozen=True, slots=True)
class Paired:
    """Of n differences: mean, half length of its 95 % interval, t and two-sided p.

    All but the mean are None where they are not defined: of one difference, or of equal ones.
    """

    n: int
    mean: float
    half_interval: float | None
    t: float | None
    p: float | None


def paired_test(differences: Sequence[float]) -> Paired:
    """The t test that the mean of the differences is 0, with n - 1 degrees of freedom."""
    n, mean = len(differences), statistics.fmean(differences)
    std = statistics.stdev(differences) if n > 1 else 0.0
    if std <= 1e-12 * max(map(abs, differences), default=0.0) or std == 0:
        return Paired(n, mean, None, None, None)
    from scipy.special import stdtr, stdtrit  # half a second, which most tables do not need

    error = std / math.sqrt(n)
    t = mean / error
    half_interval = float(stdtrit(n - 1, 0.975)) * error
    return Paired(n, mean, half_interval, t, float(2 * stdtr(n - 1, -abs(t))))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: below 0.05, a difference stands up beside all the others."""
    order = sorted(range(len(ps)), key=lambda index: ps[index])
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = least
    return adjusted


def like_lora(lora: Chosen, done: Mapping[Cell, Chosen]) -> Chosen | None:
    """The SpaRTA of that model and task whose number of trained scalars is nearest to LoRA's."""
    near = [
        chosen
        for cell, chosen in done.items()
        if cell[:3] == (lora.cell.model, lora.cell.task, "sparta")
        and chosen.runs
        and abs(chosen.trained - lora.trained) <= SAME_COUNT * lora.trained
    ]
    return min(near, key=lambda chosen: abs(chosen.trained - lora.trained), default=None)


def _against_lora(model: str, done: Mapping[Cell, Chosen]) -> Table | None:
    rows: list[tuple[str, ...]] = []
    ps: dict[bool, dict[int, float]] = {True: {}, False: {}}  # of losses, of scores: by row
    for task in lines_and_tasks(done)[1]:
        lora = done.get(Cell(model, task, "lora", None))
        sparta = lora and like_lora(lora, done)
        if lora is None or sparta is None or sparta.cell.density is None:
            continue
        by_seed = {run.seed: run for run in lora.runs}
        for metric in ("loss", score_of(task)):
            differences = [  # as the paper prints the metric
                SCALE[metric]
                * (run.score("test", metric) - by_seed[run.seed].score("test", metric))
                for run in sparta.runs
                if run.seed in by_seed
            ]
            if not differences:
                continue
            test, digits, interval = paired_test(differences), 4 if metric == "loss" else 2, MISSING
            if test.p is not None:
                ps[metric == "loss"][len(rows)] = test.p
            if test.half_interval is not None:
                ends = (test.mean - test.half_interval, test.mean + test.half_interval)
                interval = " to ".join(signed(end, digits) for end in ends)
            t = MISSING if test.t is None else signed(test.t, 2)
            names = (task_name(task), metric, percent(sparta.cell.density), str(test.n))
            rows.append((*names, signed(test.mean, digits), interval, t, _p_text(test.p)))
    if not rows:
        return None
    adjusted: dict[int, float] = {}
    for family in ps.values():
        adjusted |= dict(zip(family, holm(list(family.values())), strict=True))
    rows = [(*row, _p_text(adjusted.get(number))) for number, row in enumerate(rows)]
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
    return table_of(f"lora-{model}", title, heads, rows, *notes)


def _p_text(p: float | None) -> str:
    return MISSING if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


# ---------------------------------------------------------------------------- score over density
def _over_density(model: str, done: Mapping[Cell, Chosen]) -> Table | None:
    lines, tasks = lines_and_tasks(cell for cell in done if cell.method == "sparta")
    if len(lines) < 2:
        return None
    rows = []
    for method, density in lines:
        cells = [done.get(Cell(model, task, method, density)) for task in tasks]
        scores = (spread_of(one, score_of(task), 1) for task, one in zip(tasks, cells, strict=True))
        rows.append((percent(density or 0.0), *scores))
    title = f"{model}: SpaRTA's test score over density"
    note = "Accuracy, for COLA mcc, × 100: mean ± standard deviation (seeds)."
    return table_of(f"density-{model}", title, ("density", *map(task_name, tasks)), rows, note)
