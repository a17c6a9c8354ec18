"""Full fine-tuning."""

from __future__ import annotations

import torch
from torch import nn

from sparta_bench.methods.trained import HEAD, Trained
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.dtypes import Precision
from sparta_bench.sparta.sharded import is_sharded, local, parts_of
from sparta_bench.sparta.store import fingerprint_of


def full_ft(classifier: Classifier, precision: Precision) -> Trained:
    """All weights train: themselves, or copies of them in another dtype."""
    return train_all(classifier, precision, fingerprint_of(classifier.backbone))


def train_all(classifier: Classifier, precision: Precision, base: str | None) -> Trained:
    """`full_ft` on a base of this fingerprint; None: on tensors without values, which have none."""
    weights = dict(classifier.backbone.named_parameters(prefix="backbone"))
    if precision.model_dtype == precision.trained_dtype:
        sharded = {name: weight for name, weight in weights.items() if is_sharded(weight)}
        own = parts_of(sharded, precision.trained_dtype)
        values = {**weights, **own, HEAD: classifier.head_weight}
        return FullTrained(values, base_fingerprint=base, sharded=sharded)
    return MasterWeights(weights, classifier.head_weight, precision.trained_dtype, base)


class FullTrained(Trained):
    """The model's own weights; what would be saved is the whole model."""

    def adapter(self) -> None:
        return None

    def unload(self) -> bool:
        return False  # no second copy of the weights is kept


class MasterWeights(FullTrained):
    """Copies of the weights in the trained dtype; each weight is its copy, rounded. Of sharded
    weights this process's rows."""

    def __init__(
        self,
        weights: dict[str, nn.Parameter],
        head_weight: nn.Parameter,
        dtype: torch.dtype,
        base_fingerprint: str | None,
    ) -> None:
        values = {**parts_of(weights, dtype), HEAD: head_weight}
        sharded = {name: weight for name, weight in weights.items() if is_sharded(weight)}
        super().__init__(values, base_fingerprint=base_fingerprint, sharded=sharded)
        self.weights = weights

    @torch.no_grad()
    def write(self) -> None:
        weights = [local(weight) for weight in self.weights.values()]
        torch._foreach_copy_(weights, [self.values[name] for name in self.weights])
