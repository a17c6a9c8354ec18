"""One function per method: from a frozen classifier to the values that train."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from sparta_bench.config import Config, FullFtConfig, HeadConfig, LoraConfig, SpartaConfig
from sparta_bench.errors import InputError
from sparta_bench.methods.trained import HEAD, Trained
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.precision import Precision
from sparta_bench.sparta import SpartaAdapter
from sparta_bench.sparta.store import fingerprint_of


def prepare(classifier: Classifier, config: Config, precision: Precision) -> Trained:
    """Apply the configured method to a classifier whose parameters are all frozen.

    Raises
    ------
    InputError
        If the method does not fit the model: unknown modules, a density that cannot be had.
    """
    match config.method:
        case FullFtConfig():
            return full_ft(classifier, precision)
        case HeadConfig():
            return head(classifier)
        case LoraConfig() as method:
            return lora(classifier, method, precision, config.seed)
        case SpartaConfig() as method:
            return sparta(classifier, method, precision, config.seed)


def head(classifier: Classifier) -> Trained:
    """Only the classification head trains."""
    base = fingerprint_of(classifier.backbone)
    return Trained({HEAD: classifier.head_weight}, base_fingerprint=base)


def full_ft(classifier: Classifier, precision: Precision) -> Trained:
    """All weights train: themselves, or copies of them in another dtype."""
    return train_all(classifier, precision, fingerprint_of(classifier.backbone))


def train_all(classifier: Classifier, precision: Precision, base: str | None) -> Trained:
    """`full_ft` on a base of this fingerprint; null: on tensors without values, which have none."""
    weights = dict(classifier.backbone.named_parameters(prefix="backbone"))
    if precision.model_dtype == precision.trained_dtype:
        return FullTrained({**weights, HEAD: classifier.head_weight}, base_fingerprint=base)
    return Copies(weights, classifier.head_weight, precision.trained_dtype, base)


class FullTrained(Trained):
    """The model's own weights; what would be saved is the whole model."""

    def adapter(self) -> None:
        return None

    def release(self) -> bool:
        return False  # no second copy of the weights is kept


class Copies(FullTrained):
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
        for name, weight in self.weights.items():
            weight.copy_(self.values[name])


def _move_gradient_to(copy: nn.Parameter) -> Any:
    def move(weight: Tensor) -> None:
        assert weight.grad is not None
        grad = weight.grad.to(copy.dtype)
        copy.grad = grad if copy.grad is None else copy.grad.add_(grad)
        weight.grad = None  # at once, so that only one gradient in the weights' dtype is alive

    return move


def lora(classifier: Classifier, method: LoraConfig, precision: Precision, seed: int) -> Trained:
    """peft's LoRA on the named modules, and the head (appendix C)."""
    torch.manual_seed(seed)  # of the A matrices; B starts at zero
    base = fingerprint_of(classifier.backbone)
    values = wrap_in_lora(classifier, method, precision)
    return LoraTrained(classifier, {**values, HEAD: classifier.head_weight}, base)


def wrap_in_lora(
    classifier: Classifier, method: LoraConfig, precision: Precision
) -> dict[str, nn.Parameter]:
    """Put peft's LoRA around the backbone; returns its matrices, in the trained dtype, by name."""
    from peft import get_peft_model

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns that nobody named a task type
            wrapped = get_peft_model(classifier.backbone, peft_settings(method))  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(f"method.targets={method.targets}: {str(error).splitlines()[0]}") from None
    classifier.backbone = wrapped
    values = {
        name.removeprefix("base_model.model."): value
        for name, value in wrapped.named_parameters()
        if value.requires_grad
    }
    for value in values.values():
        value.data = value.data.to(precision.trained_dtype)
    return values


def peft_settings(method: LoraConfig) -> Any:
    """peft's own configuration for these settings."""
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(
        r=method.r,
        lora_alpha=method.alpha,
        lora_dropout=method.lora_dropout,
        target_modules=list(method.targets),
        bias="none",
    )


class LoraTrained(Trained):
    """peft's matrices, and the head."""

    def __init__(
        self, classifier: Classifier, values: dict[str, nn.Parameter], base_fingerprint: str
    ) -> None:
        super().__init__(values, base_fingerprint=base_fingerprint)
        self.classifier = classifier

    def merge_for_good(self) -> None:
        self.classifier.backbone = self.classifier.backbone.merge_and_unload()  # type: ignore[operator]

    def release(self) -> bool:
        self.classifier.backbone = self.classifier.backbone.unload()  # type: ignore[operator]
        return True


def sparta(
    classifier: Classifier, method: SpartaConfig, precision: Precision, seed: int
) -> Trained:
    """Deltas at random places of the backbone, and the head (section 4)."""
    try:
        adapter = SpartaAdapter(
            classifier.backbone,
            method.density,
            seed,
            method.targets,
            method.density_of,
            precision.trained_dtype,
            merge_after_step=False,  # the loop calls `write`
        )
    except ValueError as error:
        raise InputError(f"method.{error}") from None
    return SpartaTrained(adapter, classifier.head_weight)


class SpartaTrained(Trained):
    """The deltas of an adapter, and the head."""

    def __init__(self, adapter: SpartaAdapter, head_weight: nn.Parameter) -> None:
        values = {**adapter.deltas, HEAD: head_weight}
        super().__init__(values, adapter.chosen, adapter.base_fingerprint)
        self.sparta = adapter
        self.kernels = adapter.kernels

    def write(self) -> None:
        self.sparta.merge()

    def lost_to_rounding(self) -> float:
        return self.sparta.lost_to_rounding()

    def adapter(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, about = self.sparta.saved()
        return {**tensors, HEAD: self.values[HEAD].detach().cpu()}, about

    def merge_for_good(self) -> None:
        self.sparta.bake()

    def release(self) -> bool:
        self.sparta.detach()
        return True
