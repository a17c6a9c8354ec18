"""One experiment, from configuration to record."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from sparta_bench.claim import CHECKPOINT, agreed, claimed
from sparta_bench.config import Config, ModelConfig
from sparta_bench.data.batches import BatchSource, evaluation_batches
from sparta_bench.data.encode import (
    EncodedSplits,
    cache_folder,
    tokenizer_fingerprint,
)
from sparta_bench.errors import InputError, TrainingError, reason_of, tell
from sparta_bench.files import remove_folder, whole_folder, write_json
from sparta_bench.memory_use import forget_peak, is_lack_of_memory, peak_bytes
from sparta_bench.methods import prepare
from sparta_bench.methods.trained import Trained
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.counts import count_parameters
from sparta_bench.models.features import (
    FeatureClassifier,
    FeatureSet,
    cached_features,
    features_key,
    is_deterministic,
)
from sparta_bench.models.precision import Precision, precision_of
from sparta_bench.models.source import is_local
from sparta_bench.records import NOT_TO_REPLACE, PROTOCOL, RUNNING, look_into, read_json
from sparta_bench.results import (
    environment,
    error_of,
    new_record,
    now,
    run_folder,
    run_id_of,
    write_record,
)
from sparta_bench.saved.description import Description
from sparta_bench.saved.whole import check_whole, write_whole
from sparta_bench.shared import Shared
from sparta_bench.sparta import store
from sparta_bench.training.checkpoint import Checkpoint
from sparta_bench.training.loop import Progress, Training, evaluation_batch_size
from sparta_bench.training.progress import ProgressReporter, watched

SAVED = {"adapter": "adapter", "full": "model"}  # the folder beside the record, by `save`


def run(
    config: Config,
    shared: Shared | None = None,
    wait: bool = True,
    before: tuple[int, ...] | None = None,
    label: str = "",
) -> tuple[dict[str, Any], Path, bool]:
    """Run an experiment, unless its completed record is there.

    Returns the record, its path, and whether it was there already. A run that fails or is
    interrupted leaves a record that says so; an interruption is then raised again.

    Parameters
    ----------
    shared
        What earlier runs of this process have left for this one.
    wait
        Wait for another process that is at this very run, and then take its record.
    before
        What `stamp_of` gave for the run's folder when a grid began. A record written since is taken
        as it is, also where the run has failed, or `force` is set: another process of the same grid
        has made it.
    label
        Goes before the run's name, which is told when it starts.

    Raises
    ------
    InputError
        If model, data or configuration do not fit; nothing was trained then.
    BusyError
        If another process is at this run, and `wait` is false.
    KeyboardInterrupt
        If the run was interrupted.
    """
    shared = Shared() if shared is None else shared
    accelerator = accelerator_of(config)
    precision = precision_of(config, accelerator.device)
    run_id = identify(config, shared, accelerator.device)
    if agreed(accelerator, run_id) != run_id:
        raise RuntimeError("the processes of one run do not see the same data or base model")
    folder = run_folder(config, run_id)
    _make_folder(folder)
    with claimed(folder, accelerator, wait):
        found = agreed(accelerator, read_json(folder))
        settled = found is not None and _is_settled(found, folder, config, before)
        if found is not None and agreed(accelerator, settled):
            return found, folder / "result.json", True
        _look_at_what_is_replaced(folder, config)
        record = new_record(config, run_id, shared.base_fingerprint(config.model))
        if accelerator.is_main_process:  # for `status`
            write_json(folder / RUNNING, record)
        unlike: Exception | None = None
        try:
            _fill(record, config, accelerator, precision, shared, folder, label)
            record["status"] = "completed"
        except InputError:
            raise
        except KeyboardInterrupt:
            try:
                _finish(record, folder, accelerator)
            except OSError:
                pass  # a full disk is no reason to go on
            raise
        except Exception as error:
            alone = accelerator.num_processes > 1 and not isinstance(error, TrainingError)
            error = _explained(error, config, record, accelerator.num_processes)
            record |= {"status": "failed", "error": error_of(error)}
            if alone:
                unlike = error  # the others may not have it, and would wait for this one
        path = _finish(record, folder, accelerator)
        if unlike is not None:
            raise unlike
        if record["status"] == "failed":
            shared.forget_backbone()
        return record, path, False


def identify(config: Config, shared: Shared, device: torch.device) -> str:
    """The `run_id` that `run` would give. Reads data and the base model's files, no weights.

    Raises
    ------
    InputError
        If either cannot be had, or the folder's model is of another shape than the one named.
    """
    shared.check_architecture(config.model)
    return run_id_of(
        config,
        precision_of(config, device),
        shared.base_fingerprint(config.model),
        shared.data_fingerprint(config.task),
    )


def _is_settled(
    found: dict[str, Any], folder: Path, config: Config, before: tuple[int, ...] | None
) -> bool:
    if found["status"] == "completed" and not config.force:
        return True
    ended = found["status"] in ("completed", "failed")
    return ended and before is not None and stamp_of(folder) != before


def stamp_of(folder: Path) -> tuple[int, ...]:
    """What tells a record from one written later in its place, whatever the clocks say."""
    try:
        found = (folder / "result.json").stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _look_at_what_is_replaced(folder: Path, config: Config) -> None:
    """Say that a broken record is made again; raise InputError if it may be a good one."""
    fault = look_into(folder)
    if not isinstance(fault, str):
        return
    line = f"{folder / 'result.json'}: {fault}"
    if fault.startswith(NOT_TO_REPLACE) and not config.force:
        raise InputError(f"{line}; move it away, or replace it with force=true")
    tell(f"{line}; the run is made again")


def _fill(
    record: dict[str, Any],
    config: Config,
    accelerator: Accelerator,
    precision: Precision,
    shared: Shared,
    folder: Path,
    label: str,
) -> None:
    """The experiment itself; whatever is known is put into the record at once."""
    device = accelerator.device
    if accelerator.is_main_process:
        print(f"{label}{_what(record)}", file=sys.stderr, flush=True)
    record["environment"] = environment(device, precision, accelerator.num_processes)
    shared.keep_only(config, precision, device)
    forget_peak(device)

    data = shared.data(config)
    record["data"] = data.summary

    classifier = shared.take_classifier(config, precision, device)
    if config.save == "full":
        _check_savable(config, classifier, shared)
    counts = count_parameters(classifier.backbone, len(config.task.labels), config.method)
    trained = prepare(classifier, config, precision)
    record["parameters"] = {
        **counts.as_dict(),
        "trainable": trained.trainable,
        "trainable_share": trained.trainable / counts.total,
        "sampled": trained.sampled,
    }

    model: Classifier | FeatureClassifier = classifier
    sets: Sequence[BatchSource] = (data.train, data.dev, data.test)
    features_seconds = None
    if trained.only_head and config.train.dropout == 0 and is_deterministic(classifier):
        started = time.perf_counter()
        model = FeatureClassifier(classifier.head)
        sets = _features(record, config, accelerator, classifier, data)
        features_seconds = round(time.perf_counter() - started, 3)
    train, dev, test = sets

    made_by = {"run_id": record["run_id"], "versions": record["environment"]["versions"]}
    checkpoint = Checkpoint(folder / CHECKPOINT, made_by)
    if config.force:
        checkpoint.path.unlink(missing_ok=True)
    training = Training(
        accelerator,
        model,
        trained,
        train,
        dev,
        config.train,
        config.seed,
        checkpoint,
    )
    try:
        with ProgressReporter(training.plan.steps, accelerator.is_main_process) as reporter:
            training.train(reporter)
        record["dev"] = training.evaluate(dev)
        record["test"] = training.evaluate(test)
    finally:
        record["training"] = _training_summary(training, trained, device, features_seconds)
        record["history"] = training.progress.history
    if accelerator.is_main_process:
        tokenizer = shared.tokenizer(config.model, config.task)
        _save(config, classifier, tokenizer, trained, record, folder)
    shared.give_back(classifier, trained, config, precision, device)


def _check_savable(config: Config, classifier: Classifier, shared: Shared) -> None:
    tokenizer = shared.tokenizer(config.model, config.task)
    try:
        check_whole(classifier, tokenizer, config.task.labels)
    except InputError as error:
        raise InputError(f"save=full: {error}") from None


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


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:  # told now, not after hours of training
        raise InputError(f"results_dir: {folder} cannot be written to: {error.strerror}") from None


def accelerator_of(config: Config) -> Accelerator:
    """The device and the processes of a run. Raises InputError if the device is not there."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device=cuda: torch sees no CUDA device here; use device=cpu or auto")
    return Accelerator(cpu=config.device == "cpu")


def _training_summary(
    training: Training, trained: Trained, device: torch.device, features_seconds: float | None
) -> dict[str, Any]:
    progress: Progress = training.progress
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


def _finish(record: dict[str, Any], folder: Path, accelerator: Accelerator) -> Path:
    """Write the record; a completed one, made before and forced to be made again, is kept until
    there is another, and so is what it has saved."""
    record["finished"] = now()
    if accelerator.is_main_process:
        before = read_json(folder)
        if record["status"] == "completed" or (before or {}).get("status") != "completed":
            write_record(folder, record)
        if record["status"] == "completed":
            for save, name in SAVED.items():
                if save != record["config"]["save"]:
                    remove_folder(folder / name)
    return folder / "result.json"


def _explained(
    error: Exception, config: Config, record: dict[str, Any], processes: int
) -> Exception:
    """Say of a lack of memory what was tried and what to try, and of another process's death that
    it is one."""
    text = reason_of(error)
    if is_lack_of_memory(error):
        data = record["data"] or {}
        lengths = [data.get(f"longest_{kind}_tokens") for kind in ("train", "eval")]
        told = TrainingError(
            f"out of memory with train.batch_size={config.train.batch_size} in "
            f"{config.train.accumulation_steps} part(s); try a larger train.accumulation_steps "
            "(same result, less memory), train.gradient_checkpointing=true, or a smaller "
            f"train.eval_batch_size ({text}; the longest training input has {lengths[0]} tokens, "
            f"of dev and test {lengths[1]})"
        )
    elif processes > 1 and any(word in text for word in ("gloo", "NCCL")):
        told = TrainingError(
            f"another of the {processes} processes of this run has died or does not answer; its "
            f"own output says why, and the same command goes on ({text})"
        )
    else:
        return error
    return told.with_traceback(error.__traceback__)


def _save(
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
        trained.merge_for_good()
        with whole_folder(folder / SAVED[config.save]) as temporary:
            write_whole(classifier, tokenizer, description, temporary)


def _description(
    config: Config, tokenizer: Any, record: dict[str, Any], base_fingerprint: str | None
) -> Description:
    """What somebody needs to know to use what was trained; like the record without paths."""
    model = ModelConfig(**record["config"]["model"])
    if not is_local(model):
        commit = record["base_model"]["fingerprint"].partition("+")[0]
        model = replace(model, revision=commit)
    return Description(
        method=record["config"]["method"],
        density=record["density"],
        seed=config.seed,
        base_model=record["base_model"],
        task=config.task.name,
        labels=config.task.labels,
        columns=config.task.columns,
        prompt=config.task.prompt if config.model.kind == "instruct" else None,
        separator=config.task.separator,
        undo_spacing=config.task.undo_spacing,
        model=model,
        dtypes=record["environment"]["dtypes"],
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        base_fingerprint=base_fingerprint,
    )


def name_of(config: Config) -> str:
    """Which run it is, in a few words."""
    return _what(new_record(config, "", ""))


def _what(record: dict[str, Any]) -> str:
    density = f" {100 * record['density']:.3g} %" if record["density"] else ""
    train = record["config"]["train"]
    return (
        f"{record['task']} {record['model']} {record['method']}{density}, "
        f"rate {train['learning_rate']:g}, batch {train['batch_size']}, seed {record['seed']}"
    )


def summary_line(record: dict[str, Any], path: Path, was_there: bool) -> str:
    """What came out, in one line."""
    what = _what(record)
    if record["status"] != "completed":
        return f"{record['status']}: {what}: {record['error']['message']} → {path}"
    dev, test, parameters = record["dev"], record["test"], record["parameters"]
    share = parameters["trainable"] / parameters["total"]
    done = "there already" if was_there else f"{record['training']['seconds']:.1f} s of training"
    return (
        f"{what}: dev loss {dev['loss']:.4f}, test loss {test['loss']:.4f}, "
        f"accuracy {test['accuracy']:.2%}, mcc {test['mcc']:.3f}; "
        f"{parameters['trainable']:,} of {parameters['total']:,} scalars trained ({share:.3%}); "
        f"{done} → {path}"
    )
