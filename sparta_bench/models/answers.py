"""Heads of instruction models: the vocabulary rows of the answers' first tokens (section 6.3)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparta_bench.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

CONTEXT = "Response:"  # how every prompt ends

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


def answer_tokens(tokenizer: Any, answers: list[str]) -> list[int]:
    """The token with which each answer begins after the prompt, leading space included. Raises
    InputError if an answer does not begin with a token of its own."""
    prefix = tokenizer(CONTEXT)["input_ids"]
    ids, lines = [], []
    for answer in answers:
        tokens = tokenizer(f"{CONTEXT} {answer}")["input_ids"]
        token = tokens[len(prefix)] if tokens[: len(prefix)] == prefix < tokens else None
        text = "" if token is None else tokenizer.decode([token]).strip()
        # some tokenizers lower-case what they read
        begins = bool(text) and answer.casefold().startswith(text.casefold())
        if token is None or token == tokenizer.unk_token_id or not begins:
            lines.append(
                f"task.prompt.answers: {answer!r} is not one token's start after {CONTEXT!r} in "
                f"this tokenizer (it reads {text!r})"
            )
        else:
            ids.append(token)
    if lines:
        raise InputError(*lines)
    if len(set(ids)) < len(ids):
        raise InputError(
            f"task.prompt.answers={answers}: two answers begin with the same token ({ids})"
        )
    return ids


def vocabulary_rows(backbone: nn.Module, folder: Path, ids: list[int]) -> Tensor:
    """Rows of the vocabulary head (len(ids) x hidden, float32), copied, times the model's own
    scale of logits: so the head starts with the logits that the model itself has for the answers.
    (Where the model caps its logits, or its head has a bias, before that.)

    A tied head is the embedding. An untied one is read from the checkpoint row by row, so that
    the whole of it is never in memory.
    """
    import torch
    from safetensors import safe_open

    from sparta_bench.models.weight_files import file_with
    from sparta_bench.sparta.sharded import whole

    scale = scale_of_logits(backbone.config)
    if backbone.config.tie_word_embeddings:  # type: ignore[union-attr]
        embedding: Tensor = backbone.get_input_embeddings().weight  # type: ignore[operator, union-attr, assignment]
        return whole(embedding)[ids].float() * scale
    with safe_open(file_with("lm_head.weight", folder), framework="pt") as file:
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
