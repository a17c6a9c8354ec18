"""Table 6, and what merging costs each method: from records of merged runs (section 8)."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sparta_bench.paper import rows_of
from sparta_bench.records.read import files_below, read_merge
from sparta_bench.records.record import MERGE, OVERLAP, Excluded, Record
from sparta_bench.tables.paper_tables import (
    MISSING,
    SCALE,
    method_order,
    row_name,
    spread_over,
    task_name,
)
from sparta_bench.tables.protocol import TINY_MODELS
from sparta_bench.tables.select import Selection
from sparta_bench.tables.table import Heading, Table, table_of
from sparta_bench.text import counted, signed

TABLE6 = ("sparta", 0.01)  # method and density: "99% sparsity"
TABLE6_TASKS = ("sst2", "cola")


class Way(NamedTuple):
    """What is compared: a method, a rule of merging, and whether the two had one seed."""

    method: str
    density: float | None
    rule: str
    same_seed: bool


@dataclass(frozen=True)
class Merge:
    """Two runs of one model, alone and merged. `raw` is the whole record."""

    raw: Mapping[str, Any]
    runs: tuple[Record, Record]

    @property
    def way(self) -> Way:
        cell, rule = self.runs[0].cell, self.raw["rule"]
        kept = "" if rule["keep"] is None else f"DARE {100 * rule['keep']:.3g}%, "
        name = f"{kept}{'TIES' if rule['how'] == 'ties' else rule['how']}"
        return Way(cell.method, cell.density, name, self.runs[0].seed == self.runs[1].seed)

    @property
    def tasks(self) -> tuple[str, str]:
        """In the order of the record's scores."""
        return self.runs[0].cell.task, self.runs[1].cell.task

    def score(self, state: str, task: int, metric: str) -> float:
        """Test score of `alone`, `thinned` or `merged`, of the first or the second task."""
        return float(self.raw[state][task]["test"][metric])

    def mean(self, state: str, metric: str) -> float:
        return (self.score(state, 0, metric) + self.score(state, 1, metric)) / 2

    def points(self, state: str) -> float:
        """Test accuracy × 100 over both tasks."""
        return 100 * self.mean(state, "accuracy")

    @property
    def lost(self) -> float:
        """Points that merging costs."""
        return self.points("alone") - self.points("merged")


def read_merges(
    folders: Iterable[Path], selection: Selection
) -> tuple[dict[str, list[Merge]], list[Excluded]]:
    """The records of merged runs below the folders by model, of those runs that stand in tables."""
    used = {run.run_id: run for chosen in selection.cells.values() for run in chosen.runs}
    merges: dict[str, dict[str, Merge]] = defaultdict(dict)
    excluded = []
    for path in sorted(Path(name) for folder in folders for name in files_below(folder, MERGE)):
        raw = read_merge(path)
        if isinstance(raw, str):
            excluded.append(Excluded(path, raw))
            continue
        one, other = (used.get(run["run_id"]) for run in raw["runs"])
        if one is None or other is None:
            excluded.append(Excluded(path, "a merge of runs that stand in no table"))
        elif one.cell._replace(task="") != other.cell._replace(task=""):
            excluded.append(Excluded(path, "a merge of runs of two models, methods or densities"))
        elif raw["rule"].get("weights") is not None:
            excluded.append(Excluded(path, "a merge with weights, which no table has"))
        else:
            merges[one.cell.model][raw["merge_id"]] = Merge(raw, (one, other))
    return {model: list(of_model.values()) for model, of_model in merges.items()}, excluded


def merging_tables(merges: Mapping[str, Sequence[Merge]]) -> list[Table]:
    """Table 6 of each model that has its runs, and the tables of what merging costs."""
    tables = []
    for model, of_model in sorted(merges.items()):
        by_way: dict[Way, list[Merge]] = defaultdict(list)
        for merge in of_model:
            by_way[merge.way].append(merge)

        ways = {
            way: by_way[way]
            for way in sorted(
                by_way,  # the order of the paper's rows
                key=lambda way: (*method_order(way.method, way.density), way.same_seed, way.rule),
            )
        }
        tiny = " (tiny model, generated text)" if model in TINY_MODELS else ""
        tables += [*_table6(model, of_model, tiny), _costs(model, ways, tiny)]
        tables.append(_by_tasks(model, of_model, ways, tiny))
    return tables


def _table6(model: str, merges: Sequence[Merge], tiny: str) -> list[Table]:
    tasks = tuple(f"tiny-{task}" for task in TABLE6_TASKS) if tiny else TABLE6_TASKS
    way = Way(*TABLE6, "sum", False)
    pairs = [merge for merge in merges if merge.way == way and set(merge.tasks) == set(tasks)]
    if not pairs:
        return []
    rows = []
    lines = [*((task_name(task), "alone", (task,)) for task in tasks), ("Merged", "merged", tasks)]
    for name, state, shown in lines:
        cells = [name]
        for task in tasks:
            for metric, digits in (("loss", 3), ("accuracy", 1), ("mcc", 1)):
                scores = (one.score(state, one.tasks.index(task), metric) for one in pairs)
                values = [SCALE[metric] * score for score in scores]
                cells.append(spread_over(values, digits) if task in shown else MISSING)
        rows.append(tuple(cells))
    for row in rows_of("table6") if model == "gemma-2b" else ():
        cells = [f"{row['model']}, paper"]
        for task in TABLE6_TASKS:
            printed = (row[f"{task}.{name}"].removesuffix("%") for name in ("loss", "accuracy"))
            cells += [*(MISSING if text == "-" else text for text in printed), MISSING]
        rows.append(tuple(cells))
    over = [Heading(""), *(Heading(task_name(task), 3) for task in tasks)]
    under = [Heading(""), *(Heading(name) for name in ("loss", "acc.", "mcc") * 2)]
    notes = (
        "Each single model on its own task, the merged one on both. Mean ± standard deviation over "
        f"{counted(len(pairs), 'pair')} of different seeds; accuracy and mcc × 100.",
    )
    name = "Our Table 6" if model == "gemma-2b" else f"Table 6 with {model}"
    title = f"{name}: test loss and accuracy at 99% sparsity, alone and merged{tiny}"
    key = "table6" if model == "gemma-2b" else f"table6-{model}"
    return [Table(key, title, (tuple(over), tuple(under)), tuple(rows), notes)]


def _costs(model: str, ways: Mapping[Way, Sequence[Merge]], tiny: str) -> Table:
    heads = (
        "Adaptation", "rule", "scalars trained", "pairs", "acc. alone", "thinned", "merged",
        "points lost", "loss added", "entries shared", "by chance", "in conflict",
    )  # fmt: skip
    notes = (
        "Test accuracy × 100 as the mean over both tasks of a pair, mean ± standard deviation over "
        "pairs of tasks and seeds. Points lost: alone less merged. Thinned: alone after DARE.",
        "Scalars trained: of each model, without its head. Entries shared: changed by both, as a "
        "share of what the one with fewer changed; by chance: had both chosen as many at random; "
        "in conflict: with opposite signs, as a share of those shared; all three before DARE.",
    )
    rows = [_cost_row(way, merges) for way, merges in ways.items()]
    title = f"{model}: what merging two models costs{tiny}"
    return table_of(f"merging-{model}", title, heads, rows, *notes)


def _cost_row(way: Way, merges: Sequence[Merge]) -> tuple[str, ...]:
    thinned = all(merge.raw["thinned"] is not None for merge in merges)
    added = [merge.mean("merged", "loss") - merge.mean("alone", "loss") for merge in merges]
    counts = [run.raw["parameters"] for merge in merges for run in merge.runs]
    # of all pairs together
    least = sum(min(merge.raw["overlap"]["changed"]) for merge in merges)
    sums = {key: sum(merge.raw["overlap"][key] for merge in merges) for key in OVERLAP}
    shares = [
        f"{100 * sums[key] / least:.1f}%" if least else MISSING
        for key in ("shared", "shared_by_chance")
    ]
    if least and sums["shared"]:
        shares.append(f"{100 * sums['conflicts'] / sums['shared']:.0f}%")
    else:
        shares.append(MISSING)
    return (
        row_name(way.method, way.density),
        f"{way.rule}, one seed" if way.same_seed else way.rule,
        f"{statistics.fmean(count['trainable'] - count['head'] for count in counts):,.0f}",
        f"{len(merges):,}",
        spread_over([merge.points("alone") for merge in merges], 1),
        spread_over([merge.points("thinned") for merge in merges], 1) if thinned else MISSING,
        spread_over([merge.points("merged") for merge in merges], 1),
        spread_over([merge.lost for merge in merges], 1),
        signed(statistics.fmean(added), 3),
        *shares,
    )


def _by_tasks(
    model: str, merges: Sequence[Merge], ways: Mapping[Way, Sequence[Merge]], tiny: str
) -> Table:
    rows = []
    for tasks in dict.fromkeys(merge.tasks for merge in merges):
        cells = [f"{task_name(tasks[0])} and {task_name(tasks[1])}"]
        for of_way in ways.values():
            lost = [merge.lost for merge in of_way if merge.tasks == tasks]
            cells.append(spread_over(lost, 1) if lost else MISSING)
        rows.append(cells)
    names = (
        f"{row_name(way.method, way.density)}, {way.rule}{', one seed' if way.same_seed else ''}"
        for way in ways
    )
    title = f"{model}: points of test accuracy that merging costs, by tasks{tiny}"
    note = "Mean over both tasks, mean ± standard deviation over pairs of seeds."
    return table_of(f"merging-tasks-{model}", title, ("Tasks", *names), rows, note)
