"""Loss, accuracy and Matthews correlation."""

from __future__ import annotations

from typing import Any

import numpy as np


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
