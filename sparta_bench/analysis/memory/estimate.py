"""The peak of a training step, from parts and activations, and what fits a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparta_bench.analysis.bench.contenders import DENSITIES
from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.analysis.memory.activations import Activations, activations_of
from sparta_bench.analysis.memory.formula import paper_formula_bytes
from sparta_bench.analysis.memory.parts import Parts, Transient, parts_of, transient_of
from sparta_bench.config.compose import compose
from sparta_bench.models.counts import ParameterCounts, count_parameters, empty_backbone
from sparta_bench.models.source import load_architecture

# as the benchmark calls them (bench.contenders)
METHODS = ("full_ft", "head", "lora", *(f"sparta-{density}" for density in DENSITIES))
CHECKPOINTING = {False: "plain", True: "checkpointing"}  # and how the JSON calls the two ways
# Of a GPU, for CUDA's own needs and what the allocator cannot use; a guess, never measured.
KEPT_FREE = 1 << 30


@dataclass(frozen=True)
class Estimate:
    """What one method needs on one model, for rows of `setting.tokens` tokens.

    `activations` is by whether gradients are checkpointed.
    """

    name: str
    setting: Setting
    counts: ParameterCounts
    parts: Parts
    transient: Transient
    layers: int
    activations: dict[bool, Activations]

    def activation_bytes(self, rows: int, checkpointing: bool) -> int:
        """What a batch needs beside the parts, all gradients aside."""
        found = self.activations[checkpointing]
        return round(rows * (self.layers * found.kept + found.at_work))

    def at_peak(self, rows: int, checkpointing: bool) -> dict[str, int]:
        """Bytes of each part when a step needs the most; no rows: no batch at all.

        That is either the beginning of the backward pass, with all activations and no gradients;
        or its end, with all gradients but the last, and one layer at work; or what comes then:
        the last gradients, and the optimizer's step.
        """
        parts, passing, found = self.parts, self.transient, self.activations[checkpointing]
        kept, at_work = (round(rows * size) for size in (self.layers * found.kept, found.at_work))
        gradients, activations = max(
            (passing.backward, kept + at_work),
            (parts.gradients - passing.last + passing.backward, at_work),
            (parts.gradients + max(passing.backward, passing.update), 0),
            key=sum,
        )
        return {**parts.as_dict(), "gradients": gradients, "activations": activations}

    def peak_bytes(self, rows: int, checkpointing: bool) -> int:
        """The most in a step."""
        return sum(self.at_peak(rows, checkpointing).values())

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
    counts = count_parameters(backbone, len(setting.config.task.labels), setting.config.method)
    return Estimate(
        name,
        setting,
        counts,
        parts_of(setting, counts),
        transient_of(setting, backbone, counts),
        architecture.num_hidden_layers,
        {way: activations_of(setting, way) for way in CHECKPOINTING},
    )


def as_dict(found: Estimate, limits_gib: Sequence[int]) -> dict[str, Any]:
    """For the JSON; of a GPU `KEPT_FREE` is kept free."""
    rows, method = found.setting.rows, found.setting.config.method.name
    return {
        "name": found.name,
        "trainable": found.counts.trainable,
        "dtypes": found.setting.precision.as_dict(),
        "parts_bytes": found.parts.as_dict(),
        "total_bytes": found.parts.total,
        "paper_formula_bytes": paper_formula_bytes(found.counts, method)["total"],
        **{
            name: {
                "activation_bytes": found.activation_bytes(rows, way),
                "peak_bytes": found.peak_bytes(rows, way),
                "at_peak_bytes": found.at_peak(rows, way),
                "largest_rows": {
                    str(gib): found.largest_rows((gib << 30) - KEPT_FREE, way) for gib in limits_gib
                },
            }
            for way, name in CHECKPOINTING.items()
        },
    }
