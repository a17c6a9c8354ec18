"""Student's t: a paired test and Holm's correction, without scipy, whose import takes a second."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache


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
    error = std / math.sqrt(n)
    t = mean / error
    return Paired(n, mean, _quantile(n - 1) * error, t, two_sided_p(t, n - 1))


def two_sided_p(t: float, freedom: int) -> float:
    """P(|T| > |t|), by the finite sums for whole degrees of freedom (Abramowitz and Stegun,
    26.7.3 and 26.7.4)."""
    angle = math.atan(abs(t) / math.sqrt(freedom))
    cos2 = math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cos2 * k / (k + 1)
    inside = math.sin(angle) * total
    if odd:
        inside = 2 / math.pi * (angle + inside)
    return min(1.0, max(0.0, 1 - inside))


@cache
def _quantile(freedom: int) -> float:
    """The t that 5 % lie beyond, on both sides together; by bisection."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, freedom) > 0.05 else (low, middle)
    return high


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: below 0.05, a difference stands up beside all the others."""
    order = sorted(range(len(ps)), key=lambda place: ps[place])
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = least
    return adjusted
