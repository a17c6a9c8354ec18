"""Scores of a classifier on a set: loss, accuracy and Matthews correlation."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator

from sparta_bench.data.batches import BatchSource, evaluation_batches
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.features import FeatureClassifier
from sparta_bench.training.metrics import score


@torch.no_grad()
def evaluate(
    accelerator: Accelerator,
    classifier: Classifier | FeatureClassifier,
    data: BatchSource,
    batch_size: int,
) -> dict[str, float]:
    """Loss (nats per example), accuracy and mcc; the classifier is on the accelerator's device.

    Several processes share the work, and all get the scores.
    """
    classifier.eval()
    device: torch.device = accelerator.device
    world, rank = accelerator.num_processes, accelerator.process_index
    logits = torch.zeros(len(data), classifier.head.out_features, device=device)
    for rows in evaluation_batches(data.lengths(), batch_size)[rank::world]:
        batch = data.collate(rows)
        batch.pop("labels")
        on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        logits[torch.tensor(rows, device=device)] = classifier(**on_device)
    if world > 1:
        logits = accelerator.reduce(logits, "sum")
    return score(logits.cpu().numpy(), np.asarray(data.labels))
