"""Workers that die, and memory that does not suffice: the others end, the rest of a sweep goes on,
and the same command ends as it should."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forks import Command, Forks

from faults.harness import KILLED, LONG, check_whole, leftovers, outcome, records

pytestmark = pytest.mark.faults
Small = Callable[..., list[str]]

GONE = "another of the 2 processes of this run has died or does not answer; its own output says"
BOUND = 60.0  # seconds, from the death of one process to the end of all
RANK = """
import os
os.environ |= {{"RANK": "{rank}", "LOCAL_RANK": "{rank}", "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "{port}"}}
"""
SEES_NONE = """
from sparta_bench.training import checkpoint
checkpoint.Checkpoint.load = lambda self: None
"""
# each allocation that this run would need beyond that is refused by the system
FEW_BYTES = """
import resource
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + {more}
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
"""
# as torch raises it on a GPU
NO_GPU_MEMORY = """
import torch
from sparta_bench.training import loop
original = loop.Training._step
def too_much(self, *rest):
    if self.seed == 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return original(self, *rest)
loop.Training._step = too_much
"""
# the system kills a process that takes too much
KILLED_IN_SEED_0 = """
import os
from sparta_bench.training import loop
original = loop.Training._step
def too_much(self, *rest):
    if self.seed == 0:
        os.kill(os.getpid(), 9)
    return original(self, *rest)
loop.Training._step = too_much
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def two(forks: Forks, *words: str) -> list[Command]:
    """Two processes of one run, without anybody who watches them."""
    port = free_port()
    return [forks.start(*words, prelude=RANK.format(rank=rank, port=port)) for rank in (0, 1)]


@pytest.fixture(scope="module")
def whole(forks: Forks, small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes make of a run, when both live."""
    folder = tmp_path_factory.mktemp("whole")
    both = two(forks, *small(folder, "device=cpu"))
    assert [command.ends() for command in both] == [0, 0], both[0].told()
    return folder


@pytest.mark.parametrize("dies", [0, 1])
@pytest.mark.parametrize("number", range(10 if LONG else 2))
def test_one_of_two_processes_is_killed(
    dies: int, number: int, forks: Forks, small: Small, whole: Path, tmp_path: Path
) -> None:
    words = small(tmp_path, "device=cpu")
    both = two(forks, *words)
    both[0].waits_for("step 0/6")
    time.sleep(random.Random(f"{dies} {number}").random() * 0.5)
    os.kill(both[dies].pid, signal.SIGKILL)
    started = time.monotonic()
    assert both[dies].ends() == KILLED
    assert both[1 - dies].ends() == 1, both[1 - dies].told()
    assert time.monotonic() - started < BOUND
    assert GONE in both[1 - dies].told() and "Traceback" not in both[1 - dies].told()
    check_whole(tmp_path)
    again = two(forks, *words)
    assert [command.ends() for command in again] == [0, 0], [one.told() for one in again]
    assert outcome(tmp_path) == outcome(whole)
    assert leftovers(tmp_path / "results") == []


def test_a_checkpoint_that_one_process_does_not_see_is_not_gone_on_from(
    forks: Forks, small: Small, whole: Path, tmp_path: Path
) -> None:
    words = small(tmp_path, "device=cpu")
    both = two(forks, *words)
    both[0].waits_for("step 2/6")
    os.kill(both[1].pid, signal.SIGKILL)
    assert [command.ends() for command in both] == [1, KILLED]
    assert list(tmp_path.rglob("checkpoint.safetensors"))
    port = free_port()
    again = [
        forks.start(*words, prelude=RANK.format(rank=rank, port=port) + SEES_NONE * rank)
        for rank in (0, 1)
    ]
    assert [command.ends() for command in again] == [0, 0], [one.told() for one in again]
    assert "step 0/6" in again[0].told()
    assert outcome(tmp_path) == outcome(whole)


def worker_of(launcher: int, rank: str) -> int:
    """The process of that rank among a launcher's children."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in map(int, children):
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return child
    raise LookupError(rank)


def test_a_worker_dies_under_torchrun(
    forks: Forks, small: Small, whole: Path, tmp_path: Path
) -> None:
    words = small(tmp_path, "device=cpu")
    endless = ["train.epochs=1e4", "train.max_steps=10000", "train.patience=null"]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command = [sys.executable, *launch, "-m", "sparta_bench.cli", *words, *endless]
    told = tmp_path / "told.txt"
    with told.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        deadline = time.monotonic() + 120
        while "step 2/" not in told.read_text():
            assert process.poll() is None and time.monotonic() < deadline, told.read_text()
            time.sleep(0.05)
        os.kill(worker_of(process.pid, "1"), signal.SIGKILL)
        assert process.wait(BOUND) != 0
    assert "exitcode  : -9" in told.read_text()
    assert [r["status"] for r in records(tmp_path).values()] in ([], ["failed"], ["interrupted"])
    check_whole(tmp_path)
    both = two(forks, *words)
    assert [command.ends() for command in both] == [0, 0], both[0].told()
    done = {record["run_id"]: record for record in records(tmp_path).values()}
    assert all(done[run]["test"] == record["test"] for run, record in records(whole).items())


@pytest.mark.skipif(not LONG, reason="of the long form: a launcher's workers import for themselves")
def test_a_launcher_is_killed_and_its_workers_are_left(
    forks: Forks, small: Small, tmp_path: Path
) -> None:
    sweep = ["-m", *small(tmp_path, "method=sparta,head", "seed=0,1")]
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    command = [sys.executable, "-m", "sparta_bench.cli", *sweep, *joblib]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.rglob("running.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    told = forks.run(*sweep)
    assert "4 runs: " in told
    forks.run("-m", *small(tmp_path / "whole", "method=sparta,head", "seed=0,1"))
    assert outcome(tmp_path / "results") == outcome(tmp_path / "whole" / "results")
    assert leftovers(tmp_path) == []


# ---------------------------------------------------------------------------------- memory
def test_a_run_for_which_memory_does_not_suffice_fails_alone(
    forks: Forks, small: Small, tmp_path: Path
) -> None:
    """Of texts of 500 tokens a batch of 64 needs near a GB, one of them some 15 MB."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for split, count in (("train", 80), ("validation", 2)):
        rows = [{"sentence": "The film is good. " * 98, "label": n % 2} for n in range(count)]
        (texts / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    long = [f"task.data_dir={texts}", "task.max_train_tokens=512", "train.eval_batch_size=1"]
    long.append("train.share_prefix=false")  # the texts are the same
    sweep = ["-m", *small(tmp_path, *long, "train.batch_size=64,1", "train.max_steps=1")]
    told = forks.run(*sweep, code=1, prelude=FEW_BYTES.format(more=400 << 20))
    assert "1 of 2 runs did not complete:" in told and "Traceback" not in told
    found = {r["config"]["train"]["batch_size"]: r for r in records(tmp_path).values()}
    assert found[1]["status"] == "completed" and found[64]["status"] == "failed"
    message = found[64]["error"]["message"]
    assert message.startswith("out of memory with train.batch_size=64 in 1 part(s); try")
    assert message in told


def test_a_run_for_which_the_gpu_does_not_suffice_fails_alone(
    forks: Forks, small: Small, tmp_path: Path
) -> None:
    sweep = ["-m", *small(tmp_path, "seed=0,1,2")]
    told = forks.run(*sweep, code=1, prelude=NO_GPU_MEMORY)
    assert "1 of 3 runs did not complete:" in told and "Traceback" not in told
    found = {record["seed"]: record for record in records(tmp_path).values()}
    assert [found[seed]["status"] for seed in range(3)] == ["completed", "failed", "completed"]
    assert "Tried to allocate 2.00 GiB" in found[1]["error"]["message"]
    forks.run(*sweep)
    assert {r["status"] for r in records(tmp_path).values()} == {"completed"}


def test_a_run_that_its_process_dies_of_does_not_keep_the_others_from_theirs(
    forks: Forks, small: Small, tmp_path: Path
) -> None:
    sweep = ["-m", *small(tmp_path, "seed=0,1,2")]
    forks.run(*sweep, code=KILLED, prelude=KILLED_IN_SEED_0)
    assert records(tmp_path) == {}
    forks.run(*sweep, code=KILLED, prelude=KILLED_IN_SEED_0)
    assert sorted(record["seed"] for record in records(tmp_path).values()) == [1, 2]
    assert "3 runs: 2 done, 1 to go" in forks.run(*sweep)
    assert len(records(tmp_path)) == 3 and leftovers(tmp_path) == []
