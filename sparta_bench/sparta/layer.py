"""Layers some of whose scalars train: the plain layer, with a gradient that goes to the deltas.

A patched module gets a subclass of its own class and keeps its weights, names and hooks. The
deltas are parameters of the module, so that an optimizer, DDP, `state_dict` and `Trainer` find
them; indices and originals are no buffers, since DDP would send buffers around at every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparta_bench.sparta.gradient import (
    columns_of,
    is_sampled,
    keeps_columns,
    weight_gradient_at,
    weight_gradient_of_columns,
)
from sparta_bench.sparta.kernel_check import usable
from sparta_bench.sparta.merge import rounded_sum, write_at
from sparta_bench.sparta.sharded import OwnEntries, is_sharded, local, mesh_of, reduced, whole

DELTAS = "{}_deltas"  # name of the deltas of a tensor, in the module that holds both


@dataclass
class ChosenEntries:
    """Where a tensor trains: flat indices (int32, sorted), and what stood there before, in the
    tensor's dtype. Of a tensor that is sharded `indices` are all, `originals` those of the entries
    in this process's rows, `own`."""

    indices: Tensor
    originals: Tensor
    own: OwnEntries | None = None


def write_entries(weight: Tensor, entries: ChosenEntries, deltas: Tensor) -> None:
    """`write_merged`; of a sharded weight this process's rows."""
    own, indices = entries.own, entries.indices
    deltas = whole(deltas)
    if own is not None:
        indices, deltas = own.local(indices), deltas[own.slice]
    write_merged(local(weight), indices, entries.originals, deltas)


def write_merged(weight: Tensor, indices: Tensor, originals: Tensor, deltas: Tensor) -> None:
    """Set the entries of `weight` at flat `indices` (int32) to originals + deltas, rounded once
    to the weight's dtype. On CUDA in one pass over memory, where the kernel for it works."""
    if weight.is_cuda:
        write_merged_on_cuda(weight, indices, originals, deltas)
    else:
        write_at(weight, indices, rounded_sum(originals, deltas))


def write_merged_on_cuda(
    weight: Tensor, indices: Tensor, originals: Tensor, deltas: Tensor
) -> None:
    """`write_merged` with the kernel, where that is usable."""
    device, dtypes = weight.device, (weight.dtype, deltas.dtype)
    if weight.is_contiguous() and usable("merge", device, *dtypes):
        from sparta_bench.sparta.kernels import merge  # imports Triton

        merge(weight, indices, originals, deltas)
    else:
        write_at(weight, indices, rounded_sum(originals, deltas))


class _Patched:
    """What every patched module has beside its own class."""

    sparta_plain: type
    sparta_names: tuple[str, ...]
    sparta_entries: dict[str, ChosenEntries]
    sparta_gradient: str
    sparta_threads: int
    sparta_flat: bool  # deltas are slices of one tensor: see `flat`
    sparta_mesh: Any  # processes among which the deltas are sharded, and FSDP does not know of it

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        parameters: dict[str, Tensor] = self._parameters  # type: ignore[attr-defined]
        if self.sparta_flat:
            raise RuntimeError("move or convert the model before its deltas become one tensor")
        before = {name: parameters[name].dtype for name in self.sparta_entries}
        for name, entries in self.sparta_entries.items():
            indices = fn(entries.indices)  # a change of device; a change of dtype is not for them
            if indices.dtype != torch.int32:
                indices = entries.indices.to(indices.device)
            self.sparta_entries[name] = ChosenEntries(indices, fn(entries.originals), entries.own)
        result = super()._apply(fn, recurse)  # type: ignore[misc]
        for name, entries in self.sparta_entries.items():
            if parameters[name].dtype != before[name]:
                deltas = parameters[DELTAS.format(name)]
                with torch.no_grad():
                    write_entries(parameters[name], entries, deltas)
        return result

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.sparta_flat:
            raise RuntimeError("copy the model before its deltas become one tensor")
        # the class is made at run time: copies and pickles make it again
        own_forward = isinstance(self, _PatchedLinear)
        return _empty, (self.sparta_plain, self.sparta_names, own_forward), self.__dict__


class _PatchedLinear(_Patched, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        # the tensor itself: `self.weight` is for those who read it without this pass
        weight, deltas = self._parameters["weight"], self._parameters["weight_deltas"]
        assert weight is not None
        if not torch.is_grad_enabled():
            return F.linear(x, weight, self.bias)
        indices = self.sparta_entries["weight"].indices
        tokens = x.numel() // x.shape[-1]
        sampled = is_sampled(
            self.sparta_gradient,
            weight.shape,
            indices.numel(),
            tokens,
            weight.device,
            self.sparta_threads,
        )
        if self.sparta_flat and not sampled:
            return F.linear(x, weight, self.bias)
        casts = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
        if casts:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return _SparseLinear.apply(  # type: ignore[no-untyped-call, no-any-return]
            x, weight, self.bias, deltas, indices, casts, sampled, self.sparta_mesh
        )


class _SparseLinear(torch.autograd.Function):
    """`F.linear` whose weight has a gradient at the chosen indices only.

    Keeps what the plain layer keeps for the backward pass: the input and a reference to the
    weight; under autocast less, since the weight's cast is made anew, and less of the input where
    few of its columns are needed. `deltas` takes no part in
    the computation (the weight already holds original + delta); it is an argument so that its
    gradient has somewhere to go.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        deltas: Tensor,
        indices: Tensor,
        casts: bool,
        sampled: bool,
        mesh: Any,
    ) -> Tensor:
        ctx.keeps_columns = sampled and keeps_columns(weight.shape, len(indices))
        kept = columns_of(x.reshape(-1, x.shape[-1]), indices) if ctx.keeps_columns else x
        ctx.save_for_backward(kept, weight, indices)
        ctx.deltas_dtype = deltas.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.casts, ctx.sampled, ctx.mesh = casts, sampled, mesh
        if casts:
            weight = weight.to(x.dtype)
            bias = None if bias is None else bias.to(x.dtype)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        kept, weight, indices = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_bias = grad_deltas = None
        if ctx.needs_input_grad[3]:
            kept = kept.reshape(-1, kept.shape[-1])
            if ctx.keeps_columns:
                entries = weight_gradient_of_columns(rows, kept, indices, weight.shape[1])
            else:
                entries = weight_gradient_at(rows, kept, indices, ctx.sampled)
            grad_deltas = entries.to(ctx.deltas_dtype)
            if ctx.mesh is not None:
                grad_deltas = reduced(grad_deltas, ctx.mesh)
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(dim=0).to(ctx.bias_dtype)
        if ctx.needs_input_grad[0]:
            grad_x = grad @ (weight.to(grad.dtype) if ctx.casts else weight)
        return grad_x, None, grad_bias, grad_deltas, None, None, None, None


class _Gathered(torch.autograd.Function):
    """A tensor as it is, whose dense gradient is gathered into the deltas' and freed."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, deltas: Tensor, indices: Tensor, mesh: Any) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.deltas_dtype, ctx.mesh = deltas.dtype, mesh
        return tensor.view_as(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (indices,) = ctx.saved_tensors
        chosen = grad.reshape(-1).index_select(0, indices).to(ctx.deltas_dtype)
        return None, chosen if ctx.mesh is None else reduced(chosen, ctx.mesh), None, None


def _gathering(name: str) -> property:
    def tensor(module: Any) -> Tensor:
        own: Tensor = module._parameters[name]
        # a sharded one is read by FSDP itself, before it gathers the rows
        if module.sparta_flat or not torch.is_grad_enabled() or is_sharded(own):
            return own
        deltas = module._parameters[DELTAS.format(name)]
        indices, mesh = module.sparta_entries[name].indices, module.sparta_mesh
        return _Gathered.apply(own, deltas, indices, mesh)  # type: ignore[no-untyped-call, no-any-return]

    return property(tensor)


@cache
def _patched_class(plain: type, names: tuple[str, ...], own_forward: bool) -> type:
    """`plain` with some entries of the tensors `names` trained.

    Each is a property: whoever reads it, such as a norm's own code, gets it with its gradient going
    to the deltas. A linear layer's forward pass takes its weight otherwise; others may read it too
    (Mamba never calls the layer), so it is a property there as well.
    """
    bases = (_PatchedLinear,) if own_forward else (_Patched, plain)
    members: dict[str, Any] = {name: _gathering(name) for name in names}
    members |= {"sparta_plain": plain, "sparta_names": names}
    return type(f"Sparta{plain.__name__}", bases, members)


def _empty(plain: type, names: tuple[str, ...], own_forward: bool) -> Any:
    made: Any = _patched_class(plain, names, own_forward)
    return made.__new__(made)


def patch(
    module: nn.Module, deltas: dict[str, nn.Parameter], entries: dict[str, ChosenEntries], way: str
) -> None:
    """Let `deltas` receive the gradients of the module's tensors of these names at `entries`.

    `way` is `auto`, `dense` or `sampled` (see `gradient.weight_gradient_at`). What `auto` takes is
    decided by the number of threads at this moment, so that all steps sum in the same order. The
    values stay as they are, here and in `unpatch`.
    """
    plain, names = type(module), tuple(sorted(deltas))
    for name, values in deltas.items():
        module.register_parameter(DELTAS.format(name), values)
    module.sparta_entries = dict(entries)  # type: ignore[assignment]
    module.sparta_gradient, module.sparta_flat = way, False  # type: ignore[assignment]
    module.sparta_mesh = mesh_of(next(iter(deltas.values())))
    module.sparta_threads = torch.get_num_threads()  # type: ignore[assignment]
    # a forward pass that somebody put on the module, as accelerate does, reads the weight itself
    own_forward = plain is nn.Linear and "weight" in names and "forward" not in vars(module)
    module.__class__ = _patched_class(plain, names, own_forward)  # type: ignore[arg-type]


def make_plain(module: nn.Module) -> None:
    """Let the weights of a patched module ask for their gradients themselves, where no batch is
    large enough to compute chosen entries alone."""
    assert isinstance(module, _Patched)
    module.sparta_flat = True
    if isinstance(module, _PatchedLinear):
        shape, entries = module._parameters["weight"].shape, module.sparta_entries["weight"]  # type: ignore[union-attr]
        device, threads = entries.indices.device, module.sparta_threads
        if not is_sampled(
            module.sparta_gradient, shape, len(entries.indices), math.inf, device, threads
        ):
            plain, names = module.sparta_plain, module.sparta_names
            module.__class__ = _patched_class(plain, names, False)  # type: ignore[assignment]


def unpatch(module: nn.Module) -> None:
    """Make the module, which must be patched, one of its own class again. Its values stay."""
    assert isinstance(module, _Patched)
    names = module.sparta_names
    module.__class__ = module.sparta_plain
    del module.sparta_entries, module.sparta_gradient, module.sparta_threads, module.sparta_flat
    del module.sparta_mesh
    for name in names:
        del module._parameters[DELTAS.format(name)]


def is_patched(module: nn.Module) -> bool:
    """Whether an adapter trains some of the module's scalars."""
    return isinstance(module, _Patched)
