"""Making a run's record: what identifies it, what stands in it, where it is."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparta_bench.config.schema import Config, SpartaConfig
from sparta_bench.errors import without_secrets
from sparta_bench.files import hash_of, write_json
from sparta_bench.records.record import PROTOCOL, RESULT, SCHEMA, identity_of

if TYPE_CHECKING:
    from sparta_bench.models.dtypes import Precision


def run_id_of(
    config: Config,
    precision: Precision,
    base_fingerprint: str,
    data_fingerprint: str,
    processes: int,
) -> str:
    """A hash of everything that can change the outcome, and of nothing else (12 hex digits).

    The number of processes that share the run counts where there is dropout: each draws its own.
    Elsewhere it only changes the order in which gradients are summed, so the last digits, as
    another device does.
    """
    settings = identity_of(config.as_dict(), processes)
    settings["model"]["dtype"] = precision.as_dict()
    settings |= {"base": base_fingerprint, "data": data_fingerprint, "protocol": PROTOCOL}
    text = json.dumps(settings, sort_keys=True)
    return hash_of(text, 12)


def run_folder(config: Config, run_id: str) -> Path:
    """`<results_dir>/runs/<task>/<model>/<method>/<run_id>`."""
    parts = (config.task.name, config.model.name, config.method.name, run_id)
    return Path(config.results_dir, "runs", *parts)


def write_record(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write `result.json`, whole, as the last file of a run."""
    path = folder / RESULT
    write_json(path, record)
    return path


def new_record(config: Config, run_id: str, base_fingerprint: str) -> dict[str, Any]:
    """A record with everything that is known before the run; the rest is null."""
    density = config.method.density if isinstance(config.method, SpartaConfig) else None
    return {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "run_id": run_id,
        "status": "interrupted",
        "error": None,
        "model": config.model.name,
        "task": config.task.name,
        "method": config.method.name,
        "density": density,
        "seed": config.seed,
        "config": _without_paths(config).as_dict(),
        "base_model": {"name": config.model.name, "fingerprint": base_fingerprint},
        "started": now(),
        "finished": None,
        "data": None,
        "parameters": None,
        "dev": None,
        "test": None,
        "training": None,
        "history": [],
        "environment": None,
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _without_paths(config: Config) -> Config:
    """A folder by its own name: records travel, machines' paths do not."""

    def name(path: str | None) -> str | None:
        return None if path is None else Path(path).resolve().name

    model = replace(
        config.model, path=name(config.model.path), tokenizer=name(config.model.tokenizer)
    )
    task = replace(config.task, data_dir=name(config.task.data_dir))
    results_dir = Path(config.results_dir)
    return replace(
        config,
        model=model,
        task=task,
        results_dir=results_dir.name if results_dir.is_absolute() else config.results_dir,
        cache_dir=name(config.cache_dir),
    )


def error_of(error: BaseException) -> dict[str, str]:
    """Type, message and traceback, with places named by module and line instead of by path."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]
    message = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None:
        message = f"{Path(str(error.filename)).name}: {error.strerror}"
    message = without_secrets(message)
    return {"type": type(error).__name__, "message": message, "traceback": "\n".join(lines)}


def _short(filename: str) -> str:
    parts = Path(filename).parts
    for start in ("site-packages", "sparta_bench"):
        if start in parts:
            place = len(parts) - parts[::-1].index(start)
            return "/".join(parts[place if start == "site-packages" else place - 1 :])
    return parts[-1]
