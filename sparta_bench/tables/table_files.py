"""What `sparta-bench tables` writes and prints: files, an overview, one JSON object."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sparta_bench.files import clear_leftovers
from sparta_bench.records.record import Excluded
from sparta_bench.tables.merge_tables import Merge
from sparta_bench.tables.paper_tables import LAYOUTS
from sparta_bench.tables.render import FORMATS, as_markdown, flat_headings, write_texts
from sparta_bench.tables.select import Selection
from sparta_bench.tables.split_counts import MODELS
from sparta_bench.tables.table import Table
from sparta_bench.text import counted

OVERVIEW = "tables.md"
# what the last call wrote, so that a table without records any more does not stay
LIST = ".sparta-bench-tables"
OURS = re.compile(rf"[\w.+-]+\.({'|'.join(FORMATS)})", re.ASCII)  # names that it may hold


def reasons_of(excluded: Iterable[Excluded]) -> list[str]:
    """`3: interrupted` for each reason, the most common first."""
    counts = Counter(one.reason for one in excluded).most_common()
    return [f"{number:,}: {reason}" for reason, number in counts]


def summary(read: int, unread: Sequence[Excluded], selection: Selection) -> str:
    """How many records were found, used and left out, and why."""
    excluded = [*selection.excluded, *unread]
    failed = sum(chosen.failed for chosen in selection.cells.values())
    stopped = sum(chosen.stopped for chosen in selection.cells.values())
    raced = f"{stopped:,} stopped by a race, " if stopped else ""
    line = (
        f"{counted(read + len(unread), 'record')} found: {selection.used:,} used, "
        f"{len(selection.not_selected):,} of settings with a higher dev loss, "
        f"{failed:,} failed, {raced}{len(excluded):,} left out."
    )
    return "\n".join([line, *(f"- left out, {reason}" for reason in reasons_of(excluded))])


def missing(tables: Sequence[Table]) -> list[str]:
    """Which of the paper's tables there was nothing for."""
    keys = {table.key for table in tables}
    wanted = {"records": [one.number for one in LAYOUTS if not one.tiny], "plans": list(MODELS)}
    lacking = {
        what: [str(number) for number in numbers if f"table{number}" not in keys]
        for what, numbers in wanted.items()
    }
    return [
        f"no {what} for the paper's tables: {', '.join(numbers)}"
        for what, numbers in lacking.items()
        if numbers
    ]


def merge_notes(merges: Mapping[str, Sequence[Merge]], unread: Sequence[Excluded]) -> list[str]:
    """How many pairs of merged runs there were, and why others were left out."""
    if not merges and not unread:
        return []
    pairs = f"{counted(sum(map(len, merges.values())), 'pair')} of merged runs"
    counts = Counter(left.reason for left in unread).most_common()
    return ["; ".join([pairs, *(f"{number:,} left out: {reason}" for reason, number in counts)])]


def overview(tables: Sequence[Table], summary: str, notes: Sequence[str]) -> str:
    """The text of `tables.md`: the summary, the notes and all tables."""
    lines = "\n".join([summary, *(f"- {note}" for note in notes)])
    return "\n".join(["# Tables\n", lines + "\n", *map(as_markdown, tables)])


def write_tables(out: Path, tables: Sequence[Table], formats: Sequence[str], overview: str) -> None:
    """Write a file for each table and format, and the overview; remove those of an earlier call.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    files = {OVERVIEW: overview}
    for table in tables:
        files |= {f"{table.key}.{name}": FORMATS[name](table) for name in formats}
    for name in _listed(out) - files.keys():
        (out / name).unlink(missing_ok=True)
    # the list first: a file that it names and that is not there does no harm
    for name, text in {LIST: "\n".join(sorted(files)) + "\n", **files}.items():
        if _holds(out / name, text):  # to write it again takes longer than to read it
            clear_leftovers(out, name)
        else:
            write_texts(out, {name: text})


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def _listed(out: Path) -> set[str]:
    """The names of tables in the list of files, if there is one."""
    try:
        lines = (out / LIST).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return set()
    return set(filter(OURS.fullmatch, lines))


def tables_as_json(
    tables: Sequence[Table],
    read: int,
    unread: Sequence[Excluded],
    selection: Selection,
    faults: Sequence[str],
) -> str:
    """The tables, and the counts of records, as one JSON object."""
    excluded = [*selection.excluded, *unread]
    records = {
        "found": read + len(unread),
        "used": selection.used,
        "outdone": len(selection.not_selected),
        "failed": sum(chosen.failed for chosen in selection.cells.values()),
        "stopped": sum(chosen.stopped for chosen in selection.cells.values()),
        "left_out": [{"path": str(one.path), "reason": one.reason} for one in excluded],
    }
    listed = [
        {
            "key": table.key,
            "title": table.title,
            "headings": flat_headings(table),
            "rows": table.rows,
            "notes": table.notes,
        }
        for table in tables
    ]
    found = {"records": records, "plans_not_read": list(faults), "tables": listed}
    return json.dumps(found, indent=2)
