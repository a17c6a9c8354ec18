"""Tables as files, with an overview of all of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sparta_bench.files import clear_leftovers, whole_file
from sparta_bench.records.record import Excluded
from sparta_bench.tables.format import count
from sparta_bench.tables.merge_tables import Merge
from sparta_bench.tables.paper_tables import LAYOUTS
from sparta_bench.tables.render import as_csv, as_latex, as_markdown, flat_headings
from sparta_bench.tables.select import Selection
from sparta_bench.tables.split_counts import MODELS
from sparta_bench.tables.table import Table

FORMATS: dict[str, Callable[[Table], str]] = {"md": as_markdown, "csv": as_csv, "tex": as_latex}
OVERVIEW = "tables.md"
# what the last call wrote, so that a table without records any more does not stay
LIST = ".sparta-bench-tables"


def summary(read: int, unread: Sequence[Excluded], selection: Selection) -> str:
    """How many records were found, used and left out, and why."""
    used = sum(len(chosen.runs) for chosen in selection.cells.values())
    failed = sum(chosen.failed for chosen in selection.cells.values())
    excluded = Counter(left.reason for left in (*selection.excluded, *unread))
    parts = [
        f"{count(read + len(unread), 'record')} found: {used:,} used",
        f"{len(selection.not_selected):,} of settings with a higher dev loss",
        f"{failed:,} failed",
        f"{excluded.total():,} left out",
    ]
    lines = [", ".join(parts) + "."]
    lines += [f"- left out, {number:,}: {reason}" for reason, number in excluded.most_common()]
    return "\n".join(lines)


def missing(tables: Sequence[Table]) -> list[str]:
    """Which of the paper's tables there was nothing for."""
    keys = {table.key for table in tables}
    wanted = {
        "records": [layout.number for layout in LAYOUTS if not layout.twins],
        "plans": list(MODELS),
    }
    notes = []
    for what, numbers in wanted.items():
        without = [str(number) for number in numbers if f"table{number}" not in keys]
        if without:
            notes.append(f"no {what} for the paper's tables: {', '.join(without)}")
    return notes


def merge_notes(merges: Mapping[str, Sequence[Merge]], unread: Sequence[Excluded]) -> list[str]:
    """How many pairs of merged runs there were, and why others were left out."""
    if not merges and not unread:
        return []
    used = sum(map(len, merges.values()))
    reasons = Counter(left.reason for left in unread)
    why = "; ".join(f"{number:,} left out: {reason}" for reason, number in reasons.most_common())
    return [f"{count(used, 'pair')} of merged runs" + (f"; {why}" if why else "")]


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
        if _holds(out / name, text):
            clear_leftovers(out, name)
        else:
            with whole_file(out / name) as temporary:
                temporary.write_text(text, encoding="utf-8")


def _holds(path: Path, text: str) -> bool:
    """Whether the file is there already: to write it again takes longer than to read it."""
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
    ours = re.compile(rf"[\w.+-]+\.({'|'.join(FORMATS)})", re.ASCII)  # what `write_tables` gives
    return set(filter(ours.fullmatch, lines))


def tables_as_json(
    tables: Sequence[Table],
    read: int,
    unread: Sequence[Excluded],
    selection: Selection,
    faults: Sequence[str],
) -> str:
    """The tables, and the counts of records, as one JSON object."""
    excluded = [*selection.excluded, *unread]
    return json.dumps(
        {
            "records": {
                "found": read + len(unread),
                "used": sum(len(chosen.runs) for chosen in selection.cells.values()),
                "outdone": len(selection.not_selected),
                "failed": sum(chosen.failed for chosen in selection.cells.values()),
                "left_out": [{"path": str(one.path), "reason": one.reason} for one in excluded],
            },
            "plans_not_read": list(faults),
            "tables": [
                {
                    "key": table.key,
                    "title": table.title,
                    "headings": flat_headings(table),
                    "rows": table.rows,
                    "notes": table.notes,
                }
                for table in tables
            ],
        },
        indent=2,
    )
