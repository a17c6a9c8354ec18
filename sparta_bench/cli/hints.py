"""What a word of the command line may have meant that is none of this program's: of a first word
without `=`, or of an option."""

from __future__ import annotations

from collections.abc import Sequence

from sparta_bench.config.compose import GROUPS, choices, known_keys, write_choice

RUN_WORDS = ("run", "train", "start", "fit", "finetune", "fine-tune")


def of_word(word: str, following: Sequence[str]) -> str:
    """How what was asked for with a first word is written; empty where that is not known."""
    value = following[0] if following else ""
    if word in RUN_WORDS and value not in choices(word):
        return "; a run needs no word, only key=value (see --help)"
    return _written(word, value)


def of_option(option: str, following: Sequence[str]) -> str:
    """The same for `--key value` or `--key=value`."""
    key, equals, value = option.lstrip("-").partition("=")
    return _written(key.replace("-", "_"), value if equals else "".join(following[:1]))


def _written(key: str, value: str) -> str:
    if value.startswith("-") or "=" in value:
        value = ""  # another option or setting
    if key in GROUPS or "/" in key:
        return write_choice(key, value or "NAME")
    if choice := write_choice(key):
        return choice
    found = [known for known in known_keys() if f".{known}".endswith(f".{key}")]
    return f"; write {found[0]}={value or 'VALUE'}" if len(found) == 1 and key else ""
