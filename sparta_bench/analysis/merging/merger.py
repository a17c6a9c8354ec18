"""Runs of one base in memory, and the scores of their models, alone and merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
from sparta_bench.analysis.merging.pairs import Pair, folder_of
from sparta_bench.config.schema import Config
from sparta_bench.devices import accelerator_of
from sparta_bench.errors import InputError, shown
from sparta_bench.inference.evaluate import Sets, check_fits, scores_of, sets_of
from sparta_bench.methods.trained import HEAD
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.dtypes import DTYPES, Precision
from sparta_bench.records.record import Record
from sparta_bench.records.write import environment

SCORES_AGREE = 1e-3  # nats: how near a run's recorded loss must be, whatever the device

T = TypeVar("T")
Scores = dict[str, dict[str, float]]  # by split, then by metric


def base_of_both(pair: Pair) -> tuple[str | int | None, ...]:
    """Return what tells the base of a pair from others: pairs of one can share a `Merger`. Raises
    InputError if the two were trained on different bases, or one does not say on which."""
    folders = [folder_of(run) for run in pair.runs]
    one, _ = manifests = [read_manifest(folder) for folder in folders]
    refuse_mixed(folders, manifests)
    parts = (one.base_model["fingerprint"], one.tokenizer_fingerprint, one.dtypes["model"])
    # of the seed are the rows of added tokens, of which the fingerprint need not see one
    return *parts, one.base_fingerprint, one.seed if one.separator == "sep_token" else None


class Merger:
    """The runs of pairs of one base (`base_of_both`), with that base, in memory.

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
        first = folder_of(pairs[0].one)
        self.base = Base(first, read_manifest(first), base, tokenizer)
        self.configs, self.sets = configs, sets
        # all before anything is merged: they are checked against the base as it is
        self._vectors = {name: _attempted(partial(self._opened, run)) for name, run in runs.items()}
        self.base.keep()
        self._alone: dict[tuple[str, Rule], Scores | InputError] = {}

    def _opened(self, run: Record) -> TaskVector:
        if run.cell.task not in self.configs:
            raise InputError(f"{run.path}: task={shown(run.cell.task)}: is none of conf/task")
        return self.base.open(run.run_id, folder_of(run))

    def alone(self, run: Record, rule: Rule) -> Scores:
        """Return scores of one run's model on its task, after the rule (which may drop changes);
        raises InputError where an unchanged one's are not the run's own: the data is other data."""
        key = (run.run_id, rule)
        if key not in self._alone:
            self._alone[key] = _attempted(lambda: self._scored_alone(run, rule))
        return _or_raise(self._alone[key])

    def _scored_alone(self, run: Record, rule: Rule) -> Scores:
        scores = self._scores([_or_raise(self._vectors[run.run_id])], [run], rule)[0]
        if rule.keep is None:
            _check_same(run, scores)
        return scores

    def merged(self, pair: Pair, rule: Rule) -> list[Scores]:
        """Return scores of the merged model on the first's task, and on the other's."""
        return self._scores(self._both(pair), pair.runs, rule)

    def environment(self) -> dict[str, Any]:
        """Return versions, device and dtypes."""
        config = next(iter(self.configs.values()))
        precision = Precision(DTYPES[self.base.dtype], torch.float32)
        return environment(accelerator_of(config).device, precision, 1)

    def overlap(self, pair: Pair) -> dict[str, Any]:
        """Return where the two changed the same entries. Raises InputError if their bases differ in
        the rows of added tokens."""
        return overlaps_of(self._both(pair), self.base)[0].as_dict()

    def _both(self, pair: Pair) -> list[TaskVector]:
        vectors = [_or_raise(self._vectors[run.run_id]) for run in pair.runs]
        if self.base.has_added_rows:
            folders = [vector.folder for vector in vectors]
            refuse_other_rows(folders, [vector.manifest for vector in vectors])
        return vectors

    def _scores(
        self, vectors: Sequence[TaskVector], runs: Sequence[Record], rule: Rule
    ) -> list[Scores]:
        self.base.restore()
        merge_into(self.base, vectors, rule)
        return [
            self._score(vector, run.cell.task) for vector, run in zip(vectors, runs, strict=True)
        ]

    def _score(self, vector: TaskVector, task: str) -> Scores:
        about, config = vector.manifest, self.configs[task]
        check_fits(about, config.task, str(vector.folder))
        key = repr((about.tokenizer_fingerprint, about.prompt, about.undo_spacing, task))
        if key not in self.sets:
            self.sets[key] = sets_of(about, self.base.tokenizer, config, self.base.backbone)
        classifier = Classifier(self.base.backbone, vector.heads[HEAD]).requires_grad_(False)
        return scores_of(classifier, self.sets[key], config, about)


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


def _check_same(run: Record, scores: Mapping[str, Mapping[str, float]]) -> None:
    for split in ("dev", "test"):
        loss, recorded = scores[split]["loss"], run.score(split, "loss")
        if abs(loss - recorded) > SCORES_AGREE:
            raise InputError(
                f"task={run.cell.task}: {split} loss is {loss:.4f} here and {recorded:.4f} in the "
                f"record of run {run.run_id}; is task.data_dir the data that it was trained on?"
            )
