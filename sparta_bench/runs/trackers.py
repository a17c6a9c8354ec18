"""Experiment trackers, through accelerate's: what a run logs as it goes, and records replayed.

What a tracker gets is what the record has: its configuration without paths, its history, its
scores. Each run is one of the project `sparta-bench`, in the group of its cell (task, model, method
and density), as far as the tracker has groups.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from sparta_bench.config.rules import is_folder_name, is_number, is_whole, show
from sparta_bench.errors import InputError, log, reason_of
from sparta_bench.files import remove_folder, whole_folder
from sparta_bench.records.read import MISSHAPEN
from sparta_bench.records.record import INCOMPLETE, METRICS, Record
from sparta_bench.records.write import Findings, RunResult, RunSpec, as_record
from sparta_bench.runs.lock import agreed
from sparta_bench.text import method_text
from sparta_bench.training.loop import Track, untracked

Steps = Sequence[tuple[int, Mapping[str, Any]]]
PROJECT = "sparta-bench"
NAMES = {  # in a tracker, by the loop's and the record's own
    "epoch": "epoch",
    "train_loss": "train/loss",
    "batch_loss": "train/batch_loss",
    "learning_rate": "train/learning_rate",
    "tokens_per_second": "train/tokens_per_second",
    **{f"{split}_{metric}": f"{split}/{metric}" for split in ("dev", "best_dev", "test")
       for metric in METRICS},
}  # fmt: skip


# --------------------------------------------------------------------------------- a run
@contextmanager
def tracked(spec: RunSpec) -> Iterator[Track]:
    """Give what logs the values of a step in the tracker that `logger` names.

    A fault of the tracker ends the log, with a line, and not the run. Raises InputError if the
    tracker cannot be started.
    """
    name, fault, tracker = spec.config.logger, None, None
    if name == "none":
        yield untracked
        return
    if spec.accelerator.is_main_process:
        record = as_record(spec, RunResult(Findings(), "interrupted", finished=None))
        try:
            folder = _events_folder(Path(spec.config.results_dir, name), record)
            if name == "tensorboard":
                remove_folder(folder)  # of an earlier run of the same, whose steps these are
            with redirect_stdout(sys.stderr):  # standard output is for results
                tracker = _started(name, record, folder)
        except Exception as error:  # of any kind: four libraries, disks and servers
            fault = f"{type(error).__name__}: {reason_of(error)}"
    if (fault := agreed(spec.accelerator, fault)) is not None:
        raise InputError(f"logger={name}: cannot be started: {fault}")
    if tracker is None:
        yield untracked
        return
    calls = _Guarded(name)
    try:
        yield lambda step, values: calls.make(lambda: tracker.log(_shown(values), step=step))
    finally:
        calls.make(tracker.finish)


class _Guarded:
    """Calls of a tracker, none of which ends the run; after the first fault none is made."""

    def __init__(self, name: str) -> None:
        self.name, self.works = name, True

    def make(self, call: Callable[[], None]) -> None:
        if not self.works:
            return
        try:
            with redirect_stdout(sys.stderr):
                call()
        except Exception as error:
            self.works = False
            log(f"logger={self.name}: {reason_of(error)}; the run goes on without its tracker")


def final_values(dev: Mapping[str, float], test: Mapping[str, float]) -> dict[str, float]:
    """The scores of the best state, under names that `Track` knows."""
    parts = ("best_dev", dev), ("test", test)
    return {f"{part}_{metric}": scores[metric] for part, scores in parts for metric in METRICS}


# ------------------------------------------------------------------------------ a record
def replay(name: str, record: Record, out: Path) -> bool:
    """Log a completed run from its record, unless it is there; whether it was not.

    TensorBoard's files go to `out`. Raises InputError if the record does not hold what is needed.
    """
    from accelerate import PartialState

    PartialState(cpu=True)  # without which accelerate logs nothing
    raw = record.raw
    try:
        steps = [(row["step"], row) for row in raw["history"]]
        speed = {"tokens_per_second": raw["training"]["tokens_per_second"]}
        end = raw["training"]["steps"]
        steps.append((end, {**final_values(raw["dev"], raw["test"]), **speed}))
        folder = _events_folder(out, raw)
        if not all(is_whole(step, 0) and isinstance(row, dict) for step, row in steps):
            raise TypeError
    except MISSHAPEN:
        raise InputError(f"{record.path}: {INCOMPLETE}") from None
    add = _add_to_trackio if name == "trackio" else _add_to_tensorboard
    with redirect_stdout(io.StringIO()):  # two lines for each run
        return add(raw, folder, steps)


def _add_to_tensorboard(record: Mapping[str, Any], folder: Path, steps: Steps) -> bool:
    if folder.exists():
        return False
    with whole_folder(folder) as temporary:
        _log_all(_started("tensorboard", record, temporary), steps)
    return True


def _add_to_trackio(record: Mapping[str, Any], folder: Path, steps: Steps) -> bool:
    from trackio.sqlite_storage import SQLiteStorage

    title = _title(record)
    if title in SQLiteStorage.get_runs(PROJECT):
        return False
    _log_all(_started("trackio", record, folder), steps)
    if len(SQLiteStorage.get_logs(PROJECT, title)) != len(steps):  # of which trackio only warns
        SQLiteStorage.delete_run(PROJECT, title)
        raise OSError(f"{title} could not be written whole")
    return True


def _log_all(tracker: Any, steps: Steps) -> None:
    for step, values in steps:
        tracker.log(_shown(values), step=step)
    tracker.finish()


# ------------------------------------------------------------------------------- trackers
def _started(name: str, record: Mapping[str, Any], folder: Path) -> Any:
    """Start a tracker's run, with the configuration as its hyper-parameters. TensorBoard writes to
    `folder`; the others have places, accounts and servers by settings of their own."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    title, cell = _title(record), _cell(record)
    parameters = _flat(record["config"]) | {"run_id": record["run_id"]}
    grouped = {"name": title, "group": cell, "config": parameters}
    # nothing of the machine, and no user: by themselves they would take them
    how: dict[str, dict[str, Any]] = {
        "tensorboard": {"logging_dir": folder},
        "trackio": {**grouped, "embed": False, "auto_log_gpu": False, "auto_log_cpu": False},
        "wandb": {**grouped, "settings": {"console": "off", "disable_git": True,
                  "disable_code": True, "x_disable_meta": True, "x_disable_stats": True,
                  "x_save_requirements": False}},
        "mlflow": {"run_name": title, "tags": {"mlflow.user": "unknown",
                   "mlflow.source.name": PROJECT}},
    }  # fmt: skip
    project = "" if name == "tensorboard" else PROJECT
    tracker = LOGGER_TYPE_TO_CLASS[name](project, **how[name])
    tracker.start()
    if name == "trackio":
        tracker.run.config["_Username"] = None
    if name == "mlflow":
        import mlflow

        mlflow.set_tag("group", cell)  # the tags above are those of the experiment as well
        tracker.store_init_configuration(parameters)
    if name != "tensorboard":
        return tracker
    # accelerate would write them as another run, beside which no scores are shown
    from torch.utils.tensorboard.summary import hparams

    scores = [f"{part}/{metric}" for part in ("best_dev", "test") for metric in METRICS]
    for summary in hparams(parameters, dict.fromkeys(scores)):
        tracker.writer.file_writer.add_summary(summary)
    return tracker


def _shown(values: Mapping[str, Any]) -> dict[str, float]:
    return {NAMES[k]: value for k, value in values.items() if k in NAMES and is_number(value)}


def _cell(record: Mapping[str, Any]) -> str:
    method = method_text(record["method"], record["density"])
    return f"{record['task']} {record['model']} {method}"


def _title(record: Mapping[str, Any]) -> str:
    return f"{_cell(record)} seed {record['seed']} {record['run_id']}"


def _events_folder(root: Path, record: Mapping[str, Any]) -> Path:
    parts = [record[key] for key in ("task", "model", "method", "run_id")]
    if not all(map(is_folder_name, parts)):  # a record may come from anybody
        raise TypeError
    return root.joinpath(*parts)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted keys; lists as text, and those that are None left out."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            plain = isinstance(value, bool | int | float | str)
            flat[f"{prefix}{key}"] = value if plain else show(value)
    return flat
