"""The device that a command computes on, and the processes of a run."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from sparta_bench.config import Config
from sparta_bench.errors import InputError


def device_of(name: str, option: str) -> torch.device:
    """The device called `cpu`, `cuda` or `auto`: CUDA where there is any.

    Raises
    ------
    InputError
        With `option`, which asked for it, if it is CUDA and there is none.
    """
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise InputError(f"{option}: torch sees no CUDA device here; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and found else "cpu")


def device_for(config: Config) -> torch.device:
    """The device of a configuration. Raises InputError if it is not there."""
    return device_of(config.device, f"device={config.device}")


def accelerator_of(config: Config) -> Accelerator:
    """The device and the processes of a run. Raises InputError if the device is not there."""
    device = device_for(config)
    known = PartialState._shared_state.get("device")
    if known is not None and known.type != device.type:
        # accelerate keeps the device of a process's first run for all; runs of a grid may differ
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=device.type == "cpu")
