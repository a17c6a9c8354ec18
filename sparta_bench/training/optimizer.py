"""AdamW, its learning rate over the steps, and AdamW for bfloat16 values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from sparta_bench.config.schema import TrainConfig
from sparta_bench.sparta import adamw
from sparta_bench.sparta.kernel_check import usable
from sparta_bench.sparta.sharded import is_sharded, local, mesh_of


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
    gradient and two moments (section 5). On CUDA a tensor's step is one kernel, elsewhere plain
    torch (`sparta.adamw`), with the same outcome. Values must lie in memory in one run
    (`is_contiguous`); those of another dtype are rounded to nearest. The random bits follow from
    torch's last seed, the numbers of the step and of the value, and a number `stream` that a group
    may have; for its rows of a DTensor each process has others.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        values = [(value, group) for group in self.param_groups for value in group["params"]]
        for number, (value, group) in enumerate(values):
            if value.grad is not None:
                self._update(value, group, number)

    def _update(self, value: Tensor, group: dict[str, Any], number: int) -> None:
        state = self.state[value]
        if not state:
            state["step"] = torch.zeros(())  # on the CPU, so that nobody waits for it
            state["exp_avg"] = torch.zeros_like(value)
            state["exp_avg_sq"] = torch.zeros_like(value)
        state["step"] += 1
        count = int(state["step"])
        stream = group.get("stream", 0)
        if is_sharded(value):
            stream = 1 + mesh_of(value).get_local_rank()
        random = adamw.key_of(torch.initial_seed(), stream, number, count)
        lr, betas, eps, decay = (group[key] for key in ("lr", "betas", "eps", "weight_decay"))
        step = adamw.step_of(lr, betas, eps, decay, count, random)
        grad, *written = map(local, (value.grad, value, state["exp_avg"], state["exp_avg_sq"]))
        flat = grad.reshape(-1), *(tensor.view(-1) for tensor in written)
        device, dtype = flat[1].device, value.dtype
        if device.type == "cuda" and dtype == torch.bfloat16 and usable("adamw", device, dtype):
            from sparta_bench.sparta import kernels  # imports Triton

            kernels.adamw(step, *flat)
        else:
            adamw.update(step, *flat)
