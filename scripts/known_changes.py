"""Checkpoints in a model's shapes whose change is known, to see what its numerical rank says.

    python scripts/known_changes.py OUT [--model gemma-2b] [--layers 4]
    cd OUT && sparta-bench ranks gemma-2b gemma-2b-it    # or float32-copy, or --dtype float64

Writes OUT/gemma-2b, random bfloat16 weights; OUT/gemma-2b-it, the same with a change, stored in
bfloat16; and OUT/float32-copy, the changed layers before that rounded them. The names make `ranks`
put the paper's values beside them. gemma-2b takes 5.6 GB of disk, mistral-7b with one layer 3.1,
with four 8.6.

Every matrix of a layer, and an untied head, changes by a product of rank 8, as LoRA's, whose root
mean square is 10^-(layer + 1) of the weights' (the head's as layer 1's). The embedding changes in
all of its rows: in 97 directions as much as its weights, and in all others by a twentieth of that.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparta_bench.config.compose import compose
from sparta_bench.files import write_tensors

RANK, DIRECTIONS = 8, 97
WEIGHTS, NOISE = 0.02, 0.001  # standard deviations
ROWS = 16384  # of an embedding, that are made at a time


def shapes_of_a_layer(model: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names and shapes of a layer's matrices."""
    width, inner, head = model["hidden_size"], model["intermediate_size"], model["head_dim"]
    queries, keys = model["num_attention_heads"] * head, model["num_key_value_heads"] * head
    yield "self_attn.q_proj", (queries, width)
    yield "self_attn.k_proj", (keys, width)
    yield "self_attn.v_proj", (keys, width)
    yield "self_attn.o_proj", (width, queries)
    yield "mlp.gate_proj", (inner, width)
    yield "mlp.up_proj", (inner, width)
    yield "mlp.down_proj", (width, inner)


def weights(rows: int, columns: int) -> Tensor:
    """Random bfloat16 weights."""
    return (torch.randn(rows, columns) * WEIGHTS).bfloat16()


def factors(rows: int, columns: int, rank: int, size: float) -> tuple[Tensor, Tensor]:
    """Two float32 matrices whose product has this rank and `size` as its root mean square."""
    return torch.randn(rows, rank) * (size / rank**0.5), torch.randn(rank, columns)


def embedding(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Of the base and the tuned model, both bfloat16."""
    before, after = weights(rows, columns), torch.empty(rows, columns, dtype=torch.bfloat16)
    left, right = factors(rows, columns, DIRECTIONS, WEIGHTS)
    for here in torch.arange(rows).split(ROWS):
        change = left[here] @ right + torch.randn(len(here), columns) * NOISE
        after[here] = (before[here].float() + change).bfloat16()
    return before, after


def main() -> None:
    """Write the three checkpoints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--model", choices=("gemma-2b", "mistral-7b"), default="gemma-2b")
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = compose([f"model={options.model}"]).model.shape
    assert model is not None
    vocabulary = model["vocab_size"], model["hidden_size"]
    base, tuned, exact = {}, {}, {}
    sizes = {
        f"model.layers.{layer}.{name}.weight": (shape, 10 ** -(layer + 1))
        for layer in range(options.layers)
        for name, shape in shapes_of_a_layer(model)
    }
    if not model["tie_word_embeddings"]:
        sizes["lm_head.weight"] = (vocabulary, 1e-2)
    for key, (shape, size) in sizes.items():
        left, right = factors(*shape, RANK, WEIGHTS * size)
        base[key] = weights(*shape)
        exact[key] = base[key].float() + left @ right
        tuned[key] = exact[key].bfloat16()
    write_tensors(options.out / "float32-copy" / "model.safetensors", exact)
    exact.clear()
    key = "model.embed_tokens.weight"
    base[key], tuned[key] = embedding(*vocabulary)
    write_tensors(options.out / options.model / "model.safetensors", base)
    write_tensors(options.out / f"{options.model}-it" / "model.safetensors", tuned)


if __name__ == "__main__":
    main()
