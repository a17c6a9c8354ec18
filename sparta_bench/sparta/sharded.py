"""Tensors that FSDP2 (`fully_shard`) has cut into rows, of which each process holds its own.

Such a tensor is a DTensor on one row of processes, cut along its first dimension: of N processes,
number r has rows r * ceil(rows / N) and on. Deltas of a sharded model are cut the same way, by
their number. What gathers or reduces must be called by all processes together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor (asked without the import, which takes long)."""
    return hasattr(tensor, "device_mesh")


def mesh_of(tensor: Any) -> Any:
    """The processes that share a tensor; None for a plain one. Raises ValueError for a tensor that
    is cut in another way than along its rows."""
    if not is_sharded(tensor):
        return None
    mesh, placements = tensor.device_mesh, tensor.placements
    if mesh.ndim != 1 or not placements[0].is_shard(0):
        raise ValueError(
            f"shard with fully_shard over one row of processes: a tensor is cut as {placements} "
            f"over {mesh.ndim} dimensions of processes"
        )
    return mesh


def local(tensor: Any) -> Tensor:
    """This process's rows, in their own memory; a plain tensor is itself."""
    rows: Tensor = tensor.detach().to_local() if is_sharded(tensor) else tensor.detach()
    return rows


def whole(tensor: Any) -> Tensor:
    """All rows, in every process; a plain tensor is itself."""
    rows: Tensor = tensor.detach().full_tensor() if is_sharded(tensor) else tensor.detach()
    return rows


def rows_of(count: int, mesh: Any) -> tuple[int, int]:
    """The first of `count` rows that is this process's, and the one after its last."""
    step, rank = -(-count // mesh.size()), mesh.get_local_rank()
    return min(rank * step, count), min((rank + 1) * step, count)


def sharded(rows: Tensor, mesh: Any, shape: Sequence[int]) -> Tensor:
    """The DTensor of this shape of which this process holds `rows` (see `rows_of`)."""
    from torch.distributed.tensor import DTensor, Shard

    stride = torch.empty(*shape, device="meta").stride()
    size = torch.Size(shape)
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=size, stride=stride)


def reduced(gradient: Tensor, mesh: Any) -> Tensor:
    """The mean over the processes of a gradient (1-d), sharded."""
    from torch.distributed.tensor import DTensor, Partial, Shard

    summands = DTensor.from_local(gradient, mesh, [Partial()], run_check=False)
    mean: Tensor = summands.redistribute(placements=[Shard(0)]) / mesh.size()
    return mean


class OwnEntries(NamedTuple):
    """Which of a sharded tensor's chosen entries lie in this process's rows.

    `counts` says of each process how many do; `offset` is where its rows begin in the flat tensor.
    """

    counts: tuple[int, ...]
    rank: int
    offset: int
    mesh: Any

    @property
    def slice(self) -> slice:
        """Of the indices of all chosen entries, which are sorted."""
        first = sum(self.counts[: self.rank])
        return slice(first, first + self.counts[self.rank])

    def local(self, indices: Tensor) -> Tensor:
        """Indices of this process's entries in its own flat rows."""
        return indices[self.slice] - self.offset

    def gather(self, own: Tensor) -> Tensor:
        """Values of all entries, in every process, from those of its own entries in each."""
        most = max(self.counts)
        if not most:
            return own
        padded = F.pad(own, (0, most - len(own)))  # all give as much
        gathered = whole(sharded(padded, self.mesh, (most * len(self.counts),)))
        return torch.cat(
            [
                part[:count]
                for part, count in zip(torch.split(gathered, most), self.counts, strict=True)
            ]
        )


def own_entries(tensor: Tensor, indices: Tensor) -> OwnEntries | None:
    """Which of the entries at flat, sorted `indices` are this process's; None: all, of a plain
    tensor."""
    mesh = mesh_of(tensor)
    if mesh is None:
        return None
    rows, world = len(tensor), mesh.size()
    step, width = -(-rows // world), tensor.numel() // max(rows, 1)
    starts = [min(rank * step, rows) * width for rank in range(world + 1)]
    limits = torch.tensor(starts, dtype=indices.dtype, device=indices.device)
    cuts = torch.searchsorted(indices, limits).tolist()
    counts = tuple(last - first for first, last in pairwise(cuts))
    rank = mesh.get_local_rank()
    return OwnEntries(counts, rank, starts[rank], mesh)


def values_at(tensor: Tensor, indices: Tensor) -> Tensor:
    """The tensor's values at flat, sorted indices, in every process, whatever its memory format."""
    own = own_entries(tensor, indices)
    if own is None:
        return tensor.detach().reshape(-1).index_select(0, indices)
    return own.gather(local(tensor).reshape(-1).index_select(0, own.local(indices)))


def parts_of(parameters: Mapping[str, nn.Parameter], dtype: torch.dtype) -> dict[str, nn.Parameter]:
    """For an optimizer: this process's rows of parameters, as plain tensors in `dtype`: the same
    memory where the parameters have it. A parameter's gradient moves there as soon as it is."""
    parts = {name: nn.Parameter(local(value).to(dtype)) for name, value in parameters.items()}
    for name, value in parameters.items():
        value.requires_grad_(True)
        hook = move_gradient_to(parts[name])
        value.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    return parts


def move_gradient_to(copy: nn.Parameter) -> Any:
    """A hook that adds a parameter's gradient to that of `copy`, in the copy's dtype."""

    def move(parameter: Tensor) -> None:
        assert parameter.grad is not None
        grad = local(parameter.grad).to(copy.dtype)
        copy.grad = grad if copy.grad is None else copy.grad.add_(grad)
        parameter.grad = None  # at once, so that only one gradient in its dtype is alive

    return move


def reshard(model: nn.Module) -> None:
    """Free what FSDP has gathered for a forward pass, so that values that are written into the rows
    are those of the next one."""
    for module in model.modules():
        if hasattr(module, "set_reshard_after_forward"):  # FSDP's, of those it has sharded
            module.reshard()  # type: ignore[operator]


def fill(tensor: Tensor, values: Tensor) -> None:
    """Give a tensor, sharded or not, the values of a whole one, or of one that is sharded as it
    is."""
    if is_sharded(tensor) and not is_sharded(values):
        first, last = rows_of(len(values), mesh_of(tensor))
        values = values[first:last]
    local(tensor).copy_(local(values))
