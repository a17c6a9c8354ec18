"""One run: `resolve` decides all that it needs, `execute` makes it, `write_record` records it.

torch comes with `resolve`: a run's folder is known without.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from sparta_bench.config.rules import is_number
from sparta_bench.config.schema import Config, plain
from sparta_bench.devices import accelerator_of, heavy_imports, set_threads
from sparta_bench.errors import InputError, fitted, log
from sparta_bench.files import hash_of, write_json
from sparta_bench.records.read import look_into, method_named
from sparta_bench.records.record import NOT_TO_REPLACE, PROTOCOL, RESULT, RUNNING, identity_of
from sparta_bench.records.write import (
    Findings,
    RunResult,
    RunSpec,
    as_record,
    density_of,
    write_record,
)
from sparta_bench.runs.assets import AssetCache
from sparta_bench.runs.lock import CHECKPOINT, agreed, run_lock
from sparta_bench.runs.race import share_done
from sparta_bench.text import method_text

MOVED = 0.02  # nats that the dev loss rises where the rate is too high, not too low
MOST_PROCESSES = 64  # of one run, whose checkpoints are looked for


def run(
    config: Config,
    assets: AssetCache | None = None,  # what earlier runs of this process have left for this one
    wait: bool = True,  # for another process that makes this very run; else BusyError
    before: tuple[int, ...] | None = None,  # `stamp_of` the folder when a grid began
    label: str = "",  # printed before the run's name when the run starts
) -> tuple[dict[str, Any], Path, bool]:
    """Run an experiment, unless its completed record is there. Returns the record, its path, and
    whether it was there already.

    A run that fails or is interrupted leaves a record that says so; an interruption is then raised
    again. InputError: model, data or configuration do not fit, and nothing was trained. A record
    that another process has written since `before` is taken also where the run has failed or
    `force` is set.
    """
    with heavy_imports():
        from sparta_bench.runs.experiment import RunInterrupted, execute

    assets = AssetCache() if assets is None else assets
    spec = resolve(config, assets)
    accelerator = spec.accelerator
    _make_folder(spec.folder)
    with run_lock(spec.folder, accelerator, wait):
        existing = agreed(accelerator, look_into(spec.folder))
        if isinstance(existing, str):
            line = f"{spec.path}: {existing}"
            if existing.startswith(NOT_TO_REPLACE) and not config.force:
                raise InputError(f"{line}; move it away, or replace it with force=true")
            log(f"{line}; the run is made again")
        elif existing is not None and agreed(accelerator, _is_final(existing, spec, before)):
            return existing, spec.path, True
        _warn_of_other_checkpoints(spec, assets)
        if accelerator.is_main_process:
            unfinished = RunResult(Findings(), "interrupted", finished=None)
            write_json(spec.folder / RUNNING, as_record(spec, unfinished))  # for `status`
            print(fitted(f"{label}{name_of(config)}", sys.stderr), file=sys.stderr, flush=True)
        try:
            result = execute(spec, assets)
        except RunInterrupted as interruption:
            with suppress(OSError):  # a full disk is no reason to go on
                write_record(spec, interruption.result)
            raise
        record = write_record(spec, result)
        if result.raise_after is not None:
            raise result.raise_after
        if result.status == "failed":
            assets.forget_backbone()
        return record, spec.path, False


def resolve(config: Config, assets: AssetCache) -> RunSpec:
    """Decide everything that a run needs.

    Raises InputError as `identify` does, if the folder's model is of another shape than the one
    that is named, and if a model is to be sharded in one process.
    """
    from sparta_bench.models.dtypes import precision_of

    assets.architecture(config.model)
    accelerator = accelerator_of(config)
    if config.train.sharding == "fsdp" and accelerator.num_processes == 1:
        raise InputError(
            "train.sharding=fsdp: start several processes, among which the model is cut: torchrun "
            "--nproc_per_node 2 -m sparta_bench.cli …"
        )
    set_threads(config)
    run_id = identify(config, assets, accelerator.device.type, accelerator.num_processes)
    if agreed(accelerator, run_id) != run_id:
        raise RuntimeError("the processes of one run do not see the same data or base model")
    return RunSpec(
        config,
        run_id,
        run_folder(config, run_id),
        precision_of(config, accelerator.device),
        assets.base_fingerprint(config.model),
        accelerator,
    )


def identify(config: Config, assets: AssetCache, device_kind: str, processes: int) -> str:
    """The `run_id`: a hash (12 hex digits) of everything that can change the outcome.

    Reads data and the base model's files; no torch. Raises InputError if either cannot be had.
    """
    settings = identity_of(config.as_dict(), processes)
    settings["model"]["dtype"] = config.dtypes(device_kind)
    settings["base"] = assets.base_fingerprint(config.model)
    settings["data"] = assets.data_fingerprint(config.task, config.limit)
    settings["protocol"] = PROTOCOL
    text = json.dumps(settings, sort_keys=True)
    return hash_of(text, 12)


def run_folder(config: Config, run_id: str) -> Path:
    """`<results_dir>/runs/<task>/<model>/<method>/<run_id>`."""
    names = (config.task.name, config.model.name, config.method.name)
    return Path(config.results_dir, "runs", *names, run_id)


def stamp_of(folder: Path) -> tuple[int, ...]:
    """What tells a record from one written later under its name, whatever the clocks say."""
    try:
        stat = (folder / RESULT).stat()
    except OSError:
        return ()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def name_of(config: Config) -> str:
    """Which run it is, in a few words."""
    method, train = method_named(config.method.name, plain(config.method)), config.train
    return (
        f"{config.task.name} {config.model.name} {method_text(method, density_of(config))}, "
        f"rate {train.learning_rate:g}, batch {train.batch_size}, seed {config.seed}"
    )


def summary_line(config: Config, record: dict[str, Any], path: Path, was_there: bool) -> str:
    """What came out, in one line."""
    name = name_of(config)
    if record["status"] == "stopped":
        done = f"stopped after {100 * share_done(record):.0f} % of its steps"
        of = f" of {record['rival']}" if record["rival"] else ""  # there is none where it diverged
        return f"{done}: {name}: {record['reason']}{of} → {path}"
    if record["status"] != "completed":
        return f"{record['status']}: {name}: {record['error']['message']} → {path}"
    dev, test, parameters = record["dev"], record["test"], record["parameters"]
    share = parameters["trainable"] / parameters["total"]
    done = "there already" if was_there else f"{record['training']['seconds']:.1f} s of training"
    return (
        f"{name}: dev loss {dev['loss']:.4f}, test loss {test['loss']:.4f}, "
        f"accuracy {test['accuracy']:.2%}, mcc {test['mcc']:.3f}; "
        f"{parameters['trainable']:,} of {parameters['total']:,} scalars trained ({share:.3%}); "
        f"{done} → {path}"
    )


def advice(history: Any, rate: float) -> tuple[str, ...]:
    """Return a line where training did not lower the dev loss: what was seen, and what to try."""
    rows = history if isinstance(history, list) else []
    losses: list[Any] = [row.get("dev_loss") if isinstance(row, dict) else None for row in rows]
    if len(losses) < 2 or not all(map(is_number, losses)):  # a record may be from elsewhere
        return ()
    if rows[0].get("step"):  # train.eval_first=false: nobody knows where it began
        return ()
    before, *after = losses
    if min(after) < before and after[-1] <= before:
        return ()
    seen = f"from {before:.4f} before training to {after[-1]:.4f}"
    if min(after) < before:
        return (
            f"dev loss ended above where it began ({seen}; the scores are those of its lowest, "
            f"{min(after):.4f}): try train.learning_rate={rate / 3:.1e}, or train.patience=3",
        )
    other = rate / 10 if after[-1] > before + MOVED else rate * 10
    return (f"dev loss has not fallen ({seen}): try train.learning_rate={other:.1e}",)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:  # said now, not after hours of training
        raise InputError(f"results_dir: {folder} cannot be written to: {error.strerror}") from None


def _is_final(existing: dict[str, Any], spec: RunSpec, before: tuple[int, ...] | None) -> bool:
    # a grid completes what a race has stopped, and so does a race for the best of its settings
    final = ("completed", "stopped") if spec.config.search.rival else ("completed",)
    if existing["status"] in final and not spec.config.force:
        return True
    ended = existing["status"] in (*final, "failed")
    return ended and before is not None and stamp_of(spec.folder) != before


def _warn_of_other_checkpoints(spec: RunSpec, assets: AssetCache) -> None:
    """Name a checkpoint that another number of processes has left: where random numbers are drawn
    by process theirs is another run, and this one begins anew."""
    config, kind = spec.config, spec.accelerator.device.type

    def checkpoint_of(processes: int) -> Path:
        return run_folder(config, identify(config, assets, kind, processes)) / CHECKPOINT

    # else a run is the same in any number of processes
    if config.force or (spec.folder / CHECKPOINT).exists() or checkpoint_of(1) == checkpoint_of(2):
        return
    for processes in range(1, MOST_PROCESSES + 1):
        if (other := checkpoint_of(processes)).exists():
            log(
                f"start {processes} process{'es' * (processes > 1)} to go on from {other}; random "
                "numbers are drawn by process (dropout, or sharded rows' rounding), so that with "
                f"{spec.accelerator.num_processes} this is another run, which begins anew"
            )
