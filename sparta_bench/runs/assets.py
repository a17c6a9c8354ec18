"""What the runs of one process share, so that each pays only for its own training."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import torch

from sparta_bench.config.schema import Config, ModelConfig, TaskConfig
from sparta_bench.data.splits import Splits, load_splits
from sparta_bench.data.tokenize import EncodedSplits, encode_splits
from sparta_bench.errors import InputError
from sparta_bench.methods.trained import Trained
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.dtypes import Precision
from sparta_bench.models.load import load_classifier
from sparta_bench.models.source import load_architecture, load_tokenizer, source_fingerprint
from sparta_bench.sparta.store import fingerprint_of

T = TypeVar("T")


class AssetCache:
    """The last data, tokenizer and backbone, and the fingerprints of all.

    One of each is kept: a sweep goes from model to model and from task to task, and two backbones
    may not fit into memory.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[str, Any]] = {}
        self._fingerprints: dict[str, str] = {}
        self._checked: set[str] = set()
        self._faults: dict[str, InputError] = {}
        self._values = ""  # the kept backbone's, so that one that was not restored is noticed

    # ------------------------------------------------------------------------------ data
    def splits(self, task: TaskConfig) -> Splits:
        """The task's raw examples. Raises InputError as `load_splits` does."""
        key = _key(task)
        splits = self._last("splits", key, lambda: load_splits(task))
        if key not in self._fingerprints:
            self._fingerprints[key] = splits.fingerprint()
        return splits

    def data_fingerprint(self, task: TaskConfig) -> str:
        """A hash of what the task's three sets hold."""
        key = _key(task)
        if key not in self._fingerprints:
            self._unless_it_failed(key, lambda: self.splits(task))
        return self._fingerprints[key]

    def base_fingerprint(self, model: ModelConfig) -> str:
        """What identifies the base model's files. Raises InputError if the hub cannot be asked."""
        key = _key(model)
        if key not in self._fingerprints:
            self._fingerprints[key] = self._unless_it_failed(key, lambda: source_fingerprint(model))
        return self._fingerprints[key]

    def check_architecture(self, model: ModelConfig) -> None:
        """Raise InputError if a folder's shape is not that of the model whose name it bears."""
        key = _key(model)
        if key not in self._checked:
            load_architecture(model)
            self._checked.add(key)

    def tokenizer(self, model: ModelConfig, task: TaskConfig) -> Any:
        """The model's tokenizer for inputs of such a task."""
        key = f"{_key(model)} {task.separator} {len(task.columns)}"
        return self._last("tokenizer", key, lambda: load_tokenizer(model, task))

    def data(self, config: Config) -> EncodedSplits:
        """Token ids of the three sets."""
        tokenizer = self.tokenizer(config.model, config.task)
        key = f"{_key(config.model)} {_key(config.task)} {config.cache_dir}"
        return self._last(
            "data", key, lambda: encode_splits(config, self.splits(config.task), tokenizer)
        )

    def _unless_it_failed(self, key: str, make: Callable[[], T]) -> T:
        """A hub that cannot be reached takes half a minute to say so: once for a whole grid."""
        if key in self._faults:
            raise self._faults[key]
        try:
            return make()
        except InputError as error:
            self._faults[key] = error
            raise

    # -------------------------------------------------------------------------- backbone
    def take_classifier(
        self, config: Config, precision: Precision, device: torch.device
    ) -> Classifier:
        """A frozen classifier on `device`. Its backbone is the kept one, if that is the same.

        It is this run's alone from now on: where the run fails, the next one loads anew.
        """
        tokenizer = self.tokenizer(config.model, config.task)
        self.keep_only(config, precision, device)
        _, kept = self._kept.pop("backbone", ("", None))
        if kept is not None and fingerprint_of(kept) != self._values:
            raise RuntimeError("a backbone was not restored after a run; please report this")
        classifier = load_classifier(config, tokenizer, precision, device, kept)
        if kept is None:
            self._values = fingerprint_of(classifier.backbone)
        return classifier

    def keep_only(self, config: Config, precision: Precision, device: torch.device) -> None:
        """Let go of a backbone that is not this run's: two may not fit into memory."""
        key, _ = self._kept.get("backbone", ("", None))
        if key and key != _backbone_key(config, precision, device):
            self.forget_backbone()

    def forget_backbone(self) -> None:
        """Free the backbone, also one that a failed run has left in a reference cycle."""
        self._kept.pop("backbone", None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def give_back(
        self,
        classifier: Classifier,
        trained: Trained,
        config: Config,
        precision: Precision,
        device: torch.device,
    ) -> None:
        """Keep the backbone for the next run, if the method can restore it exactly."""
        changed = config.save == "full" or config.task.separator == "sep_token"  # weights, new rows
        # checkpointing leaves hooks on the modules, a few more with every run
        if changed or config.train.gradient_checkpointing or not trained.unload():
            return
        self._kept["backbone"] = (_backbone_key(config, precision, device), classifier.backbone)

    def _last(self, kind: str, key: str, make: Callable[[], T]) -> T:
        found, value = self._kept.get(kind, ("", None))
        if found != key:
            self._kept.pop(kind, None)
            value = make()
            self._kept[kind] = (key, value)
        return value  # type: ignore[no-any-return]


def _key(part: ModelConfig | TaskConfig) -> str:
    return json.dumps(asdict(part), sort_keys=True)


def _backbone_key(config: Config, precision: Precision, device: torch.device) -> str:
    settings = (
        precision.model_dtype,
        device,
        config.train.gradient_checkpointing,
        config.task.separator,
    )
    return f"{_key(config.model)} {settings}"
