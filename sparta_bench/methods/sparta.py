"""SpaRTA (section 4)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sparta_bench.config.schema import SpartaConfig
from sparta_bench.errors import InputError
from sparta_bench.methods.trained import HEAD, Trained
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.dtypes import Precision
from sparta_bench.sparta import SpartaAdapter
from sparta_bench.sparta.sharded import parts_of


def sparta(
    classifier: Classifier, method: SpartaConfig, precision: Precision, seed: int
) -> Trained:
    """Deltas of entries of the backbone that are chosen at random, and the head (section 4)."""
    try:
        adapter = SpartaAdapter(
            classifier.backbone,
            method.density,
            seed,
            method.targets,
            method.density_of,
            precision.trained_dtype,
            pattern=method.pattern,
            merge_after_step=False,  # the loop calls `write`
        )
    except ValueError as error:
        raise InputError(f"method.{error}") from None
    return SpartaTrained(adapter, classifier.head_weight)


class SpartaTrained(Trained):
    """The deltas of an adapter, and the head."""

    def __init__(self, adapter: SpartaAdapter, head_weight: nn.Parameter) -> None:
        self.sparta, self.flat = adapter, None if adapter.is_sharded else adapter.flatten()
        deltas: dict[str, nn.Parameter] = adapter.deltas
        sharded: dict[str, nn.Parameter] = {}
        if self.flat is None:
            values, sharded = parts_of(deltas, adapter.dtype), deltas
        else:
            values = {name: deltas[name] for name in self.flat.names}
        values[HEAD] = head_weight
        super().__init__(values, adapter.chosen, adapter.base_fingerprint, sharded)
        self.kernels = adapter.kernels

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """The deltas are one tensor, of which each of `values` is a slice, unless sharded."""
        deltas, head = super().groups(weight_decay)
        if self.flat is None:
            return [deltas, head]
        return [{"params": [self.flat.values], "weight_decay": weight_decay}, head]

    def has_gradient(self) -> dict[str, bool]:
        flat = self.flat
        reached = {} if flat is None else {name: name in flat.reached for name in flat.names}
        return super().has_gradient() | reached

    def write(self) -> None:
        self.sparta.merge()

    def lost_to_rounding(self) -> float:
        return self.sparta.lost_to_rounding()

    def adapter(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, about = self.sparta.saved()
        return {**tensors, HEAD: self.values[HEAD].detach().cpu()}, about

    def merge_and_unload(self) -> None:
        self.sparta.bake()

    def unload(self) -> bool:
        self.sparta.detach()
        return True
