"""`runs_at_once`: several processes leave what one leaves, and end together."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from forks import Done, Forks
from quick import QUICK_RUN
from test_grid import places, records, scores

from sparta_bench import devices
from sparta_bench.analysis import price
from sparta_bench.cli.main import main
from sparta_bench.config.compose import compose, compose_all
from sparta_bench.config.sweeps import sweep_jobs
from sparta_bench.errors import InputError
from sparta_bench.records.record import LOCK
from sparta_bench.runs import at_once
from sparta_bench.runs.assets import AssetCache
from sparta_bench.runs.grid import Grid
from sparta_bench.runs.lock import is_held

QUICK = [*QUICK_RUN, "save=none"]
# Workers that are forked, since to import torch takes longer than the runs of a test.
FORKED = """
import os, sys
from sparta_bench.cli.main import main
from sparta_bench.devices import WORKER_THREADS
from sparta_bench.runs import at_once

class Forked:
    def __init__(self, command, count):
        theirs, ours = zip(os.pipe(), *(os.pipe()[::-1] for _ in range(2)))
        self.returncode, self.pid = None, os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            for number, end in enumerate(theirs):
                os.dup2(end, number)
            os.closerange(3, 256)
            os.environ[WORKER_THREADS] = "1"
            os._exit(main(command))
        for end in theirs:
            os.close(end)
        ends = zip(ours, ("wb", "rb", "rb"))
        self.stdin, self.stdout, self.stderr = (os.fdopen(end, mode) for end, mode in ends)

    def wait(self):
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self):
        if self.returncode is None:
            os.kill(self.pid, 9)

    def __enter__(self):
        self.wait()

    def __exit__(self, *error):
        pass

at_once._start = Forked
"""
BOTH_TRAIN_AND_ONE_RUN_FAILS = """
import multiprocessing
from sparta_bench.training import loop

original, both, calls = loop.Training.train, multiprocessing.Barrier(PROCESSES), []

def train(self, *rest, **more):
    if not calls:  # each process is at a run before one of them ends its first
        both.wait(60)
    calls.append(1)
    if self.seed == 1 and self.trained.only_head:
        raise RuntimeError("it broke")
    return original(self, *rest, **more)

loop.Training.train = train
"""


def test_two_processes_leave_the_records_of_one(forks: Forks, tmp_path: Path) -> None:
    grid = ["-m", "method=head,sparta", "seed=0,1", *QUICK]
    one, two = (
        forks.call(
            *grid, f"runs_at_once={n}", *places(tmp_path, f"by_{n}"),
            prelude=FORKED + BOTH_TRAIN_AND_ONE_RUN_FAILS.replace("PROCESSES", str(n)),
        )
        for n in (1, 2)
    )  # fmt: skip
    assert (one.code, two.code) == (1, 1), (one, two)
    assert scores(tmp_path / "by_2") == scores(tmp_path / "by_1")
    assert [r["status"] for r in records(tmp_path / "by_1").values()].count("completed") == 3
    ended, table = zip(*((lines[:4], lines[4:]) for lines in map(shown, (one, two))), strict=True)
    assert sorted(ended[0]) == sorted(ended[1])
    assert min(ended[0]).startswith("failed: tiny-sst2 tiny-gemma head, rate")
    assert sorted(table[0]) == sorted(table[1]) and len(table[0]) == 4
    heading, *lines = two.err.splitlines()
    assert heading == one.err.splitlines()[0]
    begun = [line for line in lines if re.match("[12]: tiny-sst2 ", line)]
    assert len(begun) == 4 and {line[0] for line in begun} == {"1", "2"}
    assert lines[-2] == "sparta-bench: 1 of 4 runs did not complete:"
    assert not [line for line in lines if "step" in line or "runs: " in line]


def shown(done: Done) -> list[str]:
    """Standard output without times and paths."""
    return [re.sub(r"(; [\d.]+ s of training)? → .*", "", line) for line in done.out.splitlines()]


def test_an_interruption_ends_all_processes(forks: Forks, tmp_path: Path) -> None:
    words = ["-m", "seed=0,1", "train.epochs=100", "runs_at_once=2", *places(tmp_path)]
    command = forks.start(*words, prelude=FORKED, apart=True)
    command.waits_for("seed 0")
    command.waits_for("seed 1")
    os.kill(command.pid, signal.SIGINT)
    done = command.done()
    assert done.code == 130
    assert done.err.splitlines()[-1] == (
        "sparta-bench: interrupted: 0 of 2 runs are done; the same command goes on"
    )
    assert "Traceback" not in done.err
    assert [r["status"] for r in records(tmp_path / "results").values()] == ["interrupted"] * 2
    assert not [lock for lock in (tmp_path / "results").rglob(LOCK) if is_held(lock)]


@pytest.mark.parametrize(
    ("free_gib", "cores", "seeds", "count"),
    [(10, 8, "0,1,2,3,4,5", 4), (10, 3, "0,1,2,3,4,5", 3), (10, 8, "0,1", 2), (2, 8, "0,1", 1)],
)
def test_auto_takes_what_memory_and_cores_have_room_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    free_gib: int,
    cores: int,
    seeds: str,
    count: int,
) -> None:
    monkeypatch.setattr(price, "step_peak", lambda *_: 3 << 29)  # and 1 GiB for the process
    monkeypatch.setattr(at_once, "free_bytes", lambda kind: free_gib << 30)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    grid = Grid(compose_all(sweep_jobs([f"seed={seeds}", *places(tmp_path)])), AssetCache())
    assert at_once.processes_for(grid, "auto") == count
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sparta-bench: runs_at_once=auto: {count} at once, on {cores} cores ")
    assert at_once.processes_for(grid, 5) == min(5, len(grid.pending))


def test_auto_needs_to_know_the_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(price, "step_peak", lambda *_, **__: 3 << 29)
    monkeypatch.setattr(at_once, "free_bytes", lambda _: devices.free_bytes("cuda"))
    monkeypatch.setattr(sys, "executable", "false")  # as a process that CUDA gives no memory
    grid = Grid(compose_all(sweep_jobs(["seed=0,1", *places(tmp_path)])), AssetCache())
    with pytest.raises(InputError) as error:
        at_once.processes_for(grid, "auto")
    assert error.value.lines == (
        "runs_at_once=auto: give a number instead; the free memory of the CUDA device is unknown: "
        "no reason",
    )


@pytest.mark.slow  # a dry run; test_memory.py and test_price.py have its parts
def test_the_memory_of_a_run_on_a_cpu_is_estimated() -> None:
    small, large = (compose(["method=head", f"train.batch_size={n}"]) for n in (8, 32))
    ((peak, of),) = price.step_peaks([(small, 0), (large, 0)], "cpu")
    assert of == "head on tiny-gemma, 32 × 48 tokens"
    assert 208_512 * 4 < peak < 1 << 30


def test_each_process_has_its_share_of_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv(devices.WORKER_THREADS, "3")
    assert devices.threads_for(compose(["model=gemma-2b"])) == 3
    assert devices.threads_for(compose([])) == 1


def test_processes_of_one_run_start_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="runs_at_once=auto: leave it out under torchrun"):
        at_once.check_alone(compose(["runs_at_once=auto"]), None)


# ------------------------------------------------------------------ processes that are not forked
def start(tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    words = ["-m", "seed=0,1,2,3", *more, *places(tmp_path)]
    return subprocess.Popen(
        [sys.executable, "-m", "sparta_bench.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_worker_ends_with_its_starter_while_it_still_imports(tmp_path: Path) -> None:
    worker = subprocess.run(
        [sys.executable, "-m", "sparta_bench.cli", "-m", "seed=0,1", *places(tmp_path)],
        stdin=subprocess.DEVNULL,  # ends at once, as when the first process is killed
        capture_output=True,
        env=os.environ | {devices.WORKER_THREADS: "1"},
    )
    assert (worker.returncode, worker.stdout, worker.stderr) == (130, b"", b"")


@pytest.mark.slow
def test_auto_on_this_machine(tmp_path: Path) -> None:
    process = start(tmp_path, *QUICK, "runs_at_once=auto")
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text
    assert "runs_at_once=auto: " in text
    assert main(["-m", "seed=0,1,2,3", *QUICK, *places(tmp_path, "one")]) == 0
    assert scores(tmp_path / "results") == scores(tmp_path / "one")


@pytest.mark.slow
def test_a_killed_command_leaves_no_process_behind(tmp_path: Path) -> None:
    process = start(tmp_path, "train.epochs=100", "runs_at_once=2")
    assert process.stdout is not None
    begun = set()
    while len(begun) < 2:
        line = process.stdout.readline()
        assert line, begun
        begun |= {line[:2]} & {"1:", "2:"}
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while any(is_held(lock) for lock in (tmp_path / "results").rglob(LOCK)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    found: list[Any] = [
        json.loads(path.read_text())["status"] for path in tmp_path.rglob("result.json")
    ]
    assert found == ["interrupted"] * 2
