"""What the training loop reads, and which examples stand together in a batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class BatchSource(Protocol):
    """Labelled examples that can be put together to batches, in any choice and order."""

    labels: list[int]

    def __len__(self) -> int: ...

    def lengths(self) -> list[int]:
        """Tokens of each example."""

    def collate(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The classifier's arguments and `labels` (int64, rows), on the CPU."""


def training_batches(
    lengths: Sequence[int], batch_size: int, bucket_batches: int, seed: str
) -> list[list[int]]:
    """One epoch: every example exactly once, shuffled, examples of similar length together.

    The shuffled examples are cut into buckets of `bucket_batches` batches; each bucket is sorted
    by length and cut into batches, and the batches are shuffled. With 0 the batches are simply
    cut from the shuffled examples. Only the last batch of the order as cut may be smaller.
    """
    shuffler = random.Random(seed)
    order = list(range(len(lengths)))
    shuffler.shuffle(order)
    if bucket_batches:
        size = bucket_batches * batch_size
        buckets = [order[start : start + size] for start in range(0, len(order), size)]
        order = [row for bucket in buckets for row in sorted(bucket, key=lambda r: lengths[r])]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if bucket_batches:
        shuffler.shuffle(batches)
    return batches


def evaluation_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Every example exactly once, longest first, so that a lack of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
