"""Activations of a step, estimated by a dry run: the real code on tensors without values.

Two decoder layers and three (or three and four, where the last one computes next to nothing) tell
what a further layer keeps and what is there once; the batch is so large that all else vanishes
beside it, a prefix that all rows share included. Attention is that of training
(`models/attention.py`); torch's fused one keeps no scores.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.analysis.memory.parts import is_sampled_at
from sparta_bench.config.schema import LoraConfig, SpartaConfig
from sparta_bench.errors import InputError, reason_of
from sparta_bench.methods.full_ft import train_all
from sparta_bench.methods.lora import wrap_in_lora
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.counts import shapes_for
from sparta_bench.models.packed_attention import LAYOUT
from sparta_bench.models.source import load_architecture
from sparta_bench.models.tensor_memory import TensorMemory
from sparta_bench.sparta.layer import ChosenEntries, patch
from sparta_bench.sparta.sample import sampled_tensors

MANY_TOKENS = 1 << 22  # beside whose activations no gradient of a weight counts


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
            _peak_of_a_row(_with_layers(setting, layers).with_checkpointing(checkpointing))
            for layers in (fewest, fewest + 1)
        )
    except Exception as error:  # torch and models raise many kinds
        raise InputError(
            f"model={setting.config.model.name}: its activations cannot be found by a dry run: "
            f"{reason_of(error)}"
        ) from None
    kept = more - fewer
    at_work = fewer - fewest * kept
    return Activations(kept, at_work, kept if cut and not checkpointing else 0.0)


def _with_layers(setting: Setting, layers: int) -> Setting:
    """The same with so many layers and a large batch."""
    config = setting.config
    architecture = load_architecture(config.model)
    architecture.num_hidden_layers = layers  # by name: the model may have another key for it
    shape = architecture.to_dict()
    if shape.get("layer_types"):
        shape["layer_types"] = (shape["layer_types"] * layers)[:layers]  # may have fewer
    dtype = setting.precision.as_dict()["model"]
    model = replace(config.model, path=None, embedded=False, shape=shape, dtype=dtype)
    rows = max(MANY_TOKENS // setting.tokens, 1)
    return replace(setting, config=replace(config, model=model), rows=rows)


def _peak_of_a_row(setting: Setting) -> float:
    """Bytes beyond what is there before the forward pass, over the rows."""
    method, precision = setting.config.method, setting.precision
    classifier = replace(setting, device=torch.device("meta")).as_in_a_run()
    classifier.head_weight.requires_grad_(True)
    if isinstance(method, LoraConfig):  # not further below: peft moves what it makes
        wrap_in_lora(classifier, method, precision)
    with FakeTensorMode():
        _make_fake(classifier)
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
    return float(memory.peak - before) / setting.rows


def _make_fake(classifier: Classifier) -> None:
    """On a CPU: the only device whose fused attention runs dry everywhere."""
    # `to_empty` does the same, but refuses to mix devices with values and without
    classifier._apply(lambda t: torch.empty(t.shape, dtype=t.dtype))  # type: ignore[no-untyped-call]
    # no value says that nothing is masked: then keys would be repeated for a mask
    for module in classifier.backbone.modules():
        module.register_forward_pre_hook(_without_mask, with_kwargs=True)


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
                if is_sampled_at(tensor.shape, chance, setting):
                    way = "sampled"
        if deltas:
            patch(module, deltas, entries, way)
    return made
