"""What goes wrong for reasons outside the program, and how it is logged."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches
from textwrap import fill
from typing import TextIO

SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|KEY)(_|$)", re.IGNORECASE
)


class InputError(Exception):
    """A fault of configuration or input: a line each, with key or file, value and rule."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class TrainingError(Exception):
    """A run that started and cannot go on, with the likely cause (exit code 1)."""


class DivergedError(TrainingError):
    """Its loss was finite before, and is not any more."""


def log(*lines: str) -> None:
    """Print lines to standard error; of several processes only the main one does."""
    if os.environ.get("RANK", "0") == "0":
        for line in lines:
            text = fitted(f"sparta-bench: {one_line(line)}", sys.stderr)
            print(text, file=sys.stderr, flush=True)


def fitted(line: str, stream: TextIO) -> str:
    """A line, broken between words where it is wider than the terminal that it goes to."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns if stream.isatty() else 0
    except (OSError, ValueError):  # no file, or no terminal any more
        columns = 0
    if not 0 < columns < len(line):
        return line
    return fill(line, columns, subsequent_indent="  ", break_long_words=False,
                break_on_hyphens=False)  # fmt: skip


def one_line(text: str) -> str:
    """A text without secrets, and with line ends and control characters spelt out, which files and
    names may hold to trick a reader or a terminal."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in without_secrets(text)
    )


def without_secrets(text: str) -> str:
    """A text without the passwords of its URLs, and without what the environment holds under names
    such as HF_TOKEN: libraries' errors may quote both, and records and logs travel."""
    for name, value in os.environ.items():
        if len(value) >= 8 and SECRET_NAME.search(name):
            text = text.replace(value, f"<{name}>")
    return re.sub(r"(?<=://)[^/\s@]+@", "", text)


def one_of(names: Iterable[str]) -> str:
    """`a, b or c`."""
    ordered = list(names)
    return ordered[0] if len(ordered) == 1 else ", ".join(ordered[:-1]) + " or " + ordered[-1]


def did_you_mean(wrong: str, names: Iterable[str]) -> str:
    """` (did you mean …?)`, or nothing when no known name is near."""
    return meant(_near(wrong, names))


def did_you_mean_key(wrong: str, keys: Iterable[str]) -> str:
    """The same for a dotted key, which may lack its group, as `density`."""
    end = wrong.rpartition(".")[2]
    inside = [key for key in keys if "." in key or "." not in wrong]  # no group for a setting
    ends = {key: key.rpartition(".")[2] for key in inside}
    same_end = [key for key in inside if ends[key] == end]
    # such as lr for train.learning_rate, or batch for train.batch_size
    short = [key for key in inside if len(end) > 1 and end == _initials(key)]
    short = short or [key for key in inside if ends[key].startswith(f"{end}_")]
    near = [
        key
        for one in _near(end, dict.fromkeys(ends.values()))
        for key in inside
        if ends[key] == one
    ]
    return meant((same_end or short or near or _near(wrong, inside))[:3])


def _near(wrong: str, names: Iterable[str]) -> list[str]:
    """Up to three names that are like a wrong one, and about as like as the nearest."""
    near = get_close_matches(wrong, list(names))
    likeness = [SequenceMatcher(None, name, wrong).ratio() for name in near]
    return [name for name, ratio in zip(near, likeness, strict=True) if ratio > likeness[0] - 0.25]


def _initials(key: str) -> str:
    return "".join(word[:1] for word in key.rpartition(".")[2].split("_"))


def meant(near: list[str]) -> str:
    """` (did you mean …?)` with these names, or nothing."""
    return f" (did you mean {one_of(near)}?)" if near else ""


def shown(text: str, most: int = 120) -> str:
    """Text from a file as a message can hold it: cut where it is long, and without what a terminal
    would obey."""
    cut = text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"
    return cut if cut.isprintable() else repr(cut)[1:-1]


def refusal_of(error: OSError) -> str:
    """What the operating system refuses: the file and the reason, without numbers."""
    what = error.strerror or str(error)
    return what if error.filename is None else f"{error.filename}: {what}"


def reason_of(error: BaseException) -> str:
    """What a library's error says, in one line."""
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]} is missing"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].endswith(":"):  # a list follows
        return " ".join(lines[:3])
    return lines[0] if lines else type(error).__name__
