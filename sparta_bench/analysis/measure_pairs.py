"""What merging costs (Table 6), for every two runs below a folder, each the best of its task: a
record each, of their scores alone and merged."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import torch

from sparta_bench.adapters.merging import (
    Base,
    Rule,
    merge_into,
    overlaps_of,
    refuse_mixed,
    refuse_other_rows,
)
from sparta_bench.adapters.read_folder import TaskVector, read_manifest
from sparta_bench.config.compose import compose
from sparta_bench.config.conf_folder import choices
from sparta_bench.config.rules import is_folder_name
from sparta_bench.config.schema import Config
from sparta_bench.devices import accelerator_of
from sparta_bench.errors import InputError, one_line, shown
from sparta_bench.files import hash_of, write_json
from sparta_bench.inference.evaluate import Sets, check_fits, scores_of, sets_of
from sparta_bench.methods.trained import HEAD
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.dtypes import DTYPES, Precision
from sparta_bench.records.read import read_merge, read_records, saved_by
from sparta_bench.records.record import MERGE, MERGE_SCHEMA, PROTOCOL, SAVED, Record
from sparta_bench.records.write import environment, now
from sparta_bench.tables.protocol import TASKS
from sparta_bench.tables.select import select
from sparta_bench.text import method_text

SCORES_AGREE = 1e-3  # nats: how near a run's recorded loss must be, whatever the device

T = TypeVar("T")
Scores = dict[str, dict[str, float]]  # by split, then by metric


# ------------------------------------------------------------------------------------- pairs
@dataclass(frozen=True)
class Pair:
    """Two runs of one model and method on two tasks."""

    one: Record
    other: Record

    @property
    def name(self) -> str:
        first, second = self.one, self.other
        method = method_text(first.cell.method, first.cell.density)
        return (
            f"{first.cell.model} {method}: {first.cell.task} (seed "
            f"{first.seed}) and {second.cell.task} (seed {second.seed})"
        )

    @property
    def runs(self) -> tuple[Record, Record]:
        return self.one, self.other

    def merge_id(self, rule: Rule) -> str:
        """Return a hash of all that decides the outcome."""
        parts = [self.one.run_id, self.other.run_id, rule.as_dict(), PROTOCOL, MERGE_SCHEMA]
        if self.one.raw["method"] == "lora" and (rule.how != "sum" or rule.keep is not None):
            parts.append("product")  # peft merged the factors before, with other results
        return hash_of(json.dumps(parts), 12)


def groups_of(
    records: Sequence[Record], same_seeds: bool, model: str | None = None, method: str | None = None
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

    def order(task: str) -> tuple[int, str]:
        plain = task.removeprefix("tiny-")
        return (TASKS.index(plain) if plain in TASKS else len(TASKS)), task

    all_pairs = [
        [
            pair
            for one, other in combinations(sorted(tasks, key=order), 2)
            for pair in _pairs(tasks[one], tasks[other], same_seeds)
        ]
        for tasks in groups.values()
    ]
    return [pairs for pairs in all_pairs if pairs]


def _pairs(ones: Sequence[Record], others: Sequence[Record], same: bool) -> Iterator[Pair]:
    seeds = {run.seed: run for run in others}
    for one in ones:
        if same and one.seed in seeds:
            yield Pair(one, seeds[one.seed])
        elif not same:
            different = sorted(seed for seed in seeds if seed != one.seed)
            if different:  # the next seed, after the last the first
                later = (seed for seed in different if seed > one.seed)
                yield Pair(one, seeds[next(later, different[0])])


# ------------------------------------------------------------------------------------ scores
def _folder_of(record: Record) -> Path:
    """Where what a run trained is, or should be."""
    return saved_by(record) or record.path.parent / SAVED["adapter"]


def _base_of_both(pair: Pair) -> tuple[str | int | None, ...]:
    """What tells the base of a pair from others: pairs of one can share a `Merger`. Raises
    InputError if the two were trained on different bases, or one does not say on which."""
    folders = [_folder_of(run) for run in pair.runs]
    one, _ = manifests = [read_manifest(folder) for folder in folders]
    refuse_mixed(folders, manifests)
    parts = (one.base_model["fingerprint"], one.tokenizer_fingerprint, one.dtypes["model"])
    # of the seed are the rows of added tokens, of which the fingerprint need not see one
    return *parts, one.base_fingerprint, one.seed if one.separator == "sep_token" else None


class Merger:
    """The runs of pairs of one base (`_base_of_both`), with that base, in memory.

    `base` and `tokenizer` say where these are, if not where the first run says. `configs` and
    `sets` are by task; data that is read is put into `sets`. A run that cannot be read raises
    InputError when it is asked for.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        base: str | None,
        tokenizer: str | None,
        configs: Mapping[str, Config],
        sets: dict[str, Sets],
    ) -> None:
        runs = {run.run_id: run for pair in pairs for run in pair.runs}
        first = _folder_of(pairs[0].one)
        self.base = Base(first, read_manifest(first), base, tokenizer)
        self.configs, self.sets = configs, sets
        # all before anything is merged: they are checked against the base as it is
        self._vectors = {name: _attempted(partial(self._opened, run)) for name, run in runs.items()}
        self.base.keep()
        self._alone: dict[tuple[str, Rule], Scores | InputError] = {}

    def _opened(self, run: Record) -> TaskVector:
        if run.cell.task not in self.configs:
            raise InputError(f"{run.path}: task={shown(run.cell.task)}: is none of conf/task")
        return self.base.open(run.run_id, _folder_of(run))

    def alone(self, run: Record, rule: Rule) -> Scores:
        """Return scores of one run's model on its task, after the rule (which may drop changes);
        raises InputError where an unchanged one's are not the run's own: the data is other data."""
        key = (run.run_id, rule)
        if key not in self._alone:
            self._alone[key] = _attempted(lambda: self._scored_alone(run, rule))
        return _or_raise(self._alone[key])

    def _scored_alone(self, run: Record, rule: Rule) -> Scores:
        scores = self._scores([_or_raise(self._vectors[run.run_id])], [run], rule)[0]
        for split in ("dev", "test") if rule.keep is None else ():
            loss, recorded = scores[split]["loss"], run.score(split, "loss")
            if abs(loss - recorded) > SCORES_AGREE:
                raise InputError(
                    f"task={run.cell.task}: {split} loss is {loss:.4f} here and {recorded:.4f} in "
                    f"the record of run {run.run_id}; is task.data_dir the data that it was "
                    "trained on?"
                )
        return scores

    def record(self, pair: Pair, rule: Rule) -> dict[str, Any]:
        """Return the scores of one pair, alone and merged, for JSON. Raises InputError if a run
        cannot be read, or their bases differ in the rows of added tokens."""
        vectors = [_or_raise(self._vectors[run.run_id]) for run in pair.runs]
        if self.base.has_added_rows:
            folders = [vector.folder for vector in vectors]
            refuse_other_rows(folders, [vector.manifest for vector in vectors])
        config = next(iter(self.configs.values()))
        precision = Precision(DTYPES[self.base.dtype], torch.float32)
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
            "overlap": overlaps_of(vectors, self.base)[0].as_dict(),
            "alone": [self.alone(run, Rule()) for run in pair.runs],
            # what dropping itself costs, without another model
            "thinned": None if rule.keep is None else [self.alone(run, rule) for run in pair.runs],
            "merged": self._scores(vectors, pair.runs, rule),
            "finished": now(),
            "environment": environment(accelerator_of(config).device, precision, 1),
        }

    def _scores(
        self, vectors: Sequence[TaskVector], runs: Sequence[Record], rule: Rule
    ) -> list[Scores]:
        """Of the vectors merged, on the task of each."""
        self.base.restore()
        merge_into(self.base, vectors, rule)
        scores = []
        for vector, run in zip(vectors, runs, strict=True):
            about, task = vector.manifest, run.cell.task
            config = self.configs[task]
            check_fits(about, config.task, str(vector.folder))
            key = repr((about.tokenizer_fingerprint, about.prompt, about.undo_spacing, task))
            if key not in self.sets:
                self.sets[key] = sets_of(about, self.base.tokenizer, config, self.base.backbone)
            classifier = Classifier(self.base.backbone, vector.heads[HEAD]).requires_grad_(False)
            scores.append(scores_of(classifier, self.sets[key], config, about))
        return scores


def _attempted(make: Callable[[], T]) -> T | InputError:
    """Return what comes of it, or the fault of input: one run's keeps no other from merging."""
    try:
        return make()
    except InputError as error:
        return InputError(*error.lines)  # without the traceback, which would hold tensors


def _or_raise(result: T | InputError) -> T:
    if isinstance(result, InputError):
        raise InputError(*result.lines)
    return result


# ----------------------------------------------------------------------------------- records
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
        left = select(records).excluded
        why = f"; {len(left)} left out, {left[0].path}: {left[0].reason}" if left else ""
        raise InputError(
            f"{folder}: no two tasks with completed runs of {seeds} "
            f"whose adapters were saved (save=adapter; save=full for full_ft){why}"
        )
    # records may come from anybody: a task that is unknown here has no configuration
    tasks = {run.cell.task for pairs in groups for pair in pairs for run in pair.runs}
    known = sorted(tasks & set(choices("task")))
    configs = {task: compose([f"task={task}", *settings]) for task in known}
    measured = MeasuredPairs(rule, sum(map(len, groups)))
    sets: dict[str, Sets] = {}
    for pairs in groups:
        for of_one_base in _by_base(pairs, folder, measured):
            try:
                merger = Merger(of_one_base, base, tokenizer, configs, sets)
            except InputError as error:
                for pair in of_one_base:
                    measured.refuse(pair, error)
                continue
            for pair in of_one_base:
                try:
                    record = merger.record(pair, rule)
                except InputError as error:
                    measured.refuse(pair, error)
                    continue
                path = _path_of(folder, pair, rule)
                try:
                    write_json(path, record)
                except OSError as error:  # concerns all pairs
                    raise InputError(f"{path}: cannot be written: {error.strerror}") from None
                measured.add(pair, record)
    return measured


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
                by_base[_base_of_both(pair)].append(pair)
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
