"""What each method holds in training, part by part, from shapes alone; activations aside."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import nn

from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.analysis.memory.formula import PerScalar
from sparta_bench.config.schema import LoraConfig, SpartaConfig
from sparta_bench.models.counts import ParameterCounts, lora_sizes
from sparta_bench.models.dtypes import Precision
from sparta_bench.sparta.gradient import sampling_pays
from sparta_bench.sparta.sample import sampled_tensors
from sparta_bench.training.optimizer import PIECE

INDEX = 4  # bytes of a flat place: int32
# What StochasticAdamW needs for each scalar of the piece that it updates: in float32 gradient,
# mean, square and new value, then the random bits, which become the rounded values, and what
# isfinite works with.
STOCHASTIC_UPDATE = 27


@dataclass(frozen=True)
class Parts:
    """Bytes of each part of one method's training.

    `weights` is the backbone, `trained` what trains beside it: copies, deltas, matrices, and in
    every method the head.
    """

    weights: int
    trained: int
    indices: int
    originals: int
    gradients: int
    moments: int

    @property
    def total(self) -> int:
        """All, with all gradients."""
        return sum(self.as_dict().values())

    @property
    def held(self) -> int:
        """What is there between two steps: all but the gradients."""
        return self.total - self.gradients

    def as_dict(self) -> dict[str, int]:
        """By name, in the order in which they are shown."""
        return asdict(self)


class Transient(NamedTuple):
    """Bytes that are there for a part of the step, however small the batch.

    `backward` is the largest weight's gradient, which gives way to what is kept of it; `update`
    is for the optimizer's step. `last` is that part of the gradients that comes when no
    activation is left: the embeddings'.
    """

    backward: int
    update: int
    last: int


def parts_of(setting: Setting, counts: ParameterCounts) -> Parts:
    """The parts of the setting's method in its dtypes; SpaRTA's count is the expected one."""
    precision = setting.precision
    weight, value = precision.model_dtype.itemsize, precision.trained_dtype.itemsize
    sampled = counts.sampled or 0
    return Parts(
        weights=weight * (counts.total - counts.head),
        trained=value * (counts.head if _trains_itself(setting) else counts.trainable),
        indices=INDEX * sampled,
        originals=weight * sampled,
        gradients=value * counts.trainable,
        moments=2 * value * counts.trainable,
    )


def transient_of(setting: Setting, backbone: nn.Module, counts: ParameterCounts) -> Transient:
    """What comes and goes in a step of the setting's method on `backbone` (on any device)."""
    method, precision = setting.config.method, setting.precision
    weight = precision.model_dtype.itemsize
    sizes = {name: tensor.numel() for name, tensor in backbone.named_parameters()}
    backward = last = 0
    if isinstance(method, SpartaConfig):
        chances = sampled_tensors(backbone, method.density, method.targets, method.density_of)
        backward = weight * _largest_dense(backbone, chances, setting)
        largest = round(max(sizes[name] * chance for name, chance in chances.items()))
    elif method.name == "full_ft":
        largest, last = max(sizes.values()), precision.trained_dtype.itemsize * counts.embeddings
        if not _trains_itself(setting):
            backward = weight * largest  # before it moves to the copy
    elif isinstance(method, LoraConfig):
        largest = max(counts.head, *lora_sizes(backbone, method))
    else:
        largest = counts.head
    stochastic = precision.trained_dtype == torch.bfloat16
    return Transient(backward, STOCHASTIC_UPDATE * min(largest, PIECE) if stochastic else 0, last)


def _trains_itself(setting: Setting) -> bool:
    """Whether the weights train, and not copies of them (see `models.dtypes`)."""
    precision = setting.precision
    return (
        setting.config.method.name == "full_ft" and precision.model_dtype == precision.trained_dtype
    )


def _largest_dense(backbone: nn.Module, chances: dict[str, float], setting: Setting) -> int:
    """Scalars of the largest weight whose gradient is computed whole; 0 where all are sampled."""
    tensors = dict(backbone.named_parameters())
    return max(
        (
            tensors[name].numel()
            for name, chance in chances.items()
            if not is_sampled_at(tensors[name].shape, chance, setting)
        ),
        default=0,
    )


def is_sampled_at(shape: torch.Size, chance: float, setting: Setting) -> bool:
    """Whether the gradient of a tensor with so many chosen entries is computed entry by entry."""
    if len(shape) != 2:
        return False
    chosen, tokens = round(chance * shape.numel()), setting.rows * setting.tokens
    return sampling_pays(shape, chosen, tokens, setting.device)


def per_scalar(full_ft: Precision, sparta: Precision) -> PerScalar:
    """What this project holds for each scalar of a backbone where the two methods train in these
    dtypes; activations and transients aside."""
    weight, value = full_ft.model_dtype.itemsize, full_ft.trained_dtype.itemsize
    trained = 4 * value  # itself, gradient, two moments
    whole = trained if full_ft.model_dtype == full_ft.trained_dtype else weight + trained
    return PerScalar(whole, weight, 4 * sparta.trained_dtype.itemsize + INDEX + weight)
