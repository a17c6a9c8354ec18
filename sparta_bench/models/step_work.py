"""What a step has to compute: tokens, and FLOPs of linear layers and attention, by shapes alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from sparta_bench.config.schema import LoraConfig, MethodConfig, SpartaConfig
from sparta_bench.models.counts import embedding_names
from sparta_bench.models.last_layer import plain_model
from sparta_bench.sparta.gradient import sampling_pays
from sparta_bench.sparta.sample import sampled_tensors

# Of attention's products: two in the forward pass, five in the backward pass of fused attention.
ATTENTION_BACKWARD = 2.5


class Work(NamedTuple):
    """Of a batch whose inputs are all padded to one length, as `TokensOnce` computes it."""

    tokens: float  # that pass through each layer but the last
    pairs: float  # of a query and a key, in each layer but the last
    last_tokens: float  # that pass through the last layer
    last_pairs: float
    key_tokens: float  # of which the last layer computes keys and values alone, beside these


def work_of(rows: int, tokens: float, prefix_tokens: int = 0, last_layer: bool = False) -> Work:
    """For `rows` inputs of `tokens` tokens, of which the first `prefix_tokens` are the same in
    all and computed once; `last_layer`: each input's last token alone goes through that."""
    shared = prefix_tokens if rows > 1 else 0
    own = tokens - shared
    each, pairs = shared + rows * own, shared * shared + rows * own * tokens
    if not last_layer:
        return Work(each, pairs, each, pairs, 0)
    return Work(each, pairs, rows, rows * tokens, each)


class Shape(NamedTuple):
    """What of a backbone decides its FLOPs; `weights` and `keys` are scalars of one layer."""

    layers: int
    weights: float  # of all matrices
    keys: int  # of the matrices that give keys and values
    pair: int  # FLOPs of a query and a key, in the forward pass of one layer


def shape_of(backbone: nn.Module) -> Shape:
    """Of a decoder on any device. Layers are taken to be of one size."""
    model = plain_model(backbone)
    config, embeddings = model.config, embedding_names(model)
    matrices = {
        name: tensor.numel()
        for name, tensor in model.named_parameters()
        if tensor.dim() == 2 and name not in embeddings
    }
    layers = config.num_hidden_layers
    heads = getattr(config, "num_attention_heads", None) or 0  # a model may have no attention
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    keys = sum(n for name, n in matrices.items() if name.split(".")[-2] in ("k_proj", "v_proj"))
    return Shape(layers, sum(matrices.values()) / layers, keys // layers, 4 * heads * width)


def forward_flops(shape: Shape, work: Work) -> float:
    """Of a forward pass without gradients."""
    return _products(shape, work) + _attention(shape, work)


def step_flops(shape: Shape, work: Work, dense_share: float | None, recomputed: bool) -> float:
    """Of a training step, forward and backward.

    Parameters
    ----------
    dense_share
        Share of the matrices whose gradient is computed as a whole (`dense_share_of`); None where
        nothing in the backbone trains, so that there is no backward pass through it.
    recomputed
        Whether activations are computed again in the backward pass.
    """
    products, attention = _products(shape, work), _attention(shape, work)
    if dense_share is None:
        return products + attention
    backward = (1 + dense_share) * products + ATTENTION_BACKWARD * attention
    return backward + (2 if recomputed else 1) * (products + attention)


def dense_share_of(
    backbone: nn.Module, method: MethodConfig, tokens: float, device: torch.device
) -> float | None:
    """As `step_flops` takes it, for a method and a batch of so many tokens on such a device, which
    need not be there."""
    if method.name == "head":
        return None
    if isinstance(method, LoraConfig):
        return 0.0
    if not isinstance(method, SpartaConfig):
        return 1.0
    tensors = {n: t for n, t in backbone.named_parameters() if t.dim() == 2}
    chances = sampled_tensors(backbone, method.density, method.targets, method.density_of)
    dense = sum(
        tensors[name].numel()
        for name, chance in chances.items()
        if name in tensors
        and not sampling_pays(
            tensors[name].shape, round(chance * tensors[name].numel()), tokens, device
        )
    )
    embeddings = embedding_names(backbone)
    return dense / sum(tensor.numel() for n, tensor in tensors.items() if n not in embeddings)


def _products(shape: Shape, work: Work) -> float:
    tokens = (shape.layers - 1) * work.tokens + work.last_tokens
    return 2 * (shape.weights * tokens + shape.keys * work.key_tokens)


def _attention(shape: Shape, work: Work) -> float:
    return shape.pair * ((shape.layers - 1) * work.pairs + work.last_pairs)
