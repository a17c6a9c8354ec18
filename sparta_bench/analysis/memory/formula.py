"""The paper's formula for the memory of training (section 5), Table 1, and the break-even."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sparta_bench.models.counts import ParameterCounts

WEIGHT = 2  # bytes of a bfloat16 number
TRAINED = 4 * WEIGHT  # a trained scalar: itself, its gradient and Adam's two moments
INDICES = 2 * 2  # row and column of a chosen scalar, 16 bits each

SPARSITIES = (50, 80, 90, 95, 99)  # percent, as in Table 1
SIZES = {"2B": 2e9, "7B": 7e9}  # parameters of Table 1's models


def paper_formula_bytes(counts: ParameterCounts, method: str) -> dict[str, int]:
    """Return the bytes to train with Adam, all in bfloat16, activations aside (inequality 1).

    SpaRTA's deltas are trained beside the weights, and each chosen scalar has two indices.
    """
    parts = {
        "weights": 0 if method == "full_ft" else WEIGHT * counts.total,
        "trained": TRAINED * counts.trainable,
        "indices": INDICES * (counts.sampled or 0),
    }
    return parts | {"total": sum(parts.values()), "full_ft_total": TRAINED * counts.total}


class PerScalar(NamedTuple):
    """Bytes for each scalar of a model: all of it trained; frozen; chosen, beside the frozen."""

    full_ft: int
    frozen: int
    chosen: int

    def of_sparta(self, sparsity: int) -> float:
        return self.frozen + self.chosen * (100 - sparsity) / 100

    @property
    def break_even(self) -> float:
        """The density at which SpaRTA needs as much as full fine-tuning (inequality 1)."""
        return (self.full_ft - self.frozen) / self.chosen


PAPER = PerScalar(TRAINED, WEIGHT, TRAINED + INDICES)


def table1_gb() -> dict[str, dict[str, float]]:
    """Return Table 1 by model and column, named as in `paper.rows_of("table1")`; GB = 1e9 bytes."""
    return {
        model: {
            "storage": WEIGHT * parameters / 1e9,
            "full_ft": PAPER.full_ft * parameters / 1e9,
            **{f"sparta-{s}": PAPER.of_sparta(s) * parameters / 1e9 for s in SPARSITIES},
        }
        for model, parameters in SIZES.items()
    }


def savings(sparsity: int) -> dict[str, float]:
    """Return what section 5 says of a sparsity: what indices and deltas add to the weights on disk,
    as a share of them (3k), and the share of full fine-tuning's memory that SpaRTA does not need.
    """
    return {
        "more_storage": (INDICES + WEIGHT) * (100 - sparsity) / 100 / WEIGHT,
        "less_memory": 1 - PAPER.of_sparta(sparsity) / PAPER.full_ft,
    }
