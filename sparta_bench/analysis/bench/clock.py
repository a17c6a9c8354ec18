"""Seconds and kernel launches of work, and the speed of a plain matrix product."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds from the call until `device` has done all of it."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def product_flops_per_second(dtype: torch.dtype, device: torch.device) -> float:
    """What `device` reaches in a plain product of two square matrices of random numbers: FLOPs a
    second, median of five."""
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


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
