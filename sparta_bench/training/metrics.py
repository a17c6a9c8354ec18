"""Loss, accuracy and Matthews correlation."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, matthews_corrcoef


def score(logits: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> dict[str, float]:
    """Scores of logits (float, examples x classes) against labels (int, examples).

    Returns `loss` (cross entropy in nats, mean over examples), `accuracy` (0 to 1) and `mcc`
    (-1 to 1; 0 where there is only one label).
    """
    wide = logits.astype(np.float64)
    top = wide.max(axis=1)
    with np.errstate(invalid="ignore"):  # logits that are no numbers give a loss that is none
        log_total = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
    predicted = wide.argmax(axis=1)
    one_label = len(np.union1d(labels, predicted)) == 1  # which scikit-learn warns of
    return {
        "loss": float((log_total - wide[np.arange(len(labels)), labels]).mean()),
        "accuracy": float(accuracy_score(labels, predicted)),
        "mcc": 0.0 if one_label else float(matthews_corrcoef(labels, predicted)),
    }
