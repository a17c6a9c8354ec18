"""The device that a command computes on, the processes of a run, and its peak of memory.

torch and accelerate are imported where they are needed: which runs are done is known without.
"""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes import CDLL
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from sparta_bench.errors import InputError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from sparta_bench.config.schema import Config

DRIVER = "libcuda.so.1"
# what the starters of several processes set, and accelerate reads
RANKS = ("LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
WORKER_THREADS = "SPARTA_BENCH_WORKER_THREADS"  # set for the processes of `runs_at_once`


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Import inside: Python's garbage collector, which would look at a million new objects again
    and again and find nothing, waits; that saves a sixth of the time of torch and transformers."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def device_kind(name: str, option: str) -> str:
    """`cpu` or `cuda` for `cpu`, `cuda` or `auto`: CUDA where there is any. Raises InputError with
    `option`, which asked for it, if it is CUDA and there is none."""
    if name == "cpu":
        return name
    has_cuda = True
    # torch, whose import takes seconds, is not asked where it would find no driver
    if sys.modules.get("torch") is None and "rocm" not in metadata.version("torch"):
        try:
            CDLL(DRIVER)
        except OSError:
            has_cuda = False
    if has_cuda:
        import torch

        has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise InputError(f"{option}: torch sees no CUDA device here; use cpu or auto")
    return "cuda" if has_cuda else "cpu"


def device_of(name: str, option: str) -> torch.device:
    """The device called `cpu`, `cuda` or `auto`. Raises InputError as `device_kind` does."""
    kind = device_kind(name, option)
    import torch

    return torch.device(kind)


def device_for(config: Config) -> torch.device:
    """The device of a configuration. Raises InputError as `device_kind` does."""
    return device_of(config.device, f"device={config.device}")


def is_one_of_several() -> bool:
    """Whether this process may be one of several that make a run together."""
    return any(name in os.environ for name in RANKS)


def free_bytes(kind: str) -> int:
    """Bytes of memory that nothing uses: of the current CUDA device, or of the machine. Raises
    InputError if CUDA does not answer, as where its memory is full."""
    if kind == "cpu":
        import psutil

        return int(psutil.virtual_memory().available)
    # asked by another process: CUDA takes some hundred MB for each that uses it, until its end
    script = "import torch; print(torch.cuda.mem_get_info()[0])"
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        raise InputError(f"the free memory of the CUDA device is unknown: {reason}")
    return int(done.stdout)


def worker_threads() -> int | None:
    """The threads of a process that makes a grid's runs beside others (`runs_at_once`); None in any
    other process."""
    return int(os.environ.get(WORKER_THREADS, 0)) or None


@cache
def _threads_at_start() -> int:
    import torch

    return torch.get_num_threads()


def threads_for(config: Config) -> int:
    """How many threads `set_threads` gives a run of this configuration, without torch."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked):
        return int(asked)
    return 1 if config.model.embedded else worker_threads() or len(os.sched_getaffinity(0))


def set_threads(config: Config) -> None:
    """Compute an embedded model on one thread of the CPU: its tensors are so small that two threads
    wait for each other, on busy cores for minutes. OMP_NUM_THREADS decides where it is set."""
    import torch

    threads = worker_threads() or _threads_at_start()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1 if config.model.embedded else threads)


def accelerator_of(config: Config) -> Accelerator:
    """The device and the processes of a run. Raises InputError if the device is not there."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    device = device_for(config)
    known = PartialState._shared_state.get("device")
    if known is not None and known.type != device.type:
        # accelerate keeps the device of a process's first run for all; runs of a grid may differ
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=device.type == "cpu")


def forget_peak(device: torch.device) -> None:
    """Let the peak start anew, as far as the system allows."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # not Linux, or not allowed: the peak is then the whole process's
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def is_lack_of_memory(error: Exception) -> bool:
    """Whether memory did not suffice; torch has an error of its own for that on CUDA only."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate" in str(error)


def peak_bytes(device: torch.device) -> int:
    """Bytes allocated on CUDA at the peak; on a CPU the process's largest resident size."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
