"""LoRA, with peft's own code (appendix C)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from sparta_bench.config.schema import LoraConfig
from sparta_bench.errors import InputError
from sparta_bench.methods.trained import HEAD, Trained
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.dtypes import Precision
from sparta_bench.sparta.sharded import local, mesh_of, reshard, rows_of
from sparta_bench.sparta.store import fingerprint_of


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
        reason = str(error).splitlines()[0]
        raise InputError(f"method.targets={list(method.targets)}: {reason}") from None
    classifier.backbone = wrapped
    trained = {n: value for n, value in wrapped.named_parameters() if value.requires_grad}
    for value in trained.values():
        value.data = value.data.to(precision.trained_dtype)
    return {name.removeprefix("base_model.model."): value for name, value in trained.items()}


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


@torch.no_grad()
def add_products_to_rows(backbone: nn.Module) -> None:
    """What peft's `merge` does, in this process's rows: it cannot add to a sharded weight."""
    from peft.tuners.lora import LoraLayer

    reshard(backbone)
    for module in backbone.modules():
        if isinstance(module, LoraLayer):
            weight = module.get_base_layer().weight  # type: ignore[union-attr]
            (adapter,) = module.active_adapters
            product: Tensor = module.get_delta_weight(adapter)  # type: ignore[operator]
            first, last = rows_of(len(product), mesh_of(weight))
            local(weight).add_(product[first:last])


class LoraTrained(Trained):
    """peft's matrices, and the head."""

    def __init__(
        self, classifier: Classifier, values: dict[str, nn.Parameter], base_fingerprint: str
    ) -> None:
        super().__init__(values, base_fingerprint=base_fingerprint)
        self.classifier = classifier

    def merge_and_unload(self) -> None:
        if self.classifier.sharded:
            add_products_to_rows(self.classifier.backbone)
            self.unload()
        else:
            self.classifier.backbone = self.classifier.backbone.merge_and_unload()  # type: ignore[operator]

    def unload(self) -> bool:
        self.classifier.backbone = self.classifier.backbone.unload()  # type: ignore[operator]
        return True
