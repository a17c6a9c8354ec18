"""FLOPs of a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sparta_bench.analysis.bench.contenders import Ready


def _attention_flops(query: Any, key: Any, *_: Any, **__: Any) -> int:
    """Scores of every query with every key, and the weighted values: two products."""
    rows, heads, queries, width = query
    return int(2 * 2 * rows * heads * queries * key[2] * width)


def _attention_backward_flops(grad: Any, query: Any, key: Any, *_: Any, **__: Any) -> int:
    """Five products, of which one is the scores again."""
    return 5 * _attention_flops(query, key) // 2


# torch has no formulas for its attention on a CPU, and those for CUDA refuse models that have
# fewer heads of keys than of queries
ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kind}{suffix}"): formula
    for kind in (
        "flash_attention_for_cpu",
        "flash_attention",
        "efficient_attention",
        "cudnn_attention",
    )
    for suffix, formula in (("", _attention_flops), ("_backward", _attention_backward_flops))
}


def flops_of(ready: Ready, batch: dict[str, Tensor]) -> dict[str, Any]:
    """Products and sums of matrix products and attention in a step, forward and backward."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as forward:
        loss = ready.forward(batch)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as backward:
        loss.backward()  # type: ignore[no-untyped-call]
    ready.update()
    ahead, back = forward.get_total_flops(), backward.get_total_flops()
    return {
        "forward_flops": ahead,
        "backward_flops": back,
        "total_flops": ahead + back,
        "backward_to_forward": back / ahead,
    }
