"""The races of a grid: its cells, what the records say of their runs, and what each needs next."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from sparta_bench.analysis.run_cost import race_share
from sparta_bench.config.rules import is_number
from sparta_bench.config.schema import Config, SpartaConfig, TrainConfig, plain
from sparta_bench.errors import InputError
from sparta_bench.records.read import read_records, settings_text
from sparta_bench.records.record import Cell, Setting
from sparta_bench.records.write import write_race
from sparta_bench.runs.race import Point, best_of, middle, needed, share_done
from sparta_bench.runs.run import advice, name_of, run_folder
from sparta_bench.tables.select import select
from sparta_bench.text import counted

FIRST_AXES = ("learning_rate", "batch_size")  # in this order; then as they stand in the schema


class CellRace:
    """The race of one cell (model, task, method, density) and of all that its runs share."""

    def __init__(self, runs: Mapping[str, Config]) -> None:
        self.runs = dict(runs)  # by run_id
        self.config = next(iter(runs.values()))
        self.axes = [axis for axis in _axes() if len({_text(c, axis) for c in runs.values()}) > 1]
        self.settings: dict[Point, list[str]] = defaultdict(list)  # run_ids in the order of seeds
        for run_id, config in runs.items():
            self.settings[self._point(config)].append(run_id)

    def _point(self, config: Config) -> Point:
        return tuple(map(float, (self._position(config, axis) for axis in self.axes)))

    def _position(self, config: Config, axis: str) -> float:
        """A number's own value; of names, the place in the order in which they were given."""
        values = [getattr(one.train, axis) for one in self.runs.values()]
        value = getattr(config.train, axis)
        return value if all(map(is_number, values)) else values.index(value)

    def share(self) -> float:
        """About which share of its runs the race will make."""
        settings = len(self.settings)
        return race_share(settings, len(self.runs) / settings, self.config.search.confirm)

    def wanted(
        self,
        ended: Callable[[str, bool], Mapping[str, Any] | None],
        is_running: Callable[[str], bool],
    ) -> dict[str, Config]:
        """What to run next, by `run_id`, each with its rival; empty where the race is decided.

        `ended` gives a run's record, which may be stopped if the second argument is true; None
        where the run is still to be made.
        """
        first = {point: run_ids[0] for point, run_ids in self.settings.items()}
        found = {point: ended(run_id, True) for point, run_id in first.items()}
        records = {point: record for point, record in found.items() if record is not None}
        losses = dict.fromkeys(records, math.inf)
        untrained = math.inf
        for point, record in records.items():
            if record["status"] == "completed":
                losses[point] = record["dev"]["loss"]
                before = record["history"][0]
                untrained = math.inf if before["step"] else before["dev_loss"]
        running = {p for p, run_id in first.items() if p not in records and is_running(run_id)}
        start = None if records or running else self._start()
        if points := needed(first, losses, running, start, untrained):
            best = best_of(losses, 1)
            # on another machine it may have another device, dtype and so run_id than this one knows
            rival = str(records[best[0]]["run_id"]) if best else None
            return {first[point]: self._with(first[point], rival) for point in points}
        confirmed = best_of(losses, self.config.search.confirm)
        others = [run_id for point in confirmed for run_id in self.settings[point][1:]]
        return {one: self._with(one, None) for one in others if ended(one, False) is None}

    def _with(self, run_id: str, rival: str | None) -> Config:
        config = self.runs[run_id]
        return replace(config, search=replace(config.search, rival=rival))

    def _start(self) -> Point:
        """Where to begin where no run is known: where a neighbour was best, or else at the middle
        rate and the smallest batch size, whose epochs have the most steps."""
        batch_size = self.axes.index("batch_size") if "batch_size" in self.axes else None
        return self._neighbours_best() or middle(self.settings, batch_size)

    def _neighbours_best(self) -> Point | None:
        """The setting nearest to the one that is best, so far as there are records, at the next
        density, or else on another task with this model and method."""
        config = self.config
        runs = Path(config.results_dir, "runs")
        folders = runs.glob(f"*/{config.model.name}/{config.method.name}")
        cells = select(read_records(folders)[0]).cells
        density = config.method.density if isinstance(config.method, SpartaConfig) else None

        def distance(cell: Cell) -> tuple[bool, float]:
            apart = abs(math.log(cell.density / density)) if cell.density and density else 0.0
            return cell.task != config.task.name, apart

        near = [cell for cell, chosen in cells.items() if chosen.runs]
        if not near:
            return None
        train = cells[min(near, key=distance)].runs[0].train

        def unlike(point: Point) -> list[float]:
            pairs = zip(self.axes, point, strict=True)
            return [_apart(axis, value, train.get(axis)) for axis, value in pairs]

        return min(self.settings, key=unlike)

    def write(self, record_of: Callable[[str], Mapping[str, Any] | None]) -> None:
        """Write down what was compared, for `tables` and `status`: the race is decided."""
        settings = [
            Setting(
                plain(self.runs[run_ids[0]].train),
                {
                    self.runs[run_id].seed: str((record_of(run_id) or {}).get("run_id", run_id))
                    for run_id in run_ids
                },
            )
            for run_ids in self.settings.values()
        ]
        write_race(run_folder(self.config, settings[0].first).parent, settings)

    def best(
        self, record_of: Callable[[str], Mapping[str, Any] | None]
    ) -> tuple[Point, Mapping[str, Any]] | None:
        """The setting with the lowest dev loss, and its record on the first seed; None where no
        setting has completed."""
        first = {point: record_of(run_ids[0]) for point, run_ids in self.settings.items()}
        done = {p: one for p, one in first.items() if one and one["status"] == "completed"}
        return min(done.items(), key=lambda pair: pair[1]["dev"]["loss"], default=None)

    def advice(self, record_of: Callable[[str], Mapping[str, Any] | None]) -> tuple[str, ...]:
        """What to try where the best setting has not learnt, or no rate beyond its own was run."""
        if (found := self.best(record_of)) is None:
            return ()
        point, record = found
        rate = self.runs[self.settings[point][0]].train.learning_rate
        if lines := advice(record.get("history"), rate):
            return lines
        rates = sorted({config.train.learning_rate for config in self.runs.values()})
        if len(rates) == 1 or rate not in (rates[0], rates[-1]):
            return ()
        end, by = ("highest", 3.0) if rate == rates[-1] else ("lowest", 1 / 3)
        further = f"{rate:g},{rate * by:.1e},{rate * by * by:.1e}"
        cell = name_of(self.config).partition(", rate ")[0]
        return (
            f"{cell}: the best rate, {rate:g}, is the {end} of the race: "
            f"go on with -m search=race train.learning_rate={further}",
        )

    def summary(self, record_of: Callable[[str], Mapping[str, Any] | None]) -> str:
        """What the race compared, what it cost, and what it chose."""
        records = {run_id: record_of(run_id) for run_id in self.runs}
        first = [records[run_ids[0]] for run_ids in self.settings.values()]
        cost = math.fsum(share_done(record) for record in records.values() if record)
        texts = [settings_text(record["status"] if record else "" for record in first)]
        texts.append(f"{cost:.1f} run-equivalents of {len(records)}")
        if (found := self.best(record_of)) is not None:
            run_ids, best = self.settings[found[0]], found[1]
            done = sum((records[one] or {}).get("status") == "completed" for one in run_ids)
            texts.append(f"best on the first seed: {name_of(self.runs[run_ids[0]])}")
            texts.append(f"dev loss {best['dev']['loss']:.4f}; {counted(done, 'seed')} of it")
        return ", ".join(texts)


def races_of(runs: Mapping[str, Config]) -> list[CellRace]:
    """Return the races of a grid's cells; raise InputError if none has settings to compare."""
    cells: dict[Any, dict[str, Config]] = defaultdict(dict)
    for run_id, config in runs.items():
        cells[config.model, config.task, config.method][run_id] = config
    races = [CellRace(of_cell) for of_cell in cells.values()]
    if races and not any(len(race.settings) > 1 for race in races):
        raise InputError(
            "search=race: needs -m and several values of a setting of train, as in "
            "train.learning_rate=1e-3,3e-4,1e-4; search=grid runs what is given"
        )
    return races


def _axes() -> list[str]:
    names = [field.name for field in fields(TrainConfig)]
    return [*FIRST_AXES, *(name for name in names if name not in FIRST_AXES)]


def _text(config: Config, axis: str) -> str:
    return str(getattr(config.train, axis))


def _apart(axis: str, value: float, other: Any) -> float:
    """How far a value on an axis is from a neighbour's; a rate by its ratio."""
    if not is_number(other):
        return 0.0
    return abs(math.log(value / other)) if axis == "learning_rate" else abs(value - other)
