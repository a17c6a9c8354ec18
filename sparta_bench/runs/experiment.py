"""The experiment itself: data, model, method, training, scores, and what is saved of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from sparta_bench.adapters.manifest import Manifest
from sparta_bench.adapters.whole_model import check_whole, write_whole
from sparta_bench.config.schema import Config, ModelConfig
from sparta_bench.data.batches import BatchSource, evaluation_batches
from sparta_bench.data.tokenize import EncodedSplits, cache_folder, tokenizer_fingerprint
from sparta_bench.devices import forget_peak, peak_bytes
from sparta_bench.errors import InputError, log
from sparta_bench.files import whole_folder
from sparta_bench.methods import prepare
from sparta_bench.methods.trained import Trained
from sparta_bench.models.attention import attention_of
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.counts import count_parameters
from sparta_bench.models.dropout import dropout_of
from sparta_bench.models.dtypes import precision_of
from sparta_bench.models.features import (
    FeatureClassifier,
    FeatureSet,
    cached_features,
    features_key,
    is_deterministic,
)
from sparta_bench.models.source import is_local
from sparta_bench.records.environment import environment
from sparta_bench.records.record import PROTOCOL, SAVED
from sparta_bench.runs.assets import AssetCache
from sparta_bench.runs.lock import CHECKPOINT
from sparta_bench.sparta import store
from sparta_bench.training.checkpoint import Checkpoint
from sparta_bench.training.evaluation import evaluation_batch_size
from sparta_bench.training.loop import Training
from sparta_bench.training.progress import ProgressReporter, watched

MOST_UNKNOWN = 0.05  # of the training tokens, before it is told


def execute(
    record: dict[str, Any],
    config: Config,
    accelerator: Accelerator,
    assets: AssetCache,
    folder: Path,
) -> None:
    """Make the experiment, and put whatever is known into the record at once, so that it is there
    also where the rest fails. What `save` asks for is written to `folder`.

    Raises
    ------
    InputError
        If model, data and configuration do not fit together.
    TrainingError
        If a loss is not finite.
    """
    device = accelerator.device
    precision = precision_of(config, device)
    record["environment"] = environment(device, precision, accelerator.num_processes)
    assets.keep_only(config, precision, device)
    forget_peak(device)

    data = assets.data(config)
    record["data"] = data.summary
    if accelerator.is_main_process:
        _tell_of_unknown(data.summary["unknown_train_share"], config)

    classifier = assets.take_classifier(config, precision, device)
    record["environment"]["dropout"] = dropout_of(classifier.backbone)
    record["environment"]["attention"] = attention_of(classifier.backbone)
    if config.save == "full":
        _check_savable(config, classifier, assets)
    counts = count_parameters(classifier.backbone, len(config.task.labels), config.method)
    trained = prepare(classifier, config, precision)
    record["environment"]["kernels"] = trained.kernels
    record["parameters"] = {
        **counts.as_dict(),
        "trainable": trained.trainable,
        "trainable_share": trained.trainable / counts.total,
        "sampled": trained.sampled,
    }
    _train(record, config, accelerator, classifier, trained, data, folder)
    if accelerator.is_main_process:
        tokenizer = assets.tokenizer(config.model, config.task)
        save(config, classifier, tokenizer, trained, record, folder)
    assets.give_back(classifier, trained, config, precision, device)


def _tell_of_unknown(share: float | None, config: Config) -> None:
    if share is not None and share > MOST_UNKNOWN:
        log(
            f"{share:.0%} of the training tokens of {config.task.name} are unknown to the "
            f"tokenizer of {config.model.name}, which was made for other texts"
        )


def _train(
    record: dict[str, Any],
    config: Config,
    accelerator: Accelerator,
    classifier: Classifier,
    trained: Trained,
    data: EncodedSplits,
    folder: Path,
) -> None:
    """Train and score; a head alone on features where these are the same in every epoch."""
    model: Classifier | FeatureClassifier = classifier
    sets: Sequence[BatchSource] = (data.train, data.dev, data.test)
    features_seconds = None
    if trained.only_head and config.train.dropout == 0 and is_deterministic(classifier):
        started = time.perf_counter()
        model = FeatureClassifier(classifier.head)
        sets = _features(record, config, accelerator, classifier, data)
        features_seconds = round(time.perf_counter() - started, 3)
    train, dev, test = sets
    checkpoint = _checkpoint(record, config, folder)
    training = Training(
        accelerator, model, trained, train, dev, config.train, config.seed, checkpoint
    )
    try:
        with ProgressReporter(training.plan.steps, accelerator.is_main_process) as reporter:
            training.train(reporter)
        record["dev"] = training.evaluate(dev)
        record["test"] = training.evaluate(test)
    finally:
        device = accelerator.device
        record["training"] = _training_summary(training, trained, device, features_seconds)
        record["history"] = training.progress.history


def _checkpoint(record: dict[str, Any], config: Config, folder: Path) -> Checkpoint:
    made_by = {"run_id": record["run_id"], "versions": record["environment"]["versions"]}
    checkpoint = Checkpoint(folder / CHECKPOINT, made_by)
    if config.force:
        checkpoint.path.unlink(missing_ok=True)
    return checkpoint


def _features(
    record: dict[str, Any],
    config: Config,
    accelerator: Accelerator,
    classifier: Classifier,
    data: EncodedSplits,
) -> list[FeatureSet]:
    """Features of train, dev and test; the backbone runs only for those not in the cache."""
    size = evaluation_batch_size(config.train)
    made_by = record["environment"]
    identity = {
        "protocol": PROTOCOL,
        "base": record["base_model"]["fingerprint"],
        **{key: made_by[key] for key in ("versions", "device", "dtypes")},
        "batch_size": size,
        # the separator's own embedding is drawn from the seed, where the task has one
        "seed": config.seed if config.task.separator == "sep_token" else None,
    }
    sets = []
    for name, encoded in (("train", data.train), ("dev", data.dev), ("test", data.test)):
        batches = evaluation_batches(encoded.lengths(), size)
        path = cache_folder(config) / f"features-{features_key(identity, encoded)}.safetensors"
        speaks = accelerator.is_main_process
        with closing(watched(batches, f"features of {name}", speaks)) as shown:
            sets.append(cached_features(accelerator, classifier, encoded, shown, path))
    return sets


def _training_summary(
    training: Training, trained: Trained, device: torch.device, features_seconds: float | None
) -> dict[str, Any]:
    progress = training.progress
    seconds = progress.train_seconds
    return {
        "steps": progress.step,
        "best_step": progress.best_step,
        "epochs": round(progress.step / training.plan.steps_per_epoch, 4),
        "stopped_early": progress.stopped_early,
        "seconds": round(seconds, 3),
        "features_seconds": features_seconds,
        "evaluation_seconds": round(progress.evaluation_seconds, 3),
        "examples_per_second": round(progress.examples / seconds, 2) if seconds else None,
        "tokens_per_second": round(progress.tokens / seconds, 1) if seconds else None,
        "peak_memory_bytes": peak_bytes(device),
        "deltas_lost_to_rounding": trained.lost_to_rounding(),
    }


def _check_savable(config: Config, classifier: Classifier, assets: AssetCache) -> None:
    tokenizer = assets.tokenizer(config.model, config.task)
    try:
        check_whole(classifier, tokenizer, list(config.task.labels))
    except InputError as error:
        raise InputError(f"save=full: {error}") from None


def save(
    config: Config,
    classifier: Classifier,
    tokenizer: Any,
    trained: Trained,
    record: dict[str, Any],
    folder: Path,
) -> None:
    """What `save` asks for, beside the record."""
    description = _description(config, tokenizer, record, trained.base_fingerprint)
    if config.save == "adapter" and (small := trained.adapter()) is not None:
        tensors, about = small
        with whole_folder(folder / SAVED[config.save]) as temporary:
            store.write(temporary, tensors, {**description.as_dict(), **about})
    elif config.save == "full":
        trained.merge_and_unload()
        with whole_folder(folder / SAVED[config.save]) as temporary:
            write_whole(classifier, tokenizer, description, temporary)


def _description(
    config: Config, tokenizer: Any, record: dict[str, Any], base_fingerprint: str | None
) -> Manifest:
    """What somebody needs to know to use what was trained; like the record without paths."""
    model = ModelConfig(**record["config"]["model"])
    if not is_local(model):
        commit = record["base_model"]["fingerprint"].partition("+")[0]
        model = replace(model, revision=commit)
    return Manifest(
        method=record["config"]["method"],
        density=record["density"],
        seed=config.seed,
        base_model=record["base_model"],
        task=config.task.name,
        labels=list(config.task.labels),
        columns=list(config.task.columns),
        prompt=config.task.prompt if config.model.kind == "instruct" else None,
        separator=config.task.separator,
        undo_spacing=config.task.undo_spacing,
        model=model,
        dtypes=record["environment"]["dtypes"],
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        base_fingerprint=base_fingerprint,
    )
