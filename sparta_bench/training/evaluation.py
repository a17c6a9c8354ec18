"""Scores of a classifier on a set: loss, accuracy and Matthews correlation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from sparta_bench.data.tokenize import BatchSource, evaluation_batches, to_device
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.features import FeatureClassifier
from sparta_bench.training.steps import EvaluationSize

Watch = Callable[[list[list[int]]], Iterable[list[int]]]  # goes through batches and shows how far


@torch.no_grad()
def evaluate(
    accelerator: Accelerator,
    classifier: Classifier | FeatureClassifier,
    data: BatchSource,
    size: EvaluationSize,
    watch: Watch = iter,
) -> dict[str, float]:
    """Loss (nats per example), accuracy and mcc; the classifier is on the accelerator's device.

    Several processes share the work, and all get the scores.
    """
    classifier.eval()
    device: torch.device = accelerator.device
    world, rank = accelerator.num_processes, accelerator.process_index
    all_batches = evaluation_batches(data.lengths(), *size)
    batches = all_batches[rank::world]
    # kept on the device until all are there: nobody waits for a batch
    logits_of_batches = [torch.zeros(0, classifier.head.out_features, device=device)]
    for rows in watch(batches):
        batch = data.collate(rows)
        batch.pop("labels")
        logits_of_batches.append(classifier(**to_device(batch, device)))
    if classifier.sharded and 0 < len(all_batches) % world <= rank:
        # the weights of a layer are gathered by all processes together: those that have one batch
        # less compute another's
        batch = data.collate(all_batches[0])
        batch.pop("labels")
        classifier(**to_device(batch, device))
    order = torch.tensor([row for rows in batches for row in rows], dtype=torch.int64)
    logits = torch.zeros(len(data), classifier.head.out_features)
    logits[order] = torch.cat(logits_of_batches).cpu()
    if world > 1:
        logits = accelerator.reduce(logits.to(device), "sum").cpu()
    return score(logits.numpy(), np.asarray(data.labels))


def score(logits: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> dict[str, float]:
    """Scores of logits (float, examples x classes) against labels (int, examples).

    Returns `loss` (cross entropy in nats, mean over examples), `accuracy` (0 to 1) and `mcc`
    (-1 to 1; 0 where there is only one label, or only one is predicted).
    """
    wide = logits.astype(np.float64)
    top = wide.max(axis=1)
    with np.errstate(invalid="ignore"):  # logits that are no numbers give a loss that is none
        log_total = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
    predicted = wide.argmax(axis=1)
    return {
        "loss": float((log_total - wide[np.arange(len(labels)), labels]).mean()),
        "accuracy": float(np.mean(predicted == labels)),
        "mcc": matthews_correlation(labels, predicted, wide.shape[1]),
    }


def matthews_correlation(
    labels: np.ndarray[Any, Any], predicted: np.ndarray[Any, Any], classes: int
) -> float:
    """The correlation of labels and predictions (int, examples), for any number of classes
    (Gorodkin, 2004). Not scikit-learn's, whose import takes longer than a tiny run."""
    of_label = np.bincount(labels, minlength=classes).astype(np.float64)
    of_prediction = np.bincount(predicted, minlength=classes).astype(np.float64)
    examples, right = float(len(labels)), float(np.sum(labels == predicted))
    variances = (examples**2 - of_label @ of_label) * (examples**2 - of_prediction @ of_prediction)
    if variances == 0:
        return 0.0
    return float((right * examples - of_label @ of_prediction) / np.sqrt(variances))
