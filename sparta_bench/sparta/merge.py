"""round(original + delta), rounded once, and how it comes into a weight."""

from __future__ import annotations

import torch
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)
_BITS_OF = {torch.float32: torch.int32, torch.float64: torch.int64}


def rounded_sum(original: Tensor, delta: Tensor) -> Tensor:
    """The sum of two tensors of one shape, rounded once to the dtype of `original`.

    Adding in float32 and then rounding to 16 bits would round twice, and go the wrong way where
    the first rounding lands exactly between two 16-bit numbers. So the float32 sum is first
    rounded to odd: where it is not exact, its last bit is set towards what was lost, and then no
    tie can appear that is none.
    """
    wide = torch.promote_types(original.dtype, delta.dtype)
    if wide in _HALF or original.dtype == delta.dtype == torch.float32:
        wide = torch.float32
    a, b = original.to(wide), delta.to(wide)
    total = a + b
    if wide == original.dtype:
        return total
    # what the addition lost, exactly (Knuth's two-sum); not a number where the sum overflowed
    part_of_b = total - a
    lost = (a - (total - part_of_b)) + (b - part_of_b)
    bits = total.view(_BITS_OF[wide])
    even_and_inexact = (bits & 1 == 0) & (lost.abs() > 0)
    away_from_zero = (lost > 0) == (total > 0)
    towards_lost = torch.where(away_from_zero, 1, -1).to(bits.dtype)
    odd = (bits + towards_lost * even_and_inexact).view(wide)
    if wide == torch.float64 and original.dtype in _HALF:
        return _to_odd_float32(odd).to(original.dtype)  # torch itself goes through float32
    return odd.to(original.dtype)


def _to_odd_float32(value: Tensor) -> Tensor:
    """float64 to float32, rounded to odd."""
    near = value.to(torch.float32)
    lost = value - near.to(torch.float64)
    bits = near.view(torch.int32)
    even_and_inexact = (bits & 1 == 0) & (lost.abs() > 0)
    # by the sign bit, since what is near may be a zero
    towards_lost = torch.where((lost < 0) == (bits < 0), 1, -1).to(torch.int32)
    return (bits + towards_lost * even_and_inexact).view(torch.float32)


def write_at(weight: Tensor, indices: Tensor, values: Tensor) -> None:
    """Set the entries of `weight` at flat `indices` (int32), whatever its memory format."""
    flat = weight.reshape(-1)  # a copy, if it is not contiguous
    flat.scatter_(0, indices.long(), values)
    if not weight.is_contiguous():
        weight.copy_(flat.view_as(weight))
