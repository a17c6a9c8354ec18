"""How numbers are written in cells."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from sparta_bench.tables.select import Chosen
from sparta_bench.text import spread_text

MISSING, FAILED = "–", "failed"
SCALE = {"loss": 1.0, "accuracy": 100.0, "mcc": 100.0}  # as the paper prints them


def mean_of(chosen: Chosen | None, metric: str, digits: int, unit: str = "") -> str:
    """The mean over seeds of a test metric; a dash without a record, `failed` if all runs did."""
    if chosen is None or not chosen.runs:
        return FAILED if chosen is not None and chosen.failed else MISSING
    mean = SCALE[metric] * chosen.over_seeds("test", metric).mean
    return f"{mean:.{digits}f}{unit}{mark_of(chosen)}"


def spread_of(
    chosen: Chosen | None, metric: str, digits: int, split: str = "test", with_n: bool = True
) -> str:
    """`mean ± standard deviation (seeds)`, or without deviation where there is one seed."""
    if chosen is None or not chosen.runs:
        return mean_of(chosen, metric, digits)
    spread = chosen.over_seeds(split, metric).times(SCALE[metric])
    text = spread_text(spread.mean, spread.std, digits) + (f" ({spread.n})" if with_n else "")
    return text + mark_of(chosen)


def mark_of(chosen: Chosen) -> str:
    """A star where a setting with fewer seeds looks better; the table's note names it."""
    return "*" if chosen.ahead else ""


def spread_over(values: Sequence[float], digits: int) -> str:
    """`mean ± standard deviation` of some values."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return spread_text(statistics.fmean(values), std, digits)


def seeds_differ(cells: Iterable[Chosen]) -> bool:
    """Whether numbers of seeds must stand in the cells, for one note to say them all."""
    return len({len(chosen.runs) for chosen in cells if chosen.runs}) > 1


def rate_text(rate: float) -> str:
    """`1.5e-5`: a learning rate as the paper writes it."""
    if rate == 0 or abs(rate) >= 0.1:
        return f"{rate:g}"
    mantissa, _, exponent = f"{rate:.6e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
