"""The device that a command computes on, the processes of a run, and memory as it is in use."""

from __future__ import annotations

import gc
import os
import resource
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparta_bench.errors import InputError

if TYPE_CHECKING:
    from sparta_bench.config.schema import Config


def device_of(name: str, option: str) -> torch.device:
    """The device called `cpu`, `cuda` or `auto`: CUDA where there is any. Raises InputError with
    `option`, which asked for it, if it is CUDA and there is none."""
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise InputError(f"{option}: torch sees no CUDA device here; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and has_cuda else "cpu")


def device_for(config: Config) -> torch.device:
    """The device of a configuration. Raises InputError as `device_of` does."""
    return device_of(config.device, f"device={config.device}")


@cache
def _threads_at_start() -> int:
    return torch.get_num_threads()


def set_threads(config: Config) -> None:
    """Compute an embedded model on one thread of the CPU: its tensors are so small that two threads
    wait for each other, on busy cores for minutes. OMP_NUM_THREADS decides where it is set."""
    threads = _threads_at_start()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1 if config.model.embedded else threads)


def accelerator_of(config: Config) -> Accelerator:
    """The device and the processes of a run. Raises InputError if the device is not there."""
    device = device_for(config)
    known = PartialState._shared_state.get("device")
    if known is not None and known.type != device.type:
        # accelerate keeps the device of a process's first run for all; runs of a grid may differ
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=device.type == "cpu")


def forget_peak(device: torch.device) -> None:
    """Let the peak start anew, as far as the system allows."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # not Linux, or not allowed: the peak is then the whole process's
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def is_lack_of_memory(error: Exception) -> bool:
    """Whether memory did not suffice; torch has an error of its own for that on CUDA only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate" in str(error)


def peak_bytes(device: torch.device) -> int:
    """Bytes allocated on CUDA at the peak; on a CPU the process's largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def live_bytes(device: torch.device) -> int:
    """Bytes of all tensors that there are: CUDA's allocator; on a CPU those of the process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return TensorMemory().live


def peak_of(work: Callable[[], Any], device: torch.device) -> int:
    """Bytes of all tensors at the peak of `work`: CUDA's allocator; on a CPU `TensorMemory`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device)
    memory = TensorMemory()
    with memory:
        work()
    return memory.peak


class TensorMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all tensors of the process while torch works inside a `with` block: `live` now, and
    `peak`, the most there were at any time.

    Counts each storage once, from the operation that makes it until nobody holds it, and those
    of `existing` tensors (`None`: all of the process): weights, optimizer state. What an operation
    needs inside itself and frees again is not seen, save in this project's own operators.
    """

    def __init__(self, existing: Iterable[Tensor] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._held: dict[int, weakref.ref[UntypedStorage]] = {}
        for tensor in _all_tensors() if existing is None else existing:
            self._hold(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ours = func.namespace == "sparta_bench" and not isinstance(args[0], FakeTensor)
        if ours and args[0].device.type == "cpu":
            with self:  # its kernel is made of torch's operations, whose temporaries count
                result = func._op_dk(torch._C.DispatchKey.CPU, *args, **(kwargs or {}))
        else:
            result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._hold(leaf)
        return result

    def _hold(self, tensor: Tensor) -> None:
        for part in _parts(tensor):
            storage = part.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._held or part.device.type == "meta":
                continue

            def let_go(gone: Any, key: int = key, size: int = size) -> None:
                del self._held[key]
                self.live -= size

            self._held[key] = weakref.ref(storage, let_go)
            self.live += size
        self.peak = max(self.peak, self.live)


def _all_tensors() -> Iterable[Tensor]:
    gc.collect()
    # isinstance would ask, and wake, lazy objects
    return (one for one in gc.get_objects() if issubclass(type(one), Tensor))


def _parts(tensor: Tensor) -> list[Tensor]:
    """The tensors with storage that a sparse one is made of; any other is one itself."""
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout == torch.sparse_csr:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    return [tensor]
