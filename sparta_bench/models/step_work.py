"""What a forward pass has to compute, where each token is computed once."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from sparta_bench.models.last_layer import plain_model


class Work(NamedTuple):
    """Of a batch whose inputs are all padded to one length.

    What the layers keep for the backward pass grows with `tokens` in all layers but the last. In
    the last one, MLP and output projection keep what they need of `last_tokens`; `key_tokens` keep
    the layer's input, its norm, keys and values. Each layer also keeps the prefix's keys and values
    once for each input, beside the input's own.
    """

    tokens: int  # that pass through each layer but the last
    pairs: int  # of a query and a key, in each layer but the last
    last_tokens: int  # that pass through the last layer
    last_pairs: int
    key_tokens: int  # of which the last layer computes keys and values alone, beside these


def work_of(rows: int, tokens: int, prefix_tokens: int = 0, last_layer: bool = False) -> Work:
    """For `rows` inputs of `tokens` tokens, as `TokensOnce` computes them."""
    shared = prefix_tokens if rows > 1 else 0
    own = tokens - shared
    each, pairs = shared + rows * own, shared * shared + rows * own * tokens
    if not last_layer:
        return Work(each, pairs, each, pairs, 0)
    return Work(each, pairs, rows, rows * tokens, each)


def forward_flops(backbone: nn.Module, work: Work) -> int:
    """Products and sums in linear layers and attention; the backbone may be on the meta device."""
    model = plain_model(backbone)
    *_, last = layers = model.layers
    weights = sum(tensor.numel() for tensor in last.parameters() if tensor.dim() == 2)
    attention = last.self_attn
    keys = attention.k_proj.weight.numel() + attention.v_proj.weight.numel()
    pair = 4 * model.config.num_attention_heads * attention.head_dim
    others = len(layers) - 1
    products = weights * (others * work.tokens + work.last_tokens) + keys * work.key_tokens
    return int(2 * products + pair * (others * work.pairs + work.last_pairs))
