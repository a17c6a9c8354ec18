"""What merging costs, for every two runs below a folder: a record each (Table 6)."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparta_bench.adapters.merging.merge_methods import Rule
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
class Progress:
    """What has come of the pairs so far: records, how many of them were `there` already, and the
    reason for each pair that was refused. Each is told as it comes."""

    rule: Rule
    pairs: int
    records: list[dict[str, Any]] = field(default_factory=list)
    there: int = 0
    refused: list[str] = field(default_factory=list)

    def add(self, pair: Pair, record: dict[str, Any]) -> None:
        """A pair's record."""
        self.records.append(record)
        scores = [
            f"{alone['test']['accuracy']:.1%} → {merged['test']['accuracy']:.1%}"
            for alone, merged in zip(record["alone"], record["merged"], strict=True)
        ]
        self._tell(pair, f"test accuracy {' and '.join(scores)}")

    def refuse(self, pair: Pair, error: InputError) -> None:
        """A pair that cannot be merged or scored, for a fault of its input."""
        self.refused.append("; ".join(error.lines))
        self._tell(pair, f"refused: {self.refused[-1]}")

    def _tell(self, pair: Pair, what: str) -> None:
        number = len(self.records) + len(self.refused)
        line = f"{number:,}/{self.pairs:,} {pair.name}, {self.rule.name}: {what}"
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
) -> Progress:
    """Merge every pair of the runs below a folder by the rule, and write
    `<folder>/merges/<model>/<method>/<merge_id>/merge.json`, unless it is there.

    A pair whose input is at fault is refused, and the others go on.

    Parameters
    ----------
    same_seeds
        Pair runs of one seed, whose places coincide; else of different ones.
    model, method
        Only runs of these; null: of all.
    base, tokenizer
        Where they are, if not where the adapters say.
    settings
        Overrides for all tasks, such as `task.data_dir=DIR`.

    Raises
    ------
    InputError
        If there is no pair, a setting is wrong, or a record cannot be written.
    """
    records, _ = read_records([folder])
    groups = groups_of(records, same_seeds, model, method)
    if not groups:
        seeds = "one seed" if same_seeds else "different seeds"
        raise InputError(
            f"{folder}: no two tasks with completed runs of {seeds} "
            f"whose adapters were saved (save=adapter; save=full for full_ft){_left_out(records)}"
        )
    configs = _configs(groups, settings)
    progress = Progress(rule, sum(map(len, groups)))
    sets: dict[str, Sets] = {}
    for pairs in groups:
        for alike in _by_base(pairs, folder, progress):
            try:
                merger = Merger(alike, base, tokenizer, configs, sets)
            except InputError as error:
                for pair in alike:
                    progress.refuse(pair, error)
                continue
            for pair in alike:
                _measure(merger, pair, _path_of(folder, pair, rule), progress)
    return progress


def _left_out(records: Sequence[Record]) -> str:
    """How many runs may stand in no table, and why the first of them."""
    found = select(records).excluded
    return f"; {len(found)} left out, {found[0].path}: {found[0].reason}" if found else ""


def _configs(groups: Sequence[Sequence[Pair]], settings: Sequence[str]) -> dict[str, Config]:
    """By task; not of a task that is unknown here, since records may come from anybody."""
    tasks = {run.cell.task for pairs in groups for pair in pairs for run in pair.runs}
    known = sorted(tasks & set(choices("task")))
    return {task: compose([f"task={task}", *settings]) for task in known}


def _by_base(pairs: Sequence[Pair], folder: Path, progress: Progress) -> list[list[Pair]]:
    """Pairs that are still to be measured, those of one base together. Tells of those that are
    there already, and of those without a common base."""
    found: dict[tuple[str | int | None, ...], list[Pair]] = defaultdict(list)
    for pair in pairs:
        try:
            record = read_merge(_path_of(folder, pair, progress.rule))
            if isinstance(record, dict):
                progress.there += 1
                progress.add(pair, record)
            else:
                found[base_of_both(pair)].append(pair)
        except InputError as error:
            progress.refuse(pair, error)
    return list(found.values())


def _path_of(folder: Path, pair: Pair, rule: Rule) -> Path:
    cell = pair.one.cell
    for name in (cell.model, cell.method):
        if not is_folder_name(name):  # a record may come from anybody
            raise InputError(
                f"{pair.one.path}: {shown(name)} cannot name a folder for what is merged"
            )
    return folder / "merges" / cell.model / cell.method / pair.merge_id(rule) / MERGE


def _measure(merger: Merger, pair: Pair, path: Path, progress: Progress) -> None:
    try:
        record = record_of(merger, pair, progress.rule)
    except InputError as error:
        progress.refuse(pair, error)
        return
    _write(path, record)  # what cannot be written concerns all pairs
    progress.add(pair, record)


def record_of(merger: Merger, pair: Pair, rule: Rule) -> dict[str, Any]:
    """The scores of one pair, alone and merged, for JSON."""
    drops = rule.keep is not None and pair.one.raw["method"] != "lora"
    return {
        "schema": MERGE_SCHEMA,
        "merge_id": pair.merge_id(rule),
        "model": pair.one.cell.model,
        "method": pair.one.cell.method,
        "density": pair.one.cell.density,
        "rule": rule.as_dict(),
        "runs": [
            {"run_id": run.run_id, "task": run.cell.task, "seed": run.seed} for run in pair.runs
        ],
        "overlap": merger.overlap(pair),
        "alone": [merger.alone(run, Rule()) for run in pair.runs],
        # what the rule itself costs, without another model; peft drops nothing of a single adapter
        "thinned": [merger.alone(run, rule) for run in pair.runs] if drops else None,
        "merged": merger.merged(pair, rule),
        "finished": now(),
        "environment": merger.environment(),
    }


def _write(path: Path, record: Mapping[str, Any]) -> None:
    try:
        write_json(path, record)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
