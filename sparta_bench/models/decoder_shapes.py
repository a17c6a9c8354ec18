"""Shapes of Gemma's and Mistral's decoders, from the numbers of their configuration alone: torch
and transformers take seconds to import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparta_bench.config.schema import ModelConfig
from sparta_bench.files import json_of
from sparta_bench.models.counts import Shapes, empty_backbone
from sparta_bench.models.source import folder_of, load_architecture

if TYPE_CHECKING:
    from torch import nn

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
NORMS = ("input_layernorm", "post_attention_layernorm")
OTHERS: dict[str, Any] = {  # what else a YAML may state, and of what type
    "model_type": str,
    "max_position_embeddings": int,
    "sliding_window": int | None,
    "tie_word_embeddings": bool,
}


def shapes_for(model: ModelConfig) -> Shapes:
    """The shapes of a model's backbone, without its weights. Raises InputError if its configuration
    cannot be had, or no model can be made of it."""
    return known_shapes(model) or shapes_of(empty_backbone(load_architecture(model)))


def shapes_of(backbone: nn.Module) -> Shapes:
    """The shapes of a module on any device."""
    from torch import nn

    from sparta_bench.models.last_layer import knows_last_layer, plain_model
    from sparta_bench.models.tokens_once import cannot_share

    modules = dict(backbone.named_modules())
    config = plain_model(backbone).config
    heads = getattr(config, "num_attention_heads", None) or 0  # a model may have no attention
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return Shapes(
        {name: tuple(tensor.shape) for name, tensor in backbone.named_parameters()},
        {f"{name}.weight" for name, one in modules.items() if isinstance(one, nn.Embedding)},
        {
            name: (one.in_features, one.out_features)
            for name, one in modules.items()
            if isinstance(one, nn.Linear)
        },
        config.hidden_size,
        config.num_hidden_layers,
        heads * width,
        cannot_share(backbone) is None,
        knows_last_layer(backbone),
    )


def known_shapes(model: ModelConfig) -> Shapes | None:
    """The shapes of an embedded model, or of one of the two architectures whose YAML states them;
    None for all others, which transformers has to look at."""
    if model.path is None and model.embedded:
        return decoder_shapes(json_of(folder_of(model) / "config.json"))
    shape = {} if model.path is not None or model.shape is None else model.shape
    others = {name: value for name, value in shape.items() if name not in SIZES}
    if not others.keys() <= OTHERS.keys():
        return None
    if not all(isinstance(value, OTHERS[name]) for name, value in others.items()):
        return None
    return decoder_shapes(shape)


def known_context(model: ModelConfig) -> int | None:
    """How many tokens an embedded model reads at most; None for all others."""
    if model.path is not None or not model.embedded:
        return None
    return int(json_of(folder_of(model) / "config.json")["max_position_embeddings"])


def decoder_shapes(config: Mapping[str, Any]) -> Shapes | None:
    """The shapes by a model's configuration; None where that is of another architecture, or
    something is amiss, of which transformers says what."""
    sizes: list[Any] = [config.get(name) for name in SIZES]
    plain = all(type(size) is int and size > 0 for size in sizes)
    if config.get("model_type") not in ("gemma", "mistral") or not plain:
        return None
    vocabulary, hidden, wide, layers, heads, key_value_heads, width = sizes
    if config.get("attention_bias") or hidden % heads:
        return None
    queries, keys = heads * width, key_value_heads * width
    linear = {  # inputs, outputs
        "self_attn.q_proj": (hidden, queries),
        "self_attn.k_proj": (hidden, keys),
        "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (queries, hidden),
        "mlp.gate_proj": (hidden, wide),
        "mlp.up_proj": (hidden, wide),
        "mlp.down_proj": (wide, hidden),
    }
    every = {f"layers.{i}.{name}": size for i in range(layers) for name, size in linear.items()}
    tensors: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (vocabulary, hidden)}
    tensors |= {f"{name}.weight": (outputs, inputs) for name, (inputs, outputs) in every.items()}
    norms = [f"layers.{i}.{name}" for i in range(layers) for name in NORMS]
    tensors |= {f"{name}.weight": (hidden,) for name in [*norms, "norm"]}
    return Shapes(tensors, {"embed_tokens.weight"}, every, hidden, layers, queries, True, True)
