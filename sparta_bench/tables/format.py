"""How numbers are written in cells."""

from __future__ import annotations

from collections.abc import Iterable

from sparta_bench.tables.select import Chosen

MISSING, FAILED = "–", "failed"
SCALE = {"loss": 1.0, "accuracy": 100.0, "mcc": 100.0}  # as the paper prints them


def mean_of(chosen: Chosen | None, metric: str, digits: int, unit: str = "") -> str:
    """The mean over seeds of a test metric; a dash without a record, `failed` if all runs did."""
    if chosen is None:
        return MISSING
    if not chosen.runs:
        return FAILED if chosen.failed else MISSING
    return f"{SCALE[metric] * chosen.over_seeds('test', metric).mean:.{digits}f}{unit}"


def spread_of(
    chosen: Chosen | None, metric: str, digits: int, split: str = "test", with_n: bool = True
) -> str:
    """`mean ± standard deviation (seeds)`, or without deviation where there is one seed."""
    if chosen is None or not chosen.runs:
        return mean_of(chosen, metric, digits)
    spread, scale = chosen.over_seeds(split, metric), SCALE[metric]
    std = "" if spread.std is None else f" ± {scale * spread.std:.{digits}f}"
    seeds = f" ({spread.n})" if with_n else ""
    return f"{scale * spread.mean:.{digits}f}{std}{seeds}"


def seeds_differ(cells: Iterable[Chosen]) -> bool:
    """Whether numbers of seeds must stand in the cells, for one note to say them all."""
    return len({len(chosen.runs) for chosen in cells if chosen.runs}) > 1


def signed(value: float, digits: int) -> str:
    """`+0.12`; zero without a sign."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def rate_text(rate: float) -> str:
    """`1.5e-5`: a learning rate as the paper writes it."""
    if rate == 0 or abs(rate) >= 0.1:
        return f"{rate:g}"
    mantissa, _, exponent = f"{rate:.6e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def count(number: int, noun: str) -> str:
    """`1 record`, `2,000 records`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
