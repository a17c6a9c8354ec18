"""The command line of `sparta-bench report`."""

from __future__ import annotations

import gc
from pathlib import Path

from sparta_bench.cli.options import Parser, add_folders
from sparta_bench.errors import InputError
from sparta_bench.records.read import folders_of, read_records
from sparta_bench.report.plots import check_matplotlib, write_figures
from sparta_bench.report.report import report
from sparta_bench.tables.table import write_texts
from sparta_bench.text import counted


def _parser() -> Parser:
    parser = Parser(
        prog="sparta-bench report",
        usage="sparta-bench report [FOLDER ...] [--out DIR] [--page-only]",
        description="Write report.html from the records below the folders: what came out beside\n"
        "the paper, what is missing, curves, settings, costs and tables. One file that\n"
        "needs no network. Its figures for papers, as PNG and SVG, lie in figures/\n"
        "beside it. All of them need matplotlib: pip install 'sparta-bench[plots]'",
    )
    add_folders(parser, "the runs of results")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="where to (report/ in the first FOLDER)"
    )
    parser.add_argument(
        "--page-only",
        action="store_true",
        help="the page without figures/",
    )
    return parser


def main(arguments: list[str]) -> None:
    """`sparta-bench report`: write the page and the figures, and say where they are."""
    options = _parser().parse_args(arguments)
    folders, places = folders_of("report", options.folders)
    check_matplotlib("report")
    records, unread = read_records(places)
    if not records and not unread:
        names = ", ".join(map(str, places))
        raise InputError(f"report: no result.json below {names}")
    out: Path = options.out or folders[0] / "report"
    if out.exists() and not out.is_dir():
        raise InputError(f"report: --out {out}: is no folder")
    gc.freeze()  # the records stay to the end: looking through them again takes a second
    text, figures = report(places, records, unread)
    try:
        write_texts(out, {"report.html": text})
        print(out / "report.html")
        if not options.page_only:
            count = write_figures(figures, out / "figures")
            more = f"; {len(figures) - count} more on the page only" if count < len(figures) else ""
            print(f"{out / 'figures'}: {counted(count, 'figure')}, each as PNG and SVG{more}")
    except OSError as error:
        raise InputError(f"report: --out {out}: {error.strerror or error}") from None
