"""Bytes of all tensors, now and at the peak of some work."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparta_bench.sparta.sharded import is_sharded


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
        if existing is None:
            gc.collect()
            # isinstance would ask, and wake, lazy objects
            existing = [one for one in gc.get_objects() if issubclass(type(one), Tensor)]
        for tensor in existing:
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


def _parts(tensor: Tensor) -> list[Tensor]:
    """The tensors with storage that a sparse or sharded one is made of; any other is one itself."""
    if is_sharded(tensor):
        return [tensor._local_tensor]  # type: ignore[attr-defined]
    if hasattr(tensor, "elem"):  # what a collective call is filling: an AsyncCollectiveTensor
        return [tensor.elem]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout == torch.sparse_csr:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    return [tensor]
