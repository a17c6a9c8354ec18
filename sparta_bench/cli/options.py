"""What the subcommands' command lines share: a parser whose errors are told as all others are."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from sparta_bench.errors import InputError
from sparta_bench.files import why_no_folder, why_not_writable


class Parser(argparse.ArgumentParser):
    """A parser whose errors are told as all of this program's are."""

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
    """A whole number of at least 1, as a type of an option."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


def figure_path(path: Path | None, name: str) -> Path | None:
    """Folder and name, without an ending, of the files that a figure is drawn to: `path` is one
    of them, or the folder in which they get this name."""
    if path is None:
        return None
    return path.with_suffix("") if path.suffix in (".png", ".svg") else path / name


def check_folder(option: str, folder: Path | None) -> None:
    """Fail before anything is computed where a folder cannot be written to.

    Raises
    ------
    InputError
        With `option`, the folder, and what stands in its way.
    """
    if folder is None:
        return
    if problem := why_not_writable(folder):
        raise InputError(f"{option} {folder}: {problem}")


def check_there(folders: Sequence[Path]) -> None:
    """Raise InputError with a line for each folder that is not there: reading it would say so too,
    but only when torch and transformers have come, which takes many seconds."""
    problems = [f"{folder}: {why}" for folder in folders if (why := why_no_folder(folder))]
    if problems:
        raise InputError(*problems)


def add_folders(parser: argparse.ArgumentParser, default: str) -> None:
    """`FOLDER ...`, whose records are read; `default` says which are where none is given."""
    parser.add_argument(
        "folders",
        metavar="FOLDER",
        nargs="*",
        type=Path,
        help=f"all records below it count ({default})",
    )


def add_sources(parser: argparse.ArgumentParser) -> None:
    """What says where a trained thing and its base are."""
    parser.add_argument(
        "adapter",
        metavar="ADAPTER",
        type=Path,
        help="folder of an adapter, of a whole classifier (save=full, merge bake), or of an "
        "adapter of the authors' package peft-sparta",
    )
    add_base(parser)
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read the .pt files that peft-sparta's trainer writes (tensors only)",
    )


def add_base(parser: argparse.ArgumentParser) -> None:
    """What says where the base model is."""
    parser.add_argument(
        "--base",
        metavar="DIR|NAME",
        help="the base model: a folder, a model of conf/model, or a hub name; needed where "
        "training had it in a folder",
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR|NAME", help="the same for a tokenizer that is not beside it"
    )


def check_settings(command: str, settings: Sequence[str], with_task: bool = True) -> None:
    """Raise InputError with a line for each `key=value` that does not say where data or work is."""
    known = ["task"] * with_task + ["device", "cache_dir", "train.eval_batch_size"]
    lines = [
        f"{command}: {text}: must be a setting of {', '.join(known)} or task.*, as key=value"
        for text in settings
        if (key := text.partition("=")[0]) not in known and not key.startswith("task.")
    ]
    if lines:
        raise InputError(*lines)
