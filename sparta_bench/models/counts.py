"""What follows from a model's shapes alone: parameter counts (Tables 3 and 4, appendix C), and what
a step has to compute, in tokens and FLOPs. torch and transformers, which take seconds to import,
only where no YAML states the shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sparta_bench.config.schema import (
    LoraConfig,
    MethodConfig,
    ModelConfig,
    SpartaConfig,
    TrainConfig,
)
from sparta_bench.errors import InputError
from sparta_bench.files import json_of
from sparta_bench.models.source import folder_of, load_architecture
from sparta_bench.sparta.sampling_cost import sampling_pays
from sparta_bench.sparta.targets import chances_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

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
MIN_PREFIX_TOKENS = 8  # for `auto`; a shorter one saves little
# Of attention's products: two in the forward pass, five in the backward pass of fused attention.
ATTENTION_BACKWARD = 2.5


class Shapes(NamedTuple):
    """What of a backbone decides counts and work: the shapes of its tensors by name, which of them
    look tokens (or positions) up, its linear layers (inputs, outputs) by name, its width, its
    layers, the width of all heads of one, and what `tokens_once` can do with it."""

    tensors: dict[str, tuple[int, ...]]
    embeddings: set[str]
    linear: dict[str, tuple[int, int]]
    hidden: int
    layers: int
    heads_width: int
    shares_prefix: bool
    cuts_last_layer: bool


def shapes_for(model: ModelConfig) -> Shapes:
    """The shapes of a model's backbone, without its weights. Raises InputError if its configuration
    cannot be had, or no model can be made of it."""
    return known_shapes(model) or shapes_of(empty_backbone(load_architecture(model)))


def known_shapes(model: ModelConfig) -> Shapes | None:
    """The shapes of an embedded model, or of one of the two architectures whose YAML states them;
    None for all others, which transformers has to look at."""
    if model.path is None and model.embedded:
        return decoder_shapes(json_of(folder_of(model) / "config.json"))
    shape = {} if model.path is not None or model.shape is None else model.shape
    others = {name: value for name, value in shape.items() if name not in SIZES}
    known = all(isinstance(value, OTHERS.get(name, ())) for name, value in others.items())
    return decoder_shapes(shape) if known else None


def known_context(model: ModelConfig) -> int | None:
    """How many tokens an embedded model reads at most; None for all others."""
    if model.path is not None or not model.embedded:
        return None
    return int(json_of(folder_of(model) / "config.json")["max_position_embeddings"])


def decoder_shapes(config: Mapping[str, Any]) -> Shapes | None:
    """The shapes of Gemma's and Mistral's decoders by their configuration; None where that is of
    another architecture, or something is amiss, of which transformers says what."""
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


def shapes_of(backbone: nn.Module) -> Shapes:
    """The shapes of a module on any device."""
    from torch import nn

    from sparta_bench.models.packed_attention import cannot_share, knows_last_layer, plain_model

    modules = dict(backbone.named_modules())
    linear = {name: one for name, one in modules.items() if isinstance(one, nn.Linear)}
    config = plain_model(backbone).config
    heads = getattr(config, "num_attention_heads", None) or 0  # a model may have no attention
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return Shapes(
        {name: tuple(tensor.shape) for name, tensor in backbone.named_parameters()},
        {f"{name}.weight" for name, one in modules.items() if isinstance(one, nn.Embedding)},
        {name: (one.in_features, one.out_features) for name, one in linear.items()},
        config.hidden_size,
        config.num_hidden_layers,
        heads * width,
        cannot_share(backbone) is None,
        knows_last_layer(backbone),
    )


def empty_backbone(architecture: PreTrainedConfig) -> nn.Module:
    """The backbone on the meta device: shapes, no memory. Raises InputError if transformers cannot
    make a model of these settings."""
    import torch
    from transformers import AutoModel

    try:
        with torch.device("meta"):
            backbone: nn.Module = AutoModel.from_config(architecture)
    except Exception as error:  # many kinds, for a value that is none of those it may be
        where = architecture.name_or_path or f"model_type={architecture.model_type}"
        raise InputError(
            f"{where}: no model can be made of its config.json ({type(error).__name__}: {error})"
        ) from None
    return backbone


# ---------------------------------------------------------------------------------- parameters
@dataclass(frozen=True)
class ParameterCounts:
    """Scalars of the classifier. `sparsifiable` is total less embeddings and head;
    `sampled` is how many SpaRTA chooses, in expectation (`None` for other methods)."""

    total: int
    embeddings: int
    head: int
    sparsifiable: int
    norms: int
    trainable: int
    sampled: int | None

    def as_dict(self) -> dict[str, int | float | None]:
        """For `plan` and the record; the share (0 to 1) is of the whole model."""
        return {**asdict(self), "trainable_share": self.trainable / self.total}


def count_parameters(shapes: Shapes, classes: int, method: MethodConfig) -> ParameterCounts:
    """Counts of the classifier that a backbone of these shapes would make with the method. Raises
    InputError if the method does not fit the model."""
    sizes = {name: math.prod(shape) for name, shape in shapes.tensors.items()}
    head = classes * shapes.hidden
    embeddings = sum(sizes.get(name, 0) for name in shapes.embeddings)
    total = sum(sizes.values()) + head
    sampled = None
    if isinstance(method, SpartaConfig):
        try:
            chances = _chances(shapes, sizes, method)
        except ValueError as error:
            raise InputError(f"method.{error}") from None
        expected = sum(sizes[name] * chance for name, chance in chances.items())
        sampled, trainable = round(expected), round(expected + head)
    elif isinstance(method, LoraConfig):
        trainable = head + sum(lora_sizes(shapes, method))
    else:
        trainable = head if method.name == "head" else total
    norms = sum(sizes[name] for name, shape in shapes.tensors.items() if len(shape) == 1)
    return ParameterCounts(
        total, embeddings, head, total - embeddings - head, norms, trainable, sampled
    )


def lora_sizes(shapes: Shapes, method: LoraConfig) -> list[int]:
    """Scalars of each low-rank matrix that LoRA would put beside the backbone."""
    layers = [
        layer for name, layer in shapes.linear.items() if name.rpartition(".")[2] in method.targets
    ]
    if not layers:
        raise InputError(
            f"method.targets={list(method.targets)}: no linear layer of the model is called so"
        )
    return [method.r * size for layer in layers for size in layer]


def _chances(shapes: Shapes, sizes: dict[str, int], method: SpartaConfig) -> dict[str, float]:
    asked = method.density, method.targets, method.density_of
    return chances_of(sizes, shapes.embeddings, *asked)


# ---------------------------------------------------------------------------------------- work
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
    return sum(_flops(shape, work))


def step_flops(shape: Shape, work: Work, dense_share: float | None, recomputed: bool) -> float:
    """Of a training step, forward and backward; `recomputed`: activations are computed twice.

    `dense_share` is that of the matrices whose gradient is computed as a whole (`dense_share_of`);
    None where nothing in the backbone trains, so that there is no backward pass through it.
    """
    products, attention = _flops(shape, work)
    if dense_share is None:
        return products + attention
    backward = (1 + dense_share) * products + ATTENTION_BACKWARD * attention
    return backward + (2 if recomputed else 1) * (products + attention)


def _flops(shape: Shape, work: Work) -> tuple[float, float]:
    """Of the products with weights, and of attention, in a forward pass."""
    tokens = (shape.layers - 1) * work.tokens + work.last_tokens
    products = 2 * (shape.weights * tokens + shape.keys * work.key_tokens)
    return products, shape.pair * ((shape.layers - 1) * work.pairs + work.last_pairs)


def dense_share_of(
    shapes: Shapes, method: MethodConfig, tokens: float, device_kind: str, threads: int = 1
) -> float | None:
    """As `step_flops` takes it, for a method and a batch of so many tokens on `cpu` or `cuda`,
    which need not be there; `threads` is how many compute where it is a CPU."""
    if method.name == "head":
        return None
    if not isinstance(method, SpartaConfig):
        return 0.0 if isinstance(method, LoraConfig) else 1.0
    sizes = {name: math.prod(shape) for name, shape in shapes.tensors.items()}
    chances, matrices = _chances(shapes, sizes, method), _matrices(shapes)
    dense = 0
    for name, shape in matrices.items():
        chosen = round(chances.get(name, 0) * sizes[name])
        if name in chances and not sampling_pays(shape, chosen, tokens, device_kind, threads):
            dense += sizes[name]
    return dense / sum(sizes[name] for name in matrices)
