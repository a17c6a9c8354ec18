"""The gradient of a linear layer's weight at chosen indices, in the cheapest way.

Dense: the whole gradient as one matrix product, then gathered. Sampled: only the chosen entries,
each the dot product of a column of the output's gradient with a column of the input, accumulated
in float32. Where fewer entries are chosen than half of the input has columns, these columns are
taken in the forward pass already, so that the rest of the input need not be kept.

Which is faster depends on shape, share and threads; docs/benchmark.md has the measurements.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparta_bench.sparta.kernel_check import usable
from sparta_bench.sparta.sampling_cost import gathers_columns, sampling_pays

WAYS = ("auto", "dense", "sampled")
_TRITON = importlib.util.find_spec("triton") is not None


# Elements of a temporary, by device: a CPU's stays in its cache, a GPU starts few kernels.
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 24}
_TOKENS = 256  # tokens of a piece that is laid out anew, so that it stays in the cache

# An operator of torch, so that torch.compile, the FLOP counter and the profiler see it by name.
_LIBRARY = torch.library.Library("sparta_bench", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("weight_gradient_at(Tensor grad, Tensor x, Tensor indices) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.define("column_products(Tensor grad, Tensor rows, Tensor kept) -> Tensor")  # type: ignore[no-untyped-call]


with warnings.catch_warnings():
    # torch says once in a process that sparse tensors are in beta; here, where nobody minds
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.zeros(2), torch.zeros(0), torch.zeros(0), (1, 1))


def weight_gradient_at(grad: Tensor, x: Tensor, indices: Tensor, sampled: bool) -> Tensor:
    """The entries of `grad.t() @ x` at flat indices.

    Parameters
    ----------
    grad
        Gradient of the layer's output, tokens x out_features.
    x
        The layer's input, tokens x in_features, of the same dtype.
    indices
        Flat indices in the weight (out_features x in_features), int32, sorted.
    sampled
        Compute these entries only; else the whole product.

    Returns
    -------
    One value per index: float32 or float64 where sampled, else of the operands' dtype.
    """
    if sampled:
        return torch.ops.sparta_bench.weight_gradient_at(grad, x, indices)  # type: ignore[no-any-return]
    return (grad.t() @ x).view(-1).index_select(0, indices)


def keeps_columns(shape: torch.Size, chosen: int) -> bool:
    """Whether sampling a weight of this shape (out x in) needs less of the input than it has."""
    return 2 * chosen < shape[1]


def columns_of(x: Tensor, indices: Tensor) -> Tensor:
    """For each index its column of the input: tokens x indices, of `x` (tokens x in_features)."""
    return x.index_select(1, indices % x.shape[1])


def weight_gradient_of_columns(
    grad: Tensor, kept: Tensor, indices: Tensor, in_features: int
) -> Tensor:
    """What `weight_gradient_at` gives, from `kept`, which is `columns_of(x, indices)`."""
    rows = torch.div(indices, in_features, rounding_mode="floor")
    return torch.ops.sparta_bench.column_products(grad, rows, kept)  # type: ignore[no-any-return]


def is_sampled(
    way: str, shape: torch.Size, chosen: int, tokens: float, device: torch.device, threads: int
) -> bool:
    """Whether a layer whose weight has this shape (out x in), with so many entries chosen, takes
    the sampled way for a batch of so many tokens. `threads`: as for `sampling_pays`."""
    if way != "auto":
        return way == "sampled"
    if device.type == "cuda" and not _TRITON:
        return False
    return sampling_pays(shape, chosen, tokens, device.type, threads)


def takes_kernel(way: str, shape: torch.Size, chosen: int, device: torch.device) -> bool:
    """Whether such a layer's gradient may be the Triton kernel's work, where that is usable."""
    return (
        device.type == "cuda"
        and is_sampled(way, shape, chosen, math.inf, device, 1)
        and not keeps_columns(shape, chosen)
    )


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _on_cpu(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    wide = _accumulator(grad.dtype)
    grad, x = grad.to(wide), x.to(wide)
    tokens, outs = grad.shape
    ins = x.shape[1]
    rows = torch.div(indices, ins, rounding_mode="floor")
    columns = indices - rows * ins
    if gathers_columns(torch.Size((outs, ins)), len(indices)):
        return _column_products(grad, rows, x, columns)
    starts = torch.arange(0, outs * ins + 1, ins, dtype=torch.int64)
    row_starts = torch.searchsorted(indices, starts.to(torch.int32), out_int32=True)
    product = torch.sparse_csr_tensor(
        row_starts,
        columns,
        torch.zeros(len(indices), dtype=wide),
        (outs, ins),
        check_invariants=False,
    )
    for start in range(0, tokens, _TOKENS):
        piece = slice(start, start + _TOKENS)
        # contiguous along the tokens, over which each entry is a sum; beta is 1: added up
        torch.sparse.sampled_addmm(
            product, grad[piece].t().contiguous(), x[piece].t().contiguous().t(), out=product
        )
    entries: Tensor = product.values()
    return entries


def _column_products(
    grad: Tensor, rows: Tensor, x: Tensor, columns: Tensor | None = None
) -> Tensor:
    """For each entry the dot product of column `rows[entry]` of `grad` with one of `x`: column
    `columns[entry]`, or the column of the entry's own number."""
    wide = _accumulator(grad.dtype)
    total = torch.zeros(len(rows), dtype=wide, device=grad.device)
    step = max(_CHUNK[grad.device.type] // max(len(rows), 1), 1)
    for start in range(0, len(grad), step):
        part = grad[start : start + step].index_select(1, rows).to(wide)
        other = x[start : start + step]
        part *= other if columns is None else other.index_select(1, columns)
        total += part.sum(0)
    return total


def _on_cuda(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    if usable("gradient", grad.device, grad.dtype):
        from sparta_bench.sparta.kernels import sampled_gradient

        return sampled_gradient(grad, x, indices)
    # and not `_column_products`, whose traffic grows with tokens times entries
    dense = weight_gradient_at(grad, x, indices, sampled=False)
    return dense.to(_accumulator(grad.dtype))


def _shape_only(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    return x.new_empty(len(indices), dtype=_accumulator(grad.dtype))


_LIBRARY.impl("weight_gradient_at", _on_cpu, "CPU")  # type: ignore[no-untyped-call]
_LIBRARY.impl("weight_gradient_at", _on_cuda, "CUDA")  # type: ignore[no-untyped-call]
torch.library.register_fake("sparta_bench::weight_gradient_at", _shape_only)
_LIBRARY.impl("column_products", _column_products, "CPU")  # type: ignore[no-untyped-call]
_LIBRARY.impl("column_products", _column_products, "CUDA")  # type: ignore[no-untyped-call]
torch.library.register_fake(
    "sparta_bench::column_products", lambda grad, rows, kept: _shape_only(grad, kept, rows)
)


@register_flop_formula(torch.ops.sparta_bench.weight_gradient_at)  # type: ignore[untyped-decorator]
def _flops(
    grad_shape: Any, x_shape: Any, indices_shape: Any, *args: Any, out_shape: Any = None, **_: Any
) -> int:
    """A product and a sum per token and chosen entry."""
    return 2 * int(grad_shape[0]) * int(indices_shape[0])


@register_flop_formula(torch.ops.sparta_bench.column_products)  # type: ignore[untyped-decorator]
def _column_flops(
    grad_shape: Any, rows_shape: Any, kept_shape: Any, *args: Any, out_shape: Any = None, **_: Any
) -> int:
    return 2 * int(grad_shape[0]) * int(rows_shape[0])
