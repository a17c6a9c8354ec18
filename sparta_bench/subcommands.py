"""The command lines of `predict` and `evaluate`. Nothing heavy is imported before they are read."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparta_bench.errors import InputError, did_you_mean
from sparta_bench.options import (
    Parser,
    add_sources,
    check_folder,
    check_settings,
    check_there,
    positive,
)

if TYPE_CHECKING:
    from sparta_bench.multi_head import LoadedHeads
    from sparta_bench.saved.description import Description
    from sparta_bench.saved.load import Loaded

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
        epilog="Of a multi-head model each line has the name, label and probability of every\n"
        "head. The texts get the prompt that the adapter was trained with. A text that begins\n"
        "with a dash needs -- before it.",
    )
    add_sources(parser)
    _add_compute(parser)
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
        help='write {"label": ..., "probabilities": {label: p, ...}} for each; of a multi-head '
        "model an object with one of these by head",
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=positive,
        default=32,
        help=f"texts that go through the model at once (32); {BATCHES_TOGETHER} batches are read "
        "together and sorted by length",
    )
    return parser


def predict(arguments: list[str]) -> None:
    """`sparta-bench predict`: print a line for each text."""
    options = _predict_parser().parse_intermixed_args(arguments)
    if options.texts and options.file is not None:
        raise InputError(f"predict: --file {options.file} and texts on the command line")
    check_there([options.adapter])
    from sparta_bench.device import device_of

    device = device_of(options.device, f"predict: --device {options.device}")
    from sparta_bench import multi_head
    from sparta_bench.predict import (
        as_json,
        as_text,
        lines_of,
        move,
        one_reading,
        predict_heads,
        read_texts,
        ready,
    )
    from sparta_bench.predict import predict as predictions

    jsonl = options.jsonl_input or str(options.file).endswith(".jsonl")
    if multi_head.is_in(options.adapter) and options.head is None:
        heads = _heads(options)
        about = one_reading(heads.about)
        dtype = move(heads.model, about.dtypes["model"], device, options.dtype)
        _tell_dtype(about, dtype)
        examples = read_texts(lines_of(options.texts, options.file), about, jsonl)
        as_line = as_json if options.jsonl else as_text
        for all_heads in predict_heads(heads, examples, options.batch_size, BATCHES_TOGETHER):
            print("\n".join(map(as_line, all_heads)), flush=True)
        return
    loaded = _one(options)
    _tell_dtype(loaded.about, ready(loaded, device, options.dtype))
    examples = read_texts(lines_of(options.texts, options.file), loaded.about, jsonl)
    for some in predictions(loaded, examples, options.batch_size, BATCHES_TOGETHER):
        print(
            "\n".join(one.as_json() if options.jsonl else one.as_text() for one in some), flush=True
        )


def _tell_dtype(about: Description, dtype: str) -> None:
    trained = about.dtypes["model"]
    if dtype != trained:
        print(f"sparta-bench: computes in {dtype}, training computed in {trained}", file=sys.stderr)


# ------------------------------------------------------------------------------- evaluating
def _evaluate_parser() -> Parser:
    parser = Parser(
        prog="sparta-bench evaluate",
        usage="sparta-bench evaluate ADAPTER [task=NAME] [key=value ...] [options]",
        description="Loss, accuracy and mcc of what a run has trained, or `merge` made, on dev\n"
        "and test set of its own task, or of another with the same labels. Of a\n"
        "multi-head model every head is scored on its own task.",
        epilog="Settings: task, task.*, device, cache_dir and train.eval_batch_size, as in a run.",
    )
    add_sources(parser)
    _add_compute(parser)
    parser.add_argument("settings", metavar="key=value", nargs="*", help="see below")
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list, an object for each head"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="also write the JSON there")
    return parser


def evaluate(arguments: list[str]) -> None:
    """`sparta-bench evaluate`: print the scores of a classifier, or of each head of one."""
    options = _evaluate_parser().parse_intermixed_args(arguments)
    check_settings("evaluate", options.settings)
    check_there([options.adapter])
    if options.out is not None:
        check_folder("evaluate: --out", options.out.parent)
        if options.out.is_dir():
            raise InputError(f"evaluate: --out {options.out}: is a folder, and a file is written")
    from sparta_bench.device import device_of

    device_of(options.device, f"evaluate: --device {options.device}")
    from sparta_bench import multi_head
    from sparta_bench.compose import compose
    from sparta_bench.evaluate import as_text, evaluation_of, settings_for
    from sparta_bench.files import write_json

    settings = options.settings
    if options.device != "auto":
        settings = [*settings, f"device={options.device}"]
    if multi_head.is_in(options.adapter) and options.head is None:
        heads = _heads(options)
        chosen = {name: heads.one(name) for name in _of_task(heads.about, settings)}
    else:
        one = _one(options)
        chosen = {options.head or one.about.task or "": one}
    configs = [
        compose(settings_for(loaded.about, settings, options.adapter)) for loaded in chosen.values()
    ]
    found = [
        {"head": name or config.task.name}
        | evaluation_of(loaded, config, f"{options.adapter}", options.dtype)
        for (name, loaded), config in zip(chosen.items(), configs, strict=True)
    ]
    if options.out is not None:
        try:
            write_json(options.out, found)
        except OSError as error:
            raise InputError(
                f"evaluate: --out {options.out}: cannot be written: {error.strerror}"
            ) from None
    print(json.dumps(found, allow_nan=False) if options.json else as_text(found))


def _of_task(heads: Mapping[str, Description], settings: Sequence[str]) -> list[str]:
    """The heads that were trained on the task that is asked for; all where none is."""
    asked = [text.partition("=")[2] for text in settings if text.startswith("task=")]
    found = [name for name, about in heads.items() if about.task in asked or not asked]
    if not found:
        raise InputError(
            f"evaluate: task={asked[0]}: no head was trained on it; --head NAME chooses one"
        )
    return found


# ------------------------------------------------------------------------------ what both do
def _add_compute(parser: Parser) -> None:
    parser.add_argument(
        "--head", metavar="NAME", help="of a multi-head model this head alone (all of them)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="to compute in; left out: that of training, but float32 on a CPU, where bfloat16 "
        "is slow",
    )


def _heads(options: Namespace) -> LoadedHeads:
    """A multi-head model, which needs neither a base nor a tokenizer."""
    from sparta_bench import multi_head

    for option, name in (("--base", options.base), ("--tokenizer", options.tokenizer)):
        if name is not None:
            raise InputError(f"{option} {name}: {options.adapter} is whole and needs none")
    return multi_head.load(options.adapter)


def _one(options: Namespace) -> Loaded:
    """Whatever lies in the folder, or one head of it."""
    from sparta_bench import multi_head
    from sparta_bench.saved.load import load

    if multi_head.is_in(options.adapter):
        heads = _heads(options)
        if options.head not in heads.about:
            near = did_you_mean(options.head, heads.about)
            known = ", ".join(heads.about)
            raise InputError(f"--head {options.head}: no such head{near}; there are {known}")
        return heads.one(options.head)
    if options.head is not None:
        raise InputError(f"--head {options.head}: {options.adapter} has only one")
    return load(options.adapter, options.base, options.tokenizer, options.allow_pickle)
