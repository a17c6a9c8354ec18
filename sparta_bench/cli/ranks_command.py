"""The command line of `sparta-bench ranks`. Nothing heavy is imported before it is read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparta_bench.cli.options import Parser, check_folder, figure_path
from sparta_bench.errors import InputError
from sparta_bench.files import whole_file, write_json
from sparta_bench.models.checkpoint_names import check_source
from sparta_bench.report.plots import check_matplotlib, write_figures
from sparta_bench.tables.render import as_csv, as_latex, as_markdown

if TYPE_CHECKING:
    from sparta_bench.analysis.ranks.compare import Compared


def _parser() -> Parser:
    parser = Parser(
        prog="sparta-bench ranks",
        description="Ranks of what fine-tuning changed in each weight matrix (appendix A, Tables\n"
        "7 and 8), from safetensors alone: no model is built. Each of BASE and TUNED\n"
        "is a file, a folder (shards too), a model of conf/model, or a name on the\n"
        "hub; TUNED may be an adapter or a whole classifier that a run saved.",
    )
    parser.add_argument("base", metavar="BASE", help="what the tuning began with")
    parser.add_argument("tuned", metavar="TUNED", nargs="+", help="what came of it")
    parser.add_argument("--json", action="store_true", help="print a JSON list and nothing else")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="also write ranks.json, .md, .csv and .tex there"
    )
    parser.add_argument(
        "--figure",
        metavar="PATH",
        type=Path,
        help="draw the spectra: PATH.png and PATH.svg (spectrum.* where PATH is a folder)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        default="float32",
        help="of the computation, and so of the tolerance (float32)",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="(auto: CUDA if there)"
    )
    return parser


def main(arguments: list[str]) -> None:
    """`sparta-bench ranks`: print the table, or the JSON."""
    options = _parser().parse_args(arguments)
    if options.figure is not None:
        check_matplotlib("ranks --figure")
    figure = figure_path(options.figure, "spectrum")
    check_folder("ranks: --out", options.out)
    check_folder("ranks: --figure", figure and figure.parent)
    for source in (options.base, *options.tuned):
        check_source(source)
    from sparta_bench.devices import device_of

    device = device_of(options.device, f"ranks: --device {options.device}")
    from sparta_bench.analysis.ranks.compare import compare
    from sparta_bench.analysis.ranks.spectrum import WORK_DTYPES

    found = compare(options.base, options.tuned, WORK_DTYPES[options.dtype], device)
    rows = found.as_list()
    try:
        if options.out is not None:
            write(found, rows, options.out)
        if figure is not None:
            _draw(found, figure)
    except OSError as error:
        raise InputError(f"ranks: {error.filename}: cannot be written: {error.strerror}") from None
    finally:  # what an hour may have computed is told whatever became of the files
        _tell(found, rows, options.json)


def _tell(found: Compared, rows: list[dict[str, Any]], as_json: bool) -> None:
    if not as_json:
        print(as_markdown(found.table()), end="")
        return
    print(json.dumps(rows, allow_nan=False))
    for note in found.notes:
        print(f"sparta-bench: {note}", file=sys.stderr)


def _draw(found: Compared, path: Path) -> None:
    """The two files of `--figure`; `path` has no ending."""
    figure = found.figure(path.name)
    if figure.panels:
        write_figures([figure], path.parent)
    else:
        print("sparta-bench: nothing changed, so there is no spectrum to draw", file=sys.stderr)


def write(found: Compared, rows: list[dict[str, Any]], folder: Path) -> None:
    """The four files of `--out`."""
    table = found.table()
    write_json(folder / "ranks.json", rows)
    texts = {"md": as_markdown(table), "csv": as_csv(table), "tex": as_latex(table)}
    for end, text in texts.items():
        with whole_file(folder / f"ranks.{end}") as path:
            path.write_text(text, encoding="utf-8", newline="\n")
