"""What merging costs: every two tasks' best runs of one method, alone and merged (Table 6)."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from sparta_bench.checks.rules import is_folder_name
from sparta_bench.compose import compose
from sparta_bench.errors import InputError, shown
from sparta_bench.evaluate import Sets, check_fits, scores_of, sets_of
from sparta_bench.files import write_json
from sparta_bench.merge.combine import merge_into
from sparta_bench.merge.overlap import overlaps_of
from sparta_bench.merge.rules import Rule
from sparta_bench.merge.sources import Source, open_sources
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.precision import DTYPES, Precision
from sparta_bench.records import (
    MERGE,
    MERGE_SCHEMA,
    PROTOCOL,
    Record,
    read_merge,
    read_records,
)
from sparta_bench.results import environment, now
from sparta_bench.run import accelerator_of
from sparta_bench.tables.protocol import TASKS
from sparta_bench.tables.select import select

SCORES_AGREE = 1e-3  # nats: how near a run's recorded loss must be, whatever the device


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
        """A hash of all that decides the outcome."""
        parts = [self.one.run_id, self.other.run_id, rule.as_dict(), PROTOCOL, MERGE_SCHEMA]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def folder_of(record: Record) -> Path | None:
    """Where what a run trained was saved; null where it was not."""
    folders = (record.path.parent / name for name in ("adapter", "model"))
    return next((folder for folder in folders if folder.is_dir()), None)


def groups_of(
    records: Sequence[Record],
    same_seeds: bool,
    model: str | None = None,
    method: str | None = None,
) -> list[list[Pair]]:
    """The pairs of each model and method, by the best setting of each task (`tables.select`).

    Of each two tasks as many pairs as there are seeds: seed by seed the same one, or each with the
    next, so that SpaRTA's places are independent draws. Of one `model` or `method`, where named.
    """
    groups: dict[tuple[str, str, float | None], dict[str, list[Record]]] = defaultdict(dict)
    for cell, chosen in select(records).cells.items():
        runs = [run for run in chosen.runs if folder_of(run) is not None]
        if model in (None, cell.model) and runs and method in (None, runs[0].raw["method"]):
            groups[cell.model, cell.method, cell.density][cell.task] = runs
    found = []
    for tasks in groups.values():
        ordered = sorted(tasks, key=_order)
        pairs = [
            pair
            for one, other in combinations(ordered, 2)
            for pair in _pairs(tasks[one], tasks[other], same_seeds)
        ]
        if pairs:
            found.append(pairs)
    return found


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
            unlike = later or [seed for seed in ordered if seed != one.seed]
            if unlike:
                yield Pair(one, seeds[unlike[0]])


class Merger:
    """The runs of one model and method, with their base, in memory."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        base: str | None,
        tokenizer: str | None,
        settings: Sequence[str],
        sets: dict[str, Sets],
    ) -> None:
        runs = {run.run_id: run for pair in pairs for run in (pair.one, pair.other)}
        folders = [folder_of(run) or Path() for run in runs.values()]
        self.base, sources = open_sources(folders, base, tokenizer, list(runs))
        self.base.keep()
        self.sources = dict(zip(runs, sources, strict=True))
        self.configs = {
            task: compose([f"task={task}", *settings])
            for task in {run.cell.task for run in runs.values()}
        }
        self.sets = sets
        self._alone: dict[tuple[str, Rule], dict[str, dict[str, float]]] = {}

    def alone(self, run: Record, rule: Rule) -> dict[str, dict[str, float]]:
        """Scores of one run's model on its task, after the rule (which may drop changes).

        Raises
        ------
        InputError
            If an unchanged one's are not the run's own: the data is not what it was trained on.
        """
        key = (run.run_id, rule)
        if key not in self._alone:
            scores = self._scores([run], rule)[0]
            if rule.keep is None:
                _check_same(run, scores)
            self._alone[key] = scores
        return self._alone[key]

    def merged(self, pair: Pair, rule: Rule) -> list[dict[str, dict[str, float]]]:
        """Scores of the merged model on the first's task, and on the other's."""
        return self._scores([pair.one, pair.other], rule)

    def environment(self) -> dict[str, Any]:
        """Versions, device and dtypes."""
        config = next(iter(self.configs.values()))
        precision = Precision(DTYPES[self.base.dtype], torch.float32)
        return environment(accelerator_of(config).device, precision, 1)

    def overlap(self, pair: Pair) -> dict[str, Any]:
        """Where the two changed the same entries."""
        sources = [self.sources[pair.one.run_id], self.sources[pair.other.run_id]]
        return overlaps_of(sources, self.base)[0].as_dict()

    def _scores(self, runs: Sequence[Record], rule: Rule) -> list[dict[str, dict[str, float]]]:
        self.base.restore()
        merge_into(self.base, [self.sources[run.run_id] for run in runs], rule)
        return [self._score(run) for run in runs]

    def _score(self, run: Record) -> dict[str, dict[str, float]]:
        source, task = self.sources[run.run_id], run.cell.task
        config = self.configs[task]
        classifier = Classifier(self.base.backbone, source.head)
        return scores_of(classifier.requires_grad_(False), self._sets(source, task), config)

    def _sets(self, source: Source, task: str) -> Sets:
        about = source.about
        key = repr((about.tokenizer_fingerprint, about.prompt, about.undo_spacing, task))
        if key not in self.sets:
            check_fits(about, self.configs[task].task, str(source.folder))
            self.sets[key] = sets_of(about, self.base.tokenizer, self.configs[task])
        return self.sets[key]


def _check_same(run: Record, scores: Mapping[str, Mapping[str, float]]) -> None:
    for split in ("dev", "test"):
        found, recorded = scores[split]["loss"], run.score(split, "loss")
        if abs(found - recorded) > SCORES_AGREE:
            raise InputError(
                f"task={run.cell.task}: {split} loss is {found:.4f} here and {recorded:.4f} in the "
                f"record of run {run.run_id}; is task.data_dir the data that it was trained on?"
            )


def record_of(merger: Merger, pair: Pair, rule: Rule) -> dict[str, Any]:
    """The scores of one pair, alone and merged, for JSON."""
    runs = (pair.one, pair.other)
    drops = rule.keep is not None and pair.one.raw["method"] != "lora"
    return {
        "schema": MERGE_SCHEMA,
        "merge_id": pair.merge_id(rule),
        "model": pair.one.cell.model,
        "method": pair.one.cell.method,
        "density": pair.one.cell.density,
        "rule": rule.as_dict(),
        "runs": [{"run_id": run.run_id, "task": run.cell.task, "seed": run.seed} for run in runs],
        "overlap": merger.overlap(pair),
        "alone": [merger.alone(run, Rule()) for run in runs],
        # what the rule itself costs, without another model; peft drops nothing of a single adapter
        "thinned": [merger.alone(run, rule) for run in runs] if drops else None,
        "merged": merger.merged(pair, rule),
        "finished": now(),
        "environment": merger.environment(),
    }


def measure_pairs(
    folder: Path,
    rules: Sequence[Rule],
    same_seeds: bool = False,
    model: str | None = None,
    method: str | None = None,
    base: str | None = None,
    tokenizer: str | None = None,
    settings: Sequence[str] = (),
) -> tuple[list[dict[str, Any]], int]:
    """Merge every pair of the runs below a folder by each rule, and write
    `<folder>/merges/<model>/<method>/<merge_id>/merge.json`, unless it is there.

    Returns the records, and how many were there already.

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
        If there is no pair, or a model or its data cannot be had.
    """
    records, _ = read_records([folder])
    groups = groups_of(records, same_seeds, model, method)
    if not groups:
        seeds = "one seed" if same_seeds else "different seeds"
        raise InputError(
            f"{folder}: no two tasks with completed runs of {seeds} "
            f"whose adapters were saved (save=adapter; save=full for full_ft){_left_out(records)}"
        )
    jobs = [(pair, rule) for pairs in groups for pair in pairs for rule in rules]
    found: list[dict[str, Any]] = []
    there = 0
    sets: dict[str, Sets] = {}
    for pairs in groups:
        merger: Merger | None = None
        for pair in pairs:
            for rule in rules:
                path = _path_of(folder, pair, rule)
                record = read_merge(path)
                if isinstance(record, dict):
                    there += 1
                else:
                    merger = merger or Merger(pairs, base, tokenizer, settings, sets)
                    record = record_of(merger, pair, rule)
                    _write(path, record)
                found.append(record)
                print(f"{len(found):,}/{len(jobs):,} {_told(pair, rule, record)}", file=sys.stderr)
    return found, there


def _left_out(records: Sequence[Record]) -> str:
    """How many runs may stand in no table, and why the first of them."""
    found = select(records).left_out
    return f"; {len(found)} left out, {found[0].path}: {found[0].reason}" if found else ""


def _path_of(folder: Path, pair: Pair, rule: Rule) -> Path:
    cell = pair.one.cell
    for name in (cell.model, cell.method):
        if not is_folder_name(name):  # a record may come from anybody
            raise InputError(
                f"{pair.one.path}: {shown(name)} cannot name a folder for what is merged"
            )
    return folder / "merges" / cell.model / cell.method / pair.merge_id(rule) / MERGE


def _write(path: Path, record: Mapping[str, Any]) -> None:
    try:
        write_json(path, record)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def _told(pair: Pair, rule: Rule, record: Mapping[str, Any]) -> str:
    scores = [
        f"{alone['test']['accuracy']:.1%} → {merged['test']['accuracy']:.1%}"
        for alone, merged in zip(record["alone"], record["merged"], strict=True)
    ]
    return f"{pair.name}, {rule.name}: test accuracy {' and '.join(scores)}"
