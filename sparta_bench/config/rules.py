"""What each value of a configuration must be: by itself, and beside others or on the disk."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Container, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from sparta_bench.config.schema import DTYPES, METHODS, TINY_TASKS, TRACKERS
from sparta_bench.errors import did_you_mean, one_of, shown
from sparta_bench.files import why_no_folder, why_not_writable

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
TABLE_SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv")  # of the files that `task.data` may name


class Rule(NamedTuple):
    """What a value must be: a test, the rule in words, and the names where it is a choice."""

    check: Callable[[Any], bool]
    text: str
    names: tuple[str, ...] = ()


def is_number(value: Any) -> bool:
    """Whether it is a finite number (no truth value) that a float can hold."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max  # NaN compares false


def is_whole(value: Any, least: int) -> bool:
    """Whether it is a whole number (5.0 as well) of at least `least`."""
    return is_number(value) and value == int(value) and value >= least


def is_text(value: Any) -> bool:
    """Whether it is a text that is not empty."""
    return isinstance(value, str) and bool(value)


def are_words(value: Any) -> bool:
    """Whether it is a list of texts, none of them empty."""
    return isinstance(value, list) and bool(value) and all(is_text(word) for word in value)


def _are_different(value: Any, least: int) -> bool:
    return are_words(value) and len(set(value)) == len(value) >= least


def is_folder_name(value: Any) -> bool:
    """Whether it can name one folder, and leads to no other."""
    return is_text(value) and value not in (".", "..") and not set(value) & set("/\\\0")


def is_hub_name(value: Any) -> bool:
    """Whether it can be a repository of the hub (96 characters), and no folder elsewhere."""
    is_name = isinstance(value, str) and len(value) <= 96 and HUB_NAME.fullmatch(value)
    return bool(is_name) and ".." not in value


def or_null(rule: Rule) -> Rule:
    """The rule for a value that may be missing as well."""
    return Rule(lambda value: value is None or rule.check(value), f"{rule.text}, or null")


def _in(*names: str) -> Rule:
    return Rule(lambda value: value in names, f"must be {one_of(names)}", names)


def _by_name(check: Callable[[Any], bool], text: str, least: int = 1) -> Rule:
    return Rule(
        lambda v: isinstance(v, dict) and len(v) >= least and all(map(check, v.values())), text
    )


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
LABELS = Rule(lambda v: _are_different(v, 2), "must be two or more different names")
RULES: dict[str, Rule] = {
    "seed": Rule(  # torch takes 64 bits
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
    "task.tsv.files": _by_name(is_text, "must give each split a file name"),
    "task.tsv.columns": _by_name(is_text, "must give each column a header name"),
    "task.tsv.positions": or_null(
        _by_name(lambda v: is_whole(v, 0), "must give each column a place from 0", least=0)
    ),
    "task.tsv.fields": COUNT_OR_NULL,
    "task.columns": or_null(COLUMNS),
    "task.label_column": TEXT,
    "task.labels": or_null(LABELS),
    "task.train_split": TEXT,
    "task.dev.split": TEXT,
    "task.dev.take": _in("all", "last", "random", "stratified"),
    "task.dev.examples": COUNT_OR_NULL,
    "task.test_splits": or_null(
        Rule(lambda v: _are_different(v, 1), "must be one or more different names")
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
        POSITIVE.check, "must be a number above 0, or search where runs are made"
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


def why_no_tracker(name: str) -> str | None:
    """Why a run cannot be logged with this package; None: it can be, or `name` is none."""
    spec = None if name == "none" else find_spec(name)
    # wandb leaves a folder of its own name where it runs, which is no package
    if name == "none" or (spec is not None and spec.origin is not None):
        return None
    return f"needs a package that is not there: pip install 'sparta-bench[{name}]'"


def _folder(path: str | None) -> str | None:
    return None if path is None else why_no_folder(path)


def _model_path(path: str | None, hub_id: str | None, embedded: bool) -> str | None:
    if path is None:
        needed = not (hub_id or embedded)
        return "needs the folder of a Hugging Face model (or model.hub_id=NAME)" if needed else None
    is_model = why_no_folder(path) or (Path(path) / "config.json").is_file()
    return None if is_model else "the folder has no config.json"


def _data_file(path: str | None) -> str | None:
    if path is None or (Path(path).is_file() and Path(path).suffix in TABLE_SUFFIXES):
        return None
    if not Path(path).is_file():
        return "there is no such file"
    return f"must be a file ending in {one_of(TABLE_SUFFIXES)}"


def _answers(answers: list[str], labels: list[str] | None) -> str | None:
    if labels is not None and len(answers) != len(labels):
        return f"must hold one word for each of {len(labels)} labels"
    return None if len(set(answers)) == len(answers) else "two labels have the same word"


def _dev_examples(examples: int | None, take: str) -> str | None:
    if (take == "all") == (examples is None):
        return None
    all_of_it = "must be null with take=all"
    return all_of_it if take == "all" else f"take={take} needs a number of examples"


def _targets(targets: Any, name: str) -> str | None:
    if are_words(targets) or (name == "sparta" and targets == "all"):
        return None
    return "must be a list of module names" + (", or all" if name == "sparta" else "")


# Keys, the first of which the line names, and what is wrong with their values, if anything. A check
# is made where its keys are there and without fault, so that one mistake is reported once.
RELATIONS: tuple[tuple[tuple[str, ...], Callable[..., Any]], ...] = (
    (
        ("results_dir",),
        lambda folder: (
            (problem := why_not_writable(Path(folder)))
            and f"must be a folder that can be written; {problem}"
        ),
    ),
    (("logger",), why_no_tracker),
    (("model.path",), _folder),
    (("model.tokenizer",), _folder),
    (("model.path", "model.hub_id", "model.embedded"), _model_path),
    (("task.data_dir",), _folder),
    (
        ("task.data_dir", "task.data", "task.hub", "task.generated"),
        lambda *sources: (
            sources == (None,) * 4
            and "give a folder, a file (task.data=FILE) or a data set of the hub (task.hub=NAME): "
            "this task has no data elsewhere"
        ),
    ),
    (("task.data",), _data_file),
    (
        ("task.data", "task.data_dir"),
        lambda file, folder: file and folder and "give either a file or a folder (task.data_dir)",
    ),
    (
        ("task.test_examples", "task.test_splits"),
        lambda count, splits: (
            count and splits and "must be null where task.test_splits names the test set"
        ),
    ),
    (("task.dev.examples", "task.dev.take"), _dev_examples),
    (
        ("task.dev.take", "task.dev.split", "task.train_split", "task.test_splits"),
        lambda take, split, train, test: (
            (take == "all" and split in (train, *(test or ())))
            and f"would leave nothing of split {split} to train on or test"
        ),
    ),
    (
        ("task.test_splits", "task.train_split"),
        lambda test, train: train in (test or ()) and "must not hold the training split",
    ),
    (("task.prompt.answers", "task.labels"), _answers),
    (
        ("task.prompt.fields", "task.columns"),
        lambda names, columns: (
            (columns and len(names) != len(columns))
            and f"must name each of {len(columns)} column(s)"
        ),
    ),
    (("method.targets", "method.name"), _targets),
    (
        ("search.rival", "search.name"),
        lambda rival, name: rival is not None and name != "race" and "is for search=race alone",
    ),
    (
        ("train.accumulation_steps", "train.batch_size"),
        lambda parts, batch: parts > batch and f"must not be above train.batch_size={batch}",
    ),
    (
        ("train.sharding", "task.separator"),
        lambda sharding, separator: (
            (sharding != "none" and separator == "sep_token")
            and "needs task.separator=newline, since no row is added to sharded embeddings"
        ),
    ),
)


def relation_faults(raw: Mapping[str, Any], faulty: Container[str]) -> list[str]:
    """A line for each relation that does not hold, among keys that are there and not `faulty`."""
    lines = []
    for keys, problem_of in RELATIONS:
        values = [look_up(raw, key) for key in keys]
        if all(is_there for is_there, _ in values) and not any(key in faulty for key in keys):
            problem = problem_of(*(value for _, value in values))
            lines += [f"{keys[0]}={show(values[0][1])}: {problem}"] if problem else []
    return lines


def rule_fault(key: str, value: Any) -> str | None:
    """Return the line about a value that is against the rule of its key."""
    rule = RULES.get(key)
    if rule is None or rule.check(value):
        return None
    hint = did_you_mean(value, rule.names) if isinstance(value, str) else ""
    if isinstance(value, list) and len(value) > 1 and all(map(rule.check, value)):
        hint = f"; a grid takes -m and commas: {key}={','.join(map(show, value))}"
    return f"{key}={shown(show(value))}: {rule.text}{hint}"


def faults_by(rules: Mapping[str, Rule], values: Mapping[str, Any]) -> list[str]:
    """A line for each dotted key of the rules that is not there, or against its rule."""
    lines = []
    for key, rule in rules.items():
        is_there, value = look_up(values, key)
        if not is_there:
            lines.append(_not_there(values, key))
        elif not rule.check(value):
            lines.append(f"{key}={shown(show(value))}: {rule.text}")
    return list(dict.fromkeys(lines))


def _not_there(values: Mapping[str, Any], key: str) -> str:
    parts = key.split(".")
    for length in range(1, len(parts)):
        is_there, value = look_up(values, above := ".".join(parts[:length]))
        if not is_there:
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
