"""What the runs of one process share, so that each pays only for its own training.

torch is imported where a run needs it: which runs are done is known without.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

from sparta_bench.config.schema import Config, ModelConfig, TaskConfig
from sparta_bench.data.splits import Splits, load_splits
from sparta_bench.errors import InputError
from sparta_bench.models.source import (
    context_of,
    load_architecture,
    load_tokenizer,
    source_fingerprint,
)

if TYPE_CHECKING:
    import torch

    from sparta_bench.data.tokenize import EncodedSplits
    from sparta_bench.methods.trained import Trained
    from sparta_bench.models.classifier import Classifier
    from sparta_bench.models.dtypes import Precision

T = TypeVar("T")


class AssetCache:
    """The last data, tokenizer and backbone, and the fingerprints of all.

    One of each is kept: a sweep goes from model to model and from task to task, and two backbones
    may not fit into memory.
    """

    def __init__(self) -> None:
        self.untrained: dict[Hashable, dict[str, float]] = {}  # dev scores before the first step
        self._last: dict[str, tuple[Hashable, Any]] = {}  # by kind: the key and the asset
        self._facts: dict[Hashable, Any] = {}  # or the error instead
        self._backbone: Hashable = None  # the key of the one that a run needs
        self._values = ""  # that backbone's, so that one that was not restored is noticed

    def splits(self, task: TaskConfig, limit: int | None = None) -> Splits:
        """The task's raw examples. Raises InputError as `load_splits` does."""
        return self._keep_last("splits", (task, limit), lambda: load_splits(task, limit))

    def data_fingerprint(self, task: TaskConfig, limit: int | None = None) -> str:
        """A hash of what the task's three sets hold."""
        return self._once(("data", task, limit), lambda: self.splits(task, limit).fingerprint())

    def base_fingerprint(self, model: ModelConfig) -> str:
        """What identifies the base model's files. Raises InputError if the hub cannot be asked."""
        return self._once(("base", model), lambda: source_fingerprint(model))

    def architecture(self, model: ModelConfig) -> Any:
        """The model's transformers configuration. Raises InputError if a folder's shape is not that
        of the model whose name it bears."""
        return self._once(("architecture", model), lambda: load_architecture(model))

    def tokenizer(self, model: ModelConfig, task: TaskConfig) -> Any:
        """The model's tokenizer for inputs of such a task."""
        key = (model, task.separator, len(task.columns))
        return self._keep_last("tokenizer", key, lambda: load_tokenizer(model, task))

    def data(self, config: Config) -> EncodedSplits:
        """Token ids of the three sets."""
        from sparta_bench.data.tokenize import encode_splits

        model, task = config.model, config.task
        tokenizer = self.tokenizer(model, task)
        context = context_of(self.architecture(model))
        return self._keep_last(
            "data",
            (model, task, config.limit, config.cache_dir),
            lambda: encode_splits(config, self.splits(task, config.limit), tokenizer, context),
        )

    def take_classifier(
        self, config: Config, precision: Precision, device: torch.device
    ) -> Classifier:
        """A frozen classifier on `device`. Its backbone is the kept one, if that is the same.

        It is this run's alone from now on: where the run fails, the next one loads anew.
        """
        from sparta_bench.models.load import load_classifier
        from sparta_bench.sparta.store import fingerprint_of

        tokenizer = self.tokenizer(config.model, config.task)
        self.keep_only(config, precision, device)
        _, backbone = self._last.pop("backbone", (None, None))
        if backbone is not None and fingerprint_of(backbone) != self._values:
            raise RuntimeError("a backbone was not restored after a run; please report this")
        classifier = load_classifier(config, tokenizer, precision, device, backbone)
        if backbone is None and not classifier.sharded:
            self._values = fingerprint_of(classifier.backbone)
        return classifier

    def keep_only(self, config: Config, precision: Precision, device: torch.device) -> None:
        """Let go of a backbone that is not this run's: two may not fit into memory."""
        checkpointing = config.train.gradient_checkpointing
        dtype, separator = precision.model_dtype, config.task.separator
        sharding = config.train.sharding
        self._backbone = (config.model, dtype, device, checkpointing, separator, sharding)
        if self._last.get("backbone", (self._backbone,))[0] != self._backbone:
            self.forget_backbone()

    def forget_backbone(self) -> None:
        """Free the backbone, also one that a failed run has left in a reference cycle."""
        self._last.pop("backbone", None)
        gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def give_back(self, classifier: Classifier, trained: Trained, config: Config) -> None:
        """Keep the backbone for the next run, if the method can restore it exactly."""
        changed = config.save == "full" or config.task.separator == "sep_token"  # weights, new rows
        # FSDP keeps what it has cut; checkpointing leaves hooks on the modules, a few more each run
        once = config.train.gradient_checkpointing or config.train.sharding != "none"
        if not (changed or once) and trained.unload():
            self._last["backbone"] = (self._backbone, classifier.backbone)

    def _keep_last(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        """The last asset of a kind if it has this key; else that is freed, and one is made."""
        if kind not in self._last or self._last[kind][0] != key:
            self._last.pop(kind, None)
            self._last[kind] = (key, make())
        asset: T = self._last[kind][1]
        return asset

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        """A fact, looked up once for a whole grid, and so is that it cannot be had: a hub that
        cannot be reached takes half a minute to say so."""
        if key not in self._facts:
            try:
                self._facts[key] = make()
            except InputError as error:
                self._facts[key] = error
        if isinstance(self._facts[key], InputError):
            raise self._facts[key]
        fact: T = self._facts[key]
        return fact
