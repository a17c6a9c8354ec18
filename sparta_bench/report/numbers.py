"""The numbers behind a model's figures, one row a cell."""

from __future__ import annotations

from sparta_bench.report.groups import Group, share_of, trained_of
from sparta_bench.tables import paper_tables
from sparta_bench.tables.select import Chosen, Spread
from sparta_bench.tables.table import Heading, Table
from sparta_bench.text import shortened, spread_text

HEADINGS = (
    (
        Heading("", 2),
        Heading("Trained", 2),
        Heading("Loss, nats", 2),
        Heading("Test scores", 2),
        Heading("Runs", 3),
    ),
    tuple(
        Heading(text)
        for text in (
            "Task", "Method", "scalars", "share, %", "dev", "test", "acc., %", "mcc × 100",
            "seeds", "settings", "failed",
        )
    ),
)  # fmt: skip


def numbers_table(group: Group) -> Table:
    """All cells of a model."""
    return Table(
        "numbers",
        f"The numbers of {group.name}",
        HEADINGS,
        tuple(_row(chosen) for chosen in group.cells),
        (
            "Mean ± standard deviation over seeds. Settings: how many were compared by dev loss. "
            "Failed: runs of any setting.",
        ),
    )


def _row(chosen: Chosen) -> tuple[str, ...]:
    cell = chosen.cell
    names = (
        shortened(paper_tables.task_name(cell.task), 40),
        shortened(paper_tables.row_name(cell.method, cell.density), 40),
    )
    if not chosen.runs:
        return (*names, *("–" for _ in range(6)), "0", "0", f"{chosen.failed}")
    trained = trained_of(chosen)
    share = share_of(chosen)
    return (
        *names,
        "–" if trained is None else f"{trained:,.0f}",
        "–" if share is None else f"{100 * share:.3g}",
        _text(chosen.over_seeds("dev", "loss"), 3),
        _text(chosen.over_seeds("test", "loss"), 3),
        _text(chosen.over_seeds("test", "accuracy"), 1, 100.0),
        _text(chosen.over_seeds("test", "mcc"), 1, 100.0),
        str(len(chosen.runs)),
        str(chosen.settings_compared),
        str(chosen.failed),
    )


def _text(spread: Spread, digits: int, scale: float = 1.0) -> str:
    std = None if spread.std is None else scale * spread.std
    return spread_text(scale * spread.mean, std, digits)
