"""Build the classifier of an experiment, with its weights; the head of an instruction model is the
vocabulary rows of the answers' first tokens (section 6.3)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from sparta_bench.config.schema import Config, ModelConfig
from sparta_bench.devices import heavy_imports
from sparta_bench.errors import InputError, log
from sparta_bench.files import json_of
from sparta_bench.models.classifier import Classifier, checkpoint_gradients, random_head
from sparta_bench.models.dropout import set_dropout
from sparta_bench.models.dtypes import STORED_DTYPES, Precision
from sparta_bench.models.load_sharded import build_sharded, read_rows
from sparta_bench.models.source import answer_tokens, cannot_be_loaded, folder_of, label_of
from sparta_bench.models.stored_tensors import (
    checkpoint_files,
    file_with,
    folder_with_weights,
    is_head,
    open_file,
)
from sparta_bench.sparta.sharded import whole

ADAPTER = "adapter_config.json"  # peft's
OTHER_WEIGHTS = "transformers_weights"
# `layers.0.mlp.experts.3.w1.weight`: one of a list of modules
EXPERT = re.compile(r".*experts\.\d+\.")
# What transformers' language models do to their logits, by the key of the configuration: multiply
# (1) or divide (-1). A model_type that does otherwise is named with the key; 0 is not at all.
SCALES = {
    "logit_scale": 1,  # Cohere
    "lm_head_multiplier": 1,  # Falcon-H1
    "output_multiplier": 1,  # Muse
    "logits_scaling": -1,  # Granite, MiniCPM
    "logits_mup_width_multiplier": -1,  # Inkling
}
OTHERWISE = {("hyperclovax", "logits_scaling"): 1, ("mpt", "logit_scale"): 0}
T = TypeVar("T")


def load_classifier(
    config: Config, tokenizer: Any, precision: Precision, device: torch.device, backbone: Any = None
) -> Classifier:
    """The pretrained backbone in `precision.model_dtype` with its head, all frozen, on `device`. A
    `backbone` that another run has used, and restored, is taken in place of the one on disk."""
    sharded = config.train.sharding == "fsdp"
    if backbone is None:
        if sharded:
            backbone = load_sharded(config.model, precision.model_dtype, device)
        else:
            backbone = load_backbone(config.model, precision.model_dtype)
        added = 1 if config.task.separator == "sep_token" else 0
        fit_embeddings(backbone, tokenizer, added, config.seed)
    classes = len(config.task.labels)
    if config.model.kind == "instruct":
        ids = answer_tokens(tokenizer, list(config.task.prompt.answers))
        head = vocabulary_rows(backbone, folder_of(config.model), ids)
    else:
        head = random_head(classes, backbone.config.hidden_size, config.seed)
    classifier = Classifier(backbone, head.to(precision.trained_dtype))
    # all else of a sharded one is there, and FSDP has hold of it
    (classifier.head if sharded else classifier).to(device)
    set_dropout(backbone, config.train.dropout)
    # FSDP learns in its first forward pass, which `set_dropout` makes, in which dtype weights train
    classifier.requires_grad_(False)
    if config.train.gradient_checkpointing:
        checkpoint_gradients(backbone)
    return classifier


def load_backbone(model: ModelConfig, dtype: torch.dtype) -> Any:
    """The pretrained decoder without its head, on the CPU, in `dtype`. Raises InputError if it
    cannot be had, or lacks weights."""
    transformers_logging.disable_progress_bar()
    folder, label = _checked_folder(model)
    try:
        with heavy_imports():  # of the model's own code
            backbone, report = with_attention(
                lambda attention: AutoModel.from_pretrained(
                    folder,
                    dtype=dtype,
                    attn_implementation=attention,
                    use_safetensors=True,  # never a pickle
                    trust_remote_code=False,
                    ignore_mismatched_sizes=True,  # refused below, by name
                    output_loading_info=True,
                )
            )
    except Exception as error:  # the libraries raise many kinds for broken or missing files
        raise cannot_be_loaded(model, error) from None
    _check_report(label, report)
    _tell_of_attention(label, backbone)
    return backbone


def load_sharded(model: ModelConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """`load_backbone` of which each process of the run has its rows, on `device`. Raises InputError
    also if weights are stored otherwise than the architecture has them."""
    from torch.distributed import get_world_size

    folder, label = _checked_folder(model)
    try:
        with heavy_imports():  # of the model's own code
            backbone = with_attention(
                partial(build_sharded, folder, dtype, device, get_world_size())
            )
    except Exception as error:  # transformers raises many kinds for a broken configuration
        raise cannot_be_loaded(model, error) from None
    names = (name for name, _ in backbone.named_parameters())
    if (expert := next(filter(EXPERT.match, names), None)) is not None:
        raise InputError(
            f"train.sharding=fsdp: use another model: {label} has a module for each expert "
            f"({expert}), and processes whose texts choose other experts would wait for each other"
        )
    read_rows(backbone, label, folder, dtype, device)
    _tell_of_attention(label, backbone)
    return backbone


def _checked_folder(model: ModelConfig) -> tuple[Path, str]:
    """The folder of a model's weights, and what errors call it. Raises InputError unless these are
    plain weights that transformers will read from there."""
    transformers_logging.set_verbosity_error()
    folder, label = folder_with_weights(model), label_of(model)
    _refuse_other_weights(label, folder)
    for path in checkpoint_files(label, folder):
        _refuse_quantised(label, path)
    return folder, label


def _tell_of_attention(label: str, backbone: Any) -> None:
    if attention_of(backbone) != "sdpa":
        log(f"{label}: its attention is not fused; transformers has only {attention_of(backbone)}")


def _refuse_quantised(label: str, path: Path) -> None:
    # without their scales, which transformers would leave out, such weights mean nothing
    file = open_file(path)
    for name in file.keys():
        kind = file.get_slice(name).get_dtype()
        if name.endswith(".weight") and kind not in STORED_DTYPES:
            raise InputError(f"{label}: {name} is of kind {kind}; quantised models cannot train")


def _check_report(label: str, report: dict[str, Any]) -> None:
    """Raise InputError unless the checkpoint has each tensor of the backbone, and no other."""
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        raise InputError(
            f"{label}: the checkpoint's {name} has the shape {tuple(stored)}, where "
            f"{tuple(wanted)} follows from config.json"
        )
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"{label}: {len(missing)} tensors are missing in the checkpoint, "
            f"the first is {missing[0]}"
        )
    # a head of the vocabulary, or of a classifier that was saved whole, is left out
    unknown = [name for name in sorted(report["unexpected_keys"]) if not is_head(name)]
    if unknown:
        raise InputError(
            f"{label}: {len(unknown)} tensors of the checkpoint have no "
            f"place in the architecture of config.json, the first is {unknown[0]}"
        )


def _refuse_other_weights(label: str, folder: Path) -> None:
    # transformers would put an adapter on, or load the base that it names, from wherever that is
    if (folder / ADAPTER).exists():
        raise InputError(
            f"{label}: an adapter is there ({ADAPTER}); merge it into its base first, with "
            "peft's merge_and_unload, or give the base"
        )
    # and would read the file that is named there, a pickle too, and not those checked here
    try:
        config = json_of(folder / "config.json")
    except (OSError, ValueError):
        return  # transformers says so
    if isinstance(config, dict) and OTHER_WEIGHTS in config:
        raise InputError(f"{label}: config.json names the file of the weights ({OTHER_WEIGHTS})")


def fit_embeddings(backbone: Any, tokenizer: Any, added: int, seed: int) -> None:
    """Make room for `added` tokens of the tokenizer, such as the authors' `<sep>`: random rows,
    drawn from `seed`, and frozen in every method but full_ft. Raises InputError if the tokenizer
    has still more tokens: it is another model's."""
    rows, tokens = backbone.get_input_embeddings().num_embeddings, len(tokenizer)
    if tokens <= rows:
        return
    if tokens > rows + added:
        raise InputError(
            f"{tokenizer.name_or_path}: its tokenizer has {tokens} tokens, and the model only "
            f"{rows} embeddings"
        )
    torch.manual_seed(seed)
    backbone.resize_token_embeddings(tokens, mean_resizing=False)


def with_attention(build: Callable[[str], T]) -> T:
    """What `build` makes with "sdpa", torch's fused attention; with "eager", the model's own code,
    where transformers has no other for the architecture (gemma-2, bloom)."""
    try:
        return build("sdpa")
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
    return build("eager")


def attention_of(backbone: Any) -> str:
    """ "sdpa" or "eager": what transformers computes this model's attention with."""
    return str(backbone.config._attn_implementation)


def vocabulary_rows(backbone: nn.Module, folder: Path, ids: list[int]) -> Tensor:
    """Rows of the vocabulary head (len(ids) x hidden, float32), copied, times the model's own
    scale of logits: so the head starts with the logits that the model itself has for the answers,
    before it caps them or adds a bias. A tied head is the embedding; an untied one is read from the
    checkpoint row by row, so that the whole of it is never in memory."""
    scale = scale_of_logits(backbone.config)
    if backbone.config.tie_word_embeddings:  # type: ignore[union-attr]
        embedding: Tensor = backbone.get_input_embeddings().weight  # type: ignore[operator, union-attr, assignment]
        return whole(embedding)[ids].float() * scale
    file = open_file(file_with("lm_head.weight", folder))
    if "lm_head.weight" not in file.keys():
        raise InputError(
            f"model.path={folder}: the checkpoint has no lm_head.weight, and an instruction "
            "model needs its answers' rows (model.kind=base starts from a random head)"
        )
    rows = file.get_slice("lm_head.weight")
    return torch.cat([rows[i : i + 1] for i in ids]).float() * scale


def scale_of_logits(config: Any) -> float:
    """By what a language model of this transformers configuration multiplies its logits."""
    shape, scale = config.get_text_config(), 1.0
    for key, power in SCALES.items():
        power = OTHERWISE.get((shape.model_type, key), power)
        value = getattr(shape, key, None)
        if value is not None and power:
            scale *= value**power
    return scale
