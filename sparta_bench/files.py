"""Files that are either there and whole, or not there: temporary name, then rename.

What is being written lies in a folder `.NAME.<random>.tmp` beside its target. Its writer holds a
lock on that folder, which ends with the process: so what a killed one has left can be told from
what somebody is at, and goes when the same target is written again.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

SEAL, DIGITS = "sha256_and_about", 64  # hexadecimal digits, then the text


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; rename it to `path` when the block ends well. Raises
    OSError with the name of `path` if the system refuses to write; also where a library says it in
    words of its own."""
    with _workplace(path) as place:
        temporary = place / "new"  # not by its name: somebody may look for files of that name
        yield temporary
        _settle(temporary)
        temporary.replace(path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; it replaces `path` when the block ends well. Raises OSError
    as `whole_file` does."""
    path = path.resolve()
    with _workplace(path) as place:
        temporary = place / "new"
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _settle(file)
        if path.exists():
            path.replace(place / "old")
        temporary.replace(path)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there: whole, or not at all."""
    if path.exists():
        with _workplace(path) as place:
            path.replace(place / "removed")


def why_no_folder(path: str | Path) -> str | None:
    """Why a path is no folder that can be read; `None`: it is one."""
    try:
        return None if Path(path).is_dir() else "there is no such folder"
    except OSError as error:  # a name that is too long, a folder that may not be entered
        return str(error.strerror)


def why_not_writable(folder: Path) -> str | None:
    """What prevents writing into a folder, which need not be there yet; `None`: nothing."""
    path = folder.absolute()
    if "\0" in str(path):
        return "no file system has such a name"
    try:
        nearest = next(part for part in (path, *path.parents) if part.exists())
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        return str(error.strerror)
    if not nearest.is_dir():
        return f"{nearest} is no folder"
    return None if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} cannot be written to"


def clear_leftovers(folder: Path, name: str = "") -> None:
    """Remove what killed processes had begun to write in a folder, at that name or at any."""
    for place in folder.glob(f".{glob.escape(name) or '*'}.*.tmp"):
        try:
            held = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # gone, or none of ours
            continue
        with suppress(OSError):  # somebody writes there, or the file system has no locks
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _put_away(place)
        os.close(held)


@contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """A locked folder of our own beside `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent, path.name)
    try:
        place, held = _locked_folder(path)
        try:
            yield place
        finally:
            _put_away(place)
            os.close(held)
    except Exception as error:
        number, text = None, ""
        if isinstance(error, OSError):
            begin = str(path.with_name(f".{path.name}."))
            if error.filename is None or str(error.filename).startswith(begin):
                number, text = error.errno, str(error.strerror)
        elif match := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors, tokenizers
            number, text = int(match[1]), os.strerror(int(match[1]))
        if not number:
            raise
        raise OSError(number, text, str(path)) from error


def _locked_folder(path: Path) -> tuple[Path, int]:
    while True:
        place = Path(mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        with suppress(FileNotFoundError):  # taken for a leftover before it was locked
            held = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(OSError):  # a file system without locks: nobody clears there
                fcntl.flock(held, fcntl.LOCK_SH)
            if place.exists():
                return place, held
            os.close(held)


def _put_away(place: Path) -> None:
    """Remove such a folder. Where its process was killed when it had moved the old folder aside,
    the new one, which was ready, takes its place first."""
    path, old = place.with_name(place.name[1:].rsplit(".", 2)[0]), place / "old"
    for ready in (place / "new", old):
        if old.exists() and not path.exists():
            with suppress(OSError):  # then the old one goes back
                ready.replace(path)
    if old.exists():
        old.replace(place / "removed")  # so that a part of it is never taken for the whole
    shutil.rmtree(place, ignore_errors=True)


def _settle(file: Path) -> None:
    """Bring a file to the disk, and make it as readable as other files are."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    os.umask(mask := os.umask(0))
    file.chmod(0o666 & ~mask)  # safetensors would leave it to its owner alone


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document, indented; NaN is refused, since JSON has none."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def json_of(path: Path) -> Any:
    """Read a JSON document. Raises OSError, or ValueError where it is none."""
    if not path.is_file() and path.exists():  # a device or a pipe may have no end
        raise ValueError("is no file")
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def hash_of(text: str, digits: int = 16) -> str:
    """The first hex digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tensors(
    path: Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file of torch's tensors, or of numpy's arrays, for which no torch is
    imported. Raises OSError as `whole_file` does."""
    of_numpy = any(type(tensor).__module__ == "numpy" for tensor in tensors.values())
    save_file = import_module(f"safetensors.{'numpy' if of_numpy else 'torch'}").save_file
    with whole_file(path) as temporary:
        save_file(dict(tensors), temporary, metadata)


# Tensors that are kept only to save time: used where they are as they were written, made again
# where not. A byte that a disk has changed would change a run's numbers unseen.
def write_kept(path: Path, tensors: Mapping[str, Any], about: str = "") -> None:
    """Write tensors (on the CPU, contiguous) with a text about them, and the hash of both."""
    # one entry: the order of several is not always the same, and equal content has equal bytes here
    write_tensors(path, tensors, {SEAL: _seal_of(tensors, about) + about})


def try_to_keep(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write tensors where they can be written: without them it takes longer, no more."""
    from safetensors import SafetensorError

    with suppress(OSError, SafetensorError):
        write_kept(path, tensors)


def read_kept(path: Path, framework: str = "pt") -> tuple[dict[str, Any], str] | None:
    """Read what `write_kept` wrote, as tensors of torch ("pt") or arrays ("numpy"); `None` where no
    file is, or not as it was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework=framework) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError):
        return None
    seal = metadata.get(SEAL, "")
    digest, about = seal[:DIGITS], seal[DIGITS:]
    return (tensors, about) if digest == _seal_of(tensors, about) else None


def _seal_of(tensors: Mapping[str, Any], about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(tensors.items()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name} torch.{dtype} {tuple(tensor.shape)}".encode())
        if type(tensor).__module__ != "numpy":
            import torch

            tensor = tensor.reshape(-1).view(torch.uint8).numpy()
        digest.update(tensor.data)
    return digest.hexdigest()
