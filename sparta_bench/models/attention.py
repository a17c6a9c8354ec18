"""Which of transformers' attentions a model computes with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def with_attention(build: Callable[[str], T]) -> T:
    """What `build` makes with "sdpa", torch's fused attention; with "eager", the model's own code,
    where transformers has no other for the architecture (gemma-2, bloom)."""
    try:
        return build("sdpa")
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
    return build("eager")


def attention_of(backbone: Any) -> str:
    """ "sdpa" or "eager": what transformers computes this model's attention with."""
    return str(backbone.config._attn_implementation)
