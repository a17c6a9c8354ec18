"""The peak of a training step, from parts and activations, and what fits a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparta_bench.bench.contenders import DENSITIES
from sparta_bench.bench.setting import Setting
from sparta_bench.compose import compose
from sparta_bench.memory.activations import Activations, activations_of
from sparta_bench.memory.parts import Parts, parts_of
from sparta_bench.models.source import load_architecture

# as the benchmark calls them (bench.contenders)
METHODS = ("full_ft", "head", "lora", *(f"sparta-{density}" for density in DENSITIES))
CHECKPOINTING = (False, True)


@dataclass(frozen=True)
class Estimate:
    """What one method needs on one model, for rows of `setting.tokens` tokens."""

    name: str
    setting: Setting
    parts: Parts
    layers: int
    activations: dict[bool, Activations]  # without and with gradient checkpointing

    def activation_bytes(self, rows: int, checkpointing: bool) -> int:
        """What a batch needs beside the parts, all gradients aside."""
        found = self.activations[checkpointing]
        return round(rows * (self.layers * found.kept + found.at_work))

    def peak_bytes(self, rows: int, checkpointing: bool) -> int:
        """The most in a step.

        In the backward pass gradients grow as activations go, so the larger of the two counts.
        The optimizer's step has all gradients and no activations. No rows: no batch at all.
        """
        parts, found = self.parts, self.activations[checkpointing]
        kept, at_work = rows * self.layers * found.kept, rows * found.at_work
        backward = max(kept, parts.gradients) + at_work + parts.gradient_transient
        update = parts.gradients + parts.update_transient
        return parts.held + round(max(backward, update))

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
    config = compose(overrides)
    # which the benchmark's `build` would not read from the method's presets
    trained = f"train.trained_dtype={config.train.trained_dtype}"
    return Setting((*overrides, trained), config, like.device, like.rows, like.tokens)


def estimate(name: str, like: Setting) -> Estimate:
    """The estimate for a method: for the device of `like`, which need not be there.

    Raises
    ------
    InputError
        If the model's shape cannot be had, or the method does not fit it.
    """
    setting = setting_of(name, like)
    layers: int = load_architecture(setting.config.model).num_hidden_layers
    activations = {way: activations_of(setting, way) for way in CHECKPOINTING}
    return Estimate(name, setting, parts_of(setting), layers, activations)


def as_dict(found: Estimate, limits_gib: list[int]) -> dict[str, Any]:
    """For the JSON."""
    rows = found.setting.rows
    return {
        "name": found.name,
        "dtypes": found.setting.precision.as_dict(),
        **found.parts.as_dict(),
        "activation_bytes": found.activation_bytes(rows, False),
        "activation_bytes_with_checkpointing": found.activation_bytes(rows, True),
        "peak_bytes": found.peak_bytes(rows, False),
        "peak_bytes_with_checkpointing": found.peak_bytes(rows, True),
        "fits": [
            {
                "gpu_gib": gib,
                "weights_fit": found.parts.weights <= gib << 30,
                "largest_rows": found.largest_rows(gib << 30, False),
                "largest_rows_with_checkpointing": found.largest_rows(gib << 30, True),
            }
            for gib in limits_gib
        ],
    }
