"""Loss, accuracy and Matthews correlation; offline subclasses of `evaluate.Metric`.

`evaluate.load` would fetch the metric's script from a hub.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, matthews_corrcoef

_FEATURES = datasets.Features(
    {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
)


class Accuracy(evaluate.Metric):  # type: ignore[misc]
    """Share of right labels, 0 to 1."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of right labels.", citation="", features=_FEATURES
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class MatthewsCorrelation(evaluate.Metric):  # type: ignore[misc]
    """Matthews correlation coefficient, -1 to 1; 0 where only one label is predicted."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Matthews correlation coefficient.", citation="", features=_FEATURES
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        if len(np.union1d(references, predictions)) == 1:  # which scikit-learn warns of
            return {"mcc": 0.0}
        return {"mcc": float(matthews_corrcoef(references, predictions))}


_METRICS = (Accuracy(keep_in_memory=True), MatthewsCorrelation(keep_in_memory=True))


def score(logits: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> dict[str, float]:
    """Scores of logits (float, examples x classes) against labels (int, examples).

    Returns `loss` (cross entropy in nats, mean over examples), `accuracy` and `mcc`.
    """
    wide = logits.astype(np.float64)
    top = wide.max(axis=1)
    with np.errstate(invalid="ignore"):  # logits that are no numbers give a loss that is none
        log_total = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
    loss = float((log_total - wide[np.arange(len(labels)), labels]).mean())
    scores = {"loss": loss}
    for metric in _METRICS:
        computed = metric.compute(predictions=wide.argmax(axis=1), references=labels)
        scores |= {name: float(value) for name, value in computed.items()}
    return scores
