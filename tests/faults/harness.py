"""What the cases share: what must hold of the files that commands leave."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import safe_open

LONG = os.environ.get("SPARTA_BENCH_FAULTS") == "long"  # else a short form
SAME = ("run_id", "status", "dev", "test", "history", "parameters", "data")
KILLED = -9


# ------------------------------------------------------------------------------- the files
def is_temporary(path: Path, folder: Path) -> bool:
    """Whether it is, or lies in, what a process had begun to write."""
    names = path.relative_to(folder).parts
    return any(name.startswith(".") and name.endswith(".tmp") for name in names)


def files(folder: Path) -> Iterator[Path]:
    """All files that somebody may read; where a process is at work folders may vanish meanwhile."""
    for parent, _, names in os.walk(folder):
        for path in sorted(Path(parent, name) for name in names):
            if not is_temporary(path, folder):
                yield path


def leftovers(folder: Path) -> list[Path]:
    """Files that killed processes had begun to write."""
    return [path for path in folder.rglob("*") if path.is_file() and is_temporary(path, folder)]


def check_whole(folder: Path) -> None:
    """No file that somebody may read is half a file. One that is gone meanwhile is none."""
    for path in files(folder):
        with suppress(FileNotFoundError):
            _check_one(path)
    for path in files(folder):
        if path.name == "result.json":
            _check_saved(path.parent, json.loads(path.read_text(encoding="utf-8")))


def _check_one(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="np") as file:
            for name in file.keys():
                file.get_tensor(name)


def _check_saved(folder: Path, record: dict[str, Any]) -> None:
    """What a completed record says that it saved is there, and of one piece."""
    save, adapter = record["config"]["save"], folder / "adapter"
    if record["status"] == "completed" and save != "none":
        name = "adapter" if save == "adapter" else "model"
        # killed between two renames, the old one is aside
        assert (folder / name).is_dir() or list(folder.glob(f".{name}.*.tmp/old"))
    if adapter.is_dir():
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = (adapter / "adapter.safetensors").read_bytes()
        assert config["tensors_sha256"] == hashlib.sha256(tensors).hexdigest()


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """Every record by its run."""
    found = [json.loads(path.read_text()) for path in sorted(folder.rglob("result.json"))]
    return {record["run_id"]: record for record in found}


def completed(folder: Path) -> dict[str, int]:
    """The file (inode) of each completed record, by run: another file means another run."""
    return {
        str(path): path.stat().st_ino
        for path in files(folder)
        if path.name == "result.json" and json.loads(path.read_text())["status"] == "completed"
    }


def outcome(folder: Path) -> dict[str, Any]:
    """What must be equal to the last bit: scores of each run, and the bytes of what it saved."""
    scores = {run: [record[key] for key in SAME] for run, record in records(folder).items()}
    saved = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files(folder)
        if path.parent.name in ("adapter", "model")
    }
    return {"scores": scores, "saved": saved}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in files(folder)}
