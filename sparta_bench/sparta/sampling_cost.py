"""Whether chosen entries of a gradient are computed alone or taken out of all of it: by shape,
share, tokens and threads; no torch. docs/benchmark.md has the measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class _Cost(NamedTuple):
    """Of sampling, in units of what the dense way costs for one entry of the weight."""

    entry: float  # for each chosen entry
    line: float  # for each row and column: both operands are laid out anew
    call: float  # once, divided by the tokens: more kernels are started


# What `auto` goes by, measured: docs/benchmark.md. CUDA's are of an H200 in bfloat16.
COSTS = {"cpu": _Cost(4.0, 40.0, 0.0), "cuda": _Cost(120.0, 600.0, 6e10)}
# On a CPU, with fewer entries than this per row and column, gathering columns beats laying the
# operands out anew for a sparse product.
_FEW_ENTRIES = 0.75
_GATHERED = _Cost(60.0, 0.0, 0.0)
# On a CPU a thread more makes the dense product faster, and the sampled way hardly: its transposed
# copies and sparse products are work of one thread. It must win by so much to be taken.
_COST_PER_THREAD = 2.0
_MARGIN = 0.8


def sampling_pays(
    shape: Sequence[int], chosen: int, tokens: float, device_kind: str, threads: int
) -> bool:
    """Whether the sampled way is the cheaper one for a weight of this shape (out x in) with so many
    entries chosen and a batch of so many tokens, on such a device, which need not be there.
    `threads` is how many compute where it is a CPU."""
    cost = COSTS.get(device_kind)
    if cost is None:
        return False
    dense = float(math.prod(shape))
    if device_kind == "cpu":
        cost = _GATHERED if gathers_columns(shape, chosen) else cost
        dense *= _MARGIN / (_COST_PER_THREAD * threads)
    return chosen * cost.entry + sum(shape) * cost.line + cost.call / tokens < dense


def gathers_columns(shape: Sequence[int], chosen: int) -> bool:
    return chosen <= _FEW_ENTRIES * sum(shape)
