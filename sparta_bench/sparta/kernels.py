"""Triton kernels for CUDA: chosen entries of a weight's gradient, the merge in one pass, and AdamW.

On a CPU they run in Triton's interpreter (`TRITON_INTERPRET=1`), which is how they are tested
where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparta_bench.sparta.adamw import PHILOX_KEY_STEP, PHILOX_MULTIPLIER, PHILOX_ROUNDS, Step

_TRANSPOSED_SIDE = 64
_ENTRIES_PER_PROGRAM = 8
_TOKENS_PER_STEP = 256
_MERGED_PER_PROGRAM = 1024
_UPDATED_PER_PROGRAM = 1024
_UPDATED_AT_ONCE = 16  # scalars: 32 bytes of each tensor
_ROUNDS, _MULTIPLIER = tl.constexpr(PHILOX_ROUNDS), tl.constexpr(PHILOX_MULTIPLIER)
_KEY_STEP = tl.constexpr(PHILOX_KEY_STEP)

# Said outright, since Triton's default changed in 3.10. A fused a * b + c is quicker and rounds
# once less, which a sum of products gains from. The merge finds what an addition lost by adding
# and subtracting in a fixed order; it multiplies nothing, and nothing in it may be contracted.
GRADIENT_OPTIONS = {"enable_fp_fusion": True}
MERGE_OPTIONS = {"enable_fp_fusion": False}
COPY_OPTIONS = MERGE_OPTIONS  # it computes nothing
# As plain torch: each operation is rounded, and the root and the quotient, which are functions of
# libdevice, keep numbers below the smallest normal one.
ADAMW_OPTIONS = {**MERGE_OPTIONS, "enable_reflect_ftz": False}


# What is compiled for a first call must serve all others: no variant for numbers of entries or
# features that 16 divides, and `tokens` always is such a number.
@triton.jit(do_not_specialize=["entries", "in_features"])  # type: ignore[untyped-decorator]
def _sampled_gradient_kernel(  # type: ignore[no-untyped-def]
    grad_t,  # out_features x tokens
    x_t,  # in_features x tokens
    indices,
    result,
    entries,
    tokens,
    in_features,
    ENTRIES: tl.constexpr,  # noqa: N803
    TOKENS: tl.constexpr,  # noqa: N803
):
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    inside = entry < entries
    index = tl.load(indices + entry, mask=inside, other=0)
    row = (index // in_features).to(tl.int64)
    column = (index % in_features).to(tl.int64)
    total = tl.zeros((ENTRIES, TOKENS), dtype=tl.float32)
    for start in range(0, tokens, TOKENS):
        token = start + tl.arange(0, TOKENS)
        mask = inside[:, None] & (token < tokens)[None, :]
        g = tl.load(grad_t + row[:, None] * tokens + token[None, :], mask=mask, other=0.0)
        v = tl.load(x_t + column[:, None] * tokens + token[None, :], mask=mask, other=0.0)
        total += g.to(tl.float32) * v.to(tl.float32)
    tl.store(result + entry, tl.sum(total, axis=1), mask=inside)


def sampled_gradient(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    """Entries of `grad.t() @ x` at flat `indices`, summed in float32.

    `grad` is tokens x out_features, `x` tokens x in_features, both of one 16-bit dtype or float32;
    returns float32, one value per index.
    """
    # one transposed copy each, so that the sum over tokens reads memory in its order
    return _launch_sampled_gradient(_transposed(grad), _transposed(x), indices)


@triton.jit(do_not_specialize=["features"])  # type: ignore[untyped-decorator]
def _transpose_kernel(  # type: ignore[no-untyped-def]
    rows,  # tokens x features
    result,  # features x padded
    tokens,
    padded,
    features,
    SIDE: tl.constexpr,  # noqa: N803
):
    token = (tl.program_id(0) * SIDE + tl.arange(0, SIDE)).to(tl.int64)
    feature = (tl.program_id(1) * SIDE + tl.arange(0, SIDE)).to(tl.int64)
    inside = (token < tokens)[:, None] & (feature < features)[None, :]
    block = tl.load(rows + token[:, None] * features + feature[None, :], mask=inside, other=0.0)
    inside = (feature < features)[:, None] & (token < padded)[None, :]
    tl.store(result + feature[:, None] * padded + token[None, :], tl.trans(block), mask=inside)


def _transposed(rows: Tensor) -> Tensor:
    """features x tokens, with zeros up to a multiple of 16 tokens, so that the kernel may read 8
    or 16 bytes at once. torch's own transposed copy takes 6.6 times as long (H200, bfloat16)."""
    rows = rows.contiguous()
    tokens, features = rows.shape
    padded = tokens + -tokens % 16
    result = torch.empty(features, padded, dtype=rows.dtype, device=rows.device)
    grid = (triton.cdiv(padded, _TRANSPOSED_SIDE), triton.cdiv(features, _TRANSPOSED_SIDE))
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]  # Triton starts kernels on the current device
        _transpose_kernel[grid](
            rows, result, tokens, padded, features, SIDE=_TRANSPOSED_SIDE, **COPY_OPTIONS
        )
    return result


def _launch_sampled_gradient(grad_t: Tensor, x_t: Tensor, indices: Tensor) -> Tensor:
    result = torch.empty(len(indices), dtype=torch.float32, device=grad_t.device)
    if len(indices) == 0:
        return result
    with torch.cuda.device_of(grad_t):  # type: ignore[no-untyped-call]  # Triton starts kernels on the current device
        _sampled_gradient_kernel[(triton.cdiv(len(indices), _ENTRIES_PER_PROGRAM),)](
            grad_t,
            x_t,
            indices,
            result,
            len(indices),
            grad_t.shape[1],
            len(x_t),
            ENTRIES=_ENTRIES_PER_PROGRAM,
            TOKENS=_TOKENS_PER_STEP,
            **GRADIENT_OPTIONS,
        )
    return result


@triton.jit  # type: ignore[untyped-decorator]
def _to_float32(value):  # type: ignore[no-untyped-def]
    # bfloat16 by its bits, here and where it is stored: Triton's interpreter cuts off what it
    # should round, and gets numbers below the smallest normal one wrong
    if value.dtype == tl.bfloat16:
        return (value.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return value.to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _store_sum(weight, index, a, b, inside, ROUNDS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    a, b = _to_float32(a), _to_float32(b)
    total = a + b
    if ROUNDS:
        # as in merge.rounded_sum: to odd first, so that the rounding that follows is the only one
        part_of_b = total - a
        lost = (a - (total - part_of_b)) + (b - part_of_b)
        bits = total.to(tl.int32, bitcast=True)
        towards_lost = tl.where((lost > 0) == (total > 0), 1, -1)
        step = tl.where(((bits & 1) == 0) & (tl.abs(lost) > 0), towards_lost, 0)
        bits += step
        if weight.dtype.element_ty == tl.bfloat16:
            # to nearest, ties to even; an addition's NaN is a quiet one: its upper bits keep it
            nearest = bits + 0x7FFF + ((bits >> 16) & 1)
            bits = tl.where(total == total, nearest, bits) >> 16
            tl.store(weight + index, bits.to(tl.int16).to(tl.bfloat16, bitcast=True), mask=inside)
        else:
            total = bits.to(tl.float32, bitcast=True)
            tl.store(weight + index, total.to(weight.dtype.element_ty), mask=inside)
    else:
        tl.store(weight + index, total.to(weight.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["entries"])  # type: ignore[untyped-decorator]
def _merge_kernel(  # type: ignore[no-untyped-def]
    weight,
    indices,
    originals,
    deltas,
    entries,
    ROUNDS: tl.constexpr,  # noqa: N803
    ENTRIES: tl.constexpr,  # noqa: N803
):
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    inside = entry < entries
    index = tl.load(indices + entry, mask=inside, other=0)
    a = tl.load(originals + entry, mask=inside, other=0.0)
    b = tl.load(deltas + entry, mask=inside, other=0.0)
    _store_sum(weight, index, a, b, inside, ROUNDS)


@triton.jit  # type: ignore[untyped-decorator]
def _merge_all_kernel(  # type: ignore[no-untyped-def]
    pieces,  # programs x 3: address of a weight, first entry, one more than the last
    indices,
    originals,
    deltas,
    ROUNDS: tl.constexpr,  # noqa: N803
    ENTRIES: tl.constexpr,  # noqa: N803
):
    piece = pieces + tl.program_id(0).to(tl.int64) * 3
    weight = tl.load(piece).to(tl.pointer_type(originals.dtype.element_ty))
    entry = tl.load(piece + 1) + tl.arange(0, ENTRIES)
    inside = entry < tl.load(piece + 2)
    index = tl.load(indices + entry, mask=inside, other=0)
    a = tl.load(originals + entry, mask=inside, other=0.0)
    b = tl.load(deltas + entry, mask=inside, other=0.0)
    _store_sum(weight, index, a, b, inside, ROUNDS)


def merge(weight: Tensor, indices: Tensor, originals: Tensor, deltas: Tensor) -> None:
    """`merge.write_merged` in one pass: reads index, original and delta, writes the weight, which
    must be contiguous. No dtype may be float64."""
    if len(indices) == 0:
        return
    with torch.cuda.device_of(weight):  # type: ignore[no-untyped-call]  # Triton starts kernels on the current device
        _launch_merge(weight, indices, originals, deltas)


def _launch_merge(weight: Tensor, indices: Tensor, originals: Tensor, deltas: Tensor) -> None:
    _merge_kernel[(triton.cdiv(len(indices), _MERGED_PER_PROGRAM),)](
        weight,
        indices,
        originals,
        deltas,
        len(indices),
        ROUNDS=weight.dtype != torch.float32,
        ENTRIES=_MERGED_PER_PROGRAM,
        **MERGE_OPTIONS,
    )


def pieces_of(weights: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """What `merge_all` reads where to write: weights that have `counts` chosen entries each."""
    rows = []
    start = 0
    for weight, count in zip(weights, counts, strict=True):
        stop = start + count
        firsts = torch.arange(start, stop, _MERGED_PER_PROGRAM)
        lasts = (firsts + _MERGED_PER_PROGRAM).clamp(max=stop)
        address = torch.full_like(firsts, weight.data_ptr())
        rows.append(torch.stack([address, firsts, lasts], dim=1))
        start = stop
    return torch.cat(rows).to(weights[0].device)


def merge_all(pieces: Tensor, indices: Tensor, originals: Tensor, deltas: Tensor) -> None:
    """`merge` for many weights of one dtype and device, whose indices, originals and deltas stand
    one after another; `pieces` is of `pieces_of`. The weights must still lie where they lay."""
    with torch.cuda.device_of(deltas):  # type: ignore[no-untyped-call]  # Triton starts kernels on the current device
        _merge_all_kernel[(len(pieces),)](
            pieces,
            indices,
            originals,
            deltas,
            ROUNDS=originals.dtype != torch.float32,
            ENTRIES=_MERGED_PER_PROGRAM,
            **MERGE_OPTIONS,
        )


# ------------------------------------------------------------------- AdamW, rounded stochastically
@triton.jit  # type: ignore[untyped-decorator]
def _random_words(low, high, key):  # type: ignore[no-untyped-def]
    """`adamw.random_words`, of counter and key."""
    for _ in tl.static_range(_ROUNDS):
        upper = tl.umulhi(low, _MULTIPLIER) ^ high ^ key
        high = tl.mul(low, _MULTIPLIER, sanitize_overflow=False)
        low = upper
        key = tl.add(key, _KEY_STEP, sanitize_overflow=False)
    return low, high


@triton.jit  # type: ignore[untyped-decorator]
def _store_rounded(target, source, noise, inside):  # type: ignore[no-untyped-def]
    bits = source.to(tl.int32, bitcast=True) + noise.to(tl.int32)
    bits = tl.where(source == source, bits >> 16, 0x7FC0)  # a NaN stays one
    tl.store(target, bits.to(tl.int16).to(tl.bfloat16, bitcast=True), mask=inside)


@triton.jit(do_not_specialize=["groups", "first", "key", "upper"])  # type: ignore[untyped-decorator]
def _adamw_kernel(  # type: ignore[no-untyped-def]
    grad,
    value,
    mean,
    square,
    groups,  # of scalars
    first,
    mean_weight,
    square_kept,
    square_weight,
    correction,
    eps,
    kept,
    rate,
    key,
    upper,
    SCALARS: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr,  # noqa: N803
):
    index = tl.program_id(0).to(tl.int64) * SCALARS + tl.arange(0, SCALARS)
    inside = index // GROUP < groups  # a group is read at once, since it is inside or not
    number = first + index
    high = (number >> 32).to(tl.uint32) ^ upper.to(tl.uint32, bitcast=True)
    low, high = _random_words(number.to(tl.uint32), high, key.to(tl.uint32, bitcast=True))
    g = _to_float32(tl.load(grad + index, mask=inside, other=0.0))
    m = _to_float32(tl.load(mean + index, mask=inside, other=0.0))
    s = _to_float32(tl.load(square + index, mask=inside, other=0.0))
    v = _to_float32(tl.load(value + index, mask=inside, other=0.0))
    m += (g - m) * mean_weight
    s = s * square_kept + (g * g) * square_weight
    denominator = tl.sqrt_rn(s) * correction + eps
    v = v * kept - tl.div_rn(m, denominator) * rate
    _store_rounded(value + index, v, low & 0xFFFF, inside)
    _store_rounded(mean + index, m, low >> 16, inside)
    _store_rounded(square + index, s, high & 0xFFFF, inside)


def adamw(step: Step, grad: Tensor, value: Tensor, mean: Tensor, square: Tensor) -> None:
    """`adamw.update` in one pass, on flat bfloat16 tensors that lie in memory in one run; what is
    beyond a multiple of 16 scalars in a second one."""
    tensors = grad, value, mean, square
    whole = len(value) // _UPDATED_AT_ONCE * _UPDATED_AT_ONCE
    parts = ((0, whole, _UPDATED_AT_ONCE), (whole, len(value), 1))
    with torch.cuda.device_of(value):  # type: ignore[no-untyped-call]  # Triton starts kernels on the current device
        for first, end, group in parts:
            if first == end:
                continue
            _adamw_kernel[(triton.cdiv(end - first, _UPDATED_PER_PROGRAM),)](
                *(tensor[first:end] for tensor in tensors),
                (end - first) // group,
                first,
                *step,
                SCALARS=_UPDATED_PER_PROGRAM,
                GROUP=group,
                **ADAMW_OPTIONS,
            )
