"""The peak of a training step, from parts and activations, and what fits a GPU."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.analysis.memory.activations import Activations, activations_of
from sparta_bench.analysis.memory.formula import paper_formula_bytes
from sparta_bench.analysis.memory.parts import (
    Footprint,
    Parts,
    Transient,
    gathered_bytes,
    parts_of,
    transient_of,
)
from sparta_bench.models.counts import ParameterCounts, count_parameters, empty_backbone, shapes_of
from sparta_bench.models.source import load_architecture
from sparta_bench.paper import PAPER_DENSITIES

# as the benchmark calls them (bench.contenders)
METHODS = ("full_ft", "head", "lora", *(f"sparta-{density}" for density in PAPER_DENSITIES))
CHECKPOINTING = {False: "plain", True: "checkpointing"}  # and how the JSON calls the two ways
# Of a GPU, for CUDA's own needs and what the allocator cannot use; a guess, never measured.
KEPT_FREE = 1 << 30
MOST_ROWS = 1 << 40


@dataclass(frozen=True)
class Estimate:
    """What one method needs on one model, for rows of `setting.tokens` tokens.

    `activations` is by whether gradients are checkpointed. With several `gpus`, among which FSDP
    cuts the model, bytes are those of each and rows are shared; `gathered` are the weights that
    each has for a while.
    """

    name: str
    setting: Setting
    counts: ParameterCounts
    parts: Parts
    transient: Transient
    layers: int
    activations: dict[bool, Activations]
    gpus: int = 1
    gathered: int = 0

    def activation_bytes(self, rows: int, checkpointing: bool) -> int:
        """Return what a batch needs beside the parts, all gradients aside."""
        size = self.activations[checkpointing]
        return round(self._with_prefix(rows) * (self.layers * size.kept + size.at_work))

    def _with_prefix(self, rows: int) -> float:
        """A GPU's rows, and a prefix that is computed once, in rows of what each has beside it."""
        setting, rows = self.setting, -(-rows // self.gpus)
        shared = setting.shared_tokens if rows > 1 else 0
        return rows + shared / (setting.tokens - shared)

    def at_peak(self, rows: int, checkpointing: bool) -> dict[str, int]:
        """Return the bytes of each part when a step needs the most; no rows: no batch at all.

        That is either the beginning of the backward pass, with all activations and no gradients
        but SpaRTA's; or its end, with all gradients but the last, and one layer at work; or what
        comes then: the last gradients, and the optimizer's step.
        """
        parts, passing, size = self.parts, self.transient, self.activations[checkpointing]
        rows_with_prefix = self._with_prefix(rows)
        first = round(rows_with_prefix * (self.layers * size.kept + size.at_work))
        at_work = round(rows_with_prefix * (size.at_work + size.last))
        gradients, activations = max(
            (passing.first + passing.backward, first),
            (parts.gradients - passing.last + passing.backward, at_work),
            (parts.gradients + max(passing.backward, passing.update), 0),
            key=sum,
        )
        weights = parts.weights + self.gathered
        changed = {"weights": weights, "gradients": gradients, "activations": activations}
        return parts.as_dict() | changed

    def peak_bytes(self, rows: int, checkpointing: bool) -> int:
        """Return the most in a step."""
        return sum(self.at_peak(rows, checkpointing).values())

    def footprint(self, checkpointing: bool) -> Footprint:
        """Return what is compared with a measurement."""
        smallest, peak = (self.peak_bytes(n, checkpointing) for n in (0, self.setting.rows))
        return Footprint(self.parts, self.parts.held, smallest, peak)

    def largest_rows(self, limit_bytes: int, checkpointing: bool) -> int:
        """Return the largest batch within a limit; 0 where not even one row fits."""
        rows = range(1, MOST_ROWS)
        return bisect_right(rows, limit_bytes, key=lambda n: self.peak_bytes(n, checkpointing))

    def as_dict(self, limits_gib: Sequence[int]) -> dict[str, Any]:
        """Return the row of the JSON; of a GPU `KEPT_FREE` is kept free."""
        rows = self.setting.rows
        formula = paper_formula_bytes(self.counts, self.setting.config.method.name)
        row = {
            "name": self.name,
            "trainable": self.counts.trainable,
            "dtypes": self.setting.precision.as_dict(),
            "parts_bytes": self.parts.as_dict(),
            "total_bytes": self.parts.total,
            "paper_formula_bytes": formula["total"],
        }
        for way, name in CHECKPOINTING.items():
            most = {str(n): self.largest_rows((n << 30) - KEPT_FREE, way) for n in limits_gib}
            row[name] = {
                "activation_bytes": self.activation_bytes(rows, way),
                "peak_bytes": self.peak_bytes(rows, way),
                "at_peak_bytes": self.at_peak(rows, way),
                "largest_rows": most,
            }
        return row


def setting_of(name: str, like: Setting) -> Setting:
    """Return the same with the method of this name, and with the dtypes that its presets give."""
    method, _, density = name.partition("-")
    words = [f"method={method}"] + ([f"method.density={density}"] if density else [])
    return like.changed(*words)


def estimate(name: str, like: Setting, gpus: int = 1) -> Estimate:
    """Return the estimate for a method on the device of `like`, which need not be there. Raises
    InputError if the model's shape cannot be had, or the method does not fit it."""
    return estimate_of(name, setting_of(name, like), gpus=gpus)


def estimate_of(
    name: str, setting: Setting, ways: Iterable[bool] = tuple(CHECKPOINTING), gpus: int = 1
) -> Estimate:
    """The same for a setting with its own method; `ways` are those of `activations`."""
    architecture = load_architecture(setting.config.model)
    backbone = empty_backbone(architecture)
    counts = count_parameters(
        shapes_of(backbone), len(setting.config.task.labels), setting.config.method
    )
    return Estimate(
        name,
        setting,
        counts,
        parts_of(setting, counts, gpus),
        transient_of(setting, backbone, counts, gpus),
        architecture.num_hidden_layers,
        {way: activations_of(setting, way) for way in ways},
        gpus,
        gathered_bytes(setting, backbone) if gpus > 1 else 0,
    )
