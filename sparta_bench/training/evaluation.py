"""Scores of a classifier on a set: loss, accuracy and Matthews correlation.

The metric is an offline subclass of `evaluate.Metric`: `evaluate.load` would fetch a script from a
hub.
"""

from __future__ import annotations

import math
from typing import Any

import datasets
import evaluate as hf_evaluate
import numpy as np
import torch
from accelerate import Accelerator
from sklearn.metrics import accuracy_score, matthews_corrcoef

from sparta_bench.config.schema import TrainConfig
from sparta_bench.data.batches import BatchSource, evaluation_batches
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.features import FeatureClassifier

Array = np.ndarray[Any, Any]


def evaluation_batch_size(train: TrainConfig) -> int:
    """Examples that go through the model at once where no gradient is kept."""
    return train.eval_batch_size or 2 * math.ceil(train.batch_size / train.accumulation_steps)


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


class Scores(hf_evaluate.Metric):  # type: ignore[misc]
    """Accuracy (share of right labels, 0 to 1) and mcc (Matthews correlation, -1 to 1)."""

    def _info(self) -> hf_evaluate.MetricInfo:
        label = datasets.Value("int64")
        features = datasets.Features({"predictions": label, "references": label})
        return hf_evaluate.MetricInfo(
            description=str(Scores.__doc__), citation="", features=features
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        one_label = len(np.union1d(references, predictions)) == 1  # scikit-learn warns of it
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "mcc": 0.0 if one_label else float(matthews_corrcoef(references, predictions)),
        }


_SCORES = Scores(keep_in_memory=True)


def score(logits: Array, labels: Array) -> dict[str, float]:
    """Scores of logits (float, examples x classes) against labels (int, examples).

    Returns `loss` (cross entropy in nats, mean over examples), `accuracy` and `mcc`.
    """
    wide = logits.astype(np.float64)
    top = wide.max(axis=1)
    with np.errstate(invalid="ignore"):  # logits that are NaN give a loss that is NaN
        log_total = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
    loss = float((log_total - wide[np.arange(len(labels)), labels]).mean())
    return {"loss": loss, **_SCORES.compute(predictions=wide.argmax(axis=1), references=labels)}
