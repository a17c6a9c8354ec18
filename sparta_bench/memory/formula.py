"""The paper's formula for the memory of training (section 5)."""

from __future__ import annotations

from sparta_bench.models.counts import ParameterCounts


def paper_formula_bytes(counts: ParameterCounts, method: str) -> dict[str, int]:
    """Bytes to train with Adam, all in bfloat16, activations aside (section 5, inequality 1).

    Each trained scalar needs itself, its gradient and two moments. SpaRTA's deltas are trained
    beside the weights, and each chosen scalar has two 16-bit indices.
    """
    trained = 4 * 2 * counts.trainable
    weights = 0 if method == "full_ft" else 2 * counts.total
    indices = 2 * 2 * (counts.sampled or 0)
    return {
        "weights": weights,
        "trained": trained,
        "indices": indices,
        "total": weights + trained + indices,
        "full_ft_total": 4 * 2 * counts.total,
    }
