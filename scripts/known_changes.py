"""Checkpoints in gemma-2b's shapes whose change is known, to see what its numerical rank says.

    python scripts/known_changes.py OUT
    cd OUT && sparta-bench ranks gemma-2b gemma-2b-it float32-copy

Writes OUT/gemma-2b, a base of random bfloat16 weights, OUT/gemma-2b-it, the same with a change and
stored in bfloat16, and OUT/float32-copy, the layers of that before they are rounded. The names make
`ranks` put Table 7's values beside them. 4.9 GB.

Every matrix of a layer changes by a product of rank 8, as LoRA's, whose root mean square is
10^-(layer + 1) of the weights'. The embedding changes in all of its rows: strongly in 97
directions, and by noise below that.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sparta_bench.compose import compose
from sparta_bench.files import write_tensors

LAYERS, RANK, DIRECTIONS = 4, 8, 97
WEIGHTS, NOISE = 0.02, 0.0005  # standard deviations


def shapes_of_a_layer(model: dict[str, int]) -> Iterator[tuple[str, tuple[int, int]]]:
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


def low_rank(shape: tuple[int, int], rank: int, size: float) -> Tensor:
    """A float32 product of this rank whose root mean square is `size`."""
    product = torch.randn(shape[0], rank) @ torch.randn(rank, shape[1])
    return product * (size / product.square().mean().sqrt())


def weights(*shape: int) -> Tensor:
    """Random bfloat16 weights."""
    return (torch.randn(*shape) * WEIGHTS).bfloat16()


def embedding(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Of the base and the tuned model, both bfloat16."""
    before = weights(rows, columns)
    strong = low_rank((rows, columns), DIRECTIONS, WEIGHTS)
    return before, (before.float() + strong + torch.randn(rows, columns) * NOISE).bfloat16()


def main() -> None:
    """Write the three checkpoints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", metavar="OUT", type=Path)
    out: Path = parser.parse_args().out
    torch.manual_seed(0)
    shape = compose(["model=gemma-2b"]).model.shape
    assert shape is not None
    key = "model.embed_tokens.weight"
    base, tuned, exact = {}, {}, {}
    base[key], tuned[key] = embedding(shape["vocab_size"], shape["hidden_size"])
    for layer in range(LAYERS):
        for name, size in shapes_of_a_layer(dict(shape)):
            key = f"model.layers.{layer}.{name}.weight"
            base[key] = weights(*size)
            exact[key] = base[key].float() + low_rank(size, RANK, WEIGHTS * 10 ** -(layer + 1))
            tuned[key] = exact[key].bfloat16()
    for folder, tensors in {"gemma-2b": base, "gemma-2b-it": tuned, "float32-copy": exact}.items():
        write_tensors(out / folder / "model.safetensors", tensors)


if __name__ == "__main__":
    main()
