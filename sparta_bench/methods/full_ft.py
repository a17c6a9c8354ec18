"""Full fine-tuning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparta_bench.methods.trained import HEAD, Trained
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.dtypes import Precision
from sparta_bench.sparta.store import fingerprint_of


def full_ft(classifier: Classifier, precision: Precision) -> Trained:
    """All weights train: themselves, or copies of them in another dtype."""
    return train_all(classifier, precision, fingerprint_of(classifier.backbone))


def train_all(classifier: Classifier, precision: Precision, base: str | None) -> Trained:
    """`full_ft` on a base of this fingerprint; None: on tensors without values, which have none."""
    weights = dict(classifier.backbone.named_parameters(prefix="backbone"))
    if precision.model_dtype == precision.trained_dtype:
        return FullTrained({**weights, HEAD: classifier.head_weight}, base_fingerprint=base)
    return MasterWeights(weights, classifier.head_weight, precision.trained_dtype, base)


class FullTrained(Trained):
    """The model's own weights; what would be saved is the whole model."""

    def adapter(self) -> None:
        return None

    def unload(self) -> bool:
        return False  # no second copy of the weights is kept


class MasterWeights(FullTrained):
    """Copies of the weights in the trained dtype; each weight is its copy, rounded."""

    def __init__(
        self,
        weights: dict[str, nn.Parameter],
        head_weight: nn.Parameter,
        dtype: torch.dtype,
        base_fingerprint: str | None,
    ) -> None:
        copies = {name: nn.Parameter(w.detach().to(dtype)) for name, w in weights.items()}
        super().__init__({**copies, HEAD: head_weight}, base_fingerprint=base_fingerprint)
        self.weights = weights
        for name, weight in weights.items():
            weight.requires_grad_(True)
            hook = _move_gradient_to(copies[name])
            weight.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def write(self) -> None:
        weights: list[Tensor] = [*self.weights.values()]
        torch._foreach_copy_(weights, [self.values[name] for name in self.weights])


def _move_gradient_to(copy: nn.Parameter) -> Any:
    def move(weight: Tensor) -> None:
        assert weight.grad is not None
        grad = weight.grad.to(copy.dtype)
        copy.grad = grad if copy.grad is None else copy.grad.add_(grad)
        weight.grad = None  # at once, so that only one gradient in the weights' dtype is alive

    return move
