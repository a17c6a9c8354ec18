"""The peak of a training step, from parts and activations, and what fits a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sparta_bench.bench.contenders import DENSITIES
from sparta_bench.bench.setting import Setting
from sparta_bench.compose import compose
from sparta_bench.memory.activations import Activations, activations_of
from sparta_bench.memory.parts import Parts, Transient, parts_of, transient_of
from sparta_bench.models.counts import empty_backbone
from sparta_bench.models.source import load_architecture

# as the benchmark calls them (bench.contenders)
METHODS = ("full_ft", "head", "lora", *(f"sparta-{density}" for density in DENSITIES))
CHECKPOINTING = (False, True)
# Of a GPU, for CUDA's own needs and what the allocator cannot use; a guess, never measured.
KEPT_FREE = 1 << 30


@dataclass(frozen=True)
class Estimate:
    """What one method needs on one model, for rows of `setting.tokens` tokens."""

    name: str
    setting: Setting
    parts: Parts
    transient: Transient
    layers: int
    activations: dict[bool, Activations]  # without and with gradient checkpointing

    def activation_bytes(self, rows: int, checkpointing: bool) -> int:
        """What a batch needs beside the parts, all gradients aside."""
        found = self.activations[checkpointing]
        return round(rows * (self.layers * found.kept + found.at_work))

    def peak_bytes(self, rows: int, checkpointing: bool) -> int:
        """The most in a step.

        In the backward pass gradients grow as activations go, so the larger of the two counts.
        The end of that pass, and the optimizer's step, have all gradients and no activations.
        No rows: no batch at all.
        """
        parts, passing, found = self.parts, self.transient, self.activations[checkpointing]
        kept, at_work = rows * self.layers * found.kept, rows * found.at_work
        backward = max(kept, parts.gradients - passing.last) + at_work + passing.backward
        end = parts.gradients + max(passing.backward, passing.update)
        return parts.held + round(max(backward, end))

    def largest_rows(self, limit_bytes: int, checkpointing: bool) -> int:
        """The largest batch within a limit; 0 where not even one row fits."""
        low, high = 0, 1
        while self.peak_bytes(high, checkpointing) <= limit_bytes:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            if self.peak_bytes(middle, checkpointing) <= limit_bytes:
                low = middle
            else:
                high = middle
        return low


def setting_of(name: str, like: Setting) -> Setting:
    """The same with the method of this name, and with the dtypes that its presets give."""
    method, _, density = name.partition("-")
    overrides = [*like.overrides, f"method={method}"]
    if density:
        overrides.append(f"method.density={density}")
    return replace(like, overrides=tuple(overrides), config=compose(overrides))


def estimate(name: str, like: Setting) -> Estimate:
    """The estimate for a method: for the device of `like`, which need not be there.

    Raises
    ------
    InputError
        If the model's shape cannot be had, or the method does not fit it.
    """
    setting = setting_of(name, like)
    architecture = load_architecture(setting.config.model)
    backbone = empty_backbone(architecture)
    parts, transient = parts_of(setting, backbone), transient_of(setting, backbone)
    activations = {way: activations_of(setting, way) for way in CHECKPOINTING}
    layers: int = architecture.num_hidden_layers
    return Estimate(name, setting, parts, transient, layers, activations)
