"""Parameter counts, from shapes alone (Tables 3 and 4, appendix C); torch only for a module's."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

from sparta_bench.config.schema import LoraConfig, MethodConfig, SpartaConfig
from sparta_bench.errors import InputError
from sparta_bench.sparta.targets import chances_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig


class Shapes(NamedTuple):
    """What of a backbone decides counts and work: the shapes of its tensors by name, which of them
    look tokens (or positions) up, its linear layers (inputs, outputs) by name, its width, its
    layers, the width of all heads of one, and what `tokens_once` can do with it."""

    tensors: dict[str, tuple[int, ...]]
    embeddings: set[str]
    linear: dict[str, tuple[int, int]]
    hidden: int
    layers: int
    heads_width: int
    shares_prefix: bool
    cuts_last_layer: bool


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
    import torch
    from transformers import AutoModel

    try:
        with torch.device("meta"):
            backbone: nn.Module = AutoModel.from_config(architecture)
    except Exception as error:  # many kinds, for a value that is none of those it may be
        where = architecture.name_or_path or f"model_type={architecture.model_type}"
        raise InputError(
            f"{where}: no model can be made of its config.json ({type(error).__name__}: {error})"
        ) from None
    return backbone


def count_parameters(shapes: Shapes, classes: int, method: MethodConfig) -> ParameterCounts:
    """Counts of the classifier that a backbone of these shapes would make with the method. Raises
    InputError if the method does not fit the model."""
    sizes = {name: math.prod(shape) for name, shape in shapes.tensors.items()}
    head = classes * shapes.hidden
    embeddings = sum(sizes.get(name, 0) for name in shapes.embeddings)
    total = sum(sizes.values()) + head
    sampled = None
    if isinstance(method, SpartaConfig):
        asked = method.density, method.targets, method.density_of
        try:
            chances = chances_of(sizes, shapes.embeddings, *asked)
        except ValueError as error:
            raise InputError(f"method.{error}") from None
        expected = sum(sizes[name] * chance for name, chance in chances.items())
        sampled, trainable = round(expected), round(expected + head)
    elif isinstance(method, LoraConfig):
        trainable = head + sum(lora_sizes(shapes, method))
    else:
        trainable = head if method.name == "head" else total
    norms = sum(sizes[name] for name, shape in shapes.tensors.items() if len(shape) == 1)
    return ParameterCounts(
        total, embeddings, head, total - embeddings - head, norms, trainable, sampled
    )


def lora_sizes(shapes: Shapes, method: LoraConfig) -> list[int]:
    """Scalars of each low-rank matrix that LoRA would put beside the backbone."""
    layers = [
        layer for name, layer in shapes.linear.items() if name.rpartition(".")[2] in method.targets
    ]
    if not layers:
        raise InputError(
            f"method.targets={list(method.targets)}: no linear layer of the model is called so"
        )
    return [method.r * size for layer in layers for size in layer]
