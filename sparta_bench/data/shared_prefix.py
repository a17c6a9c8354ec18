"""The tokens that all inputs of a task begin with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparta_bench.data.tokenize import Ids, TokenRows


def shared_prefix_length(*splits: Sequence[Ids]) -> int:
    """How many token ids all inputs of all splits begin with; at least one of each is left over."""
    sets = [_as_rows(ids) for ids in splits if len(ids)]
    if not sets:
        return 0
    first: Ids = sets[0][0]
    longest = min(int(ids.row_lengths.min()) for ids in sets) - 1
    starts = [ids.ends - ids.row_lengths for ids in sets]
    for place in range(longest):
        for ids, begin in zip(sets, starts, strict=True):
            if (ids.flat[begin + place] != first[place]).any():
                return place
    return max(longest, 0)


def _as_rows(ids: Sequence[Ids]) -> TokenRows:
    if isinstance(ids, TokenRows):
        return ids
    return TokenRows(np.concatenate(list(ids)), np.array([len(row) for row in ids]))
