"""What the head reads, computed once, for runs in which nothing but the head trains.

The backbone then gives the same hidden states in every epoch, at every learning rate and for every
seed, so one pass over the data is enough. That holds only while the backbone draws no random
numbers: see `is_deterministic`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor, nn

from sparta_bench.data.tensor_cache import read_kept, write_kept
from sparta_bench.data.tokenize import Encoded
from sparta_bench.errors import TrainingError
from sparta_bench.models.classifier import Classifier, logits_dtype, logits_of, why_not_finite
from sparta_bench.models.dropout import random_states, same, states_of_a_few_tokens


@dataclass
class FeatureSet:
    """Features (rows x hidden, in the dtype of the logits, on the CPU) of encoded examples."""

    features: Tensor
    labels: list[int]
    token_counts: list[int]

    def __len__(self) -> int:
        return len(self.labels)

    def lengths(self) -> list[int]:
        """Tokens of each example, so that it meets the same others in a batch as its tokens do."""
        return self.token_counts

    def collate(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`features` (rows x hidden) and `labels` (int64, rows) of a batch."""
        labels = torch.tensor([self.labels[row] for row in rows])
        return {"features": self.features[torch.tensor(rows)], "labels": labels}


class FeatureClassifier(nn.Module):
    """A classifier's own head, without the backbone before it."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """Logits (rows x classes, at least float32) of features (rows x hidden)."""
        return logits_of(features, self.head.weight)


@torch.no_grad()
def is_deterministic(classifier: Classifier) -> bool:
    """Whether the features are the same in training as in evaluation.

    Dropout has many names among the architectures, and some of it cannot be set, so it is looked
    for where it shows: in a forward pass of a training that draws random numbers.
    """
    expected = states_of_a_few_tokens(classifier.eval().backbone)
    before = random_states(classifier.backbone)
    found = states_of_a_few_tokens(classifier.train().backbone)
    return torch.equal(found, expected) and same(before, random_states(classifier.backbone))


def features_key(identity: Mapping[str, Any], data: Encoded) -> str:
    """A hash of everything that decides the features (32 hex digits).

    Parameters
    ----------
    identity
        Plain values that stand for the base model, the dtypes, the machine and the batch size:
        rows that stand together are padded together, and that can change the last bits.
    data
        The examples, in their order; labels do not count.
    """
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    digest.update(np.asarray(data.lengths(), dtype=np.int64).tobytes())
    for ids in data.ids:
        digest.update(ids.tobytes())
    return digest.hexdigest()[:32]


def cached_features(
    accelerator: Accelerator,
    classifier: Classifier,
    data: Encoded,
    batches: Iterable[list[int]],
    path: Path,
) -> FeatureSet:
    """The features of `data`: from the file at `path`, or computed and written there.

    Parameters
    ----------
    batches
        The rows that go through the model together; only looked at where the file does not help.

    Raises
    ------
    TrainingError
        If a feature is not a finite number.
    """
    hidden, dtype = classifier.head.in_features, logits_dtype(classifier.head.weight)
    features = _read(path, len(data), hidden, dtype)
    # all processes read or all compute, since they compute together
    found = torch.tensor(float(features is not None), device=accelerator.device)
    found_by = accelerator.reduce(found, "sum")
    if features is None or found_by < accelerator.num_processes:
        features = _compute(accelerator, classifier, data, batches)
        if not features.isfinite().all():
            raise TrainingError(f"the features are not finite: {why_not_finite(classifier)}")
        if accelerator.is_main_process:
            _write(path, features)
    return FeatureSet(features, data.labels, data.lengths())


@torch.no_grad()
def _compute(
    accelerator: Accelerator, classifier: Classifier, data: Encoded, batches: Iterable[list[int]]
) -> Tensor:
    """Each process takes every so manieth batch, and all get the whole."""
    classifier.eval()
    device, world = accelerator.device, accelerator.num_processes
    head = classifier.head
    features = torch.zeros(len(data), head.in_features, dtype=logits_dtype(head.weight))
    for place, rows in enumerate(batches):
        if place % world == accelerator.process_index:
            batch = data.collate(rows)
            ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
            features[torch.tensor(rows)] = classifier.features(ids, mask).cpu()
    if world > 1:
        features = accelerator.reduce(features.to(device), "sum").cpu()
    return features


def _read(path: Path, rows: int, hidden: int, dtype: torch.dtype) -> Tensor | None:
    kept = read_kept(path)
    features = None if kept is None else kept[0].get("features")
    if features is None or features.shape != (rows, hidden) or features.dtype != dtype:
        return None
    return features


def _write(path: Path, features: Tensor) -> None:
    try:
        write_kept(path, {"features": features})
    except (OSError, SafetensorError):
        pass  # a cache that cannot be written costs time, not correctness
