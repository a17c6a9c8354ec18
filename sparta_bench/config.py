"""One experiment's configuration: frozen dataclasses, and every check that needs nothing loaded.

`from_dict` takes what Hydra composed, fills the presets in, and either returns a `Config` or
raises one `InputError` that holds a line for every fault.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from sparta_bench.data.tiny import TINY_TASKS
from sparta_bench.errors import InputError, did_you_mean, one_of, shown
from sparta_bench.files import why_not_writable

METHODS = ("full_ft", "head", "lora", "sparta")
DTYPES = ("float32", "bfloat16")
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class Hub:
    """Where a data set is on the Hugging Face hub."""

    path: str
    name: str | None
    revision: str


@dataclass(frozen=True)
class Tsv:
    """GLUE's TSV layout of one task. `columns` maps the hub's names to header names;
    `positions` and `fields` describe files without a header row."""

    folder: str
    files: dict[str, str]
    columns: dict[str, str]
    positions: dict[str, int] | None = None
    fields: int | None = None


@dataclass(frozen=True)
class Dev:
    """Which rows of which raw split make up the dev set."""

    split: str
    take: str
    examples: int | None


@dataclass(frozen=True)
class Prompt:
    """How an instruction model is asked; `answers` are in label order."""

    instruction: str
    answers: list[str]
    answers_text: str
    fields: list[str]


@dataclass(frozen=True)
class ModelConfig:
    name: str
    hub_id: str | None
    revision: str
    path: str | None
    tokenizer: str | None
    kind: str
    dtype: str
    embedded: bool
    shape: dict[str, Any] | None


@dataclass(frozen=True)
class TaskConfig:
    name: str
    hub: Hub | None
    data_dir: str | None
    generated: str | None
    tsv: Tsv | None
    columns: list[str]
    labels: list[str]
    train_split: str
    dev: Dev
    test_splits: list[str]
    draw_seed: int
    max_train_examples: int | None
    max_train_tokens: int
    separator: str
    undo_spacing: bool
    on_bad_row: str
    prompt: Prompt


@dataclass(frozen=True)
class FullFtConfig:
    name: str


@dataclass(frozen=True)
class HeadConfig:
    name: str


@dataclass(frozen=True)
class LoraConfig:
    name: str
    r: int
    alpha: float
    targets: list[str]
    lora_dropout: float


@dataclass(frozen=True)
class SpartaConfig:
    name: str
    density: float
    targets: str | list[str]
    density_of: str


MethodConfig = FullFtConfig | HeadConfig | LoraConfig | SpartaConfig
METHOD_CLASSES: dict[str, type] = {
    "full_ft": FullFtConfig,
    "head": HeadConfig,
    "lora": LoraConfig,
    "sparta": SpartaConfig,
}


@dataclass(frozen=True)
class TrainConfig:
    learning_rate: float
    batch_size: int
    epochs: float
    weight_decay: float
    dropout: float
    max_grad_norm: float
    patience: int
    trained_dtype: str
    betas: list[float]
    eps: float
    warmup_ratio: float
    schedule: str
    floor_ratio: float
    max_steps: int | None
    accumulation_steps: int
    eval_every: int | None
    eval_batch_size: int | None
    min_improvement: float
    bucket_batches: int
    gradient_checkpointing: bool
    checkpoint_every: int | None


@dataclass(frozen=True)
class Config:
    model: ModelConfig
    task: TaskConfig
    method: MethodConfig
    train: TrainConfig
    seed: int
    device: str
    results_dir: str
    cache_dir: str | None
    force: bool
    save: str

    def as_dict(self) -> dict[str, Any]:
        """The whole configuration as plain values."""
        return asdict(self)


# ---------------------------------------------------------------------------------- rules
Check = Callable[[Any], bool]


class Rule(NamedTuple):
    """What a value must be: a test, the rule in words, and the names where it is a choice."""

    check: Check
    text: str
    names: tuple[str, ...] = ()


def _number(value: Any) -> bool:
    # a whole number can be too large for a float; NaN compares false
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def _whole(value: Any, least: int) -> bool:
    return _number(value) and value == int(value) and value >= least


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _words(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_text(word) for word in value)


def is_folder_name(value: Any) -> bool:
    """Whether it can name one folder, and leads to no other."""
    return _text(value) and value not in (".", "..") and not set(value) & set("/\\\0")


def is_hub_name(value: Any) -> bool:
    """Whether it can be a repository of the hub, and no folder elsewhere."""
    return (
        isinstance(value, str)
        and len(value) <= 96  # as the hub has it
        and bool(HUB_NAME.fullmatch(value))
        and ".." not in value
    )


def _texts_by_name(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(_text(text) for text in value.values())


def _numbers_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(_whole(number, 0) for number in value.values())


def _presets(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, dict)
        and set(entry) == {"when", "set"}
        and isinstance(entry["when"], dict)
        and isinstance(entry["set"], dict)
        and entry["when"].keys() <= {"model", "task", "density_from", "density_to"}
        and all(_words(entry["when"][key]) for key in ("model", "task") if key in entry["when"])
        and all(_number(entry["when"][key]) for key in entry["when"] if key.startswith("density"))
        and entry["set"].keys() <= {field.name for field in fields(TrainConfig)}
        for entry in value
    )


def or_null(rule: Rule) -> Rule:
    """The rule for a value that may be missing as well."""
    return Rule(lambda value: value is None or rule.check(value), f"{rule.text}, or null")


def _in(*names: str) -> Rule:
    return Rule(lambda value: value in names, f"must be {one_of(names)}", names)


POSITIVE = Rule(lambda v: _number(v) and v > 0, "must be a number above 0")
NOT_NEGATIVE = Rule(lambda v: _number(v) and v >= 0, "must be a number of at least 0")
SHARE = Rule(lambda v: _number(v) and 0 <= v <= 1, "must be a number from 0 to 1")
DROPOUT = Rule(lambda v: _number(v) and 0 <= v < 1, "must be a number from 0 to below 1")
NUMBER_OR_NULL = or_null(Rule(_number, "must be a number"))
COUNT = Rule(lambda v: _whole(v, 1), "must be a whole number of at least 1")
COUNT_OR_0 = Rule(lambda v: _whole(v, 0), "must be a whole number of at least 0")
COUNT_OR_NULL = or_null(COUNT)
SWITCH = Rule(lambda v: isinstance(v, bool), "must be true or false")
TEXT = Rule(_text, "must be a text")
TEXT_OR_NULL = or_null(TEXT)
NAMES = Rule(_words, "must be a list of names")
FOLDER_NAME = Rule(is_folder_name, "must be a text that can name a folder")

RULES: dict[str, Rule] = {
    # torch takes a 64-bit seed; seeds are also mixed into text, so any such number will do
    "seed": Rule(lambda v: _whole(v, 0) and v < 2**63, "must be a whole number from 0 to 2^63 - 1"),
    "device": _in("auto", "cpu", "cuda"),
    "results_dir": Rule(_text, "must be a folder"),
    "cache_dir": TEXT_OR_NULL,
    "force": SWITCH,
    "save": _in("adapter", "full", "none"),
    "model.name": FOLDER_NAME,
    "model.hub_id": or_null(Rule(is_hub_name, "must be a name on the hub, as google/gemma-2b")),
    "model.revision": TEXT,
    "model.path": TEXT_OR_NULL,
    "model.tokenizer": TEXT_OR_NULL,
    "model.kind": _in("base", "instruct"),
    "model.dtype": _in("auto", *DTYPES),
    "model.embedded": SWITCH,
    "model.shape": Rule(
        lambda v: v is None or (isinstance(v, dict) and _text(v.get("model_type"))),
        "must be null or have a model_type",
    ),
    "task.name": FOLDER_NAME,
    "task.hub.path": TEXT,
    "task.hub.name": TEXT_OR_NULL,
    "task.hub.revision": TEXT,
    "task.data_dir": TEXT_OR_NULL,
    "task.generated": Rule(
        lambda v: v is None or v in TINY_TASKS, f"must be {one_of(TINY_TASKS)}, or null", TINY_TASKS
    ),
    "task.tsv.folder": TEXT,
    "task.tsv.files": Rule(_texts_by_name, "must give each split a file name"),
    "task.tsv.columns": Rule(_texts_by_name, "must give each column a header name"),
    "task.tsv.positions": or_null(Rule(_numbers_by_name, "must give each column a place from 0")),
    "task.tsv.fields": COUNT_OR_NULL,
    "task.columns": Rule(
        lambda v: _words(v) and len(v) in (1, 2), "must be one or two column names"
    ),
    "task.labels": Rule(
        lambda v: _words(v) and len(set(v)) == len(v) >= 2, "must be two or more different names"
    ),
    "task.train_split": TEXT,
    "task.dev.split": TEXT,
    "task.dev.take": _in("all", "last", "random"),
    "task.dev.examples": COUNT_OR_NULL,
    "task.test_splits": Rule(
        lambda v: _words(v) and len(set(v)) == len(v), "must be one or more different names"
    ),
    "task.draw_seed": COUNT_OR_0,
    "task.max_train_examples": COUNT_OR_NULL,
    "task.max_train_tokens": COUNT,
    "task.separator": _in("newline", "sep_token"),
    "task.undo_spacing": SWITCH,
    "task.on_bad_row": _in("error", "skip"),
    "task.prompt.instruction": TEXT,
    "task.prompt.answers": NAMES,
    "task.prompt.answers_text": TEXT,
    "task.prompt.fields": NAMES,
    "method.name": _in(*METHODS),
    "method.density": Rule(lambda v: _number(v) and 0 < v < 1, "must lie inside (0, 1)"),
    "method.density_of": _in("sampled", "backbone"),
    "method.r": COUNT,
    "method.alpha": POSITIVE,
    "method.lora_dropout": DROPOUT,
    "method.presets": Rule(
        _presets,
        "must be a list of {when, set}: when may have model, task, density_from and density_to, "
        "set has keys of train",
    ),
    "train.learning_rate": POSITIVE,
    "train.batch_size": COUNT,
    "train.epochs": Rule(
        lambda v: _number(v) and 0 < v <= 1e9, "must be a number above 0, and at most 1e9"
    ),
    "train.weight_decay": NOT_NEGATIVE,
    "train.dropout": DROPOUT,
    "train.max_grad_norm": NOT_NEGATIVE,
    "train.patience": COUNT_OR_0,
    "train.trained_dtype": _in(*DTYPES),
    "train.betas": Rule(
        lambda v: isinstance(v, list) and len(v) == 2 and all(_number(b) and 0 <= b < 1 for b in v),
        "must be two numbers from 0 to below 1",
    ),
    "train.eps": POSITIVE,
    "train.warmup_ratio": SHARE,
    "train.schedule": _in("linear", "constant"),
    "train.floor_ratio": SHARE,
    "train.max_steps": COUNT_OR_NULL,
    "train.accumulation_steps": COUNT,
    "train.eval_every": COUNT_OR_NULL,
    "train.eval_batch_size": COUNT_OR_NULL,
    "train.min_improvement": NOT_NEGATIVE,
    "train.bucket_batches": COUNT_OR_0,
    "train.gradient_checkpointing": SWITCH,
    "train.checkpoint_every": COUNT_OR_NULL,
}


def faults_by(rules: Mapping[str, Rule], values: Mapping[str, Any]) -> list[str]:
    """A line for each dotted key of the rules that is not there, or against its rule."""
    lines = []
    for key, rule in rules.items():
        there, value = _look_up(values, key)
        if not there:
            lines.append(_not_there(values, key))
        elif not rule.check(value):
            lines.append(f"{key}={shown(show(value))}: {rule.text}")
    return list(dict.fromkeys(lines))


def _not_there(values: Mapping[str, Any], key: str) -> str:
    parts = key.split(".")
    for length in range(1, len(parts)):
        there, value = _look_up(values, above := ".".join(parts[:length]))
        if not there:
            return f"{above}: is missing"
        if not isinstance(value, Mapping):
            return f"{above}={shown(show(value))}: must have keys of its own"
    return f"{key}: is missing"


def _look_up(raw: Mapping[str, Any], key: str) -> tuple[bool, Any]:
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


def _fold_numbers(value: Any) -> Any:
    # YAML 1.1 reads 1e-5 as text; whoever writes it means the number.
    if isinstance(value, dict):
        return {k: _fold_numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_fold_numbers(v) for v in value]
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() and value[0] in "+-.0123456789" else value
        except ValueError:
            return value
    return value


# -------------------------------------------------------------------------------- presets
def _fits(when: Mapping[str, Any], model: Any, task: Any, density: Any) -> bool:
    if model not in when.get("model", [model]) or task not in when.get("task", [task]):
        return False
    if not _number(density):  # none belongs to the method, or it is told of by its own rule
        return True
    return bool(when.get("density_from", density) <= density < when.get("density_to", inf))


def _with_presets(raw: dict[str, Any]) -> dict[str, Any]:
    """`train` with every null that a preset of the method knows replaced."""
    method, train = raw["method"], raw["train"]
    entries = method.get("presets", [])
    if not _presets(entries):  # told of by its own rule; the nulls are not faults of theirs
        return {key: value for key, value in train.items() if value is not None}
    preset: dict[str, Any] = {"trained_dtype": "float32"}
    model, task = raw["model"].get("name"), raw["task"].get("name")
    for entry in entries:
        if _fits(entry["when"], model, task, method.get("density")):
            preset |= entry["set"]
    return {key: preset.get(key) if value is None else value for key, value in train.items()}


# --------------------------------------------------------------------------------- checks
Faults = dict[str, str]  # dotted key to line


def _shape_faults(raw: Mapping[str, Any]) -> Faults:
    """Keys that are missing and keys that nothing knows."""
    faults = _key_faults(raw, Config, "")
    parts: list[tuple[str, type]] = [
        ("model", ModelConfig), ("task", TaskConfig), ("train", TrainConfig)
    ]  # fmt: skip
    name = _look_up(raw, "method.name")[1]
    parts.append(("method", METHOD_CLASSES[name] if name in METHODS else Mapping))
    parts += [("task.dev", Dev), ("task.prompt", Prompt), ("task.hub", Hub), ("task.tsv", Tsv)]
    for key, kind in parts:
        there, value = _look_up(raw, key)
        if not there or (value is None and key in ("task.hub", "task.tsv")):
            continue
        if not isinstance(value, Mapping):
            faults[key] = f"{key}={show(value)}: must have keys of its own"
        elif kind is not Mapping:
            faults |= _key_faults(value, kind, f"{key}.")
    return faults


def _key_faults(part: Mapping[str, Any], kind: type, prefix: str) -> Faults:
    known = {field.name for field in fields(kind)}
    optional = {"positions", "fields"} if kind is Tsv else set()
    allowed = known | ({"presets"} if prefix == "method." else set())
    missing = [f"{prefix}{key}" for key in known - part.keys() - optional]
    faults = {key: f"{key}: is missing" for key in sorted(missing)}
    for key in (key for key in part if key not in allowed):
        near = did_you_mean(str(key), allowed)
        faults[f"{prefix}{key}"] = f"{prefix}{key}={show(part[key])}: no such key{near}"
    return faults


def _rule_faults(raw: Mapping[str, Any]) -> Faults:
    faults = {}
    for key, rule in RULES.items():
        there, value = _look_up(raw, key)
        if there and not rule.check(value):
            near = did_you_mean(value, rule.names) if isinstance(value, str) else ""
            faults[key] = f"{key}={shown(show(value))}: {rule.text}{near}"
    return faults


def _folder_problem(path: str) -> str | None:
    try:
        return None if Path(path).is_dir() else "there is no such folder"
    except OSError as error:  # a name that is too long, a folder that may not be entered
        return str(error.strerror)


def is_folder(path: str) -> bool:
    """Whether there is a folder that can be looked into."""
    return _folder_problem(path) is None


def _folder_line(key: str) -> Callable[[Any], str | None]:
    def line(folder: Any) -> str | None:
        problem = None if folder is None else _folder_problem(folder)
        return None if problem is None else f"{key}={folder}: {problem}"

    return line


def _results_dir(folder: str) -> str | None:
    problem = why_not_writable(Path(folder))
    return problem and f"results_dir={folder}: must be a folder that can be written; {problem}"


def _model_source(path: str | None, hub_id: str | None, embedded: bool) -> str | None:
    if path is None:
        needed = not (hub_id or embedded)
        return "model.path=null: needs the folder of a Hugging Face model" if needed else None
    if _folder_problem(path) is None and not (Path(path) / "config.json").is_file():
        return f"model.path={path}: the folder has no config.json"
    return None


def _task_source(hub: Any, data_dir: Any, generated: Any) -> str | None:
    if hub is None and data_dir is None and generated is None:
        return "task.data_dir=null: this task has no data elsewhere, so it needs a folder"
    return None


def _dev_count(take: str, examples: int | None) -> str | None:
    if take == "all" and examples is not None:
        return f"task.dev.examples={examples}: must be null with take=all"
    if take != "all" and examples is None:
        return f"task.dev.examples=null: take={take} needs a number of examples"
    return None


def _dev_leaves(take: str, split: str, train_split: str, test_splits: list[str]) -> str | None:
    if take == "all" and split in (train_split, *test_splits):
        return f"task.dev.take=all: would leave nothing of split {split} to train on or test"
    return None


def _test_apart(test_splits: list[str], train_split: str) -> str | None:
    if train_split in test_splits:
        return f"task.test_splits={show(test_splits)}: must not hold the training split"
    return None


def _answers(answers: list[str], labels: list[str]) -> str | None:
    if len(answers) != len(labels):
        rule = f"must hold one word for each of {len(labels)} labels"
        return f"task.prompt.answers={show(answers)}: {rule}"
    if len(set(answers)) != len(answers):
        return f"task.prompt.answers={show(answers)}: two labels have the same word"
    return None


def _fields(names: list[str], columns: list[str]) -> str | None:
    if len(names) != len(columns):
        return f"task.prompt.fields={show(names)}: must name each of {len(columns)} column(s)"
    return None


def _targets(name: str, targets: Any) -> str | None:
    if _words(targets) or (name == "sparta" and targets == "all"):
        return None
    rule = "must be a list of module names" + (", or all" if name == "sparta" else "")
    return f"method.targets={show(targets)}: {rule}"


def _batch_parts(parts: int, batch: int) -> str | None:
    if parts > batch:
        return f"train.accumulation_steps={parts}: must not be above train.batch_size={batch}"
    return None


# Checks that look at more than one key, or at the disk. Each is made where its keys are without
# fault, so that one mistake is told once.
RELATIONS: tuple[tuple[tuple[str, ...], Callable[..., str | None]], ...] = (
    (("results_dir",), _results_dir),
    (("model.path",), _folder_line("model.path")),
    (("model.tokenizer",), _folder_line("model.tokenizer")),
    (("model.path", "model.hub_id", "model.embedded"), _model_source),
    (("task.data_dir",), _folder_line("task.data_dir")),
    (("task.hub", "task.data_dir", "task.generated"), _task_source),
    (("task.dev.take", "task.dev.examples"), _dev_count),
    (("task.dev.take", "task.dev.split", "task.train_split", "task.test_splits"), _dev_leaves),
    (("task.test_splits", "task.train_split"), _test_apart),
    (("task.prompt.answers", "task.labels"), _answers),
    (("task.prompt.fields", "task.columns"), _fields),
    (("method.name", "method.targets"), _targets),
    (("train.accumulation_steps", "train.batch_size"), _batch_parts),
)


def _relation_lines(raw: Mapping[str, Any], faults: Faults) -> list[str]:
    lines = []
    for keys, check in RELATIONS:
        found = [_look_up(raw, key) for key in keys]
        if all(there for there, _ in found) and not faults.keys() & set(keys):
            line = check(*(value for _, value in found))
            lines += [line] if line else []
    return lines


def from_dict(composed: Mapping[str, Any]) -> Config:
    """Check a composed configuration and freeze it.

    Parameters
    ----------
    composed
        Plain dictionaries as Hydra composed them from `conf/`.

    Raises
    ------
    InputError
        With one line for every fault: key, value, rule.
    """
    raw = dict(composed)
    for group in ("method", "train"):
        if group in raw:
            raw[group] = _fold_numbers(raw[group])
    faults = _shape_faults(raw)
    if not faults.keys() & {"model", "task", "method", "train"}:
        raw["model"] = raw["model"] | {"name": _model_name(raw["model"])}
        raw["train"] = _with_presets(raw)
    faults |= _rule_faults(raw)
    if _named_by_path(_look_up(raw, "model")[1]):
        faults.pop("model.name", None)  # the line about model.path says enough
    lines = [*faults.values(), *_relation_lines(raw, faults)]
    if lines:
        raise InputError(*lines)
    return _freeze(raw)


def method_of(values: Mapping[str, Any]) -> MethodConfig:
    """A method's settings from plain values, such as those of a saved adapter.

    Raises
    ------
    InputError
        With a line for each fault.
    """
    raw = {"method": values}
    faults = _rule_faults(raw)
    if "method.name" not in faults:
        faults |= _key_faults(values, METHOD_CLASSES[values["name"]], "method.")
    if lines := [*faults.values(), *_relation_lines(raw, faults)]:
        raise InputError(*lines)
    return _method(values)


def _model_name(model: Mapping[str, Any]) -> Any:
    name, path = model.get("name"), model.get("path")
    if name is not None or not _text(path) or "\0" in str(path):
        return name
    return Path(str(path)).resolve().name


def _named_by_path(model: Any) -> bool:
    if not isinstance(model, Mapping) or model.get("name") is not None:
        return False
    return not (model.get("hub_id") or model.get("embedded"))


def _numbers(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    # 5 and 5.0 epochs are the same experiment, and must hash alike.
    kinds = {field.name: str(field.type) for field in fields(kind)}
    return {key: _as_kind(kinds[key], value) for key, value in values.items()}


def _as_kind(kind: str, value: Any) -> Any:
    if kind == "list[float]":
        return [float(part) for part in value]
    if value is None or kind not in ("float", "int", "int | None"):
        return value
    return float(value) if kind == "float" else int(value)


def _method(values: Mapping[str, Any]) -> MethodConfig:
    kind = METHOD_CLASSES[values["name"]]
    made: MethodConfig = kind(**_numbers(kind, values))
    return made


def _freeze(raw: dict[str, Any]) -> Config:
    task = dict(raw["task"])
    for key, kind in (("hub", Hub), ("tsv", Tsv), ("dev", Dev), ("prompt", Prompt)):
        task[key] = kind(**_numbers(kind, task[key])) if task[key] is not None else None
    method = {key: value for key, value in raw["method"].items() if key != "presets"}
    return Config(
        **_numbers(
            Config,
            raw
            | {
                "model": ModelConfig(**raw["model"]),
                "task": TaskConfig(**_numbers(TaskConfig, task)),
                "method": _method(method),
                "train": TrainConfig(**_numbers(TrainConfig, raw["train"])),
            },
        )
    )
