"""The command lines of `predict` and `merge`. Nothing heavy is imported before they are read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from sparta_bench.errors import InputError

LAYOUTS = ("peft-sparta",)
# batches that are read together, so that texts of like length meet and padding is short
BATCHES_TOGETHER = 16


class Parser(argparse.ArgumentParser):
    """A parser whose errors are told as all of this program's are."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings
        )

    def error(self, message: str) -> NoReturn:
        verb = self.prog.removeprefix("sparta-bench ")
        raise InputError(f"{verb}: {message} (see sparta-bench {verb} --help)")


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "adapter",
        metavar="ADAPTER",
        type=Path,
        help="folder of an adapter, of a whole classifier (save=full, merge bake), or of an "
        "adapter of the authors' package peft-sparta",
    )
    parser.add_argument(
        "--base",
        metavar="DIR|NAME",
        help="folder or hub name of the base model; needed where it was in a folder in training",
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR|NAME", help="the same for a tokenizer that is not beside it"
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read the .pt files that peft-sparta's trainer writes (tensors only)",
    )


# ---------------------------------------------------------------------------------- predict
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
    _add_sources(parser)
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
        type=_positive,
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


# ------------------------------------------------------------------------------------ merge
def _merge_parser() -> Parser:
    parser = Parser(
        prog="sparta-bench merge", description="Make something else of what a run has trained."
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb")
    bake = verbs.add_parser(
        "bake",
        help="a plain transformers folder, which needs none of this project",
        description="Write a plain transformers folder: AutoModelForSequenceClassification and\n"
        "AutoTokenizer load it. The texts of an instruction model need its prompt,\n"
        "which is in classifier_config.json.",
    )
    export = verbs.add_parser(
        "export",
        help="a SpaRTA adapter in another program's layout",
        description="Write a SpaRTA adapter for another program.",
    )
    for verb in (bake, export):
        _add_sources(verb)
        verb.add_argument("--out", metavar="DIR", type=Path, required=True, help="where to")
        verb.add_argument(
            "--force", action="store_true", help="replace the folder DIR, whatever is in it"
        )
    export.add_argument("--layout", choices=LAYOUTS, required=True)
    export.add_argument(
        "--base-name",
        metavar="NAME_OR_PATH",
        required=True,
        help="what that program is to load the base model from: a hub name or a folder",
    )
    return parser


def merge(arguments: list[str]) -> None:
    """`sparta-bench merge VERB`: write a folder and say what is there."""
    parser = _merge_parser()
    options = parser.parse_args(arguments)
    if options.verb is None:
        parser.print_help()
        return
    from sparta_bench import merge as verbs

    common = {
        "base": options.base,
        "tokenizer": options.tokenizer,
        "allow_pickle": options.allow_pickle,
        "force": options.force,
    }
    if options.verb == "bake":
        print(verbs.bake(options.adapter, options.out, **common))
    else:
        print(verbs.export(options.adapter, options.out, options.base_name, **common))
