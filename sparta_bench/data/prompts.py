"""What a model reads: the text itself (base), or an instruction around it (section 6.3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from sparta_bench.config.schema import Prompt

SEP_TOKEN = "<sep>"


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
    return separator(task).join(text.strip() for text in texts)


def separator(task: Reading) -> str:
    """What stands between the two sentences of a pair for a base model."""
    return SEP_TOKEN if task.separator == "sep_token" else "\n"


def undo_spacing(text: str) -> str:
    """Put punctuation and clitics back where they were: "good ." becomes "good."."""
    text = re.sub(r" ([.,;:!?%)\]}]|n't\b|'(?:s|re|ve|ll|d|m)\b|'(?=\s|$))", r"\1", text)
    return re.sub(r"([(\[{$]) ", r"\1", text)
