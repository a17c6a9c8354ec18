"""How gradients of single scalars are taken: dense for one tensor at a time, gathered, freed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class _SparseLinear(torch.autograd.Function):
    """`F.linear` whose weight has a gradient at the chosen places only.

    Keeps what the plain layer keeps for the backward pass: the input and a reference to the
    weight. `deltas` takes no part in the computation (the weight already holds original + delta);
    it is an argument so that its gradient has somewhere to go.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, deltas: Tensor, indices: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, indices)
        ctx.deltas_dtype = deltas.dtype
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        x, weight, indices = ctx.saved_tensors
        grad_x = grad_bias = grad_deltas = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
        rows = grad.reshape(-1, grad.shape[-1])
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(dim=0)
        if ctx.needs_input_grad[3]:
            dense = rows.t() @ x.reshape(-1, x.shape[-1])
            grad_deltas = dense.view(-1)[indices].to(ctx.deltas_dtype)
        return grad_x, None, grad_bias, grad_deltas, None


def train_linear(layer: nn.Linear, deltas: nn.Parameter, indices: Tensor) -> Callable[[], None]:
    """Let `deltas` receive the gradient of `layer.weight` at `indices`; returns how to undo it."""

    def forward(x: Tensor) -> Tensor:
        return _SparseLinear.apply(x, layer.weight, layer.bias, deltas, indices)  # type: ignore[no-untyped-call, no-any-return]

    layer.forward = forward  # type: ignore[method-assign, assignment]

    def undo() -> None:
        del layer.forward

    return undo


def train_tensor(tensor: nn.Parameter, deltas: nn.Parameter, indices: Tensor) -> Callable[[], None]:
    """The same for a tensor of any other layer, such as a norm's vector: its dense gradient is
    gathered and freed as soon as it is complete."""
    tensor.requires_grad_(True)

    def gather(complete: Tensor) -> None:
        assert complete.grad is not None
        chosen = complete.grad.view(-1)[indices].to(deltas.dtype)
        deltas.grad = chosen if deltas.grad is None else deltas.grad.add_(chosen)
        complete.grad = None

    handle: RemovableHandle = tensor.register_post_accumulate_grad_hook(gather)  # type: ignore[no-untyped-call]

    def undo() -> None:
        handle.remove()
        tensor.requires_grad_(False)

    return undo
