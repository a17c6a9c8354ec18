"""`sparta-bench help`: what a setting means, and what a group offers; no torch."""

from __future__ import annotations

import shutil
from textwrap import fill

from sparta_bench.cli import usage
from sparta_bench.config.conf_folder import explained
from sparta_bench.errors import InputError

MOST_COLUMNS = 120


def main(arguments: list[str]) -> None:
    """Print the help of each name; without one that of `sparta-bench --help`.

    Raises
    ------
    InputError
        For an option, or a name that is none.
    """
    if any(word in ("--help", "-h") for word in arguments):
        print("usage: sparta-bench help [KEY|GROUP ...]\n\n"
              "What a setting means, such as train.patience, or what a group offers: model, task,\n"
              "method, train.")  # fmt: skip
        return
    if options := [word for word in arguments if word.startswith("-")]:
        raise InputError(*(f"{word}: help knows no option" for word in options))
    if not arguments:
        print(usage.text())
    columns = min(shutil.get_terminal_size().columns, MOST_COLUMNS)
    texts = [explained(name.partition("=")[0]) for name in arguments]
    for number, text in enumerate(texts):
        print("\n" * (number > 0) + "\n".join(_lines(text, columns)))


def _lines(text: str, columns: int) -> list[str]:
    return [
        fill(line, columns, subsequent_indent="    ", break_long_words=False,
             break_on_hyphens=False)
        for line in text.splitlines()
    ]  # fmt: skip
