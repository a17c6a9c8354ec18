"""What merging costs, for every two runs below a folder: a record each (Table 6)."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparta_bench.adapters.merging import Rule
from sparta_bench.analysis.merging.merger import Merger, base_of_both
from sparta_bench.analysis.merging.pairs import Pair, groups_of
from sparta_bench.config.compose import compose
from sparta_bench.config.conf_folder import choices
from sparta_bench.config.rules import is_folder_name
from sparta_bench.config.schema import Config
from sparta_bench.errors import InputError, one_line, shown
from sparta_bench.files import write_json
from sparta_bench.inference.evaluate import Sets
from sparta_bench.records.read import read_merge, read_records
from sparta_bench.records.record import MERGE, MERGE_SCHEMA, Record
from sparta_bench.records.write import now
from sparta_bench.tables.select import select


@dataclass
class MeasuredPairs:
    """The records of the pairs so far, how many of them were `done_before`, and the reason for
    each pair that was refused. Each is a line on standard error as it comes."""

    rule: Rule
    pairs: int
    records: list[dict[str, Any]] = field(default_factory=list)
    done_before: int = 0
    refused: list[str] = field(default_factory=list)

    def add(self, pair: Pair, record: dict[str, Any]) -> None:
        """Take in a pair's record."""
        self.records.append(record)
        scores = [
            f"{alone['test']['accuracy']:.1%} → {merged['test']['accuracy']:.1%}"
            for alone, merged in zip(record["alone"], record["merged"], strict=True)
        ]
        self._print(pair, f"test accuracy {' and '.join(scores)}")

    def refuse(self, pair: Pair, error: InputError) -> None:
        """Take in a pair that cannot be merged or scored, for a fault of its input."""
        self.refused.append("; ".join(error.lines))
        self._print(pair, f"refused: {self.refused[-1]}")

    def _print(self, pair: Pair, text: str) -> None:
        number = len(self.records) + len(self.refused)
        line = f"{number:,}/{self.pairs:,} {pair.name}, {self.rule.name}: {text}"
        print(one_line(line), file=sys.stderr, flush=True)

    def refusals(self) -> list[str]:
        """How many pairs were refused, then each reason once; nothing where none was."""
        if not self.refused:
            return []
        reasons = Counter(self.refused).items()
        return [
            f"{len(self.refused):,} of {self.pairs:,} pairs were refused:",
            *(f"{why} ({number:,} pairs)" if number > 1 else why for why, number in reasons),
        ]


def measure_pairs(
    folder: Path,
    rule: Rule,
    same_seeds: bool = False,
    model: str | None = None,
    method: str | None = None,
    base: str | None = None,
    tokenizer: str | None = None,
    settings: Sequence[str] = (),
) -> MeasuredPairs:
    """Merge every pair of the runs below a folder by the rule, and write
    `<folder>/merges/<model>/<method>/<merge_id>/merge.json`, unless it is there.

    A pair whose input is at fault is refused, and the others go on. `same_seeds` pairs runs of one
    seed, whose indices coincide; else of different ones. `model` and `method` take only runs of
    these. `base` and `tokenizer` say where these are, if not where the adapters say; `settings`
    are overrides for all tasks, such as `task.data_dir=DIR`.
    """
    records, _ = read_records([folder])
    groups = groups_of(records, same_seeds, model, method)
    if not groups:
        seeds = "one seed" if same_seeds else "different seeds"
        raise InputError(
            f"{folder}: no two tasks with completed runs of {seeds} "
            f"whose adapters were saved (save=adapter; save=full for full_ft){_left_out(records)}"
        )
    # records may come from anybody: a task that is unknown here has no configuration
    tasks = {run.cell.task for pairs in groups for pair in pairs for run in pair.runs}
    known = sorted(tasks & set(choices("task")))
    configs = {task: compose([f"task={task}", *settings]) for task in known}
    measured = MeasuredPairs(rule, sum(map(len, groups)))
    sets: dict[str, Sets] = {}
    for pairs in groups:
        for of_one_base in _by_base(pairs, folder, measured):
            _measure(of_one_base, folder, base, tokenizer, configs, sets, measured)
    return measured


def _left_out(records: Sequence[Record]) -> str:
    """How many runs may stand in no table, and why the first of them."""
    excluded = select(records).excluded
    first = f"{excluded[0].path}: {excluded[0].reason}" if excluded else ""
    return f"; {len(excluded)} left out, {first}" if excluded else ""


def _by_base(pairs: Sequence[Pair], folder: Path, measured: MeasuredPairs) -> list[list[Pair]]:
    """Return the pairs that are still to be measured, those of one base together. Takes in those
    that were done before, and those without a common base."""
    by_base: dict[tuple[str | int | None, ...], list[Pair]] = defaultdict(list)
    for pair in pairs:
        try:
            record = read_merge(_path_of(folder, pair, measured.rule))
            if isinstance(record, dict):
                measured.done_before += 1
                measured.add(pair, record)
            else:
                by_base[base_of_both(pair)].append(pair)
        except InputError as error:
            measured.refuse(pair, error)
    return list(by_base.values())


def _path_of(folder: Path, pair: Pair, rule: Rule) -> Path:
    cell = pair.one.cell
    for name in (cell.model, cell.method):
        if not is_folder_name(name):  # a record may come from anybody
            raise InputError(
                f"{pair.one.path}: {shown(name)} cannot name a folder for what is merged"
            )
    return folder / "merges" / cell.model / cell.method / pair.merge_id(rule) / MERGE


def _measure(
    pairs: Sequence[Pair],
    folder: Path,
    base: str | None,
    tokenizer: str | None,
    configs: dict[str, Config],
    sets: dict[str, Sets],
    measured: MeasuredPairs,
) -> None:
    """Measure pairs of one base."""
    try:
        merger = Merger(pairs, base, tokenizer, configs, sets)
    except InputError as error:
        for pair in pairs:
            measured.refuse(pair, error)
        return
    for pair in pairs:
        try:
            record = record_of(merger, pair, measured.rule)
        except InputError as error:
            measured.refuse(pair, error)
            continue
        path = _path_of(folder, pair, measured.rule)
        try:
            write_json(path, record)
        except OSError as error:  # concerns all pairs
            raise InputError(f"{path}: cannot be written: {error.strerror}") from None
        measured.add(pair, record)


def record_of(merger: Merger, pair: Pair, rule: Rule) -> dict[str, Any]:
    """Return the scores of one pair, alone and merged, for JSON."""
    cell = pair.one.cell
    return {
        "schema": MERGE_SCHEMA,
        "merge_id": pair.merge_id(rule),
        "model": cell.model,
        "method": cell.method,
        "density": cell.density,
        "rule": rule.as_dict(),
        "runs": [
            {"run_id": run.run_id, "task": run.cell.task, "seed": run.seed} for run in pair.runs
        ],
        "overlap": merger.overlap(pair),
        "alone": [merger.alone(run, Rule()) for run in pair.runs],
        # what dropping itself costs, without another model
        "thinned": None if rule.keep is None else [merger.alone(run, rule) for run in pair.runs],
        "merged": merger.merged(pair, rule),
        "finished": now(),
        "environment": merger.environment(),
    }
