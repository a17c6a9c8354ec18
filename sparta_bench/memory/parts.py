"""What each method holds in training, part by part, from shapes alone; activations aside."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn

from sparta_bench.bench.setting import Setting
from sparta_bench.config import SpartaConfig
from sparta_bench.memory.formula import PerScalar
from sparta_bench.models.counts import count_parameters, empty_backbone
from sparta_bench.models.precision import Precision
from sparta_bench.models.source import load_architecture
from sparta_bench.sparta.gradient import is_sampled
from sparta_bench.sparta.sample import sampled_tensors

INDEX = 4  # bytes of a flat place: int32
# What StochasticAdamW needs for each scalar of the tensor that it updates: in float32 gradient,
# mean, square and new value, then the random bits, the rounded values and the choice of the two.
STOCHASTIC_UPDATE = 29


@dataclass(frozen=True)
class Parts:
    """Bytes of each part of one method's training.

    `weights` is the backbone, `trained` what trains beside it: copies, deltas, matrices, and in
    every method the head. `gradient_transient` is there for a moment in the backward pass,
    `update_transient` in the optimizer's step.
    """

    weights: int
    trained: int
    indices: int
    originals: int
    gradients: int
    moments: int
    gradient_transient: int
    update_transient: int

    @property
    def held(self) -> int:
        """What is there at all times."""
        return self.weights + self.trained + self.indices + self.originals + self.moments

    def as_dict(self) -> dict[str, int]:
        """For the JSON."""
        return {f"{name}_bytes": size for name, size in asdict(self).items()}


def parts_of(setting: Setting) -> Parts:
    """The parts of the setting's method, with its dtypes; SpaRTA's count is the expected one.

    Raises
    ------
    InputError
        If the method does not fit the model.
    """
    method, precision = setting.config.method, setting.precision
    backbone = empty_backbone(load_architecture(setting.config.model))
    counts = count_parameters(backbone, len(setting.config.task.labels), method)
    weight, value = precision.model_dtype.itemsize, precision.trained_dtype.itemsize
    trains_itself = method.name == "full_ft" and weight == value
    sampled = counts.sampled or 0
    largest = max(tensor.numel() for tensor in backbone.parameters())
    gradient_transient = 0
    if isinstance(method, SpartaConfig):
        chances = sampled_tensors(backbone, method.density, method.targets, method.density_of)
        gradient_transient = _weight_gradient(backbone, chances, weight, setting.device)
        sizes = {name: tensor.numel() for name, tensor in backbone.named_parameters()}
        largest = round(max(sizes[name] * chance for name, chance in chances.items()))
    elif method.name == "full_ft" and not trains_itself:
        gradient_transient = weight * largest  # before it moves to the copy
    elif method.name != "full_ft":
        largest = counts.trainable  # at most
    stochastic = precision.trained_dtype == torch.bfloat16
    return Parts(
        weights=weight * (counts.total - counts.head),
        trained=value * (counts.head if trains_itself else counts.trainable),
        indices=INDEX * sampled,
        originals=weight * sampled,
        gradients=value * counts.trainable,
        moments=2 * value * counts.trainable,
        gradient_transient=gradient_transient,
        update_transient=STOCHASTIC_UPDATE * largest if stochastic else 0,
    )


def _weight_gradient(
    backbone: nn.Module, chances: dict[str, float], weight: int, device: torch.device
) -> int:
    """Bytes of the largest dense weight gradient that a layer forms; 0 where all are sampled."""
    tensors = dict(backbone.named_parameters())
    dense = [
        weight * tensors[name].numel()
        for name, chance in chances.items()
        if not is_sampled_at(tensors[name].shape, chance, device)
    ]
    return max(dense, default=0)


def is_sampled_at(shape: torch.Size, chance: float, device: torch.device) -> bool:
    """Whether the gradient of a tensor with so many chosen entries is computed entry by entry."""
    return len(shape) == 2 and is_sampled("auto", shape, round(chance * shape.numel()), device)


def per_scalar(precision: Precision) -> PerScalar:
    """What this project holds for each scalar of a backbone, activations and transients aside."""
    weight, value = precision.model_dtype.itemsize, precision.trained_dtype.itemsize
    trained = 4 * value  # itself, gradient, two moments
    full_ft = trained if weight == value else weight + trained
    return PerScalar(full_ft, weight, trained + INDEX + weight)
