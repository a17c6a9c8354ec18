"""What the subcommands' command lines share: the parser, their options, and where results go."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sparta_bench.errors import InputError
from sparta_bench.files import why_no_folder, why_not_writable, write_json

if TYPE_CHECKING:
    from sparta_bench.report.plots import Figure


class Parser(argparse.ArgumentParser):
    """A parser whose errors are reported as all of this program's are."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings
        )
        # argparse's own knows -1 and -.5 alone, and takes a list such as -1,2 for an option
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> NoReturn:
        verb = self.prog.removeprefix("sparta-bench ")
        raise InputError(f"{verb}: {message} (see sparta-bench {verb} --help)")


def positive(text: str) -> int:
    """Read a whole number of at least 1, as a type of an option."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


def add_numbers(parser: Parser, **texts: str) -> None:
    """Add options for whole numbers of at least 1, each with its help."""
    for name, text in texts.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="N", type=positive, help=text)


def add_overrides(parser: Parser) -> None:
    """Add `key=value ...`, of which the usage line speaks."""
    parser.add_argument("overrides", metavar="key=value", nargs="*", help=argparse.SUPPRESS)


def add_folders(parser: Parser, default: str) -> None:
    """Add `FOLDER ...`, whose records are read; `default` says which are where none is given."""
    text = f"all records below it count ({default})"
    parser.add_argument("folders", metavar="FOLDER", nargs="*", type=Path, help=text)


def add_sources(parser: Parser) -> None:
    """Add what says where a trained classifier and its base are."""
    parser.add_argument(
        "adapter",
        metavar="ADAPTER",
        type=Path,
        help="folder of an adapter, of a whole classifier (save=full, merge bake), or of an "
        "adapter of the authors' package peft-sparta",
    )
    add_base(parser)
    text = "read the .pt files that peft-sparta's trainer writes (tensors only)"
    parser.add_argument("--allow-pickle", action="store_true", help=text)


def add_base(parser: Parser) -> None:
    """Add what says where the base model is."""
    text = (
        "the base model: a folder, a model of conf/model, or a hub name; needed where training "
        "had it in a folder"
    )
    parser.add_argument("--base", metavar="DIR|NAME", help=text)
    text = "the same for a tokenizer that is not beside it"
    parser.add_argument("--tokenizer", metavar="DIR|NAME", help=text)


def check_there(folders: Sequence[Path]) -> None:
    """Raise InputError with a line for each folder that is not there: reading it would say so too,
    but only when torch and transformers have come, which takes many seconds."""
    problems = [f"{folder}: {why}" for folder in folders if (why := why_no_folder(folder))]
    if problems:
        raise InputError(*problems)


def check_settings(command: str, settings: Sequence[str], with_task: bool = True) -> None:
    """Raise InputError with a line for each `key=value` that does not say where data or work is."""
    known = ["task"] * with_task + ["device", "cache_dir", "train.eval_tokens"]
    known += ["train.eval_batch_size"] + ["limit"] * with_task
    lines = [
        f"{command}: {text}: must be a setting of {', '.join(known)} or task.*, as key=value"
        for text in settings
        if (key := text.partition("=")[0]) not in known and not key.startswith("task.")
    ]
    if lines:
        raise InputError(*lines)


# ----------------------------------------------------------------------------- where results go
def add_outputs(
    parser: Parser,
    json: str | None = "print one JSON object, nothing else",
    out: str | None = None,
    figure: str | None = None,
    metavar: str = "DIR",
) -> None:
    """Add `--json`, `--out` and `--figure`: those that have a help text."""
    if json:
        parser.add_argument("--json", action="store_true", help=json)
    for name, text, form in (("--out", out, metavar), ("--figure", figure, "PATH")):
        if text:
            parser.add_argument(name, metavar=form, type=Path, help=text)


def figure_path(path: Path | None, name: str) -> Path | None:
    """Folder and name, without an ending, of the files that a figure is drawn to: `path` is one
    of them, or the folder in which they get this name."""
    if path is None:
        return None
    return path.with_suffix("") if path.suffix in (".png", ".svg") else path / name


def check_folder(option: str, folder: Path | None) -> None:
    """Raise InputError, with `option` and the reason, where a folder cannot be written to."""
    if folder is not None and (problem := why_not_writable(folder)):
        raise InputError(f"{option} {folder}: {problem}")


def check_outputs(command: str, options: argparse.Namespace) -> None:
    """Raise InputError, before anything is computed, where `--out` or `--figure` cannot be
    written."""
    figure = figure_path(getattr(options, "figure", None), command)
    if figure is not None:
        from sparta_bench.report.plots import check_matplotlib

        check_matplotlib(f"{command} --figure")
        check_folder(f"{command}: --figure", figure.parent)
    check_folder(f"{command}: --out", options.out)


def write_outputs(
    command: str,
    options: argparse.Namespace,
    value: Any,
    texts: Mapping[str, str],
    draw: Callable[[str], Figure] | None = None,
) -> None:
    """Write what `--out` and `--figure` ask for: `COMMAND.json` with the value, the texts under
    their endings, and what `draw` gives for the figure's name. Raises InputError if a file cannot
    be written."""
    from sparta_bench.report.plots import write_figures
    from sparta_bench.tables.table import write_texts

    try:
        if options.out is not None:
            write_json(options.out / f"{command}.json", value)
            write_texts(options.out, {f"{command}.{end}": text for end, text in texts.items()})
        if draw and (path := figure_path(options.figure, command)):
            write_figures([draw(path.name)], path.parent)
    except OSError as error:
        raise InputError(
            f"{command}: {error.filename}: cannot be written: {error.strerror}"
        ) from None
