"""What each method holds in training, part by part, from shapes alone; activations, by a dry run;
and of both the peak of a step, and what fits a GPU.

The dry run is the real code on tensors without values. Two decoder layers and three (or three and
four, where the last one computes next to nothing) tell what a further layer keeps and what is there
once; the batch is so large that all else vanishes beside it, a prefix that all rows share included.
Attention is that of training (`models/load.py`); torch's fused one keeps no scores.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.analysis.memory.formula import PerScalar, paper_formula_bytes
from sparta_bench.config.schema import LoraConfig, SpartaConfig
from sparta_bench.errors import InputError, reason_of
from sparta_bench.methods.full_ft import train_all
from sparta_bench.methods.lora import wrap_in_lora
from sparta_bench.models.counts import (
    ParameterCounts,
    count_parameters,
    empty_backbone,
    lora_sizes,
    shapes_for,
    shapes_of,
)
from sparta_bench.models.dtypes import Precision
from sparta_bench.models.load_sharded import parts_to_cut
from sparta_bench.models.packed_attention import LAYOUT
from sparta_bench.models.source import load_architecture
from sparta_bench.models.tensor_memory import TensorMemory
from sparta_bench.paper import PAPER_DENSITIES
from sparta_bench.sparta.adamw import PIECE
from sparta_bench.sparta.layer import ChosenEntries, patch
from sparta_bench.sparta.sample import sampled_tensors
from sparta_bench.sparta.sampling_cost import sampling_pays

# as the benchmark calls them (bench.contenders)
METHODS = ("full_ft", "head", "lora", *(f"sparta-{density}" for density in PAPER_DENSITIES))
CHECKPOINTING = {False: "plain", True: "checkpointing"}  # and how the JSON calls the two ways
# Of a GPU, for CUDA's own needs and what the allocator cannot use; a guess, never measured.
KEPT_FREE = 1 << 30
MOST_ROWS = 1 << 40
INDEX = 4  # bytes of a flat index: int32
# What StochasticAdamW needs on a CPU for each scalar of the piece that it updates: random words,
# in float32 gradient, mean, square and new value, then the rounded values, and what isnan works
# with. On CUDA its kernel needs nothing.
STOCHASTIC_UPDATE = 37
REDUCED = 4  # bytes of a gradient that FSDP sums: float32
GATHERED = 3  # times a layer; a guess where prefetching overlaps, as on CUDA
MANY_TOKENS = 1 << 22  # of a dry run: beside whose activations no gradient of a weight counts


# ----------------------------------------------------------------------------------- parts
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
    """Return the parts of the method in its dtypes; SpaRTA's count is the expected one. Of several
    GPUs among which FSDP cuts the model, those of each: all indices, and all that is small."""
    precision, sampled = setting.precision, counts.sampled or 0
    weight, value = precision.model_dtype.itemsize, precision.trained_dtype.itemsize
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
            tensors[name].numel() * (not _is_sampled_at(tensors[name].shape, chance, setting))
            for name, chance in chances.items()
        )
    elif method.name == "full_ft":
        largest = max(tensor.numel() for tensor in tensors.values())
        last = precision.trained_dtype.itemsize * counts.embeddings
        dense = 0 if _trains_weights(setting) else largest  # before it moves to the master weight
    elif isinstance(method, LoraConfig):
        largest = max(largest, *lora_sizes(shapes_of(backbone), method))
    in_pieces = precision.trained_dtype == torch.bfloat16 and setting.device.type == "cpu"
    if gpus > 1:  # SpaRTA's gradients come tensor by tensor then
        largest, last, first = -(-largest // gpus), last // gpus, 0
    update = STOCHASTIC_UPDATE * min(largest, PIECE["cpu"]) if in_pieces else 0
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


def _is_sampled_at(shape: torch.Size, chance: float, setting: Setting) -> bool:
    """Whether a tensor's gradient is computed at its chosen entries alone."""
    chosen, tokens = round(chance * shape.numel()), setting.rows * setting.tokens
    threads = torch.get_num_threads()
    return len(shape) == 2 and sampling_pays(shape, chosen, tokens, setting.device.type, threads)


def per_scalar(full_ft: Precision, sparta: Precision) -> PerScalar:
    """Return what this project holds for each scalar of a backbone where the two methods train in
    these dtypes; activations and transients aside."""
    weight, value = full_ft.model_dtype.itemsize, full_ft.trained_dtype.itemsize
    trained = 4 * value  # itself, gradient, two moments
    whole = trained if full_ft.model_dtype == full_ft.trained_dtype else weight + trained
    return PerScalar(whole, weight, 4 * sparta.trained_dtype.itemsize + INDEX + weight)


# ----------------------------------------------------------------------------- activations
class Activations(NamedTuple):
    """Bytes for each row of a batch: `kept` by each layer for the backward pass, `at_work`
    whatever the number of layers is (temporaries of the layer at work; first and last layer).
    Where the last layer computes the last tokens alone it keeps next to nothing: `at_work` is less
    by what another would keep, `last`, though not when the first layer is at work."""

    kept: float
    at_work: float
    last: float = 0.0


def activations_of(setting: Setting, checkpointing: bool) -> Activations:
    """Estimate them for rows of `setting.tokens` tokens, with or without gradient checkpointing.
    Raises InputError if the model looks at values, or cannot be cut to so few layers."""
    # not one and two: of two layers on, the first one's input is there beside a later one's
    try:
        cut = setting.once(shapes_for(setting.config.model)).last_layer
        fewest = 3 if cut else 2
        fewer, more = (
            _peak_of_a_row(setting.with_checkpointing(checkpointing), layers)
            for layers in (fewest, fewest + 1)
        )
    except Exception as error:  # torch and models raise many kinds
        raise InputError(
            f"model={setting.config.model.name}: its activations cannot be found by a dry run: "
            f"{reason_of(error)}"
        ) from None
    kept = more - fewer
    return Activations(kept, fewer - fewest * kept, kept if cut and not checkpointing else 0.0)


def _peak_of_a_row(setting: Setting, layers: int) -> float:
    """Bytes beyond what is there before the forward pass, over the rows: of a model with so many
    layers and a large batch."""
    config = setting.config
    architecture = load_architecture(config.model)
    architecture.num_hidden_layers = layers  # by name: the model may have another key for it
    shape = architecture.to_dict()
    if shape.get("layer_types"):
        shape["layer_types"] = (shape["layer_types"] * layers)[:layers]  # may have fewer
    dtype = setting.precision.as_dict()["model"]
    model = replace(config.model, path=None, embedded=False, shape=shape, dtype=dtype)
    rows = max(MANY_TOKENS // setting.tokens, 1)
    setting = replace(setting, config=replace(config, model=model), rows=rows)
    method, precision = config.method, setting.precision
    classifier = replace(setting, device=torch.device("meta")).as_in_a_run()
    classifier.head_weight.requires_grad_(True)
    if isinstance(method, LoraConfig):  # not further below: peft moves what it makes
        wrap_in_lora(classifier, method, precision)
    with FakeTensorMode():
        # On a CPU: the only device whose fused attention runs dry everywhere. `to_empty` does the
        # same, but refuses to mix devices with values and without.
        classifier._apply(lambda t: torch.empty(t.shape, dtype=t.dtype))  # type: ignore[no-untyped-call]
        # no value says that nothing is masked: then keys would be repeated for a mask
        for module in classifier.backbone.modules():
            module.register_forward_pre_hook(_without_mask, with_kwargs=True)
        tensors = [*classifier.parameters(), *classifier.buffers()]
        if isinstance(method, SpartaConfig):
            tensors += _patch_all(classifier.backbone, method, setting)
        elif method.name == "full_ft":
            tensors += train_all(classifier, precision, base=None).values.values()
        batch = replace(setting, device=torch.device("cpu")).batch()
        labels = batch.pop("labels")
        with TensorMemory(tensors) as memory:
            before = memory.live
            loss = F.cross_entropy(classifier(**batch), labels)
            loss.backward()  # type: ignore[no-untyped-call]
    return float(memory.peak - before) / rows


def _without_mask(module: nn.Module, args: Any, named: dict[str, Any]) -> tuple[Any, Any]:
    masked = "attention_mask" in named and LAYOUT not in named  # a layout has masks of its own
    return args, named | ({"attention_mask": None} if masked else {})


def _patch_all(backbone: nn.Module, method: SpartaConfig, setting: Setting) -> list[Tensor]:
    """Deltas at the expected number of indices, each layer as on its device."""
    chances = sampled_tensors(backbone, method.density, method.targets, method.density_of)
    made: list[Tensor] = []
    for path, module in list(backbone.named_modules()):
        deltas, entries, way = {}, {}, "dense"
        for name, tensor in module.named_parameters(recurse=False):
            chance = chances.get(f"{path}.{name}" if path else name, 0.0)
            if chosen := round(chance * tensor.numel()):
                values = torch.zeros(chosen, dtype=setting.precision.trained_dtype)
                indices = torch.zeros(chosen, dtype=torch.int32)
                deltas[name] = nn.Parameter(values)
                entries[name] = ChosenEntries(indices, torch.zeros(chosen, dtype=tensor.dtype))
                made += [deltas[name], indices]
                if _is_sampled_at(tensor.shape, chance, setting):
                    way = "sampled"
        if deltas:
            patch(module, deltas, entries, way)
    return made


# -------------------------------------------------------------------------------- the peak
@dataclass(frozen=True)
class Estimate:
    """What one method needs on one model, for rows of `setting.tokens` tokens. `activations` is by
    whether gradients are checkpointed. With several `gpus`, among which FSDP cuts the model, bytes
    are those of each and rows are shared; `gathered` are the weights that each has for a while."""

    name: str
    setting: Setting
    counts: ParameterCounts
    parts: Parts
    transient: Transient
    layers: int
    activations: dict[bool, Activations]
    gpus: int = 1
    gathered: int = 0

    def activation_bytes(self, rows: int, checkpointing: bool) -> int:
        """Return what a batch needs beside the parts, all gradients aside."""
        size = self.activations[checkpointing]
        return self._of_rows(rows, self.layers * size.kept + size.at_work)

    def _of_rows(self, rows: int, size: float) -> int:
        """Of a GPU's share of the rows. A prefix that is computed once counts in rows of what each
        has beside it."""
        rows = -(-rows // self.gpus)
        shared = self.setting.shared_tokens if rows > 1 else 0
        return round((rows + shared / (self.setting.tokens - shared)) * size)

    def at_peak(self, rows: int, checkpointing: bool) -> dict[str, int]:
        """Return the bytes of each part when a step needs the most; no rows: no batch at all.

        That is either the beginning of the backward pass, with all activations and no gradients
        but SpaRTA's; or its end, with all gradients but the last, and one layer at work; or what
        comes then: the last gradients, and the optimizer's step.
        """
        parts, passing, size = self.parts, self.transient, self.activations[checkpointing]
        all_kept = self.activation_bytes(rows, checkpointing)
        at_work = self._of_rows(rows, size.at_work + size.last)
        gradients, activations = max(
            (passing.first + passing.backward, all_kept),
            (parts.gradients - passing.last + passing.backward, at_work),
            (parts.gradients + max(passing.backward, passing.update), 0),
            key=sum,
        )
        weights = parts.weights + self.gathered
        changed = {"weights": weights, "gradients": gradients, "activations": activations}
        return parts.as_dict() | changed

    def peak_bytes(self, rows: int, checkpointing: bool) -> int:
        return sum(self.at_peak(rows, checkpointing).values())

    def footprint(self, checkpointing: bool) -> Footprint:
        smallest, peak = (self.peak_bytes(n, checkpointing) for n in (0, self.setting.rows))
        return Footprint(self.parts, self.parts.held, smallest, peak)

    def largest_rows(self, limit_bytes: int, checkpointing: bool) -> int:
        """Return the largest batch within a limit; 0 where not even one row fits."""
        rows = range(1, MOST_ROWS)
        return bisect_right(rows, limit_bytes, key=lambda n: self.peak_bytes(n, checkpointing))

    def as_dict(self, limits_gib: Sequence[int]) -> dict[str, Any]:
        """Return the row of the JSON; of a GPU `KEPT_FREE` is kept free."""
        rows = self.setting.rows
        formula = paper_formula_bytes(self.counts, self.setting.config.method.name)
        row = {
            "name": self.name,
            "trainable": self.counts.trainable,
            "dtypes": self.setting.precision.as_dict(),
            "parts_bytes": self.parts.as_dict(),
            "total_bytes": self.parts.total,
            "paper_formula_bytes": formula["total"],
        }
        for way, name in CHECKPOINTING.items():
            most = {str(n): self.largest_rows((n << 30) - KEPT_FREE, way) for n in limits_gib}
            row[name] = {
                "activation_bytes": self.activation_bytes(rows, way),
                "peak_bytes": self.peak_bytes(rows, way),
                "at_peak_bytes": self.at_peak(rows, way),
                "largest_rows": most,
            }
        return row


def setting_of(name: str, like: Setting) -> Setting:
    """Return the same with the method of this name, and with the dtypes that its presets give."""
    method, _, density = name.partition("-")
    words = [f"method={method}"] + ([f"method.density={density}"] if density else [])
    return like.changed(*words)


def estimate(name: str, like: Setting, gpus: int = 1) -> Estimate:
    """Return the estimate for a method on the device of `like`, which need not be there. Raises
    InputError if the model's shape cannot be had, or the method does not fit it."""
    return estimate_of(name, setting_of(name, like), gpus=gpus)


def estimate_of(
    name: str, setting: Setting, ways: Iterable[bool] = tuple(CHECKPOINTING), gpus: int = 1
) -> Estimate:
    """The same for a setting with its own method; `ways` are those of `activations`."""
    architecture, config = load_architecture(setting.config.model), setting.config
    backbone = empty_backbone(architecture)
    counts = count_parameters(shapes_of(backbone), len(config.task.labels), config.method)
    parts = parts_of(setting, counts, gpus)
    transient = transient_of(setting, backbone, counts, gpus)
    activations = {way: activations_of(setting, way) for way in ways}
    layers = architecture.num_hidden_layers
    gathered = gathered_bytes(setting, backbone) if gpus > 1 else 0
    return Estimate(name, setting, counts, parts, transient, layers, activations, gpus, gathered)
