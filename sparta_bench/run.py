"""One experiment, from configuration to record."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from sparta_bench.config import Config
from sparta_bench.data.encode import encode_splits
from sparta_bench.data.splits import Splits, load_splits
from sparta_bench.errors import InputError, TrainingError
from sparta_bench.files import write_json, write_tensors
from sparta_bench.memory import forget_peak, peak_bytes
from sparta_bench.methods import prepare
from sparta_bench.methods.trained import Trained
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.counts import count_parameters
from sparta_bench.models.load import load_classifier
from sparta_bench.models.precision import Precision, precision_of
from sparta_bench.models.source import fingerprint_of, load_architecture, load_tokenizer
from sparta_bench.results import (
    environment,
    error_of,
    new_record,
    now,
    read_record,
    run_folder,
    run_id_of,
    write_record,
)
from sparta_bench.training.loop import Progress, Training
from sparta_bench.training.progress import ProgressReporter


def run(config: Config) -> tuple[dict[str, Any], Path, bool]:
    """Run an experiment, unless its completed record is there.

    Returns the record, its path, and whether it was there already. A run that fails or is
    interrupted leaves a record that says so; an interruption is then raised again.

    Raises
    ------
    InputError
        If model, data or configuration do not fit; nothing was trained then.
    KeyboardInterrupt
        If the run was interrupted.
    """
    accelerator = _accelerator(config)
    load_architecture(config.model)  # a folder of another shape than the named model's is refused
    precision = precision_of(config, accelerator.device)
    splits = load_splits(config.task)
    base_fingerprint = fingerprint_of(config.model)
    run_id = run_id_of(config, precision, base_fingerprint, splits.fingerprint())
    folder = run_folder(config, run_id)
    found = read_record(folder)
    if found is not None and found["status"] == "completed" and not config.force:
        return found, folder / "result.json", True
    _make_folder(folder)
    record = new_record(config, run_id, base_fingerprint)
    try:
        _fill(record, config, accelerator, precision, splits, folder)
        record["status"] = "completed"
    except InputError:
        raise
    except KeyboardInterrupt:
        _finish(record, folder, accelerator)
        raise
    except Exception as error:
        record |= {"status": "failed", "error": error_of(_explained(error, config))}
    return record, _finish(record, folder, accelerator), False


def _fill(
    record: dict[str, Any],
    config: Config,
    accelerator: Accelerator,
    precision: Precision,
    splits: Splits,
    folder: Path,
) -> None:
    """The experiment itself; whatever is known is put into the record at once."""
    device = accelerator.device
    record["environment"] = environment(device, precision, accelerator.num_processes)
    forget_peak(device)

    tokenizer = load_tokenizer(config.model, config.task)
    data = encode_splits(config, splits, tokenizer)
    record["data"] = data.summary

    classifier = load_classifier(config, tokenizer, precision, device)
    counts = count_parameters(classifier.backbone, len(config.task.labels), config.method)
    trained = prepare(classifier, config, precision)
    record["parameters"] = {
        **counts.as_dict(),
        "trainable": trained.trainable,
        "trainable_share": trained.trainable / counts.total,
        "sampled": trained.sampled,
    }

    checkpoint = folder / "checkpoint.safetensors"
    if config.force:
        checkpoint.unlink(missing_ok=True)
    training = Training(
        accelerator,
        classifier,
        trained,
        data.train,
        data.dev,
        config.train,
        config.seed,
        checkpoint,
    )
    try:
        with ProgressReporter(training.plan.steps, accelerator.is_main_process) as reporter:
            training.train(reporter)
        record["dev"] = training.evaluate(data.dev)
        record["test"] = training.evaluate(data.test)
    finally:
        record["training"] = _training_summary(training, trained, device)
        record["history"] = training.progress.history
    if accelerator.is_main_process:
        _save(config, classifier, trained, record, folder)
        checkpoint.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:  # told now, not after hours of training
        raise InputError(f"results_dir: {folder} cannot be written to: {error.strerror}") from None


def _accelerator(config: Config) -> Accelerator:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device=cuda: torch sees no CUDA device here; use device=cpu or auto")
    return Accelerator(cpu=config.device == "cpu")


def _training_summary(training: Training, trained: Trained, device: torch.device) -> dict[str, Any]:
    progress: Progress = training.progress
    seconds = progress.train_seconds
    return {
        "steps": progress.step,
        "best_step": progress.best_step,
        "epochs": round(progress.step / training.plan.steps_per_epoch, 4),
        "stopped_early": progress.stopped_early,
        "seconds": round(seconds, 3),
        "evaluation_seconds": round(progress.evaluation_seconds, 3),
        "examples_per_second": round(progress.examples / seconds, 2) if seconds else None,
        "tokens_per_second": round(progress.tokens / seconds, 1) if seconds else None,
        "peak_memory_bytes": peak_bytes(device),
        "deltas_lost_to_rounding": trained.lost_to_rounding(),
    }


def _finish(record: dict[str, Any], folder: Path, accelerator: Accelerator) -> Path:
    record["finished"] = now()
    if accelerator.is_main_process:
        write_record(folder, record)
    return folder / "result.json"


def _explained(error: Exception, config: Config) -> Exception:
    """Say of a lack of memory what was tried and what to try."""
    text = str(error)
    short = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate" in text
    if not short:
        return error
    told = TrainingError(
        f"out of memory with train.batch_size={config.train.batch_size} in "
        f"{config.train.accumulation_steps} part(s); try a larger train.accumulation_steps "
        "(same result, less memory), train.gradient_checkpointing=true, or a smaller "
        f"train.eval_batch_size ({text.splitlines()[0] if text else type(error).__name__})"
    )
    return told.with_traceback(error.__traceback__)


def _save(
    config: Config, classifier: Classifier, trained: Trained, record: dict[str, Any], folder: Path
) -> None:
    """What `save` asks for, beside the record."""
    for old in ("adapter", "model"):
        shutil.rmtree(folder / old, ignore_errors=True)
    small = trained.adapter()
    if config.save == "adapter" and small is not None:
        tensors, about = small
        write_tensors(folder / "adapter" / "adapter.safetensors", tensors)
        write_json(folder / "adapter" / "adapter_config.json", _description(config, record) | about)
    elif config.save == "full":
        trained.merge_for_good()
        target = folder / "model"
        classifier.backbone.save_pretrained(target)  # type: ignore[operator]
        write_tensors(target / "head.safetensors", {"head.weight": classifier.head_weight.detach()})
        write_json(target / "head_config.json", _description(config, record))


def _description(config: Config, record: dict[str, Any]) -> dict[str, Any]:
    """What somebody needs to know to use what was trained."""
    prompt = config.as_dict()["task"]["prompt"] if config.model.kind == "instruct" else None
    return {
        "format": 1,
        "method": record["config"]["method"],
        "density": record["density"],
        "seed": config.seed,
        "base_model": record["base_model"],
        "task": config.task.name,
        "labels": config.task.labels,
        "columns": config.task.columns,
        "prompt": prompt,
        "separator": config.task.separator,
        "undo_spacing": config.task.undo_spacing,
    }


def summary_line(record: dict[str, Any], path: Path, was_there: bool) -> str:
    """What came out, in one line."""
    density = (
        f" {record['density']:.4%}".rstrip("0%").rstrip(".") + " %" if record["density"] else ""
    )
    what = f"{record['task']} {record['model']} {record['method']}{density} seed {record['seed']}"
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
