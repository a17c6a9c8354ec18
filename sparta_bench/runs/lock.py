"""Who is at a run: a lock in its folder, which ends with its holder; no torch."""

from __future__ import annotations

import fcntl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

from sparta_bench.files import clear_leftovers
from sparta_bench.records.read import read_json
from sparta_bench.records.record import LOCK, RUNNING

if TYPE_CHECKING:
    from accelerate import Accelerator

WAIT_SECONDS = 1.0
CHECKPOINT = "checkpoint.safetensors"
T = TypeVar("T")


class BusyError(Exception):
    """Another process is at this run; the folder is that of the run."""


@contextmanager
def run_lock(folder: Path, accelerator: Accelerator, wait: bool) -> Iterator[None]:
    """Hold the run's lock; of several processes of one run the main one holds it for all.

    Raises
    ------
    BusyError
        If somebody else has it and `wait` is false.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    told = False
    while not agreed(accelerator, accelerator.is_main_process and _acquired(lock)):
        if not wait:
            raise BusyError(folder)
        if not told and accelerator.is_main_process:
            print(f"waiting: another process is at {folder}", file=sys.stderr, flush=True)
        told = True
        time.sleep(WAIT_SECONDS)
    try:
        if accelerator.is_main_process:
            clear_leftovers(folder)
        yield
    finally:
        if accelerator.is_main_process:
            try:
                _end_work(folder)
            finally:
                lock.release()


def tidy(folder: Path) -> None:
    """Do for a completed run what a process did not, that was killed when the record was there."""
    lock = FileLock(folder / LOCK, timeout=0)
    if not (folder / RUNNING).exists():
        return
    try:
        with lock:
            clear_leftovers(folder)
            _end_work(folder)
    except (Timeout, OSError):
        pass  # somebody is at it, or it may only be read


def _end_work(folder: Path) -> None:
    """Remove what only a run at work needs; `running.json` after the others, since it is what tells
    that something is left."""
    found = read_json(folder)
    completed = found is not None and found.get("status") == "completed"
    for name in (CHECKPOINT, RUNNING, LOCK) if completed else (RUNNING,):
        (folder / name).unlink(missing_ok=True)


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire()
    except Timeout:
        return False
    return True


def is_held(lock: Path) -> bool:
    """Whether a process has this lock; looks without taking it."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # gone, or not ours to look at
        return False
    return False


def agreed(accelerator: Accelerator, value: T) -> T:
    """The main process's value, in all processes of a run."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    values: list[Any] = [value]
    broadcast_object_list(values)
    return values[0]  # type: ignore[no-any-return]
