"""How far the sweeps of each table are, from records and locks; no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from sparta_bench.config.sweeps import Sweep, sweeps_of
from sparta_bench.records.read import files_below, read_record, read_records, seconds_of
from sparta_bench.records.record import LOCK, PROTOCOL, RUNNING, Cell, Record
from sparta_bench.runs.lock import is_held
from sparta_bench.runs.time_estimates import Times
from sparta_bench.tables.paper_tables import LAYOUTS
from sparta_bench.tables.protocol import reason_against

NOT_FIXED = {"learning_rate", "batch_size", "checkpoint_every"}


class Run(NamedTuple):
    """A run of a sweep: its cell, what the grid varies, its seed."""

    cell: Cell
    learning_rate: float
    batch_size: int
    seed: int


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
    seconds_left: float | None  # for one process; null before the first run of some kind


def progress(folders: list[Path]) -> list[Progress]:
    """Of every table that has sweeps, in the order of the paper, the twins' last."""
    records, _ = read_records(folders)
    usable = [record for record in records if reason_against(record) is None]
    running = _running(folders)
    return [_of_table(layout.key, usable, running) for layout in LAYOUTS]


def _of_table(key: str, records: list[Record], running: list[Record]) -> Progress:
    wanted = dict(pair for sweep in sweeps_of(key) for pair in _runs(sweep))
    current = [record for record in records if record.raw.get("protocol") == PROTOCOL]
    others = [record for record in records if record.raw.get("protocol") != PROTOCOL]
    states = {
        state: {run for record in found if (run := _run_of(record, wanted)) is not None}
        for state, found in (
            ("done", [record for record in current if record.status == "completed"]),
            ("failed", [record for record in current if record.status == "failed"]),
            ("running", running),
            ("outdated", [record for record in others if record.status == "completed"]),
        )
    }
    at_work = states["running"] - states["done"]
    failed = states["failed"] - states["done"] - at_work
    left = wanted.keys() - states["done"]
    cells: dict[Cell, set[Run]] = defaultdict(set)
    for run in wanted:
        cells[run.cell].add(run)
    return Progress(
        key,
        len(cells),
        sum(runs <= states["done"] for runs in cells.values()),
        len(wanted),
        len(states["done"]),
        len(at_work),
        len(failed),
        len(left - at_work - failed),
        len(left & states["outdated"]),
        _seconds_left(left, records),
    )


def _runs(sweep: Sweep) -> Iterable[tuple[Run, dict[str, Any]]]:
    """Its runs, with the training settings of each that are one for all of its cell."""
    axes = sweep.axes
    densities = axes.get("method.density", [None])
    for model, task, density in product(axes["model"], axes["task"], densities):
        train = sweep.train(model, task, density)
        cell = Cell(model, task, sweep.method, density)
        rates = axes.get("train.learning_rate", [train["learning_rate"]])
        batches = axes.get("train.batch_size", [train["batch_size"]])
        for rate, batch, seed in product(rates, batches, axes["seed"]):
            yield Run(cell, rate, batch, seed), train


def _run_of(record: Record, wanted: dict[Run, dict[str, Any]]) -> Run | None:
    """The run of the table that the record is of, if any."""
    train = record.train
    run = Run(record.cell, train["learning_rate"], train["batch_size"], record.seed)
    # the embedded tasks use all of their data; the paper's have been looked at already
    whole = (
        not record.cell.task.startswith("tiny-")
        or record.raw["config"]["task"].get("max_train_examples") is None
    )
    if run not in wanted or not whole:
        return None
    fixed = wanted[run].keys() - NOT_FIXED
    return run if all(train.get(key) == wanted[run][key] for key in fixed) else None


def _running(folders: list[Path]) -> list[Record]:
    """Runs whose lock is held at this moment."""
    paths = [Path(name) for folder in folders for name in files_below(folder, RUNNING)]
    found = [read_record(path) for path in paths if is_held(path.parent / LOCK)]
    return [record for record in found if isinstance(record, Record)]


def _seconds_left(left: Iterable[Run], records: list[Record]) -> float | None:
    """Each run as the median of those of its cell, else of its model, task and method."""
    times = Times()
    for record in records:
        if record.status == "completed":
            times.add(_kinds(record.cell), seconds_of(record.raw))
    return times.left(_kinds(run.cell) for run in left)


def _kinds(cell: Cell) -> tuple[Hashable, ...]:
    return cell, cell[:3]
