"""Which runs are merged to see what that costs: every two tasks' best, of one method."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from sparta_bench.adapters.merging import Rule
from sparta_bench.files import hash_of
from sparta_bench.records.read import saved_by
from sparta_bench.records.record import MERGE_SCHEMA, PROTOCOL, SAVED, Record
from sparta_bench.tables.protocol import TASKS
from sparta_bench.tables.select import select


@dataclass(frozen=True)
class Pair:
    """Two runs of one model and method on two tasks."""

    one: Record
    other: Record

    @property
    def name(self) -> str:
        """For people."""
        first, second = self.one, self.other
        density = "" if first.cell.density is None else f" {100 * first.cell.density:.3g} %"
        return (
            f"{first.cell.model} {first.cell.method}{density}: {first.cell.task} (seed "
            f"{first.seed}) and {second.cell.task} (seed {second.seed})"
        )

    def merge_id(self, rule: Rule) -> str:
        """Return a hash of all that decides the outcome."""
        parts = [self.one.run_id, self.other.run_id, rule.as_dict(), PROTOCOL, MERGE_SCHEMA]
        if self.one.raw["method"] == "lora" and (rule.how != "sum" or rule.keep is not None):
            parts.append("product")  # peft merged the factors before, with other results
        return hash_of(json.dumps(parts), 12)

    @property
    def runs(self) -> tuple[Record, Record]:
        """Both."""
        return self.one, self.other


def folder_of(record: Record) -> Path:
    """Return where what a run trained is, or should be."""
    return saved_by(record) or record.path.parent / SAVED["adapter"]


def groups_of(
    records: Sequence[Record],
    same_seeds: bool,
    model: str | None = None,
    method: str | None = None,
) -> list[list[Pair]]:
    """Return the pairs of each model and method, by the best setting of each task
    (`tables.select`) among the runs whose adapters are there.

    Of each two tasks as many pairs as there are seeds: seed by seed the same one, or each with the
    next, so that SpaRTA's indices are independent draws. Of one `model` or `method`, where named.
    """
    groups: dict[tuple[str, str, float | None], dict[str, list[Record]]] = defaultdict(dict)
    saved = [record for record in records if saved_by(record) is not None]
    for cell, chosen in select(saved).cells.items():
        if model in (None, cell.model) and method in (None, chosen.runs[0].raw["method"]):
            groups[cell.model, cell.method, cell.density][cell.task] = list(chosen.runs)
    all_pairs = [
        [
            pair
            for one, other in combinations(sorted(tasks, key=_order), 2)
            for pair in _pairs(tasks[one], tasks[other], same_seeds)
        ]
        for tasks in groups.values()
    ]
    return [pairs for pairs in all_pairs if pairs]


def _order(task: str) -> tuple[int, str]:
    plain = task.removeprefix("tiny-")
    return (TASKS.index(plain) if plain in TASKS else len(TASKS)), task


def _pairs(ones: Sequence[Record], others: Sequence[Record], same: bool) -> Iterator[Pair]:
    seeds = {run.seed: run for run in others}
    ordered = sorted(seeds)
    for one in ones:
        if same and one.seed in seeds:
            yield Pair(one, seeds[one.seed])
        elif not same:
            later = [seed for seed in ordered if seed > one.seed]
            different = later or [seed for seed in ordered if seed != one.seed]
            if different:
                yield Pair(one, seeds[different[0]])
