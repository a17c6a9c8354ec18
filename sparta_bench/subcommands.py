"""The command line of `predict`. Nothing heavy is imported before it is read."""

from __future__ import annotations

import sys

from sparta_bench.errors import InputError
from sparta_bench.options import Parser, add_sources, positive

# batches that are read together, so that texts of like length meet and padding is short
BATCHES_TOGETHER = 16


def _predict_parser() -> Parser:
    parser = Parser(
        prog="sparta-bench predict",
        usage="sparta-bench predict ADAPTER [TEXT ...] [options]",
        description="Label texts with what a run has trained: words of the command line, lines of\n"
        "a file, or lines of standard input. A line is a text, or a pair with a tab\n"
        "between. Each gives a line, in the same order: the label, a tab, its\n"
        "probability.",
        epilog="The texts get the prompt that the adapter was trained with. A text that begins\n"
        "with a dash needs -- before it.",
    )
    add_sources(parser)
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="texts to label")
    parser.add_argument("--file", metavar="F", help="read the lines of this file; - is stdin")
    parser.add_argument(
        "--jsonl-input",
        action="store_true",
        help="each line is a JSON object with the task's columns, or with text where the task "
        "has one column; so is each line of a --file that ends in .jsonl",
    )
    parser.add_argument(
        "--jsonl",
        action="store_true",
        help='write {"label": ..., "probabilities": {label: p, ...}} for each',
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=positive,
        default=32,
        help=f"texts that go through the model at once (32); {BATCHES_TOGETHER} batches are read "
        "together and sorted by length",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="to compute in; left out: that of training, but float32 on a CPU, where bfloat16 "
        "is slow",
    )
    return parser


def predict(arguments: list[str]) -> None:
    """`sparta-bench predict`: print a line for each text."""
    options = _predict_parser().parse_intermixed_args(arguments)
    if options.texts and options.file is not None:
        raise InputError(f"predict: --file {options.file} and texts on the command line")
    import torch

    from sparta_bench.predict import lines_of, read_texts, ready
    from sparta_bench.predict import predict as predictions
    from sparta_bench.saved import load

    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device here")
    on_cuda = options.device != "cpu" and torch.cuda.is_available()
    loaded = load(options.adapter, options.base, options.tokenizer, options.allow_pickle)
    dtype = ready(loaded, torch.device("cuda" if on_cuda else "cpu"), options.dtype)
    trained = loaded.about.dtypes["model"]
    if dtype != trained:
        print(f"sparta-bench: computes in {dtype}, training computed in {trained}", file=sys.stderr)
    jsonl = options.jsonl_input or str(options.file).endswith(".jsonl")
    examples = read_texts(lines_of(options.texts, options.file), loaded.about, jsonl)
    for some in predictions(loaded, examples, options.batch_size, BATCHES_TOGETHER):
        lines = [one.as_json() if options.jsonl else one.as_text() for one in some]
        print("\n".join(lines), flush=True)
