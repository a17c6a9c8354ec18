"""What the head reads, computed once, for runs in which nothing but the head trains.

The backbone then gives the same hidden states in every epoch, at every learning rate and for every
seed, as long as it draws no random numbers: see `is_deterministic`.
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
from torch import Tensor, nn

from sparta_bench.data.tokenize import Encoded
from sparta_bench.errors import TrainingError
from sparta_bench.files import read_kept, try_to_keep
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

    sharded = False

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """Logits (rows x classes, at least float32) of features (rows x hidden)."""
        return logits_of(features, self.head.weight)


@torch.no_grad()
def is_deterministic(classifier: Classifier) -> bool:
    """Whether the features are the same in training as in evaluation: a forward pass shows it,
    whatever the architecture calls its dropout."""
    in_evaluation = states_of_a_few_tokens(classifier.eval().backbone)
    before = random_states(classifier.backbone)
    in_training = states_of_a_few_tokens(classifier.train().backbone)
    return torch.equal(in_training, in_evaluation) and same(
        before, random_states(classifier.backbone)
    )


def features_key(identity: Mapping[str, Any], data: Encoded) -> str:
    """A hash of everything that decides the features of `data` (32 hex digits): `identity` has
    plain values for the base model, the dtypes, the machine and the batch size, since rows that
    stand together are padded together, and that can change the last bits."""
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
    """The features of `data`: from the file at `path`, or computed in `batches` and written there.
    Raises TrainingError if one is not a finite number."""
    kept = read_kept(path)
    features = None if kept is None else kept[0]["features"]
    # all processes read or all compute, since they compute together
    has_read = torch.tensor(float(features is not None), device=accelerator.device)
    read_by = accelerator.reduce(has_read, "sum")
    if features is None or read_by < accelerator.num_processes:
        features = _compute(accelerator, classifier, data, batches)
        if not features.isfinite().all():
            raise TrainingError(f"the features are not finite: {why_not_finite(classifier)}")
        if accelerator.is_main_process:
            try_to_keep(path, {"features": features})
    return FeatureSet(features, data.labels, data.lengths())


@torch.no_grad()
def _compute(
    accelerator: Accelerator, classifier: Classifier, data: Encoded, batches: Iterable[list[int]]
) -> Tensor:
    """Compute in each process a share of the batches, and give all to all."""
    classifier.eval()
    device, world = accelerator.device, accelerator.num_processes
    head = classifier.head
    features = torch.zeros(len(data), head.in_features, dtype=logits_dtype(head.weight))
    for index, rows in enumerate(batches):
        if index % world == accelerator.process_index:
            batch = data.collate(rows)
            ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
            features[torch.tensor(rows)] = classifier.features(ids, mask).cpu()
    if classifier.sharded and 0 < (index + 1) % world <= accelerator.process_index:
        # the weights of a layer are gathered by all processes together
        batch = data.collate(rows)
        classifier.features(batch["input_ids"].to(device), batch["attention_mask"].to(device))
    if world > 1:
        features = accelerator.reduce(features.to(device), "sum").cpu()
    return features
