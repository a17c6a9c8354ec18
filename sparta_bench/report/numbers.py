"""The numbers behind a model's figures, one row a cell."""

from __future__ import annotations

from collections.abc import Callable

from sparta_bench.records.record import Record
from sparta_bench.report.groups import Group, median, share_of, trained_of
from sparta_bench.report.pictures import (
    bytes_text,
    name_of,
    peak_bytes,
    seconds_text,
    task_of,
    training_seconds,
)
from sparta_bench.tables.format import MISSING
from sparta_bench.tables.select import Chosen
from sparta_bench.tables.table import Heading, Table
from sparta_bench.text import spread_text

METRICS = (("dev", "loss", 3, 1.0), ("test", "loss", 3, 1.0), ("test", "accuracy", 1, 100.0),
           ("test", "mcc", 1, 100.0))  # fmt: skip
NAMES = ("Task", "Method", "scalars", "share, %", "dev loss", "test loss", "acc., %", "mcc × 100",
         "time", "memory", "seeds", "settings", "failed")  # fmt: skip


def numbers_table(group: Group) -> Table:
    """All cells of a model."""
    return Table(
        "numbers",
        f"The numbers of {group.name}",
        (tuple(map(Heading, NAMES)),),
        tuple(_row(chosen) for chosen in group.cells),
        (
            "Scalars: how many were trained. Scores and losses: mean ± standard deviation over "
            "seeds. Time: of training without evaluations, the median, and so the highest use of "
            "memory. Settings: how many were compared by dev loss. Failed: runs of any setting.",
        ),
    )


def _row(chosen: Chosen) -> tuple[str, ...]:
    names = task_of(chosen.cell.task), name_of(chosen)
    if not chosen.runs:
        return (*names, *[MISSING] * 8, "0", "0", f"{chosen.failed}")
    trained, share = trained_of(chosen), share_of(chosen)
    scores = []
    for split, metric, digits, scale in METRICS:
        spread = chosen.over_seeds(split, metric)
        std = None if spread.std is None else scale * spread.std
        scores.append(spread_text(scale * spread.mean, std, digits))
    return (
        *names,
        MISSING if trained is None else f"{trained:,.0f}",
        MISSING if share is None else f"{100 * share:.3g}",
        *scores,
        _cost(chosen, training_seconds, seconds_text),
        _cost(chosen, peak_bytes, bytes_text),
        str(len(chosen.runs)),
        str(chosen.settings_compared),
        str(chosen.failed),
    )


def _cost(
    chosen: Chosen, cost: Callable[[Record], float | None], show: Callable[[float], str]
) -> str:
    value = median(map(cost, chosen.runs))
    return MISSING if value is None else show(value)
