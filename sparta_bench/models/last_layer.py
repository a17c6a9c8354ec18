"""The last decoder layer for each input's last token, the only one that a classifier reads.

That layer needs the keys and values of all tokens, but query, output projection, residuals, norms
and MLP of the last token alone; so does the norm after it. A hook on the layer computes keys and
values, then hands the layer the last token alone, with a cache that gives these keys and values:
the layer's own code does the rest, exactly as it is.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

# of which attention and layer are known to be as `_last_token_alone` takes them
ARCHITECTURES = ("gemma", "gemma2", "llama", "mistral", "qwen2")
CACHE_ARGUMENTS = ("past_key_values", "cache")  # until transformers 5.23, from 5.24 on


class InputCache(Cache):  # type: ignore[misc]
    """What a forward pass reads of the tokens before its own, and what it is to leave out.

    Nothing is written into it, so gradient checkpointing may run a layer again with it. No layer
    is a sliding one: all keys are there, and the mask says which of them a query sees.

    Parameters
    ----------
    prefix
        By layer, keys and values of the tokens before (1 x heads x tokens x size).
    tokens
        How many these are.
    last
        Which token of each row is to leave the last layer (int64, rows); None: all.
    """

    def __init__(
        self, prefix: dict[int, tuple[Tensor, Tensor]], tokens: int, last: Tensor | None
    ) -> None:
        super().__init__(layers=[])
        self.prefix, self.tokens, self.last = prefix, tokens, last

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of the prefix and of these tokens."""
        if not self.tokens:
            return key_states, value_states
        keys, values = self.prefix[layer_idx]
        rows = len(key_states)
        return (
            torch.cat([keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens were there before."""
        return self.tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """How many keys a query has, and the position of the first."""
        return self.tokens + query_length, 0


class Recorder(InputCache):
    """Keeps the keys and values that a pass computes; the first ones, which have their gradient:
    gradient checkpointing computes others in the backward pass."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """These keys and values."""
        self.prefix.setdefault(layer_idx, (key_states, value_states))
        return key_states, value_states


class _AllKeys(Cache):  # type: ignore[misc]
    """Keys and values of all tokens, for a layer that computes the last one's."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__(layers=[])
        self.keys, self.values = keys, values

    def update(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


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
    return known and is_causal(backbone) and config._attn_implementation in ("sdpa", "eager")


def cut_last_layer(backbone: nn.Module) -> None:
    """Let the last layer obey `InputCache.last`. Without such a cache it is as it was."""
    layer = plain_model(backbone).layers[-1]
    if _last_token_alone not in layer._forward_pre_hooks.values():
        layer.register_forward_pre_hook(_last_token_alone, with_kwargs=True)


def _last_token_alone(layer: Any, args: Any, named: dict[str, Any]) -> Any:
    argument = next((name for name in CACHE_ARGUMENTS if name in named), "")
    cache = named.get(argument)
    if not isinstance(cache, InputCache) or cache.last is None:
        return None
    (hidden,) = args
    attention, last = layer.self_attn, cache.last
    cos, sin = named["position_embeddings"]
    normed = layer.input_layernorm(hidden)
    by_head = (*hidden.shape[:-1], -1, attention.head_dim)
    keys = attention.k_proj(normed).view(by_head).transpose(1, 2)
    values = attention.v_proj(normed).view(by_head).transpose(1, 2)
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    _, keys = rotate(keys, keys, cos, sin)
    keys, values = cache.update(keys, values, attention.layer_idx)
    rows = torch.arange(len(hidden), device=hidden.device)

    def of_last(tensor: Tensor) -> Tensor:
        return tensor.expand(len(rows), *tensor.shape[1:])[rows, last][:, None]

    mask = named["attention_mask"]
    if mask is None:  # as fused attention has it: a query sees the keys up to its own
        places = torch.arange(keys.shape[-2], device=hidden.device)
        mask = (places <= cache.tokens + last[:, None])[:, None, None]
    else:
        mask = mask.expand(len(rows), -1, -1, -1)[rows, :, last][:, :, None]
    return (of_last(hidden),), named | {
        argument: _AllKeys(keys, values),
        "attention_mask": mask,
        "position_ids": of_last(named["position_ids"]),
        "position_embeddings": (of_last(cos), of_last(sin)),
    }
