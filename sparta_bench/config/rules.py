"""What each value of a configuration must be, by itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sparta_bench.config.schema import DTYPES, METHODS, TINY_TASKS, TRACKERS
from sparta_bench.errors import did_you_mean, one_of, shown

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
Check = Callable[[Any], bool]


class Rule(NamedTuple):
    """What a value must be: a test, the rule in words, and the names where it is a choice."""

    check: Check
    text: str
    names: tuple[str, ...] = ()


def is_number(value: Any) -> bool:
    """Whether it is a finite number (no truth value) that a float can hold."""
    # NaN compares false
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def is_whole(value: Any, least: int) -> bool:
    """Whether it is a whole number (5.0 as well) of at least `least`."""
    return is_number(value) and value == int(value) and value >= least


def is_text(value: Any) -> bool:
    """Whether it is a text that is not empty."""
    return isinstance(value, str) and bool(value)


def are_words(value: Any) -> bool:
    """Whether it is a list of texts, none of them empty."""
    return isinstance(value, list) and bool(value) and all(is_text(word) for word in value)


def is_folder_name(value: Any) -> bool:
    """Whether it can name one folder, and leads to no other."""
    return is_text(value) and value not in (".", "..") and not set(value) & set("/\\\0")


def is_hub_name(value: Any) -> bool:
    """Whether it can be a repository of the hub, and no folder elsewhere."""
    return (
        isinstance(value, str)
        and len(value) <= 96  # as the hub has it
        and bool(HUB_NAME.fullmatch(value))
        and ".." not in value
    )


def _texts_by_name(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(is_text(text) for text in value.values())


def _numbers_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(is_whole(number, 0) for number in value.values())


def or_null(rule: Rule) -> Rule:
    """The rule for a value that may be missing as well."""
    return Rule(lambda value: value is None or rule.check(value), f"{rule.text}, or null")


def _in(*names: str) -> Rule:
    return Rule(lambda value: value in names, f"must be {one_of(names)}", names)


POSITIVE = Rule(lambda v: is_number(v) and v > 0, "must be a number above 0")
NOT_NEGATIVE = Rule(lambda v: is_number(v) and v >= 0, "must be a number of at least 0")
SHARE = Rule(lambda v: is_number(v) and 0 <= v <= 1, "must be a number from 0 to 1")
BELOW_1 = Rule(lambda v: is_number(v) and 0 <= v < 1, "must be a number from 0 to below 1")
NUMBER_OR_NULL = or_null(Rule(is_number, "must be a number"))
COUNT = Rule(lambda v: is_whole(v, 1), "must be a whole number of at least 1")
COUNT_OR_0 = Rule(lambda v: is_whole(v, 0), "must be a whole number of at least 0")
COUNT_OR_NULL = or_null(COUNT)
SWITCH = Rule(lambda v: isinstance(v, bool), "must be true or false")
TEXT = Rule(is_text, "must be a text")
TEXT_OR_NULL = or_null(TEXT)
NAMES = Rule(are_words, "must be a list of names")
FOLDER_NAME = Rule(is_folder_name, "must be a text that can name a folder")

COLUMNS = Rule(lambda v: are_words(v) and len(v) in (1, 2), "must be one or two column names")
LABELS = Rule(
    lambda v: are_words(v) and len(set(v)) == len(v) >= 2, "must be two or more different names"
)
RULES: dict[str, Rule] = {
    # torch takes a 64-bit seed; seeds are also mixed into text, so any such number will do
    "seed": Rule(
        lambda v: is_whole(v, 0) and v < 2**63, "must be a whole number from 0 to 2^63 - 1"
    ),
    "device": _in("auto", "cpu", "cuda"),
    "results_dir": Rule(is_text, "must be a folder"),
    "cache_dir": TEXT_OR_NULL,
    "force": SWITCH,
    "save": _in("adapter", "full", "none"),
    "runs_at_once": Rule(
        lambda v: v == "auto" or is_whole(v, 1),
        "must be auto or a whole number of at least 1",
        ("auto",),
    ),
    "logger": _in("none", *TRACKERS),
    "limit": COUNT_OR_NULL,
    "model.name": FOLDER_NAME,
    "model.hub_id": or_null(Rule(is_hub_name, "must be a name on the hub, as google/gemma-2b")),
    "model.revision": TEXT,
    "model.path": TEXT_OR_NULL,
    "model.tokenizer": TEXT_OR_NULL,
    "model.kind": _in("base", "instruct"),
    "model.dtype": _in("auto", *DTYPES),
    "model.embedded": SWITCH,
    "model.shape": Rule(
        lambda v: v is None or (isinstance(v, dict) and is_text(v.get("model_type"))),
        "must be null or have a model_type",
    ),
    "task.name": FOLDER_NAME,
    "task.hub.path": TEXT,
    "task.hub.name": TEXT_OR_NULL,
    "task.hub.revision": TEXT,
    "task.data": TEXT_OR_NULL,
    "task.data_dir": TEXT_OR_NULL,
    "task.generated": Rule(
        lambda v: v is None or v in TINY_TASKS, f"must be {one_of(TINY_TASKS)}, or null", TINY_TASKS
    ),
    "task.tsv.folder": TEXT,
    "task.tsv.files": Rule(_texts_by_name, "must give each split a file name"),
    "task.tsv.columns": Rule(_texts_by_name, "must give each column a header name"),
    "task.tsv.positions": or_null(Rule(_numbers_by_name, "must give each column a place from 0")),
    "task.tsv.fields": COUNT_OR_NULL,
    "task.columns": or_null(COLUMNS),
    "task.label_column": TEXT,
    "task.labels": or_null(LABELS),
    "task.train_split": TEXT,
    "task.dev.split": TEXT,
    "task.dev.take": _in("all", "last", "random", "stratified"),
    "task.dev.examples": COUNT_OR_NULL,
    "task.test_splits": or_null(
        Rule(
            lambda v: are_words(v) and len(set(v)) == len(v), "must be one or more different names"
        )
    ),
    "task.test_examples": COUNT_OR_NULL,
    "task.draw_seed": COUNT_OR_0,
    "task.max_train_examples": COUNT_OR_NULL,
    "task.cap_takes": _in("first", "random"),
    "task.max_train_tokens": COUNT,
    "task.truncate_eval": SWITCH,
    "task.separator": _in("newline", "sep_token"),
    "task.undo_spacing": SWITCH,
    "task.on_bad_row": _in("error", "skip"),
    "task.prompt.instruction": TEXT,
    "task.prompt.answers": NAMES,
    "task.prompt.answers_text": TEXT,
    "task.prompt.fields": NAMES,
    "method.name": _in(*METHODS),
    "method.density": Rule(lambda v: is_number(v) and 0 < v < 1, "must lie inside (0, 1)"),
    "method.density_of": _in("sampled", "backbone"),
    "method.pattern": _in("scalars", "rows", "block"),
    "method.r": COUNT,
    "method.alpha": POSITIVE,
    "method.lora_dropout": BELOW_1,
    "search.name": _in("grid", "race"),
    "search.confirm": COUNT,
    "search.margin": POSITIVE,
    "search.rival": or_null(FOLDER_NAME),
    # the command line of experiments makes rates of `search`, before they are checked
    "train.learning_rate": Rule(
        POSITIVE.check, "must be a number above 0, or for experiments search"
    ),
    "train.batch_size": COUNT,
    "train.epochs": Rule(
        lambda v: is_number(v) and 0 < v <= 1e9, "must be a number above 0, and at most 1e9"
    ),
    "train.weight_decay": NOT_NEGATIVE,
    "train.dropout": BELOW_1,
    "train.max_grad_norm": NOT_NEGATIVE,
    "train.patience": COUNT_OR_0,
    "train.trained_dtype": _in(*DTYPES),
    "train.betas": Rule(
        lambda v: (
            isinstance(v, list) and len(v) == 2 and all(is_number(b) and 0 <= b < 1 for b in v)
        ),
        "must be two numbers from 0 to below 1",
    ),
    "train.eps": POSITIVE,
    "train.warmup_ratio": SHARE,
    "train.schedule": _in("linear", "constant"),
    "train.floor_ratio": SHARE,
    "train.max_steps": COUNT_OR_NULL,
    "train.accumulation_steps": COUNT,
    "train.eval_every": COUNT_OR_NULL,
    "train.eval_first": SWITCH,
    "train.eval_tokens": COUNT_OR_NULL,
    "train.eval_batch_size": COUNT_OR_NULL,
    "train.min_improvement": NOT_NEGATIVE,
    "train.bucket_batches": COUNT_OR_0,
    "train.share_prefix": Rule(
        lambda v: v == "auto" or isinstance(v, bool), "must be auto, true or false", ("auto",)
    ),
    "train.gradient_checkpointing": SWITCH,
    "train.checkpoint_every": COUNT_OR_NULL,
    "train.sharding": _in("none", "fsdp"),
}


def rule_fault(key: str, value: Any) -> str | None:
    """Return the line about a value that is against the rule of its key."""
    rule = RULES.get(key)
    if rule is None or rule.check(value):
        return None
    near = did_you_mean(value, rule.names) if isinstance(value, str) else ""
    return f"{key}={shown(show(value))}: {rule.text}{near}"


def faults_by(rules: Mapping[str, Rule], values: Mapping[str, Any]) -> list[str]:
    """A line for each dotted key of the rules that is not there, or against its rule."""
    lines = []
    for key, rule in rules.items():
        there, value = look_up(values, key)
        if not there:
            lines.append(_not_there(values, key))
        elif not rule.check(value):
            lines.append(f"{key}={shown(show(value))}: {rule.text}")
    return list(dict.fromkeys(lines))


def _not_there(values: Mapping[str, Any], key: str) -> str:
    parts = key.split(".")
    for length in range(1, len(parts)):
        there, value = look_up(values, above := ".".join(parts[:length]))
        if not there:
            return f"{above}: is missing"
        if not isinstance(value, Mapping):
            return f"{above}={shown(show(value))}: must have keys of its own"
    return f"{key}: is missing"


def look_up(raw: Mapping[str, Any], key: str) -> tuple[bool, Any]:
    """Whether the dotted key is there, and its value."""
    value: Any = raw
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False, None
        value = value[part]
    return True, value


def show(value: Any) -> str:
    """A value as one would write it on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {show(part)}" for key, part in value.items()) + "}"
    return str(value)
