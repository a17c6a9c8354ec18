"""What the training loop reads, and which examples stand together in a batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class BatchSource(Protocol):
    """Labelled examples that can be put together to batches, in any choice and order."""

    labels: list[int]

    def __len__(self) -> int: ...

    def lengths(self) -> list[int]:
        """Tokens of each example."""

    def collate(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The classifier's arguments and `labels` (int64, rows), on the CPU."""


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch on the device. A GPU fetches it from memory that stays where it is, while the
    processor goes on."""
    pinned = device.type == "cuda"
    return {
        name: (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=True)
        for name, tensor in batch.items()
    }


def training_batches(
    lengths: Sequence[int], batch_size: int, bucket_batches: int, seed: str
) -> list[list[int]]:
    """One epoch: every example exactly once, shuffled, examples of similar length together.

    Buckets of `bucket_batches` batches are sorted by length and cut into batches, and all batches
    are shuffled; with 0 the batches are cut from the shuffled examples, the smaller one last. The
    examples of a smaller batch, which weigh more in its mean loss, are drawn before anything is
    sorted, so that their weight does not depend on their length.
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


def evaluation_batches(
    lengths: Sequence[int], most_examples: int, most_tokens: int | None = None
) -> list[list[int]]:
    """Every example exactly once, longest first, so that a lack of memory shows at once. A batch
    has at most so many examples, and at most so many tokens, padding counted, or one example."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches, start = [], 0
    while start < len(order):
        size = most_examples
        if most_tokens is not None:
            size = max(1, min(size, most_tokens // max(1, lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches
