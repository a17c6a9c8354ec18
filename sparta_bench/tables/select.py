"""Which runs stand for a cell: the best setting by dev loss, never by test."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from sparta_bench.records.record import Cell, Excluded, Record
from sparta_bench.tables.protocol import reason_against


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation (n - 1) over n seeds; no deviation of one seed."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Chosen:
    """What stands in a cell. `runs` are of the best setting, by seed; empty if none completed."""

    cell: Cell
    runs: tuple[Record, ...]
    settings_compared: int
    failed: int  # failed runs of any setting

    def over_seeds(self, split: str, metric: str) -> Spread:
        """Of `dev` or `test`; loss in nats, accuracy 0 to 1, mcc -1 to 1."""
        values = [run.score(split, metric) for run in self.runs]
        std = statistics.stdev(values) if len(values) > 1 else None
        return Spread(statistics.fmean(values), std, len(values))


@dataclass(frozen=True, slots=True)
class Selection:
    """All cells that have records, the completed ones that are not of a best setting, and the rest.

    `not_selected` are completed runs of settings with a higher dev loss: compared, but not shown.
    """

    cells: dict[Cell, Chosen]
    not_selected: list[Record]
    excluded: list[Excluded]


def select(records: Iterable[Record]) -> Selection:
    """Choose for each cell the setting with the lowest mean dev loss over its seeds.

    Only settings with as many seeds as the most of that cell are compared: the mean of one lucky
    seed does not win over a mean of three. Records of one cell that differ in base model, data or
    method settings are no runs of one experiment: those of which there are most are taken, the
    others are left out.
    """
    excluded: list[Excluded] = []
    by_cell: dict[Cell, list[Record]] = defaultdict(list)
    for record in records:
        reason = "interrupted" if record.status == "interrupted" else reason_against(record)
        if reason is not None:
            excluded.append(Excluded(record.path, reason, record.cell))
        else:
            by_cell[record.cell].append(record)
    cells: dict[Cell, Chosen] = {}
    not_selected: list[Record] = []
    for cell, found in by_cell.items():
        alike = _alike(found, excluded)
        completed = _one_a_seed(
            [record for record in alike if record.status == "completed"], excluded
        )
        failed = sum(record.status == "failed" for record in alike)
        cells[cell], others = _best(cell, completed, failed, excluded)
        not_selected += others
    return Selection(cells, not_selected, excluded)


def _alike(records: list[Record], excluded: list[Excluded]) -> list[Record]:
    completed = [record for record in records if record.status == "completed"]
    if not completed:
        return records
    # the first of equal counts: the order of paths, so that the choice does not change
    most = Counter(record.protocol for record in completed).most_common(1)[0][0]
    alike = []
    for record in records:
        # a failed run may not have come as far as its data, and has no numbers to mix
        if record.protocol == most or record.status == "failed":
            alike.append(record)
        else:
            reason = "other data, base model or settings of the method than most of its cell"
            excluded.append(Excluded(record.path, reason, record.cell))
    return alike


def _one_a_seed(records: list[Record], excluded: list[Excluded]) -> list[Record]:
    kept: dict[tuple[str, int], Record] = {}
    for record in records:
        key = (record.setting, record.seed)
        if key in kept:  # by another device or version, else the run would be the same
            reason = "the same setting and seed as another record"
            excluded.append(Excluded(record.path, reason, record.cell))
        else:
            kept[key] = record
    return list(kept.values())


def _best(
    cell: Cell, completed: list[Record], failed: int, excluded: list[Excluded]
) -> tuple[Chosen, list[Record]]:
    by_setting: dict[str, list[Record]] = defaultdict(list)
    for record in completed:
        by_setting[record.setting].append(record)
    if not by_setting:
        return Chosen(cell, (), 0, failed), []
    seeds = max(map(len, by_setting.values()))
    compared = {key: runs for key, runs in by_setting.items() if len(runs) == seeds}
    for key in by_setting.keys() - compared.keys():
        reason = "a setting with fewer seeds than another of its cell"
        excluded += [Excluded(record.path, reason, record.cell) for record in by_setting[key]]
    best = min(
        compared,
        key=lambda key: (statistics.fmean(run.score("dev", "loss") for run in compared[key]), key),
    )
    others = [run for key, runs in compared.items() if key != best for run in runs]
    runs = tuple(sorted(compared[best], key=lambda run: run.seed))
    return Chosen(cell, runs, len(compared), failed), others
