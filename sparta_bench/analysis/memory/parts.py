"""What each method holds in training, part by part, from shapes alone; activations aside."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.analysis.memory.formula import PerScalar
from sparta_bench.config.schema import LoraConfig, SpartaConfig
from sparta_bench.models.counts import ParameterCounts, lora_sizes, shapes_of
from sparta_bench.models.dtypes import Precision
from sparta_bench.models.load_sharded import parts_to_cut
from sparta_bench.sparta.sample import sampled_tensors
from sparta_bench.sparta.sampling_cost import sampling_pays
from sparta_bench.training.optimizer import PIECE

INDEX = 4  # bytes of a flat index: int32
# What StochasticAdamW needs for each scalar of the piece that it updates: in float32 gradient,
# mean, square and new value, then the random bits, which become the rounded values, and what
# isfinite works with.
STOCHASTIC_UPDATE = 25
REDUCED = 4  # bytes of a gradient that FSDP sums: float32
GATHERED = 3  # times a layer; a guess where prefetching overlaps, as on CUDA


@dataclass(frozen=True)
class Parts:
    """Bytes of each part of one method's training, in the order in which they are shown.

    `weights` is the backbone, `trained` what trains beside it: master weights, deltas, matrices,
    and in every method the head.
    """

    weights: int
    trained: int
    indices: int
    originals: int
    gradients: int
    moments: int

    def as_dict(self) -> dict[str, int]:
        """Return the parts by name."""
        return asdict(self)

    @property
    def total(self) -> int:
        """All, with all gradients."""
        return sum(self.as_dict().values())

    @property
    def held(self) -> int:
        """What is there between two steps: all but the gradients."""
        return self.total - self.gradients


class Footprint(NamedTuple):
    """Bytes of one method's training, estimated or measured.

    `held` is there between two steps; `smallest_peak` is the peak of a step with one row of one
    token, hence almost without activations; `peak` is that with the setting's batch.
    """

    parts: Parts
    held: int
    smallest_peak: int
    peak: int

    def as_dict(self) -> dict[str, Any]:
        """Return the values of the JSON; activations are what the batch adds to the peak."""
        return {
            "parts_bytes": self.parts.as_dict(),
            "held_bytes": self.held,
            "smallest_peak_bytes": self.smallest_peak,
            "peak_bytes": self.peak,
            "activation_bytes": self.peak - self.smallest_peak,
        }


class Transient(NamedTuple):
    """Bytes that are there for a part of the step, however small the batch.

    `backward` is the largest weight's gradient, which gives way to what is kept of it; `update`
    is for the optimizer's step. `last` is that part of the gradients that comes when no
    activation is left: the embeddings'. `first` is that part that is there as soon as there is any:
    SpaRTA's, which are one tensor.
    """

    backward: int
    update: int
    last: int
    first: int = 0


def parts_of(setting: Setting, counts: ParameterCounts, gpus: int = 1) -> Parts:
    """Return the parts of the setting's method in its dtypes; SpaRTA's count is the expected one.
    Of several GPUs among which FSDP cuts the model, those of each: all indices, and all that is
    small."""
    precision = setting.precision
    weight, value = precision.model_dtype.itemsize, precision.trained_dtype.itemsize
    sampled = counts.sampled or 0
    # in every GPU: the head, and LoRA's matrices
    is_small = setting.config.method.name in ("lora", "head")
    everywhere = counts.trainable if is_small else counts.head
    trainable = everywhere + -(-(counts.trainable - everywhere) // gpus)
    return Parts(
        weights=weight * -(-(counts.total - counts.head) // gpus),
        trained=value * (counts.head if _trains_weights(setting) else trainable),
        indices=INDEX * sampled,
        originals=weight * -(-sampled // gpus),
        gradients=value * trainable,
        moments=2 * value * trainable,
    )


def transient_of(
    setting: Setting, backbone: nn.Module, counts: ParameterCounts, gpus: int = 1
) -> Transient:
    """Return what comes and goes in a step of the setting's method on `backbone`; `gpus` as for
    `parts_of`."""
    method, precision = setting.config.method, setting.precision
    tensors = dict(backbone.named_parameters())
    largest, dense, last, first = counts.head, 0, 0, 0
    if isinstance(method, SpartaConfig):
        chances = sampled_tensors(backbone, method.density, method.targets, method.density_of)
        sampled = counts.sampled or 0
        largest, first = max(largest, sampled), precision.trained_dtype.itemsize * sampled
        dense = max(
            tensors[name].numel() * (not is_sampled_at(tensors[name].shape, chance, setting))
            for name, chance in chances.items()
        )
    elif method.name == "full_ft":
        largest = max(tensor.numel() for tensor in tensors.values())
        last = precision.trained_dtype.itemsize * counts.embeddings
        dense = 0 if _trains_weights(setting) else largest  # before it moves to the master weight
    elif isinstance(method, LoraConfig):
        largest = max(largest, *lora_sizes(shapes_of(backbone), method))
    stochastic = precision.trained_dtype == torch.bfloat16
    if gpus > 1:  # SpaRTA's gradients come tensor by tensor then
        largest, last, first = -(-largest // gpus), last // gpus, 0
    update = STOCHASTIC_UPDATE * min(largest, PIECE) if stochastic else 0
    backward = precision.model_dtype.itemsize * dense
    if gpus > 1 and method.name == "full_ft":  # a layer's gradients, and in float32 what is reduced
        backward = (precision.model_dtype.itemsize + REDUCED) * _largest_gathered(backbone)
    return Transient(backward, update, last, first)


def gathered_bytes(setting: Setting, backbone: nn.Module) -> int:
    """Return what FSDP holds of weights beside a GPU's own rows: the layer at work, the one that is
    gathered meanwhile, and what that is copied from."""
    return GATHERED * setting.precision.model_dtype.itemsize * _largest_gathered(backbone)


def _largest_gathered(backbone: nn.Module) -> int:
    """Scalars of the largest part of a model that FSDP gathers at once."""
    return max(
        sum(tensor.numel() for tensor in module.parameters())
        for module in parts_to_cut(backbone)
        if module is not backbone
    )


def _trains_weights(setting: Setting) -> bool:
    """Whether the weights train, and not master weights beside them (see `models.dtypes`)."""
    model_dtype, trained_dtype = setting.precision.model_dtype, setting.precision.trained_dtype
    return setting.config.method.name == "full_ft" and model_dtype == trained_dtype


def is_sampled_at(shape: torch.Size, chance: float, setting: Setting) -> bool:
    """Return whether a tensor's gradient is computed at its chosen entries alone."""
    chosen, tokens = round(chance * shape.numel()), setting.rows * setting.tokens
    return len(shape) == 2 and sampling_pays(
        shape, chosen, tokens, setting.device.type, torch.get_num_threads()
    )


def per_scalar(full_ft: Precision, sparta: Precision) -> PerScalar:
    """Return what this project holds for each scalar of a backbone where the two methods train in
    these dtypes; activations and transients aside."""
    weight, value = full_ft.model_dtype.itemsize, full_ft.trained_dtype.itemsize
    trained = 4 * value  # itself, gradient, two moments
    whole = trained if full_ft.model_dtype == full_ft.trained_dtype else weight + trained
    return PerScalar(whole, weight, 4 * sparta.trained_dtype.itemsize + INDEX + weight)
