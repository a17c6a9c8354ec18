"""The command line of `sparta-bench predict`. Nothing heavy is imported before it is read."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sparta_bench.cli.adapter_options import add_compute, open_adapter
from sparta_bench.cli.options import Parser, add_sources, check_there, positive
from sparta_bench.errors import InputError

if TYPE_CHECKING:
    from sparta_bench.adapters.manifest import Manifest

# batches that are read together, so that texts of like length meet and padding is short
BATCHES_TOGETHER = 16


def _parser() -> Parser:
    parser = Parser(
        prog="sparta-bench predict",
        usage="sparta-bench predict ADAPTER [TEXT ...] [options]",
        description="Label texts with what a run has trained: words of the command line, lines of\n"
        "a file, or lines of standard input. A line is a text, or a pair with a tab\n"
        "between. Each gives a line, in the same order: the label, a tab, its\n"
        "probability.",
        epilog="Of a multi-head model each line has the name, label and probability of every\n"
        "head. The texts get the prompt that the adapter was trained with. A text that begins\n"
        "with a dash needs -- before it.",
    )
    add_sources(parser)
    add_compute(parser)
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="texts to label")
    parser.add_argument("--file", metavar="F", help="read the lines of this file; - is stdin")
    text = (
        "each line is a JSON object with the task's columns, or with text where the task has one "
        "column; so is each line of a --file that ends in .jsonl"
    )
    parser.add_argument("--jsonl-input", action="store_true", help=text)
    text = (
        'write {"label": ..., "probabilities": {label: p, ...}} for each; of a multi-head model '
        "an object with one of these by head"
    )
    parser.add_argument("--jsonl", action="store_true", help=text)
    text = (
        f"texts that go through the model at once (32); {BATCHES_TOGETHER} batches are read "
        "together and sorted by length"
    )
    parser.add_argument("--batch-size", metavar="N", type=positive, default=32, help=text)
    return parser


def main(arguments: list[str]) -> None:
    """`sparta-bench predict`: print a line for each text."""
    options = _parser().parse_intermixed_args(arguments)
    if options.texts and options.file is not None:
        raise InputError(f"predict: --file {options.file} and texts on the command line")
    check_there([options.adapter])
    from sparta_bench.devices import device_of, heavy_imports

    with heavy_imports():
        device = device_of(options.device, f"predict: --device {options.device}")
        from sparta_bench.adapters.multi_head import MultiHead
        from sparta_bench.inference.predict import (
            as_json,
            as_text,
            lines_of,
            move,
            one_reading,
            predict_heads,
            read_texts,
            ready,
        )
        from sparta_bench.inference.predict import predict as predictions

    jsonl = options.jsonl_input or str(options.file).endswith(".jsonl")
    loaded = open_adapter(options)
    if isinstance(loaded, MultiHead):
        about = one_reading(loaded.about)
        _log_dtype(about, move(loaded, about.dtypes["model"], device, options.dtype))
        examples = read_texts(lines_of(options.texts, options.file), about, jsonl)
        as_line = as_json if options.jsonl else as_text
        for all_heads in predict_heads(loaded, examples, options.batch_size, BATCHES_TOGETHER):
            print("\n".join(map(as_line, all_heads)), flush=True)
        return
    _log_dtype(loaded.about, ready(loaded, device, options.dtype))
    examples = read_texts(lines_of(options.texts, options.file), loaded.about, jsonl)
    for some in predictions(loaded, examples, options.batch_size, BATCHES_TOGETHER):
        print(
            "\n".join(one.as_json() if options.jsonl else one.as_text() for one in some), flush=True
        )


def _log_dtype(about: Manifest, dtype: str) -> None:
    trained = about.dtypes["model"]
    if dtype != trained:
        print(f"sparta-bench: computes in {dtype}, training computed in {trained}", file=sys.stderr)
