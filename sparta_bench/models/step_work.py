"""What a step has to compute: tokens, and FLOPs of linear layers and attention, by shapes alone; no
torch."""

from __future__ import annotations

import math
from typing import NamedTuple

from sparta_bench.config.schema import LoraConfig, MethodConfig, SpartaConfig, TrainConfig
from sparta_bench.models.counts import Shapes
from sparta_bench.sparta.sampling_cost import sampling_pays
from sparta_bench.sparta.targets import chances_of

MIN_PREFIX_TOKENS = 8  # for `auto`; a shorter one saves little
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


class Once(NamedTuple):
    """What of a batch is computed: the arguments of `tokens_once.TokensOnce`."""

    prefix_tokens: int
    last_layer: bool
    in_training: bool


def draws_dropout(train: TrainConfig, method: MethodConfig) -> bool:
    """Whether training draws dropout in the backbone."""
    return train.dropout > 0 or (isinstance(method, LoraConfig) and method.lora_dropout > 0)


def planned(shapes: Shapes, train: TrainConfig, method: MethodConfig, prefix_tokens: int) -> Once:
    """What a run computes, if no difference is found when it begins."""
    if train.share_prefix is False:
        return Once(0, False, True)
    wanted = prefix_tokens >= (MIN_PREFIX_TOKENS if train.share_prefix == "auto" else 1)
    shared = prefix_tokens if wanted and shapes.shares_prefix else 0
    in_training = train.share_prefix is True or not draws_dropout(train, method)
    return Once(shared, shapes.cuts_last_layer, in_training)


class Shape(NamedTuple):
    """What of a backbone decides its FLOPs; `weights` and `keys` are scalars of one layer."""

    layers: int
    weights: float  # of all matrices
    keys: int  # of the matrices that give keys and values
    pair: int  # FLOPs of a query and a key, in the forward pass of one layer


def shape_of(shapes: Shapes) -> Shape:
    """Of a decoder. Layers are taken to be of one size."""
    sizes = {name: math.prod(shape) for name, shape in _matrices(shapes).items()}
    layers = shapes.layers
    keys = sum(size for name, size in sizes.items() if name.split(".")[-2] in ("k_proj", "v_proj"))
    return Shape(layers, sum(sizes.values()) / layers, keys // layers, 4 * shapes.heads_width)


def _matrices(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    return {
        name: shape
        for name, shape in shapes.tensors.items()
        if len(shape) == 2 and name not in shapes.embeddings
    }


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
    shapes: Shapes, method: MethodConfig, tokens: float, device_kind: str, threads: int = 1
) -> float | None:
    """As `step_flops` takes it, for a method and a batch of so many tokens on `cpu` or `cuda`.

    The device need not be there; `threads` is how many compute where it is a CPU.
    """
    if method.name == "head":
        return None
    if isinstance(method, LoraConfig):
        return 0.0
    if not isinstance(method, SpartaConfig):
        return 1.0
    sizes = {name: math.prod(shape) for name, shape in shapes.tensors.items()}
    asked = method.density, method.targets, method.density_of
    chances = chances_of(sizes, shapes.embeddings, *asked)
    matrices = _matrices(shapes)
    dense = sum(
        sizes[name]
        for name, shape in matrices.items()
        if name in chances
        and not sampling_pays(
            shape, round(chances[name] * sizes[name]), tokens, device_kind, threads
        )
    )
    return dense / sum(sizes[name] for name in matrices)


def _products(shape: Shape, work: Work) -> float:
    tokens = (shape.layers - 1) * work.tokens + work.last_tokens
    return 2 * (shape.weights * tokens + shape.keys * work.key_tokens)


def _attention(shape: Shape, work: Work) -> float:
    return shape.pair * ((shape.layers - 1) * work.pairs + work.last_pairs)
