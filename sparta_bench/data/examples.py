"""Labelled texts: where a row becomes one, how many there are of each label, and what a model reads
of one: the text itself (base), or an instruction around it (section 6.3)."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sparta_bench.config.schema import Prompt, TaskConfig
from sparta_bench.errors import InputError, shown

SEP_TOKEN = "<sep>"


@dataclass
class Examples:
    """Texts (one or two per example, in the model's reading order) with the hub's label numbers.
    `bad_rows` counts the rows left out under `task.on_bad_row=skip`."""

    texts: list[tuple[str, ...]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    bad_rows: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Sequence[int]) -> Examples:
        """The examples of these numbers, in this order."""
        return Examples([self.texts[i] for i in rows], [self.labels[i] for i in rows])

    def empty_texts(self) -> int:
        """How many examples have a text of nothing but white space."""
        return sum(not all(text.strip() for text in texts) for texts in self.texts)

    def fingerprint(self) -> str:
        """A hash of texts and labels, whatever file or hub they came from."""
        digest = hashlib.sha256()
        for texts, label in zip(self.texts, self.labels, strict=True):
            digest.update(json.dumps([texts, label]).encode())
        return digest.hexdigest()[:16]


class BadRowError(ValueError):
    """What is wrong with a row, for people."""


# A row with its number, or what is wrong with it; counted from 1 as an editor counts lines.
NumberedRow = tuple[int, Mapping[str, Any] | BadRowError]


def parse_label(value: Any, names: Sequence[str]) -> int:
    """A label's number from a number (1.0 as well: a column with gaps has them), its digits or
    its name. Names that are numbers are names alone."""
    text = label_text(value)
    word = text if isinstance(value, str | bool) else None
    are_numbers = all(name.removeprefix("-").isdecimal() for name in names)
    if text in names and (word is not None or are_numbers):
        return names.index(text)
    if not are_numbers:
        # Python reads no number of thousands of digits
        is_digits = word is not None and word.isascii() and word.isdigit() and len(word) < 20
        number = int(str(word)) if is_digits else value
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if is_number and number in range(len(names)):
            return int(number)
        names = [f"{number} ({name})" for number, name in enumerate(names)]
    raise BadRowError(f"label {shown(repr(value))} is none of {shown(', '.join(names), 300)}")


def label_text(value: Any) -> str | None:
    """A label as the name that it has where names are found in the data: `1` for 1 and 1.0, `true`
    for True. None where there is none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value.strip() if isinstance(value, str) else None if value is None else str(value)


def parse_row(row: Mapping[str, Any], task: TaskConfig) -> tuple[tuple[str, ...], int]:
    """Texts and label of a row with the task's column names. Raises BadRowError."""
    texts = parse_texts(row, task.columns, task.label_column)
    return texts, parse_label(row[task.label_column], task.labels)


def parse_texts(row: Mapping[str, Any], columns: Sequence[str], *others: str) -> tuple[str, ...]:
    """The texts in these columns of a row; `others` only have to be there. Raises BadRowError."""
    for column in (*columns, *others):
        if column not in row:
            raise BadRowError(f"column {column} is missing (there are: {shown(', '.join(row))})")
    for column in columns:
        if not isinstance(row[column], str):
            raise BadRowError(f"{column} is {shown(repr(row[column]))}, not a text")
        if not is_unicode(row[column]):
            raise BadRowError(f"{column} holds half a surrogate pair")
    return tuple(row[column] for column in columns)


def add_rows(
    examples: Examples, rows: Iterable[NumberedRow], task: TaskConfig, source: object
) -> None:
    """Parse numbered rows of `source` into `examples`. Raises InputError at the first bad row,
    unless `task.on_bad_row=skip`, which counts it instead."""
    for number, row in rows:
        try:
            if isinstance(row, BadRowError):
                raise row
            texts, label = parse_row(row, task)
        except BadRowError as problem:
            if task.on_bad_row == "error":
                raise InputError(
                    f"{source}, row {number}: {problem} "
                    "(task.on_bad_row=skip leaves such rows out and counts them)"
                ) from None
            examples.bad_rows += 1
            continue
        examples.texts.append(texts)
        examples.labels.append(label)


def is_unicode(text: str) -> bool:
    """Whether a tokenizer can read it: JSON can spell "\\ud800", which none does."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def class_counts(labels: Sequence[int], names: Sequence[str]) -> dict[str, int]:
    """Return the number of examples by the label's name, in the order of the names."""
    counts = Counter(labels)
    return {name: counts[number] for number, name in enumerate(names)}


def check_classes(task: str, labels: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return warnings about `data.labels` of a record. Raises InputError if training has one class
    only: nothing could be learnt, and the loss would say that all is well."""
    train = labels["train"]
    used = [name for name, count in train.items() if count]
    if len(used) == 1:
        raise InputError(
            f"task={task}: take training examples of at least two labels; all "
            f"{train[used[0]]:,} have the label {shown(used[0])}"
        )
    rare = [f"{shown(name)} ({count})" for name, count in train.items() if count < 2]
    if not rare:
        return []
    more = f" and {len(rare) - 5} others" if len(rare) > 5 else ""
    return [
        f"task={task}: training has fewer than two examples of {', '.join(rare[:5])}{more}, from "
        "which little can be learnt"
    ]


def as_line(counts: Mapping[str, int]) -> str:
    """`negative 50, positive 48`, for people."""
    return ", ".join(f"{shown(name)} {count:,}" for name, count in counts.items())


class Reading(Protocol):
    """What of a `TaskConfig`, or of an adapter's manifest, decides how texts are read."""

    @property
    def columns(self) -> Sequence[str]: ...
    @property
    def separator(self) -> str: ...
    @property
    def undo_spacing(self) -> bool: ...
    @property
    def prompt(self) -> Prompt | None: ...


def render(texts: tuple[str, ...], task: Reading, kind: str) -> str:
    """The input of one example.

    Base models get a single text untouched, and a pair stripped and joined by one separator.
    Instruction models get, with no chat markers around it,
    `<instruction> Respond <answers>.\\n<field>: <text>\\nResponse:` with the texts stripped.
    """
    if task.undo_spacing:
        texts = tuple(undo_spacing(text) for text in texts)
    if kind == "instruct":
        prompt = task.prompt
        assert prompt is not None
        pairs = zip(prompt.fields, texts, strict=True)
        fields = [f"{name}: {text.strip()}" for name, text in pairs]
        instruction = f"{prompt.instruction} Respond {prompt.answers_text}."
        return "\n".join([instruction, *fields, "Response:"])
    if len(texts) == 1:
        return texts[0]
    separator = SEP_TOKEN if task.separator == "sep_token" else "\n"
    return separator.join(text.strip() for text in texts)


def undo_spacing(text: str) -> str:
    """Put punctuation and clitics back where they were: "good ." becomes "good."."""
    text = re.sub(r" ([.,;:!?%)\]}]|n't\b|'(?:s|re|ve|ll|d|m)\b|'(?=\s|$))", r"\1", text)
    return re.sub(r"([(\[{$]) ", r"\1", text)
