"""A table as text cells, before it becomes Markdown, CSV, LaTeX or HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading over `span` columns."""

    text: str
    span: int = 1


@dataclass(frozen=True, slots=True)
class Table:
    """`key` names its files; each row of headings spans the width; cells are plain text."""

    key: str
    title: str
    headings: tuple[tuple[Heading, ...], ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def table_of(
    key: str, title: str, heads: Iterable[str], rows: Iterable[Sequence[str]], *notes: str
) -> Table:
    """A table with one heading a column."""
    return Table(key, title, (tuple(map(Heading, heads)),), tuple(map(tuple, rows)), notes)
