"""`sparta-bench tables`: every table from the records below some folders, as files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sparta_bench.errors import InputError
from sparta_bench.files import clear_leftovers, whole_file
from sparta_bench.options import Parser
from sparta_bench.records import LeftOut, folders_of, only_own, read_records
from sparta_bench.tables.build import build_tables
from sparta_bench.tables.counts import MODELS, count_tables, read_plans
from sparta_bench.tables.layout import LAYOUTS
from sparta_bench.tables.merging import Merge, merging_tables, read_merges
from sparta_bench.tables.render import as_csv, as_latex, as_markdown, flat_headings
from sparta_bench.tables.select import Selection, select
from sparta_bench.tables.table import Table
from sparta_bench.tables.texts import count

FORMATS: dict[str, Callable[[Table], str]] = {"md": as_markdown, "csv": as_csv, "tex": as_latex}
OVERVIEW = "tables.md"
# what the last call wrote, so that a table without records any more does not stay
LIST = ".sparta-bench-tables"


def _parser() -> Parser:
    parser = Parser(
        prog="sparta-bench tables",
        usage="sparta-bench tables [FOLDER ...] [options]",
        description="Make the paper's tables, beside the paper's own values, and further ones\n"
        "from all records (result.json) below the folders. A setting is chosen by its\n"
        "dev loss, never by test. Writes a file for each table and format, and\n"
        "tables.md with all of them, which is printed too.",
        epilog="Tables 2 and 9 need what `sparta-bench plan --json` prints in FOLDER/plans/*.json.",
    )
    parser.add_argument(
        "folders",
        metavar="FOLDER",
        nargs="*",
        type=Path,
        help="all records below it count (the runs and merges of results)",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="where to write (tables, in the first FOLDER)"
    )
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        action="append",
        help="write these only; may be given again (all three)",
    )
    parser.add_argument(
        "--settings",
        action="store_true",
        help="make Tables 12 and 13 too, from the configuration; takes some seconds",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of tables.md"
    )
    return parser


def main(arguments: list[str]) -> None:
    """Write the tables, and print them.

    Raises
    ------
    InputError
        If a folder is not there, or the tables cannot be written.
    """
    options = _parser().parse_intermixed_args(arguments)
    folders, places = folders_of("tables", options.folders)
    records, unread = read_records(places)
    selection = select(records)
    sizes, faults = read_plans(folders)
    merges, unread_merges = read_merges(places, selection)
    tables = [*count_tables(sizes), *build_tables(selection), *merging_tables(merges)]
    if options.settings:
        from sparta_bench.tables.settings import settings_tables

        tables += settings_tables()
    notes = [*(f"plans: {fault}" for fault in faults), *_missing(tables)]
    notes += _merge_notes(merges, unread_merges)
    if places != folders:
        notes.append(only_own(places))
    overview = _overview(tables, _summary(len(records), unread, selection), notes)
    out = options.out or folders[0] / "tables"
    try:
        _write(out, tables, options.format or list(FORMATS), overview)
    except OSError as error:
        raise InputError(f"tables: --out {out}: {error.strerror}") from None
    if options.json:
        print(_as_json(tables, len(records), unread, selection, faults))
    else:
        print(overview, end="")


def _summary(read: int, unread: Sequence[LeftOut], selection: Selection) -> str:
    used = sum(len(chosen.runs) for chosen in selection.cells.values())
    failed = sum(chosen.failed for chosen in selection.cells.values())
    left_out = Counter(left.reason for left in (*selection.left_out, *unread))
    parts = [
        f"{count(read + len(unread), 'record')} found: {used:,} used",
        f"{len(selection.outdone):,} of settings with a higher dev loss",
        f"{failed:,} failed",
        f"{left_out.total():,} left out",
    ]
    lines = [", ".join(parts) + "."]
    lines += [f"- left out, {number:,}: {reason}" for reason, number in left_out.most_common()]
    return "\n".join(lines)


def _missing(tables: Sequence[Table]) -> list[str]:
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


def _merge_notes(merges: Mapping[str, Sequence[Merge]], unread: Sequence[LeftOut]) -> list[str]:
    """How many pairs of merged runs there were, and why others were left out."""
    if not merges and not unread:
        return []
    used = sum(map(len, merges.values()))
    reasons = Counter(left.reason for left in unread)
    why = "; ".join(f"{number:,} left out: {reason}" for reason, number in reasons.most_common())
    return [f"{count(used, 'pair')} of merged runs" + (f"; {why}" if why else "")]


def _overview(tables: Sequence[Table], summary: str, notes: Sequence[str]) -> str:
    lines = "\n".join([summary, *(f"- {note}" for note in notes)])
    return "\n".join(["# Tables\n", lines + "\n", *map(as_markdown, tables)])


def _write(out: Path, tables: Sequence[Table], formats: Sequence[str], overview: str) -> None:
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
    ours = re.compile(rf"[\w.+-]+\.({'|'.join(FORMATS)})", re.ASCII)  # what `_write` gives
    return set(filter(ours.fullmatch, lines))


def _as_json(
    tables: Sequence[Table],
    read: int,
    unread: Sequence[LeftOut],
    selection: Selection,
    faults: Sequence[str],
) -> str:
    left_out = [*selection.left_out, *unread]
    return json.dumps(
        {
            "records": {
                "found": read + len(unread),
                "used": sum(len(chosen.runs) for chosen in selection.cells.values()),
                "outdone": len(selection.outdone),
                "failed": sum(chosen.failed for chosen in selection.cells.values()),
                "left_out": [{"path": str(one.path), "reason": one.reason} for one in left_out],
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
