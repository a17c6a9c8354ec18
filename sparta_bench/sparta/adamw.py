"""AdamW on bfloat16 values that are rounded stochastically: its arithmetic, in plain torch.

`kernels.adamw` computes the same, bit for bit. So each operation stands alone, in an order that is
fixed, and the random bits are a function of numbers that both know: Philox2x32-10 (Salmon et al.,
2011) turns the index of a scalar and 64 bits of the tensor and step into 64 random bits.
"""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

import torch
from torch import Tensor

# Scalars that plain torch updates at once, by device: on a CPU what the caches hold, on a GPU
# enough to keep kernels few. What comes out does not depend on it.
PIECE = {"cpu": 1 << 16, "cuda": 1 << 22}
PHILOX_ROUNDS, PHILOX_MULTIPLIER, PHILOX_KEY_STEP = 10, 0xD256D193, 0x9E3779B9
_WORD = (1 << 32) - 1


class Step(NamedTuple):
    """The numbers of a step of one tensor."""

    mean_weight: float  # of the gradient in the mean
    square_kept: float  # share of the mean square that stays
    square_weight: float  # of the squared gradient in it
    correction: float  # of its root: it began at zero
    eps: float
    kept: float  # share of the value that weight decay leaves
    rate: float  # corrected for a mean that began at zero
    key: int  # for `random_words`, like the next
    upper: int


def step_of(
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    random: tuple[int, int],
) -> Step:
    """The step of this number, from 1, with the random words of `key_of`."""
    beta1, beta2 = betas
    correction = (1 - beta2**step) ** -0.5
    kept, rate = 1 - lr * weight_decay, lr / (1 - beta1**step)
    return Step(1 - beta1, beta2, 1 - beta2, correction, eps, kept, rate, *random)


def key_of(seed: int, stream: int, number: int, step: int) -> tuple[int, int]:
    """Two words of 32 bits (signed, as kernels take numbers) for a tensor of this number in this
    step: no two tensors, steps, streams or seeds have the same random bits."""
    digest = sha256(f"{seed}:{stream}:{number}:{step}".encode()).digest()
    key, upper = (int.from_bytes(digest[i : i + 4], signed=True) for i in (0, 4))
    return key, upper


def random_words(
    first: int, count: int, key: int, upper: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Two random words of 32 bits (as int32) for each scalar from index `first` on."""
    # the counter has 64 bits: the index, whose upper half is mixed with `upper`
    low = torch.arange(first, first + count, device=device)
    high = (low >> 32) ^ (upper & _WORD)
    low &= _WORD
    for turn in range(PHILOX_ROUNDS):
        product = low * PHILOX_MULTIPLIER  # of 64 bits none is lost
        torch.bitwise_right_shift(product, 32, out=low)
        low ^= high
        low ^= (key + turn * PHILOX_KEY_STEP) & _WORD
        low &= _WORD  # the shift copies the sign, and `high` may have more than its word
        high = product
    return low.to(torch.int32), high.to(torch.int32)


def update(
    step: Step, grad: Tensor, value: Tensor, mean: Tensor, square: Tensor, *, first: int = 0
) -> None:
    """One step on flat tensors of one length, piece by piece; `first` is the index of their first
    scalar."""
    size = PIECE.get(value.device.type, PIECE["cuda"])
    pieces = zip(*(torch.split(t, size) for t in (grad, value, mean, square)), strict=True)
    for number, piece in enumerate(pieces):
        _update_piece(step, first + number * size, *piece)


def _update_piece(
    step: Step, first: int, grad: Tensor, value: Tensor, mean: Tensor, square: Tensor
) -> None:
    low, high = random_words(first, len(value), step.key, step.upper, value.device)
    grad, new, new_mean, new_square = (
        tensor.to(torch.float32, copy=True) for tensor in (grad, value, mean, square)
    )
    new_mean.add_((grad - new_mean).mul_(step.mean_weight))
    store_rounded(new_mean, low >> 16, mean)
    new_square.mul_(step.square_kept).add_((grad * grad).mul_(step.square_weight))
    store_rounded(new_square, high, square)
    denominator = new_square.sqrt_().mul_(step.correction).add_(step.eps)
    new.mul_(step.kept).sub_(new_mean.div_(denominator).mul_(step.rate))
    store_rounded(new, low, value)


def store_rounded(source: Tensor, random: Tensor, target: Tensor) -> None:
    """Store float32 `source` in bfloat16 `target`, up or down by the lower 16 bits of `random`
    (int32), right on average. A target of another dtype gets the nearest value."""
    if target.dtype != torch.bfloat16:
        target.copy_(source)
        return
    # bfloat16 is float32 without its last 16 bits: adding 16 random bits carries into the kept
    # ones with exactly the probability that the dropped ones stand for.
    rounded = (random & 0xFFFF).add_(source.view(torch.int32)).bitwise_and_(-(1 << 16))
    # an infinity stays what it is; some NaNs would become numbers
    target.copy_(source.where(source.isnan(), rounded.view(torch.float32)))
