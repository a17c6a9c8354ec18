"""Which process makes a run: a lock in the run's folder, which ends with its holder; no torch."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sparta_bench.files import clear_leftovers
from sparta_bench.records.read import read_json
from sparta_bench.records.record import LOCK, RUNNING

if TYPE_CHECKING:
    from accelerate import Accelerator

WAIT_SECONDS = 1.0
CHECKPOINT = "checkpoint.safetensors"
T = TypeVar("T")


class BusyError(Exception):
    """Another process makes this run."""


@contextmanager
def run_lock(folder: Path, accelerator: Accelerator | None, wait: bool) -> Iterator[None]:
    """Hold the run's lock; of several processes of one run the main one holds it for all.

    Raises
    ------
    BusyError
        If another process has it and `wait` is false.
    """
    main = accelerator is None or accelerator.is_main_process
    waited = False
    while True:
        lock = _acquired(folder / LOCK) if main else None
        if agreed(accelerator, lock is not None):
            break
        if not wait:
            raise BusyError(folder)
        if main and not waited:
            print(f"waiting: another process is at {folder}", file=sys.stderr, flush=True)
        waited = True
        time.sleep(WAIT_SECONDS)
    try:
        if main:
            clear_leftovers(folder)
        yield
    finally:
        if lock is not None:
            try:
                _end_work(folder)
            finally:
                os.close(lock)


def tidy(folder: Path) -> None:
    """Do for a completed run what a process did not that was killed after it wrote the record."""
    if (folder / RUNNING).exists():
        # another process may be at it, or the folder may only be read
        with suppress(BusyError, OSError), run_lock(folder, None, wait=False):
            pass


def _end_work(folder: Path) -> None:
    """Remove what only a run at work needs; `running.json` after the checkpoint, since it is what
    shows that something is left."""
    record = read_json(folder)
    completed = record is not None and record["status"] == "completed"
    for name in (CHECKPOINT, RUNNING, LOCK) if completed else (RUNNING,):
        (folder / name).unlink(missing_ok=True)


def _acquired(path: Path) -> int | None:
    """The lock, to be released with `os.close`; None if another process has it."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:
                return lock
        except BlockingIOError:
            os.close(lock)
            return None
        os.close(lock)  # its last holder has removed the file in between


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


def agreed(accelerator: Accelerator | None, value: T) -> T:
    """The main process's value, in all processes of a run."""
    if accelerator is None or accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    values: list[Any] = [value]
    broadcast_object_list(values)
    return values[0]  # type: ignore[no-any-return]
