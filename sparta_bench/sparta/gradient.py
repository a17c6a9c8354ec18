"""The gradient of a linear layer's weight at chosen places, in the cheapest way.

Dense: the whole gradient as one matrix product, then gathered. Sampled: only the chosen entries,
each the dot product of a column of the output's gradient with a column of the input, accumulated
in float32. Which is faster depends on the share that is chosen; docs/benchmark.md has the
measurement behind `SAMPLED_UP_TO`.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

WAYS = ("auto", "dense", "sampled")
# Share of a weight's scalars up to which the sampled way is the faster one, by device.
SAMPLED_UP_TO = {"cpu": 0.15, "cuda": 0.001}
# On a CPU, below this many entries per row and column, gathering columns beats transposing both
# operands for a sparse product.
_FEW_ENTRIES = 0.5
_CHUNK = 1 << 20  # elements of a temporary

# An operator of torch, so that torch.compile, the FLOP counter and the profiler see it by name.
_LIBRARY = torch.library.Library("sparta_bench", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("weight_gradient_at(Tensor grad, Tensor x, Tensor indices) -> Tensor")  # type: ignore[no-untyped-call]


with warnings.catch_warnings():
    # torch says once in a process that sparse tensors are in beta; here, where nobody minds
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.zeros(2), torch.zeros(0), torch.zeros(0), (1, 1))


def weight_gradient_at(grad: Tensor, x: Tensor, indices: Tensor, sampled: bool) -> Tensor:
    """The entries of `grad.t() @ x` at flat places.

    Parameters
    ----------
    grad
        Gradient of the layer's output, tokens x out_features.
    x
        The layer's input, tokens x in_features, of the same dtype.
    indices
        Flat places in the weight (out_features x in_features), int32, sorted.
    sampled
        Compute these entries only; else the whole product.

    Returns
    -------
    One value per place: float32 or float64 where sampled, else of the operands' dtype.
    """
    if sampled:
        return torch.ops.sparta_bench.weight_gradient_at(grad, x, indices)  # type: ignore[no-any-return]
    return (grad.t() @ x).view(-1).index_select(0, indices)


def is_sampled(way: str, share: float, device: torch.device) -> bool:
    """Whether a layer of which `share` is chosen takes the sampled way."""
    if way == "auto":
        can = device.type != "cuda" or importlib.util.find_spec("triton") is not None
        return can and share <= SAMPLED_UP_TO.get(device.type, 0.0)
    return way == "sampled"


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _on_cpu(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    wide = _accumulator(grad.dtype)
    grad, x = grad.to(wide), x.to(wide)
    tokens, outs = grad.shape
    ins = x.shape[1]
    rows = torch.div(indices, ins, rounding_mode="floor")
    columns = indices - rows * ins
    if len(indices) <= _FEW_ENTRIES * (outs + ins):
        total = torch.zeros(len(indices), dtype=wide)
        step = max(_CHUNK // max(len(indices), 1), 1)
        for start in range(0, tokens, step):
            part = grad[start : start + step].index_select(1, rows)
            part *= x[start : start + step].index_select(1, columns)
            total += part.sum(0)
        return total
    starts = torch.arange(0, outs * ins + 1, ins, dtype=torch.int64)
    row_starts = torch.searchsorted(indices, starts.to(torch.int32), out_int32=True)
    pattern = torch.sparse_csr_tensor(
        row_starts,
        columns,
        torch.zeros(len(indices), dtype=wide),
        (outs, ins),
        check_invariants=False,
    )
    # contiguous along the tokens, over which each entry is a sum
    product = torch.sparse.sampled_addmm(
        pattern, grad.t().contiguous(), x.t().contiguous().t(), beta=0.0
    )
    entries: Tensor = product.values()
    return entries


def _on_cuda(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    from sparta_bench.sparta.kernels import sampled_gradient

    return sampled_gradient(grad, x, indices)


def _shape_only(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    return x.new_empty(len(indices), dtype=_accumulator(grad.dtype))


_LIBRARY.impl("weight_gradient_at", _on_cpu, "CPU")  # type: ignore[no-untyped-call]
_LIBRARY.impl("weight_gradient_at", _on_cuda, "CUDA")  # type: ignore[no-untyped-call]
torch.library.register_fake("sparta_bench::weight_gradient_at", _shape_only)


@register_flop_formula(torch.ops.sparta_bench.weight_gradient_at)  # type: ignore[untyped-decorator]
def _flops(
    grad_shape: Any, x_shape: Any, indices_shape: Any, *args: Any, out_shape: Any = None, **_: Any
) -> int:
    """A product and a sum per token and chosen entry."""
    return 2 * int(grad_shape[0]) * int(indices_shape[0])
