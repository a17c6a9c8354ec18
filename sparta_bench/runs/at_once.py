"""A grid's runs by several processes on one device (`runs_at_once`).

The process of the command starts others with the same command line (`share`). Each makes runs that
no other is at, by their locks, and reports how each ended: a JSON object a line, on what was its
standard output (`work`). Its standard error appears with its number before each line. Its standard
input stays open for as long as the first process wants it to work (`job.obey_starter`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import IO, NamedTuple

from sparta_bench.config.presets import lengths_for
from sparta_bench.config.schema import Config
from sparta_bench.devices import WORKER_THREADS, free_bytes, is_one_of_several
from sparta_bench.errors import InputError, log
from sparta_bench.runs.grid import Grid
from sparta_bench.runs.job import DONE, INTERRUPTED, may_begin
from sparta_bench.runs.outcome import Outcome
from sparta_bench.text import as_bytes
from sparta_bench.training.progress import progress_bar

READY = b"\n"


def check_alone(config: Config, launcher: str | None) -> None:
    """Raise InputError if other processes than ours are asked for as well."""
    if config.runs_at_once == 1:
        return
    asked = f"runs_at_once={config.runs_at_once}"
    if launcher is not None:
        raise InputError(
            f"{asked}: leave it out beside hydra/launcher={launcher}, which starts the processes"
        )
    if is_one_of_several():
        raise InputError(
            f"{asked}: leave it out under torchrun or accelerate launch, whose processes make one "
            "run together"
        )


def processes_for(grid: Grid, asked: int | str) -> int:
    """How many processes make what is to do. `auto`: as many as the free memory has room for, each
    with the run that needs the most, and no more than there are cores.

    Raises
    ------
    InputError
        If it is `auto`, and a run's memory cannot be estimated, or the free memory is not known.
    """
    pending = list(grid.pending.values())
    if asked != "auto" or len(pending) < 2:
        return min(len(pending), 1 if asked == "auto" else int(asked))
    from sparta_bench.analysis.memory.estimate import KEPT_FREE
    from sparta_bench.analysis.price import step_peaks

    shared = ((one, data.shared if (data := lengths_for(one)) else 0) for one in pending)
    try:
        peak, of = max(step_peaks(shared, grid.device))
        free = free_bytes(grid.device)
    except InputError as error:
        raise InputError(f"runs_at_once=auto: give a number instead; {error.lines[0]}") from None
    cores = len(os.sched_getaffinity(0))
    # what a process takes beside its run is a guess
    count = max(1, min(free // (peak + KEPT_FREE), cores, len(pending)))
    log(
        f"runs_at_once=auto: {count:,} at once, on {cores:,} cores with {as_bytes(free)} of free "
        f"memory ({grid.device}); the largest run takes {as_bytes(peak)}: {of}"
    )
    return count


# ----------------------------------------------------------------------- the process that starts
class Line(NamedTuple):
    """What a worker has printed; an empty text is the end of its output."""

    number: int
    is_report: bool
    text: bytes


def share(grid: Grid, command: Sequence[str], count: int, show: Callable[[Outcome], None]) -> None:
    """Have the grid made by `count` processes of this command, and give `show` each outcome.

    An interruption ends them before it passes. What a process that died has not made is made by the
    others, or counts as failed.
    """
    workers = [_start(command, count) for _ in range(count)]
    lines: SimpleQueue[Line] = SimpleQueue()
    readers = [
        Thread(target=_read, args=(lines, number, pipe, pipe is worker.stdout), daemon=True)
        for number, worker in enumerate(workers)
        for pipe in (worker.stdout, worker.stderr)
    ]
    try:
        for reader in readers:
            reader.start()
        _follow(grid, workers, lines, show)
    finally:
        _end(workers, readers)
    for number, worker in enumerate(workers, 1):
        if worker.returncode != DONE:
            log(f"process {number} of {count} ended with exit code {worker.returncode}")
    grid.look_again(grid.pending.copy(), wait=False)
    grid.give_up(grid.next_runs())


def _start(command: Sequence[str], count: int) -> subprocess.Popen[bytes]:
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "sparta_bench.cli", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {WORKER_THREADS: str(threads), "PYTHONPATH": path},
        process_group=0,  # a terminal's Ctrl-C reaches this process alone, which passes it on
    )


def _end(workers: Sequence[subprocess.Popen[bytes]], readers: Sequence[Thread]) -> None:
    """Interrupt those that are still at work, and wait for all; a second interruption kills."""
    for worker in workers:
        _input_of(worker).close()
    try:
        for worker in workers:
            worker.wait()
    finally:
        for worker in workers:
            worker.kill()
        for reader in readers:
            reader.join()
        for worker in workers:
            with worker:  # which closes its pipes
                pass


def _input_of(worker: subprocess.Popen[bytes]) -> IO[bytes]:
    assert worker.stdin is not None
    return worker.stdin


def _read(lines: SimpleQueue[Line], number: int, pipe: IO[bytes], is_report: bool) -> None:
    for text in pipe:
        lines.put(Line(number, is_report, text))
    lines.put(Line(number, is_report, b""))


def _follow(
    grid: Grid,
    workers: Sequence[subprocess.Popen[bytes]],
    lines: SimpleQueue[Line],
    show: Callable[[Outcome], None],
) -> None:
    """Show what the workers print until all have ended.

    They begin together, so that none finds a record of another's and takes it for an older one.
    """
    not_ready = set(range(len(workers)))
    before: dict[int, list[bytes]] = {number: [] for number in not_ready}  # this process said it
    open_pipes = 2 * len(workers)
    started = False
    first = grid.runs - len(grid.pending)
    with progress_bar(grid.runs, "run", speaks=not grid.races, initial=first) as bar:
        while open_pipes:
            number, is_report, text = lines.get()
            open_pipes -= not text
            bar.clear()
            if is_report and number in not_ready:
                not_ready.discard(number)
                if not text:  # it has died
                    _print(number, before.pop(number))
                before.pop(number, None)
            elif is_report and text:
                outcome = grid.take(Outcome(**json.loads(text)))
                if outcome is not None:
                    show(outcome)
                    bar.update()
            elif number in before:
                before[number].append(text)
            elif text:
                _print(number, [text])
            bar.refresh()
            if not not_ready and not started:
                started = True
                for worker in workers:
                    with suppress(BrokenPipeError):  # it has died
                        os.write(_input_of(worker).fileno(), READY)


def _print(number: int, texts: Sequence[bytes]) -> None:
    for text in texts:
        if text:
            line = text.decode("utf-8", "replace").rstrip("\n")
            print(f"{number + 1}: {line}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------ one that was started
def work(grid: Grid) -> int:
    """Make runs of the grid until none is left, beside others that do the same."""
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no report
    print(file=reports, flush=True)
    may_begin.wait()

    def report(outcome: Outcome) -> None:
        ended = {"run_id": outcome.run_id, "kind": outcome.kind, "line": outcome.line}
        print(json.dumps(ended), file=reports, flush=True)

    try:
        grid.run_all(report)
    except KeyboardInterrupt:
        return INTERRUPTED
    return DONE
