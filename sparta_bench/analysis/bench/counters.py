"""Seconds, FLOPs and kernel launches of work, and the speed of a plain matrix product."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sparta_bench.analysis.bench.contenders import Ready


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds from the call until `device` has done all of it."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_flops_per_second(dtype: torch.dtype, device: torch.device) -> float:
    """FLOPs a second that `device` reaches in a product of two square random matrices; median of
    five."""
    size = 8192 if device.type == "cuda" else 1024
    draw = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, generator=draw, device=device).to(dtype) for _ in range(2))
    seconds_of(lambda: a @ b, device)  # to warm up
    return 2 * size**3 / statistics.median(seconds_of(lambda: a @ b, device) for _ in range(5))


def kernel_launches(work: Callable[[], Any], device: torch.device) -> int | None:
    """How many kernels `work` starts on a GPU; None on a CPU."""
    if device.type != "cuda":
        return None
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        seconds_of(work, device)
    return sum("LaunchKernel" in event.name for event in profile.events())


# ---------------------------------------------------------------------------------------- FLOPs
def _attention_flops(query: Any, key: Any, *_: Any, **__: Any) -> int:
    """Scores of every query with every key, and the weighted values: two products."""
    rows, heads, queries, width = query
    return int(2 * 2 * rows * heads * queries * key[2] * width)


def _attention_backward_flops(grad: Any, query: Any, key: Any, *_: Any, **__: Any) -> int:
    """Five products, of which one is the scores again."""
    return 5 * _attention_flops(query, key) // 2


# torch has no formulas for its attention on a CPU, and those for CUDA refuse models that have
# fewer heads of keys than of queries
KINDS = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kind}{suffix}"): formula
    for kind in KINDS
    for suffix, formula in (("", _attention_flops), ("_backward", _attention_backward_flops))
}


def flops_of(ready: Ready, batch: dict[str, Tensor]) -> dict[str, Any]:
    """FLOPs of matrix products and attention in a step, forward and backward."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as forward:
        loss = ready.forward(batch)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as backward:
        loss.backward()  # type: ignore[no-untyped-call]
    ready.update()
    ahead, back = forward.get_total_flops(), backward.get_total_flops()
    return {
        "forward_flops": ahead,
        "backward_flops": back,
        "total_flops": ahead + back,
        "backward_to_forward": back / ahead,
    }
