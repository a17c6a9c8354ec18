"""Parameter counts, from an architecture alone (Tables 3 and 4, appendix C)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig

from sparta_bench.config.schema import LoraConfig, MethodConfig, SpartaConfig
from sparta_bench.errors import InputError
from sparta_bench.sparta.sample import sampled_tensors


@dataclass(frozen=True)
class ParameterCounts:
    """Scalars of the classifier. `sparsifiable` is total less embeddings and head;
    `sampled` is how many SpaRTA chooses, in expectation (`None` for other methods)."""

    total: int
    embeddings: int
    head: int
    sparsifiable: int
    norms: int
    trainable: int
    sampled: int | None

    def as_dict(self) -> dict[str, int | float | None]:
        """For `plan` and the record; the share (0 to 1) is of the whole model."""
        return {**asdict(self), "trainable_share": self.trainable / self.total}


def empty_backbone(architecture: PreTrainedConfig) -> nn.Module:
    """The backbone on the meta device: shapes, no memory. Raises InputError if transformers cannot
    make a model of these settings."""
    from transformers import AutoModel  # seconds, of which a plan has no need

    try:
        with torch.device("meta"):
            backbone: nn.Module = AutoModel.from_config(architecture)
    except Exception as error:  # many kinds, for a value that is none of those it may be
        where = architecture.name_or_path or f"model_type={architecture.model_type}"
        raise InputError(
            f"{where}: no model can be made of its config.json ({type(error).__name__}: {error})"
        ) from None
    return backbone


def embedding_names(backbone: nn.Module) -> set[str]:
    """Names of the tensors that look tokens (or positions) up."""
    return {
        f"{name}.weight"
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Embedding)
    }


def count_parameters(backbone: nn.Module, classes: int, method: MethodConfig) -> ParameterCounts:
    """Counts of the classifier that `backbone` (on any device) would make with the method. Raises
    InputError if the method does not fit the model."""
    sizes = {name: tensor.numel() for name, tensor in backbone.named_parameters()}
    hidden: int = backbone.config.hidden_size  # type: ignore[union-attr, assignment]
    head = classes * hidden
    embeddings = sum(sizes.get(name, 0) for name in embedding_names(backbone))
    total = sum(sizes.values()) + head
    sampled = None
    if isinstance(method, SpartaConfig):
        try:
            chances = sampled_tensors(backbone, method.density, method.targets, method.density_of)
        except ValueError as error:
            raise InputError(f"method.{error}") from None
        expected = sum(sizes[name] * chance for name, chance in chances.items())
        sampled, trainable = round(expected), round(expected + head)
    elif isinstance(method, LoraConfig):
        trainable = head + sum(lora_sizes(backbone, method))
    else:
        trainable = head if method.name == "head" else total
    norms = sum(tensor.numel() for tensor in backbone.parameters() if tensor.dim() == 1)
    return ParameterCounts(
        total, embeddings, head, total - embeddings - head, norms, trainable, sampled
    )


def lora_sizes(backbone: nn.Module, method: LoraConfig) -> list[int]:
    """Scalars of each low-rank matrix that LoRA would put beside the backbone."""
    layers = [
        module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in method.targets
    ]
    if not layers:
        raise InputError(
            f"method.targets={list(method.targets)}: no linear layer of the model is called so"
        )
    return [method.r * size for one in layers for size in (one.in_features, one.out_features)]
