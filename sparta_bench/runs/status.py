"""How far the sweeps of each table are, from records and locks; no torch."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from sparta_bench.config.sweeps import Sweep, sweeps_of
from sparta_bench.records.read import (
    files_below,
    read_races,
    read_record,
    read_records,
    seconds_of,
)
from sparta_bench.records.record import (
    LOCK,
    NOT_IN_RUN_ID,
    PROTOCOL,
    RUNNING,
    Cell,
    Record,
    Setting,
)
from sparta_bench.runs.lock import is_held
from sparta_bench.runs.race import share_done
from sparta_bench.runs.time_estimates import Times
from sparta_bench.tables.paper_tables import LAYOUTS
from sparta_bench.tables.protocol import reason_against

VARIED = ("train.learning_rate", "train.batch_size")  # what a sweep may go through
# what changes no outcome, and what older records lack
NOT_COMPARED = (*NOT_IN_RUN_ID["train"], "share_prefix")


class Run(NamedTuple):
    """A run of a sweep: its cell, its seed, and the values of `VARIED`, None of what is fixed."""

    cell: Cell
    seed: int
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Progress:
    """Of one table: its cells (model, task, method, density) and its runs."""

    table: str
    cells: int
    cells_done: int  # all runs of the grid are there
    runs: int
    done: int
    running: int
    failed: int
    missing: int
    outdated: int  # of those not done: completed under another protocol
    stopped: int  # by a race
    not_needed: int  # by a race that is decided
    run_equivalents: float  # runs done, and of those stopped the share of their steps
    seconds_left: float | None  # for one process; None before the first run of some kind


def progress(folders: list[Path]) -> list[Progress]:
    """Of every table that has sweeps, in the order of the paper, the tiny models' last."""
    records, _ = read_records(folders)
    usable = [record for record in records if reason_against(record) is None]
    # a run whose lock is held is at work at this moment
    paths = [Path(name) for folder in folders for name in files_below(folder, RUNNING)]
    races = read_races(folders)
    started = [read_record(path) for path in paths if is_held(path.parent / LOCK)]
    running = [record for record in started if isinstance(record, Record)]
    return [_of_table(layout.key, usable, running, races) for layout in LAYOUTS]


def _of_table(
    key: str, records: list[Record], running: list[Record], races: list[list[Setting]]
) -> Progress:
    sweeps = {sweep.method: sweep for sweep in sweeps_of(key)}
    wanted = {run for sweep in sweeps.values() for run in _runs(sweep)}

    def runs_of(records: Iterable[Record]) -> set[Run]:
        return {run for record in records if (run := _run_of(record, sweeps)) in wanted}

    current = [record for record in records if record.raw.get("protocol") == PROTOCOL]
    completed = [record for record in records if record.status == "completed"]
    done = runs_of(record for record in current if record.status == "completed")
    at_work = runs_of(running) - done
    failed = runs_of(record for record in current if record.status == "failed") - done - at_work
    outdated = runs_of(record for record in completed if record.raw.get("protocol") != PROTOCOL)
    ended = {run: record for record in current if record.status == "stopped"
             and (run := _run_of(record, sweeps)) in wanted - done - at_work}  # fmt: skip
    by_run_id = {record.run_id: record for record in current}
    decided = {run for race in races for run in _runs_of_race(race, by_run_id, sweeps)} & wanted
    not_needed = decided - done - at_work - failed - ended.keys()
    left = wanted - done - ended.keys() - not_needed
    cells = {run.cell for run in wanted}
    times = Times()
    for record in completed:
        times.add(_kinds(record.cell), seconds_of(record.raw))
    return Progress(
        table=key,
        cells=len(cells),
        # a cell whose race goes on has runs stopped, of which none is the last
        cells_done=len(cells - {run.cell for run in left | (ended.keys() - decided)}),
        runs=len(wanted),
        done=len(done),
        running=len(at_work),
        failed=len(failed),
        missing=len(left - at_work - failed),
        outdated=len(left & outdated),
        stopped=len(ended),
        not_needed=len(not_needed),
        run_equivalents=round(
            len(done) + math.fsum(share_done(record.raw) for record in ended.values()), 2
        ),
        seconds_left=times.left(_kinds(run.cell) for run in left),
    )


def _kinds(cell: Cell) -> tuple[Hashable, ...]:
    """Runs of a cell take about as long, else those of its model, task and method."""
    return cell, cell[:3]


def _runs(sweep: Sweep) -> Iterable[Run]:
    axes = sweep.axes
    densities = axes.get("method.density", [None])
    varied = [axes.get(key, [None]) for key in VARIED]
    for model, task, density in product(axes["model"], axes["task"], densities):
        for seed, *values in product(axes["seed"], *varied):
            yield Run(Cell(model, task, sweep.method, density), seed, tuple(values))


def _run_of(record: Record, sweeps: Mapping[str, Sweep]) -> Run | None:
    """The run that the record is of, if its settings are those of a sweep."""
    # the embedded tasks use all of their data; the paper's have been looked at already
    whole = (
        not record.cell.task.startswith("tiny-")
        or record.raw["config"]["task"].get("max_train_examples") is None
    )
    return _run_with(record.cell, record.seed, record.train, sweeps) if whole else None


def _runs_of_race(
    race: list[Setting], records: Mapping[str, Record], sweeps: Mapping[str, Sweep]
) -> Iterable[Run]:
    """The runs of a race that are of a sweep, those too that were not needed."""
    made = (records.get(setting.first) for setting in race)
    first = next((record for record in made if record is not None), None)
    if first is None or _run_of(first, sweeps) is None:
        return
    for setting in race:
        for seed in setting.run_ids:
            if run := _run_with(first.cell, seed, setting.train, sweeps):
                yield run


def _run_with(
    cell: Cell, seed: int, train: Mapping[str, Any], sweeps: Mapping[str, Sweep]
) -> Run | None:
    """The run of a cell with these settings of training, if they are those of a sweep."""
    sweep = sweeps.get(cell.method)
    if sweep is None or any(
        getattr(cell, axis) not in sweep.axes[axis] for axis in ("model", "task")
    ):
        return None
    varied = [key.removeprefix("train.") for key in VARIED if key in sweep.axes]
    fixed = sweep.train(cell.model, cell.task, cell.density)
    if any(
        train.get(key) != value
        for key, value in fixed.items()
        if key not in (*varied, *NOT_COMPARED)
    ):
        return None
    values = (train[key.removeprefix("train.")] if key in sweep.axes else None for key in VARIED)
    return Run(cell, seed, tuple(values))
