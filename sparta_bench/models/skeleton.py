"""Gemma's and Mistral's decoders as bare torch layers, to count: transformers' own classes take
seconds of a processor to import."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from sparta_bench.models.counts import empty_backbone


def skeleton(architecture: Any) -> nn.Module | None:
    """Return a module whose tensors have the names and shapes of the backbone's, on the meta
    device; None for another architecture than the two."""
    named = architecture.model_type in ("gemma", "mistral")
    if not named or getattr(architecture, "attention_bias", False):
        return None
    if str(architecture.hidden_act) not in ACT2FN:  # the real class says what is wrong
        return None
    hidden, wide = architecture.hidden_size, architecture.intermediate_size
    heads = architecture.num_attention_heads
    width = architecture.head_dim or hidden // heads
    queries, keys = heads * width, architecture.num_key_value_heads * width

    def layer() -> nn.Module:
        attention = {
            "q_proj": (hidden, queries),
            "k_proj": (hidden, keys),
            "v_proj": (hidden, keys),
            "o_proj": (queries, hidden),
        }
        mlp = {"gate_proj": (hidden, wide), "up_proj": (hidden, wide), "down_proj": (wide, hidden)}
        norms = ("input_layernorm", "post_attention_layernorm")
        return nn.ModuleDict(
            {"self_attn": _linear(attention), "mlp": _linear(mlp)}
            | {name: nn.RMSNorm(hidden) for name in norms}
        )

    with torch.device("meta"):
        # not drawn: drawing normal numbers on the meta device imports torch's compiler
        embeddings = torch.empty(architecture.vocab_size, hidden)
        backbone: Any = nn.Module()
        lookup: Any = nn.Embedding  # whose constructors are not typed
        backbone.embed_tokens = lookup.from_pretrained(embeddings, freeze=False)
        backbone.layers = nn.ModuleList(layer() for _ in range(architecture.num_hidden_layers))
        backbone.norm = nn.RMSNorm(hidden)
    backbone.config = architecture
    backbone._supports_attention_backend = True  # as both say, for `tokens_once.cannot_share`
    backbone.config._attn_implementation = "sdpa"
    return backbone  # type: ignore[no-any-return]


def skeleton_or_empty(architecture: Any) -> nn.Module:
    """The same of any architecture, from transformers' class where need be. Raises InputError if
    that cannot make a model of these settings."""
    return skeleton(architecture) or empty_backbone(architecture)


def _linear(sizes: dict[str, tuple[int, int]]) -> nn.Module:
    return nn.ModuleDict({name: nn.Linear(*size, bias=False) for name, size in sizes.items()})
