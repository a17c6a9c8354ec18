"""A run's record: what is decided before the run, what comes out, the machine, and the file."""

from __future__ import annotations

import platform
import subprocess
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sparta_bench import __version__
from sparta_bench.config.presets import guessed_rate
from sparta_bench.config.schema import Config, ModelConfig, SpartaConfig
from sparta_bench.errors import without_secrets
from sparta_bench.files import hash_of, remove_folder, write_json
from sparta_bench.records.read import read_json
from sparta_bench.records.record import PROTOCOL, RACE, RACE_SCHEMA, RESULT, SAVED, SCHEMA, Setting

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from sparta_bench.models.dtypes import Precision

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class RunSpec:
    """Everything that is decided before a run begins."""

    config: Config
    run_id: str
    folder: Path
    precision: Precision
    base_fingerprint: str
    accelerator: Accelerator  # the device, and the processes of the run

    @property
    def path(self) -> Path:
        return self.folder / RESULT


@dataclass
class Findings:
    """What a run has found so far, under the record's keys; None where it did not get that far."""

    started: str = field(default_factory=now)
    data: dict[str, Any] | None = None
    parameters: dict[str, Any] | None = None
    dev: dict[str, float] | None = None
    test: dict[str, float] | None = None
    training: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] | None = None


@dataclass(frozen=True)
class RunResult:
    """How a run ended and what it has found.

    `rival` is the `run_id` of the run that a stopped one was behind; None where its loss was not
    finite. `raise_after` is an error of one of several processes of a run. The others may not have
    it, and would wait, so it ends the process once the record is written.
    """

    findings: Findings
    status: Literal["completed", "failed", "interrupted", "stopped"]
    error: dict[str, str] | None = None
    rival: str | None = None
    reason: str | None = None
    finished: str | None = field(default_factory=now)
    raise_after: Exception | None = None


def write_record(spec: RunSpec, result: RunResult) -> dict[str, Any]:
    """Write `result.json` as the last file of a run, and return the record.

    A completed record that was forced to be made again stays until there is another, and so does
    what it has saved.
    """
    record = as_record(spec, result)
    completed = result.status == "completed"
    if spec.accelerator.is_main_process:
        existing = read_json(spec.folder)
        if completed or existing is None or existing["status"] != "completed":
            write_json(spec.path, record)
        for save, name in SAVED.items():
            if completed and save != spec.config.save:
                remove_folder(spec.folder / name)
    return record


def as_record(spec: RunSpec, result: RunResult) -> dict[str, Any]:
    """The record as it stands in `result.json`. Folders are there by their own names: records
    travel, machines' paths do not."""
    config, results_dir = spec.config, Path(spec.config.results_dir)
    data, data_dir = _name(config.task.data), _name(config.task.data_dir)
    without_paths = replace(
        config,
        model=model_without_paths(config.model),
        task=replace(config.task, data=data, data_dir=data_dir),
        results_dir=results_dir.name if results_dir.is_absolute() else config.results_dir,
        cache_dir=_name(config.cache_dir),
    )
    return {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "run_id": spec.run_id,
        "status": result.status,
        "error": result.error,
        "model": config.model.name,
        "task": config.task.name,
        "method": config.method.name,
        "density": density_of(config),
        "seed": config.seed,
        "config": without_paths.as_dict(),
        "guessed": {} if (rate := guessed_rate(config)) is None else {"train.learning_rate": rate},
        "base_model": {"name": config.model.name, "fingerprint": spec.base_fingerprint},
        "finished": result.finished,
        **vars(result.findings),
        **({"rival": result.rival, "reason": result.reason} if result.reason else {}),
    }


def density_of(config: Config) -> float | None:
    """SpaRTA's density; other methods have none."""
    return config.method.density if isinstance(config.method, SpartaConfig) else None


def model_without_paths(model: ModelConfig) -> ModelConfig:
    """The base model as it is named where no path may stand."""
    return replace(model, path=_name(model.path), tokenizer=_name(model.tokenizer))


def _name(path: str | None) -> str | None:
    return None if path is None else Path(path).resolve().name


def write_race(method_folder: Path, settings: Iterable[Setting]) -> None:
    """Write a race down in the folder of its method's runs. Who ran it too writes the same."""
    listed = [
        {
            "train": setting.train,
            "runs": [{"seed": seed, "run_id": run_id} for seed, run_id in setting.run_ids.items()],
        }
        for setting in settings
    ]
    folder = method_folder / f"race-{hash_of(str(listed), 12)}"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RACE, {"schema": RACE_SCHEMA, "settings": listed})


def error_of(error: BaseException) -> dict[str, str]:
    """Type, message and traceback, whose lines name modules and no paths."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{_module_file(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]
    message = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None:
        message = f"{Path(str(error.filename)).name}: {error.strerror}"
    message = without_secrets(message)
    return {"type": type(error).__name__, "message": message, "traceback": "\n".join(lines)}


def _module_file(filename: str) -> str:
    """`torch/nn/modules/linear.py`, without the folder that the package is in."""
    parts = Path(filename).parts
    for start, skipped in (("site-packages", 1), ("sparta_bench", 0)):
        if start in parts:
            return "/".join(parts[len(parts) - 1 - parts[::-1].index(start) + skipped :])
    return parts[-1]


def environment(device: torch.device, precision: Precision, processes: int) -> dict[str, Any]:
    """Versions, device, dtypes, and the code's git revision with whether tracked files differ from
    it (None in no checkout)."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "versions": dict(_versions()),
        "platform": f"{sys.platform} {platform.machine()}",
        "device": {"type": device.type, "name": name, "threads": torch.get_num_threads()},
        "processes": processes,
        "dtypes": precision.as_dict(),
        **_revision(),
    }


# Both are asked once a process: what it has imported stays what it is.
@cache
def _versions() -> dict[str, str]:
    versions = {package: metadata.version(package) for package in PACKAGES}
    return {"sparta_bench": __version__, "python": platform.python_version(), **versions}


@cache
def _revision() -> dict[str, Any]:
    """The code's git revision and whether tracked files differ from it; None in no checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # an installed package may lie inside somebody else's repository
        git("ls-files", "--error-unmatch", Path(__file__).name)
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"git_revision": git("rev-parse", "HEAD"), "dirty": dirty}
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git, no repository
        return {"git_revision": None, "dirty": None}


def processor_name() -> str:
    """The CPU's name as the system tells it; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
