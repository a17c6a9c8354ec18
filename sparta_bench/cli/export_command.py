"""The command line of `sparta-bench export`."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from sparta_bench.cli.options import Parser, add_outputs, check_folder, check_there
from sparta_bench.config.rules import why_no_tracker
from sparta_bench.errors import InputError, log, reason_of, refusal_of
from sparta_bench.records.read import read_records
from sparta_bench.text import counted


def main(arguments: list[str]) -> None:
    """Log completed runs in a tracker from their records, each once."""
    parser = Parser(
        prog="sparta-bench export",
        description="Show completed runs in an experiment tracker: settings, history and scores,\n"
        "from their records. A run that is there already is left as it is. To see a run while it\n"
        "trains, give it logger=NAME (docs/trackers.md).",
    )
    names = "trackio", "tensorboard"
    parser.add_argument("tracker", metavar="trackio|tensorboard", choices=names)
    text = "all completed runs below it"
    parser.add_argument("folder", metavar="FOLDER", type=Path, help=text)
    add_outputs(parser, json=None, out="where to (FOLDER/tensorboard; trackio's own folder)")
    options = parser.parse_args(arguments)
    name, folder, out = options.tracker, options.folder, options.out
    check_there([folder])
    if problem := why_no_tracker(name):
        raise InputError(f"export {name}: {problem}")
    check_folder("export: --out", out)
    records, excluded = read_records([folder])
    completed = [record for record in records if record.status == "completed"]
    if not completed:
        raise InputError(f"export: {folder}: no completed run is below it")
    if name == "trackio" and out is not None:
        os.environ["TRACKIO_DIR"] = str(out.resolve())  # read when trackio is imported
    from sparta_bench.runs.trackers import replay

    place = folder / name if out is None else out
    try:
        added = sum(replay(name, record, place) for record in completed)
    except (OSError, ValueError, sqlite3.Error) as error:
        reason = refusal_of(error) if isinstance(error, OSError) else reason_of(error)
        raise InputError(f"export: {reason}") from None
    if left_out := len(excluded) + len(records) - len(completed):
        log(f"export: {counted(left_out, 'record')} not of completed runs, or not readable")
    where = "" if name == "trackio" and out is None else f"{place}: "
    there = len(completed) - added
    print(f"{where}{counted(added, 'run')} added to {name}, {there:,} there already")
