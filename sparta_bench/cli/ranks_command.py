"""The command line of `sparta-bench ranks`. Nothing heavy is imported before it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparta_bench.cli.options import Parser, check_folder, figure_path
from sparta_bench.config.conf_folder import check_source
from sparta_bench.errors import InputError, log
from sparta_bench.files import write_json
from sparta_bench.report.plots import check_matplotlib, write_figures
from sparta_bench.tables.table import FORMATS, as_markdown, write_texts


def _parser() -> Parser:
    parser = Parser(
        prog="sparta-bench ranks",
        description="Ranks of what fine-tuning changed in each weight matrix (appendix A, Tables\n"
        "7 and 8), from safetensors alone: no model is built. Each of BASE and TUNED\n"
        "is a file, a folder (shards too), a model of conf/model, or a name on the\n"
        "hub; TUNED may be an adapter or a whole classifier that a run saved.",
    )
    flags: dict[str, dict[str, Any]] = {
        "base": {"metavar": "BASE", "help": "what the tuning began with"},
        "tuned": {"metavar": "TUNED", "nargs": "+", "help": "what came of it"},
        "--json": {"action": "store_true", "help": "print a JSON list and nothing else"},
        "--out": {"metavar": "DIR", "type": Path,
         "help": "also write ranks.json, .md, .csv and .tex there"},
        "--figure": {"metavar": "PATH", "type": Path,
         "help": "draw the spectra: PATH.png and PATH.svg (spectrum.* where PATH is a folder)"},
        "--dtype": {"choices": ("float32", "float64"), "default": "float32",
         "help": "of the computation, and so of the tolerance (float32)"},
        "--device": {"choices": ("auto", "cpu", "cuda"), "default": "auto",
         "help": "(auto: CUDA if there)"},
    }  # fmt: skip
    for flag, settings in flags.items():
        parser.add_argument(flag, **settings)
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
    from sparta_bench.analysis.ranks.rank_tables import rank_table, spectra
    from sparta_bench.analysis.ranks.spectrum import WORK_DTYPES

    compared = compare(options.base, options.tuned, WORK_DTYPES[options.dtype], device)
    rows = compared.as_list()
    table = rank_table(compared.models, compared.title, compared.notes)
    # what an hour may have computed is printed before a file may fail
    if options.json:
        print(json.dumps(rows, allow_nan=False))
        log(*compared.notes)
    else:
        print(as_markdown(table), end="")
    try:
        if options.out is not None:
            write_json(options.out / "ranks.json", rows)
            write_texts(options.out, {f"ranks.{end}": form(table) for end, form in FORMATS.items()})
        if (
            figure is not None
            and (drawing := spectra(figure.name, compared.title, compared.models)).panels
        ):
            write_figures([drawing], figure.parent)
        elif figure is not None:
            log("nothing changed, so there is no spectrum to draw")
    except OSError as error:
        raise InputError(f"ranks: {error.filename}: cannot be written: {error.strerror}") from None
