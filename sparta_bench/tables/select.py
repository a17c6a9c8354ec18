"""Which runs stand for a cell: the best setting by dev loss, never by test."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sparta_bench.records.record import Cell, Excluded, Record, Setting
from sparta_bench.tables.protocol import reason_against


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation (n - 1) over n seeds; no deviation of one seed."""

    mean: float
    std: float | None
    n: int

    def times(self, scale: float) -> Spread:
        return Spread(scale * self.mean, None if self.std is None else scale * self.std, self.n)

    def is_level_with(self, other: Spread, rounding: float) -> bool:
        """Whether the means differ by no more than the larger of the standard deviations."""
        room = max(self.std or 0.0, other.std or 0.0) + rounding
        return abs(self.mean - other.mean) <= room


@dataclass(frozen=True, slots=True)
class Ahead:
    """A setting that was not compared, since it has fewer seeds, and whose dev loss is lower than
    that of the one shown: on the same seeds if `paired`."""

    runs: tuple[Record, ...]
    loss: float
    shown_loss: float
    paired: bool


@dataclass(frozen=True, slots=True)
class Chosen:
    """What stands in a cell. `runs` are of the best setting, by seed; empty if none completed."""

    cell: Cell
    runs: tuple[Record, ...]
    settings_compared: int
    failed: int  # failed runs of any setting
    stopped: int = 0  # runs of any setting that a race ended
    # of the settings of a race (`search=race`): the status of each on its first seed, empty where
    # it was not needed
    raced: tuple[str, ...] = ()
    ahead: Ahead | None = None

    def over_seeds(self, split: str, metric: str) -> Spread:
        """Of `dev` or `test`; loss in nats, accuracy 0 to 1, mcc -1 to 1."""
        values = [run.score(split, metric) for run in self.runs]
        std = statistics.stdev(values) if len(values) > 1 else None
        return Spread(statistics.fmean(values), std, len(values))

    @property
    def trained(self) -> float:
        """Scalars trained, the mean over seeds: each draws another number."""
        return statistics.fmean(run.raw["parameters"]["trainable"] for run in self.runs)


@dataclass(frozen=True, slots=True)
class Selection:
    """All cells that have records, the completed runs that were compared but not shown since
    another setting has a lower dev loss, and the records that no table uses."""

    cells: dict[Cell, Chosen]
    not_selected: list[Record]
    excluded: list[Excluded]

    @property
    def used(self) -> int:
        return sum(len(chosen.runs) for chosen in self.cells.values())


def select(records: Iterable[Record], races: Iterable[Sequence[Setting]] = ()) -> Selection:
    """Choose for each cell the setting with the lowest mean dev loss over its seeds.

    Only settings with as many seeds as the most of that cell are compared: the mean of one lucky
    seed does not win over a mean of three. One with fewer seeds that is better on these is named
    (`Chosen.ahead`): three seeds of a smoke test must not hide one of a real run. A run that a
    race stopped stands for nothing. Records of one cell that differ in base model, data or
    method settings are no runs of one experiment: those of which there are most are taken, the
    others are left out.
    """
    records = list(records)
    by_cell: dict[Cell, list[Record]] = defaultdict(list)
    selection = Selection({}, [], [])
    for record in records:
        reason = "interrupted" if record.status == "interrupted" else reason_against(record)
        if reason is None:
            by_cell[record.cell].append(record)
        else:
            selection.excluded.append(Excluded(record.path, reason, record.cell))
    for cell, cell_records in by_cell.items():
        selection.cells[cell] = _best(cell, cell_records, selection)
    by_run_id = {record.run_id: record for record in records}
    may_stand = {record.run_id for cell_records in by_cell.values() for record in cell_records}
    raced: dict[Cell, dict[str, str]] = defaultdict(dict)  # a setting of two races counts once
    for race in races:
        first = {setting.first: by_run_id.get(setting.first) for setting in race}
        statuses = {run_id: record.status if record else "" for run_id, record in first.items()}
        allowed = {one.cell for one in first.values() if one and one.run_id in may_stand}
        for cell in allowed & selection.cells.keys():
            raced[cell] |= statuses
    for cell, statuses in raced.items():
        selection.cells[cell] = replace(selection.cells[cell], raced=tuple(statuses.values()))
    return selection


def _best(cell: Cell, records: list[Record], selection: Selection) -> Chosen:
    """What stands in one cell; what does not is added to the selection's lists."""

    def exclude(record: Record, reason: str) -> None:
        selection.excluded.append(Excluded(record.path, reason, cell))

    protocols = Counter(record.protocol for record in records if record.status == "completed")
    # the first of equal counts: the order of paths, so that the choice does not change
    most = protocols.most_common(1)[0][0] if protocols else None
    counts = Counter(record.status for record in records)
    by_setting: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in records:
        if record.status in ("failed", "stopped"):  # may not have come as far as its data
            continue
        if record.protocol != most:
            other = "other data, base model or settings of the method than most of its cell"
            exclude(record, other)
        elif record.seed in by_setting[record.setting]:  # of another device or version
            exclude(record, "the same setting and seed as another record")
        else:
            by_setting[record.setting][record.seed] = record
    seeds = max(map(len, by_setting.values()), default=0)
    means: dict[str, float] = {}
    for setting, runs in by_setting.items():
        if len(runs) == seeds:
            means[setting] = statistics.fmean(run.score("dev", "loss") for run in runs.values())
        else:
            for record in runs.values():
                exclude(record, "a setting with fewer seeds than another of its cell")
    best = min(means, key=lambda setting: (means[setting], setting), default="")
    for setting in means:
        if setting != best:
            selection.not_selected.extend(by_setting[setting].values())
    shown = by_setting[best] if means else {}
    fewer = [_ahead(runs, shown) for setting, runs in by_setting.items() if setting not in means]
    ahead = min(filter(None, fewer), key=lambda one: one.loss - one.shown_loss, default=None)
    failed, stopped = counts["failed"], counts["stopped"]
    return Chosen(cell, _by_seed(shown), len(means), failed, stopped, ahead=ahead)


def _ahead(runs: Mapping[int, Record], shown: Mapping[int, Record]) -> Ahead | None:
    """A setting with fewer seeds than the one shown, if its dev loss is lower: over the seeds that
    both have, or else over all of each."""
    paired = runs.keys() & shown.keys()
    loss, shown_loss = (
        statistics.fmean(of[seed].score("dev", "loss") for seed in paired or of)
        for of in (runs, shown)
    )
    return Ahead(_by_seed(runs), loss, shown_loss, bool(paired)) if loss < shown_loss else None


def _by_seed(runs: Mapping[int, Record]) -> tuple[Record, ...]:
    return tuple(runs[seed] for seed in sorted(runs))
