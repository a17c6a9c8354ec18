"""The head alone."""

from __future__ import annotations

from sparta_bench.methods.trained import HEAD, Trained
from sparta_bench.models.classifier import Classifier
from sparta_bench.sparta.store import fingerprint_of


def head(classifier: Classifier) -> Trained:
    """Only the classification head trains."""
    base = fingerprint_of(classifier.backbone)
    return Trained({HEAD: classifier.head_weight}, base_fingerprint=base)
