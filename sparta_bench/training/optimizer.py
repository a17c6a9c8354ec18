"""AdamW, its learning rate over the steps, and AdamW for bfloat16 values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from sparta_bench.config.schema import TrainConfig

# Scalars that StochasticAdamW updates at once. What a larger tensor becomes depends on it, since
# the random bits are drawn piece by piece. With pieces of 2^22 scalars a step of mistral-7b started
# 72,000 kernels and waited for most of them (H200).
PIECE = 1 << 24


def build_optimizer(groups: list[dict[str, Any]], train: TrainConfig) -> Optimizer:
    """AdamW over the groups: torch's fused one, or one that rounds stochastically for bfloat16."""
    betas = (train.betas[0], train.betas[1])
    if train.trained_dtype == "bfloat16":
        return StochasticAdamW(groups, lr=0.0, betas=betas, eps=train.eps)
    return AdamW(groups, lr=0.0, betas=betas, eps=train.eps, fused=True)


def learning_rate_at(step: int, steps: int, train: TrainConfig) -> float:
    """The rate of optimizer step `step` (from 0) of `steps`.

    Rises linearly from nothing during the warm-up, then stays or falls linearly to the floor,
    which it reaches at the last step.
    """
    warmup = round(train.warmup_ratio * steps)
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    if train.schedule == "constant":
        return train.learning_rate
    left = (steps - 1 - step) / max(steps - 1 - warmup, 1)
    return train.learning_rate * (train.floor_ratio + (1 - train.floor_ratio) * left)


class StochasticAdamW(Optimizer):
    """AdamW whose bfloat16 values and moments are rounded stochastically.

    The arithmetic is in float32; storing rounds up or down with a probability that makes the
    stored value right on average, so small updates are not lost. Needs 8 bytes per scalar: value,
    gradient and two moments (section 5); and while it works 25 for each of `PIECE` scalars at most,
    whatever the size of the tensors. Values must lie in memory in one run (`is_contiguous`).
    A group with a `stream` has the random bits of torch's last seed and that number.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        seed = torch.initial_seed()
        for group in self.param_groups:
            if "stream" in group:
                torch.manual_seed(seed + group["stream"])
            for value in group["params"]:
                if value.grad is not None:
                    self._update(value, group)

    def _update(self, value: Tensor, group: dict[str, Any]) -> None:
        state = self.state[value]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(value)
            state["exp_avg_sq"] = torch.zeros_like(value)
        state["step"] += 1
        written = (value, state["exp_avg"], state["exp_avg_sq"])
        flat = [value.grad.reshape(-1), *(tensor.view(-1) for tensor in written)]  # type: ignore[union-attr]
        for pieces in zip(*(tensor.split(PIECE) for tensor in flat), strict=True):
            _update_piece(int(state["step"]), group, *pieces)


def _update_piece(
    step: int, group: dict[str, Any], grad: Tensor, value: Tensor, mean: Tensor, square: Tensor
) -> None:
    """One step of AdamW on flat bfloat16 tensors of one length."""
    beta1, beta2 = group["betas"]
    grad = grad.float()
    new_mean = mean.float().lerp_(grad, 1 - beta1)
    new_square = square.float().mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    store_rounded(new_mean, mean)
    store_rounded(new_square, square)
    denominator = new_square.div_(1 - beta2**step).sqrt_().add_(group["eps"])
    new = value.float().mul_(1 - group["lr"] * group["weight_decay"])
    new.addcdiv_(new_mean, denominator, value=-group["lr"] / (1 - beta1**step))
    store_rounded(new, value)


def store_rounded(source: Tensor, target: Tensor) -> None:
    """Store float32 `source` in bfloat16 `target`, up or down at random, right on average."""
    # bfloat16 is float32 without its last 16 bits: adding 16 random bits carries into the kept
    # ones with exactly the probability that the dropped ones stand for.
    bits = source.view(torch.int32)
    noise = torch.randint_like(bits, 1 << 16)
    rounded = noise.add_(bits).bitwise_and_(-(1 << 16)).view(torch.float32)
    # an infinity stays what it is; some NaNs would become numbers
    target.copy_(source.where(source.isnan(), rounded))
