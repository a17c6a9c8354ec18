"""One run: which it is, whose it is, whether it is done already, and its record."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from sparta_bench.config.schema import Config
from sparta_bench.devices import accelerator_of, is_lack_of_memory, set_threads
from sparta_bench.errors import InputError, TrainingError, log, reason_of
from sparta_bench.files import remove_folder, write_json
from sparta_bench.models.dtypes import precision_of
from sparta_bench.records.read import look_into, read_json
from sparta_bench.records.record import NOT_TO_REPLACE, RESULT, RUNNING, SAVED
from sparta_bench.records.write import (
    error_of,
    new_record,
    now,
    run_folder,
    run_id_of,
    write_record,
)
from sparta_bench.runs.assets import AssetCache
from sparta_bench.runs.experiment import execute
from sparta_bench.runs.lock import CHECKPOINT, agreed, run_lock

MOST_PROCESSES = 64  # of one run, whose checkpoints are looked for


def run(
    config: Config,
    assets: AssetCache | None = None,
    wait: bool = True,
    before: tuple[int, ...] | None = None,
    label: str = "",
) -> tuple[dict[str, Any], Path, bool]:
    """Run an experiment, unless its completed record is there.

    Returns the record, its path, and whether it was there already. A run that fails or is
    interrupted leaves a record that says so; an interruption is then raised again.

    Parameters
    ----------
    assets
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
    assets = AssetCache() if assets is None else assets
    accelerator = accelerator_of(config)
    set_threads(config)
    run_id = identify(config, assets, accelerator.device, accelerator.num_processes)
    if agreed(accelerator, run_id) != run_id:
        raise RuntimeError("the processes of one run do not see the same data or base model")
    folder = run_folder(config, run_id)
    _make_folder(folder)
    with run_lock(folder, accelerator, wait):
        found = agreed(accelerator, read_json(folder))
        settled = found is not None and _is_settled(found, folder, config, before)
        if found is not None and agreed(accelerator, settled):
            return found, folder / RESULT, True
        _look_at_what_is_replaced(folder, config)
        _look_for_other_checkpoints(config, assets, accelerator)
        record = new_record(config, run_id, assets.base_fingerprint(config.model))
        if accelerator.is_main_process:  # for `status`
            write_json(folder / RUNNING, record)
        unlike = _make(record, config, accelerator, assets, folder, label)
        path = _finish(record, folder, accelerator)
        if unlike is not None:
            raise unlike
        if record["status"] == "failed":
            assets.forget_backbone()
        return record, path, False


def _make(
    record: dict[str, Any],
    config: Config,
    accelerator: Accelerator,
    assets: AssetCache,
    folder: Path,
    label: str,
) -> Exception | None:
    """Make the run, and say in its record how it ended. Gives what ended it where the run's other
    processes may not have it: they would wait for this one."""
    try:
        if accelerator.is_main_process:
            print(f"{label}{_what(record)}", file=sys.stderr, flush=True)
        execute(record, config, accelerator, assets, folder)
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
        # under the same name, which Python forgets at the end: its traceback holds the model
        error = _explained(error, config, record, accelerator.num_processes)
        record |= {"status": "failed", "error": error_of(error)}
        return error if alone else None
    record["status"] = "completed"
    return None


def identify(config: Config, assets: AssetCache, device: torch.device, processes: int) -> str:
    """The `run_id` that `run` would give in so many processes. Reads data and the base model's
    files, no weights.

    Raises
    ------
    InputError
        If either cannot be had, or the folder's model is of another shape than the one named.
    """
    assets.check_architecture(config.model)
    return run_id_of(
        config,
        precision_of(config, device),
        assets.base_fingerprint(config.model),
        assets.data_fingerprint(config.task),
        processes,
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
        found = (folder / RESULT).stat()
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
    log(f"{line}; the run is made again")


def _look_for_other_checkpoints(
    config: Config, assets: AssetCache, accelerator: Accelerator
) -> None:
    """Say where a checkpoint lies that another number of processes has left, whose run is another
    one because of dropout: nobody is to wonder why this one begins anew."""
    here = accelerator.num_processes

    def checkpoint_of(processes: int) -> Path:
        run_id = identify(config, assets, accelerator.device, processes)
        return run_folder(config, run_id) / CHECKPOINT

    own = checkpoint_of(here)
    # without dropout a run is the same in any number of processes
    if own.exists() or config.force or checkpoint_of(1) == checkpoint_of(2):
        return
    for processes in range(1, MOST_PROCESSES + 1):
        other = checkpoint_of(processes)
        if other != own and other.exists():
            log(
                f"start {processes} process{'es' * (processes > 1)} to go on from {other}; dropout "
                f"is drawn by process, so that with {here} this is another run, which begins anew"
            )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:  # told now, not after hours of training
        raise InputError(f"results_dir: {folder} cannot be written to: {error.strerror}") from None


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
    return folder / RESULT


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
