"""Whether the Triton kernels give here what plain torch gives; tried once in a process, before use.

Nothing proves a kernel for a GPU, a driver and a Triton that nobody here has seen. So each kernel
runs first on a small case of the dtypes at hand. Where it gives other values or cannot be compiled
or started, plain torch does its work, and one line of the log says so.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

import torch
from torch import Tensor

from sparta_bench.sparta import adamw
from sparta_bench.sparta.merge import rounded_sum, write_at

_LOG = logging.getLogger(__name__)
_MODULE = "sparta_bench.sparta.kernels"  # imports Triton, which need not be there
_WORK = {
    "merge": "the merge",
    "merge_all": "the merge of all weights",
    "gradient": "the sampled gradient",
    "adamw": "AdamW with stochastic rounding",
}
# Of the sum of the magnitudes of an entry's products. A sum in float32 of the 300 products here
# stays below it in whichever order; products in TF32 or a sum in 16 bits do not.
GRADIENT_TOLERANCE = 2.0**-20

_usable: dict[tuple[str, torch.device, tuple[torch.dtype, ...]], bool] = {}


def usable(kernel: str, device: torch.device, *dtypes: torch.dtype) -> bool:
    """Whether to use the kernel `merge` or `merge_all` (dtypes: of weight and deltas), `gradient`
    (dtype: of the operands) or `adamw` (bfloat16) on this device.

    The first call for each device and dtypes compiles the kernel and tries it, and warns in one
    line where it fails. Neither random state nor gradients are touched; a few kilobytes are
    needed. Never for float64: the kernels compute in float32.

    Raises
    ------
    torch.OutOfMemoryError
        If the device has not even these kilobytes, which says nothing about the kernel.
    """
    if torch.float64 in dtypes:
        return False
    key = (kernel, device, dtypes)
    if key not in _usable:
        fault = _fault(kernel, device, dtypes)
        if fault is not None:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            _LOG.warning(
                "SpaRTA: plain torch does %s on %s (%s), which is slower: the Triton kernel %s",
                *(_WORK[kernel], device, names, fault),
            )
        _usable[key] = fault is None
    return _usable[key]


def _fault(kernel: str, device: torch.device, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """What is wrong with the kernel; None: nothing."""
    checks: dict[str, Any] = {
        "merge": _merge_fault,
        "merge_all": _merge_all_fault,
        "gradient": _gradient_fault,
        "adamw": _adamw_fault,
    }
    try:
        with torch.no_grad():
            fault: str | None = checks[kernel](importlib.import_module(_MODULE), device, *dtypes)
            return fault
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever compilers, drivers and launchers raise
        first_line = next(iter(str(error).strip().splitlines()), "")
        return f"failed with {type(error).__name__}: {first_line[:200]}"


def _merge_fault(
    kernels: Any, device: torch.device, weight_dtype: torch.dtype, deltas_dtype: torch.dtype
) -> str | None:
    weight, indices, deltas = (t.to(device) for t in merge_case(weight_dtype, deltas_dtype))
    originals = weight.view(-1).index_select(0, indices)
    expected = weight.clone()
    write_at(expected, indices, rounded_sum(originals, deltas))
    kernels.merge(weight, indices, originals, deltas)
    return _wrong_entries(weight, expected, len(indices))


def _merge_all_fault(
    kernels: Any, device: torch.device, weight_dtype: torch.dtype, deltas_dtype: torch.dtype
) -> str | None:
    """Two weights, of which the second has the first's entries in another order."""
    weight, indices, deltas = (t.to(device) for t in merge_case(weight_dtype, deltas_dtype))
    weights = [weight, weight.flip(0)]
    originals = torch.cat([w.reshape(-1).index_select(0, indices) for w in weights])
    deltas = torch.cat([deltas, deltas.flip(0)])
    expected = [w.clone() for w in weights]
    sums = rounded_sum(originals, deltas).chunk(2)
    for one, values in zip(expected, sums, strict=True):
        write_at(one, indices, values)
    pieces = kernels.pieces_of(weights, [len(indices)] * 2)
    kernels.merge_all(pieces, torch.cat([indices] * 2), originals, deltas)
    return _wrong_entries(torch.cat(weights), torch.cat(expected), 2 * len(indices))


def _wrong_entries(weight: Tensor, expected: Tensor, entries: int) -> str | None:
    bits = torch.int32 if weight.dtype == torch.float32 else torch.int16
    same = weight.view(bits) == expected.view(bits)  # also the sign of a zero
    same |= weight.isnan() & expected.isnan()  # which of the NaNs it is does not matter
    wrong = int((~same).sum())  # waits for the kernel: what it raises is raised here
    return f"gives other values in {wrong} of {entries} entries" if wrong else None


def merge_case(weight_dtype: torch.dtype, deltas_dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Weight (50 x 64), flat indices (int32, 2,133) and deltas, on the CPU.

    Every pair of special values is among originals and deltas. Then come deltas that put the sum
    on a tie of the weight's dtype, or less than float32 can add beside one, where rounding twice
    goes the wrong way; the last third are of all sizes.
    """
    draw = torch.Generator("cpu").manual_seed(0)
    weight = torch.randn(50 * 64, generator=draw, device="cpu").to(weight_dtype)
    indices = torch.arange(len(weight), dtype=torch.int32, device="cpu")
    indices = indices[indices % 3 != 0]
    info = torch.finfo(weight_dtype)
    sizes = [0.0, 1.0, info.eps / 2, info.smallest_normal / 4, info.max, float("inf")]
    special = torch.tensor(
        [*sizes, *(-size for size in sizes), float("nan")], dtype=torch.float64, device="cpu"
    )
    pairs = torch.cartesian_prod(special, special)
    count = len(pairs)
    weight[indices[:count].long()] = pairs[:, 0].to(weight_dtype)
    originals = weight[indices.long()]

    noise = torch.randn(len(indices), generator=draw, dtype=torch.float64, device="cpu")
    deltas = noise * torch.logspace(-9, 3, len(indices), dtype=torch.float64, device="cpu")
    bits = torch.int32 if weight_dtype == torch.float32 else torch.int16
    step = (originals.view(bits) + 1).view(weight_dtype).double() - originals.double()
    ties = step / 2 * (1 + 2.0**-20 * torch.arange(-1, 2, device="cpu").repeat(len(step) // 3))
    two_thirds = len(indices) * 2 // 3
    deltas[count:two_thirds] = ties[count:two_thirds]
    deltas[:count] = pairs[:, 1]
    return weight.view(50, 64), indices, deltas.to(deltas_dtype)


def _gradient_fault(kernels: Any, device: torch.device, dtype: torch.dtype) -> str | None:
    grad, x, indices = gradient_case(dtype)
    found = kernels.sampled_gradient(*(t.to(device) for t in (grad, x, indices)))
    if found.dtype != torch.float32:
        return f"gives {found.dtype}"
    grad, x = grad.double(), x.double()
    expected = (grad.t() @ x).view(-1)[indices.long()]
    magnitudes = (grad.abs().t() @ x.abs()).view(-1)[indices.long()]
    off = (found.cpu().double() - expected).abs() / magnitudes
    wrong = int((~(off <= GRADIENT_TOLERANCE)).sum())  # a NaN is wrong
    return f"gives other values in {wrong} of {len(indices)} entries" if wrong else None


def gradient_case(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Gradient of the output (300 tokens x 40), input (300 x 72) and flat indices (int32, 576)
    of a weight of 40 x 72, on the CPU."""
    draw = torch.Generator("cpu").manual_seed(0)
    grad, x = (torch.randn(300, n, generator=draw, device="cpu").to(dtype) for n in (40, 72))
    return grad, x, torch.arange(0, 40 * 72, 5, dtype=torch.int32, device="cpu")


def _adamw_fault(kernels: Any, device: torch.device, dtype: torch.dtype) -> str | None:
    grad, *before = (t.to(device) for t in adamw_case(dtype))
    step = adamw.step_of(1e-2, (0.9, 0.99), 1e-8, 0.1, 3, adamw.key_of(0, 0, 0, 3))
    found, expected = ([t.clone() for t in before] for _ in range(2))
    kernels.adamw(step, grad, *found)
    adamw.update(step, grad, *expected)
    return _wrong_entries(torch.cat(found), torch.cat(expected), 3 * len(grad))


def adamw_case(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Gradient, value, mean and mean square of 3,000 scalars, on the CPU: of all sizes, and each of
    the first three with every special value."""
    draw = torch.Generator("cpu").manual_seed(0)
    tensors = [torch.randn(3000, generator=draw, device="cpu") for _ in range(4)]
    sizes = torch.logspace(-40, 30, 3000, device="cpu")
    special = [0.0, -0.0, 1e-40, 3e38, float("inf"), -float("inf"), float("nan")]
    for number, tensor in enumerate(tensors):
        tensor[1000:] *= sizes[torch.randperm(3000, generator=draw, device="cpu")][1000:]
        tensor[number * 100 : number * 100 + len(special)] = torch.tensor(special, device="cpu")
    return *(tensor.to(dtype) for tensor in tensors[:3]), tensors[3].abs().to(dtype)
