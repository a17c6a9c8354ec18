"""`sparta-bench tables`: every table from the records below some folders, as files."""

from __future__ import annotations

from pathlib import Path

from sparta_bench.cli.options import Parser, add_folders
from sparta_bench.errors import InputError
from sparta_bench.records.read import folders_of, only_own, read_races, read_records
from sparta_bench.tables.build import (
    build_tables,
    merge_notes,
    missing,
    overview,
    summary,
    tables_as_json,
)
from sparta_bench.tables.merge_tables import merging_tables, read_merges
from sparta_bench.tables.select import select
from sparta_bench.tables.setup_tables import count_tables, read_plans
from sparta_bench.tables.table import FORMATS, write_tables


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
    add_folders(parser, "the runs and merges of results")
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
    """Write the tables, and print them."""
    options = _parser().parse_intermixed_args(arguments)
    folders, places = folders_of("tables", options.folders)
    records, unread = read_records(places)
    selection = select(records, read_races(places))
    sizes, faults = read_plans(folders)
    merges, unread_merges = read_merges(places, selection)
    tables = [*count_tables(sizes), *build_tables(selection), *merging_tables(merges)]
    if options.settings:
        from sparta_bench.tables.setup_tables import settings_tables

        tables += settings_tables()
    notes = [*(f"plans: {fault}" for fault in faults), *missing(tables)]
    notes += merge_notes(merges, unread_merges)
    if places != folders:
        notes.append(only_own(places))
    text = overview(tables, summary(len(records), unread, selection), notes)
    out = options.out or folders[0] / "tables"
    try:
        write_tables(out, tables, options.format or list(FORMATS), text)
    except OSError as error:
        raise InputError(f"tables: --out {out}: {error.strerror}") from None
    if options.json:
        text = tables_as_json(tables, len(records), unread, selection, faults) + "\n"
    print(text, end="")
