"""Which examples stand together in a batch, and the padded tensors of one."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from sparta_bench.data.encode import Encoded


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


def collate(data: Encoded, rows: Sequence[int]) -> dict[str, Tensor]:
    """Tensors of a batch, padded on the right to its longest example.

    Returns `input_ids` and `attention_mask` (int64, rows x longest) and `labels` (int64, rows).
    Padding has id 0, whatever that token is: the mask alone says what is padding, so models
    without a pad token work, and a real EOS at the end of an input is never taken for padding.
    """
    longest = max(len(data.ids[row]) for row in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for place, row in enumerate(rows):
        ids = data.ids[row]
        input_ids[place, : len(ids)] = torch.from_numpy(ids)
        mask[place, : len(ids)] = 1
    labels = torch.tensor([data.labels[row] for row in rows])
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
