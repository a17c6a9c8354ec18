"""The command line of `sparta-bench status`; no torch."""

from __future__ import annotations

import json
from dataclasses import asdict

from sparta_bench.cli.options import Parser, add_folders
from sparta_bench.records.read import folders_of, only_own
from sparta_bench.runs.status import Progress, progress
from sparta_bench.text import as_duration, counted, padded


def main(arguments: list[str]) -> None:
    """Print the progress of every table."""
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
    rows = [("table", "cells", "runs", "done", "running", "failed", "missing", "time left")]
    for one in tables:
        left = "unknown" if one.seconds_left is None else as_duration(one.seconds_left)
        counts = (one.runs, one.done, one.running, one.failed, one.missing)
        runs, done, running, failed, missing = (f"{count:,}" for count in counts)
        rows.append((one.table, f"{one.cells_done}/{one.cells}", runs, done, running, failed,
                     missing, "–" if one.cells_done == one.cells else left))  # fmt: skip
    lines = ["  ".join(row) for row in padded(rows)]
    lines += ["", "A cell is done when all runs of its grid are; time is for one process."]
    raced = [one for one in tables if one.stopped or one.not_needed]
    lines += [
        f"{one.table} was raced: {counted(one.stopped, 'run')} stopped, {one.not_needed:,} not "
        f"needed; {one.run_equivalents:,.1f} run-equivalents made of {one.runs:,}."
        for one in raced
    ]
    outdated = ", ".join(f"{one.table} {one.outdated:,}" for one in tables if one.outdated)
    if outdated:
        lines.append(
            "Not done are also runs of an earlier protocol, whose numbers this version does not "
            f"give ({outdated}): their records stay in the tables, and a sweep makes them again."
        )
    return "\n".join(lines)
