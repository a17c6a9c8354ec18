"""A paired t test, and Holm's correction."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Paired:
    """Of n differences: mean, half length of its 95 % interval, t and two-sided p.

    All but the mean are null where they cannot be told: of one difference, or of equal ones.
    """

    n: int
    mean: float
    half_interval: float | None
    t: float | None
    p: float | None


def paired_test(differences: Sequence[float]) -> Paired:
    """The t test that the mean of the differences is 0, with n - 1 degrees of freedom."""
    n, mean = len(differences), statistics.fmean(differences)
    std = statistics.stdev(differences) if n > 1 else 0.0
    if std <= 1e-12 * max(map(abs, differences), default=0.0) or std == 0:
        return Paired(n, mean, None, None, None)
    from scipy.special import stdtr, stdtrit  # half a second, which most tables do not need

    error = std / math.sqrt(n)
    t = mean / error
    half_interval = float(stdtrit(n - 1, 0.975)) * error
    return Paired(n, mean, half_interval, t, float(2 * stdtr(n - 1, -abs(t))))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: below 0.05, a difference stands up beside all the others."""
    order = sorted(range(len(ps)), key=lambda place: ps[place])
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = least
    return adjusted
