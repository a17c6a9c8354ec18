"""How long a step takes on a device that need not be there: a range, from FLOPs and a few devices.

A step takes what its products take at a share of the device's peak, but no less than the start of
its kernels. Both are ranges over what was measured on one H200 (results/cuda, 2026-11-27; bfloat16,
all six methods, gemma-2b and mistral-7b, 270 and 25 tokens an input) and on a CPU (results/bench,
float32, one and two threads). For other GPUs the same shares of their peaks are assumed.
"""

from __future__ import annotations

from typing import NamedTuple

from sparta_bench.errors import InputError, did_you_mean


class Range(NamedTuple):
    """The least and the most, in seconds."""

    low: float
    high: float

    def plus(self, other: Range) -> Range:
        """The sum of two."""
        return Range(self.low + other.low, self.high + other.high)

    def times(self, count: float) -> Range:
        """So many of it."""
        return Range(self.low * count, self.high * count)


class Device(NamedTuple):
    """A kind of device. `tflops` is the peak of dense bfloat16 products (makers' data sheets), on
    a CPU float32's of one thread; `memory_gib` is None for a CPU."""

    title: str
    memory_gib: int | None
    tflops: float
    measured: bool


# Of peak, in a step of 10,800 tokens (4,320 with mistral-7b): LoRA 0.39 and 0.40, SpaRTA 5 % 0.49
# and 0.48, full fine-tuning 0.44, Head 0.48.
SHARE_OF_PEAK = (0.39, 0.49)
# Seconds for each layer, where kernels take longer to start than to run (800 tokens): the fastest
# and the median of a step, and those of a forward pass (Head).
LAUNCH_STEP, LAUNCH_FORWARD = (4.0e-3, 6.8e-3), (1.5e-3, 1.7e-3)
# StochasticAdamW on mistral-7b, for each scalar: 983 ms a step less 390 ms of products.
STOCHASTIC_UPDATE = 8.3e-11
# float32 on one thread: 0.077 (SpaRTA) to 0.089 TFLOP a second (full FT); on two 0.063 to 0.079
# each. For more threads the same is assumed.
CPU_TFLOPS = (0.063, 0.089)
# Seconds for each layer on a CPU beside the products, from results/tiny-sst2 (four layers of 64): a
# step takes 28 to 66 ms, 6 of them for products, and Head's 16 to 25, 2 of them.
CPU_STEP, CPU_FORWARD = (5.5e-3, 15e-3), (3.5e-3, 5.8e-3)

DEVICES = {
    "h100": Device("H100", 80, 989.0, measured=False),
    "h200": Device("H200", 141, 989.0, measured=True),
    "a100": Device("A100 80 GB", 80, 312.0, measured=False),
    "4090": Device("RTX 4090", 24, 165.0, measured=False),
    "cpu": Device("CPU", None, CPU_TFLOPS[1], measured=True),
}


def device_named(name: str | None, kind: str) -> str | None:
    """The key in `DEVICES` of `--gpu NAME`, or without a name of this machine's `cpu` or `cuda`
    device; None for one that is not there. Raises InputError for another name."""
    if name is not None:
        if name not in DEVICES:
            near = did_you_mean(name, list(DEVICES))
            raise InputError(f"plan: --gpu {name}: must be one of {', '.join(DEVICES)}{near}")
        return name
    if kind == "cpu":
        return "cpu"
    import torch

    title = torch.cuda.get_device_name()
    return next((key for key in DEVICES if is_named(key, title)), None)


def is_named(device: str, title: str) -> bool:
    """Whether a device's own name is that of one in `DEVICES`; of a CPU that it is no GPU."""
    words = title.upper().replace("-", " ").split()
    if device == "cpu":
        return not any(key.upper() in words for key in DEVICES)
    return device.upper() in words


def seconds_of(device: str, flops: float, layers: int, is_step: bool, threads: int = 1) -> Range:
    """Of a training step (`is_step`) or a forward pass with so many FLOPs on a device; of a CPU so
    many threads compute."""
    if device == "cpu":
        slow, fast = (1e12 * tflops * threads for tflops in CPU_TFLOPS)
        first, last = CPU_STEP if is_step else CPU_FORWARD
        return Range(flops / fast + layers * first, flops / slow + layers * last)
    least, most = (1e12 * DEVICES[device].tflops * share for share in SHARE_OF_PEAK)
    first, last = LAUNCH_STEP if is_step else LAUNCH_FORWARD
    return Range(max(flops / most, layers * first), max(flops / least, layers * last))


def update_seconds(device: str, scalars: int, trained_dtype: str) -> Range:
    """Of the optimizer's step, where it is not small beside the rest: StochasticAdamW's."""
    stochastic = trained_dtype == "bfloat16" and device != "cpu"
    seconds = STOCHASTIC_UPDATE * scalars if stochastic else 0.0
    return Range(seconds, seconds)


def basis_of(device: str) -> str:
    """Where an estimate is from, for people."""
    if device == "cpu":
        return "from FLOPs, at the speed measured on a thread or two of another CPU"
    how = "measured on it" if DEVICES[device].measured else "measured on an H200, assumed here"
    low, high = (f"{100 * share:.0f}" for share in SHARE_OF_PEAK)
    return f"from FLOPs, at {low} to {high} % of {DEVICES[device].tflops:.0f} TFLOP/s: {how}"
