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

    Where `batch_size` does not divide the examples, one batch is smaller. Its examples are drawn
    before anything is sorted, each with the same probability: an example of the smaller batch
    weighs more in the batch's mean loss, and that must not depend on its length. The others are
    cut into buckets of `bucket_batches` batches; each bucket is sorted by length and cut into
    batches, and all batches are shuffled. With 0 the batches are simply cut from the shuffled
    examples, the smaller one last.
    """
    shuffler = random.Random(seed)
    order = list(range(len(lengths)))
    shuffler.shuffle(order)
    full = len(order) - len(order) % batch_size
    order, rest = order[:full], order[full:]
    if bucket_batches:
        size = bucket_batches * batch_size
        buckets = [order[start : start + size] for start in range(0, full, size)]
        order = [row for bucket in buckets for row in sorted(bucket, key=lambda r: lengths[r])]
    batches = [order[start : start + batch_size] for start in range(0, full, batch_size)]
    if rest:
        batches.append(rest)
    if bucket_batches:
        shuffler.shuffle(batches)
    return batches


def evaluation_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Every example exactly once, longest first, so that a lack of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
