"""The last decoder layer for each input's last token, the only one that a classifier reads.

That layer needs the keys and values of all tokens, but query, output projection, residuals, norms
and MLP of the last token alone; so does the norm after it. A hook on the layer computes keys and
values, then hands the layer the last tokens alone: its own code does the rest, as it is.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from sparta_bench.models.packed_attention import KINDS, LAYOUT, LastTokens, Layout

# of which attention and layer are known to be as `_last_tokens_alone` takes them
ARCHITECTURES = ("gemma", "gemma2", "llama", "mistral", "qwen2")


def plain_model(backbone: nn.Module) -> Any:
    """transformers' own model, also where peft has wrapped it."""
    unwrap = getattr(backbone, "get_base_model", None)
    return backbone if unwrap is None else unwrap()


def is_causal(backbone: nn.Module) -> bool:
    """Whether tokens see only those before them."""
    config = plain_model(backbone).config
    both_ways = getattr(config, "use_bidirectional_attention", False)
    return getattr(config, "is_causal", True) and not both_ways


def knows_last_layer(backbone: nn.Module) -> bool:
    """Whether the last layer can be cut to the last token."""
    config = plain_model(backbone).config
    known = config.model_type in ARCHITECTURES
    return known and is_causal(backbone) and config._attn_implementation in KINDS


def cut_last_layer(backbone: nn.Module) -> None:
    """Let the last layer compute the last tokens alone. Without a layout it is as it was."""
    layer = plain_model(backbone).layers[-1]
    if _last_tokens_alone not in layer._forward_pre_hooks.values():
        layer.register_forward_pre_hook(_last_tokens_alone, with_kwargs=True)


def _last_tokens_alone(layer: Any, args: Any, named: dict[str, Any]) -> Any:
    layout = named.get(LAYOUT)
    if not isinstance(layout, Layout) or not layout.cuts_last_layer:
        return None
    (hidden,) = args
    attention, read = layer.self_attn, layout.last_tokens
    cos, sin = named["position_embeddings"]
    normed = layer.input_layernorm(hidden)
    by_head = (*hidden.shape[:-1], -1, attention.head_dim)
    keys = attention.k_proj(normed).view(by_head).transpose(1, 2)
    values = attention.v_proj(normed).view(by_head).transpose(1, 2)
    _, keys = sys.modules[type(attention).__module__].apply_rotary_pos_emb(keys, keys, cos, sin)
    return (hidden[:, read],), named | {
        LAYOUT: LastTokens(layout, *(layout.with_prefix(*layout.parts(s)) for s in (keys, values))),
        "position_ids": named["position_ids"][:, read],
        "position_embeddings": (cos[:, read], sin[:, read]),
    }
