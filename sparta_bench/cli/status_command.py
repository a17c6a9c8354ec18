"""The command line of `sparta-bench status`; no torch."""

from __future__ import annotations

import json
from dataclasses import asdict

from sparta_bench.cli.options import Parser, add_folders
from sparta_bench.records.read import folders_of, only_own
from sparta_bench.runs.status import Progress, progress
from sparta_bench.text import as_duration


def main(arguments: list[str]) -> None:
    """Print the progress of every table.

    Raises
    ------
    InputError
        If a folder is not there.
    """
    parser = Parser(
        prog="sparta-bench status",
        description="How far the sweeps of each table are: runs done, running, failed, missing,\n"
        "and the time left for one process, by the runs that are done.",
    )
    add_folders(parser, "the runs of results")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)
    folders, places = folders_of("status", options.folders)
    tables = progress(places)
    if options.json:
        print(json.dumps({"tables": [asdict(table) for table in tables]}, indent=2))
    else:
        print(_as_text(tables))
        if places != folders:
            print(f"Counted are the runs {only_own(places)}.")


def _as_text(tables: list[Progress]) -> str:
    heads = ("table", "cells", "runs", "done", "running", "failed", "missing", "time left")
    rows = [
        (
            table.table,
            f"{table.cells_done}/{table.cells}",
            f"{table.runs:,}",
            f"{table.done:,}",
            f"{table.running:,}",
            f"{table.failed:,}",
            f"{table.missing:,}",
            "–" if table.done == table.runs else _time(table.seconds_left),
        )
        for table in tables
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (heads, *rows)
    ]
    lines += ["", "A cell is done when all runs of its grid are; time is for one process."]
    outdated = [f"{table.table} {table.outdated:,}" for table in tables if table.outdated]
    if outdated:
        lines.append(
            "Not done are also runs of an earlier protocol, whose numbers this version does not "
            f"give ({', '.join(outdated)}): their records stay in the tables, and a sweep makes "
            "them again."
        )
    return "\n".join(lines)


def _time(seconds: float | None) -> str:
    return "unknown" if seconds is None else as_duration(seconds)
