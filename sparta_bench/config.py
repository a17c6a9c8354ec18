"""One experiment's configuration: frozen dataclasses, and every check that needs nothing loaded.

`from_dict` takes what Hydra composed, fills the presets in, and either returns a `Config` or
raises one `InputError` that holds a line for every fault.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from math import inf, isfinite
from pathlib import Path
from typing import Any

from sparta_bench.errors import InputError, did_you_mean, one_of

METHODS = ("full_ft", "head", "lora", "sparta")
DTYPES = ("float32", "bfloat16")


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


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _words(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) and v for v in value)


def _in(*names: str) -> tuple[Check, str]:
    return (lambda value: value in names), f"must be {one_of(names)}"


POSITIVE: tuple[Check, str] = (lambda v: _number(v) and v > 0, "must be a number above 0")
NOT_NEGATIVE: tuple[Check, str] = (
    lambda v: _number(v) and v >= 0,
    "must be a number of at least 0",
)
SHARE: tuple[Check, str] = (lambda v: _number(v) and 0 <= v <= 1, "must be a number from 0 to 1")
DROPOUT: tuple[Check, str] = (
    lambda v: _number(v) and 0 <= v < 1,
    "must be a number from 0 to below 1",
)
COUNT: tuple[Check, str] = (lambda v: _whole(v, 1), "must be a whole number of at least 1")
COUNT_OR_0: tuple[Check, str] = (lambda v: _whole(v, 0), "must be a whole number of at least 0")
COUNT_OR_NULL: tuple[Check, str] = (
    _optional(lambda v: _whole(v, 1)),
    "must be a whole number of at least 1, or null",
)
SWITCH: tuple[Check, str] = (lambda v: isinstance(v, bool), "must be true or false")
TEXT_OR_NULL: tuple[Check, str] = (
    _optional(lambda v: isinstance(v, str) and bool(v)),
    "must be a text, or null",
)
NAMES: tuple[Check, str] = (_words, "must be a list of names")

RULES: dict[str, tuple[Check, str]] = {
    # torch takes a 64-bit seed; seeds are also mixed into text, so any such number will do
    "seed": (lambda v: _whole(v, 0) and v < 2**63, "must be a whole number from 0 to 2^63 - 1"),
    "device": _in("auto", "cpu", "cuda"),
    "results_dir": (lambda v: isinstance(v, str) and bool(v), "must be a folder"),
    "cache_dir": TEXT_OR_NULL,
    "force": SWITCH,
    "save": _in("adapter", "full", "none"),
    "model.kind": _in("base", "instruct"),
    "model.dtype": _in("auto", *DTYPES),
    "model.path": TEXT_OR_NULL,
    "model.tokenizer": TEXT_OR_NULL,
    "task.data_dir": TEXT_OR_NULL,
    "task.labels": (
        lambda v: _words(v) and len(set(v)) == len(v) >= 2,
        "must be two or more names",
    ),
    "task.columns": (lambda v: _words(v) and len(v) in (1, 2), "must be one or two column names"),
    "task.test_splits": NAMES,
    "task.draw_seed": COUNT_OR_0,
    "task.max_train_examples": COUNT_OR_NULL,
    "task.max_train_tokens": COUNT,
    "task.separator": _in("newline", "sep_token"),
    "task.undo_spacing": SWITCH,
    "task.on_bad_row": _in("error", "skip"),
    "task.dev.take": _in("all", "last", "random"),
    "task.dev.examples": COUNT_OR_NULL,
    "task.prompt.answers": NAMES,
    "task.prompt.fields": NAMES,
    "method.density": (lambda v: _number(v) and 0 < v < 1, "must lie inside (0, 1)"),
    "method.density_of": _in("sampled", "backbone"),
    "method.r": COUNT,
    "method.alpha": POSITIVE,
    "method.lora_dropout": DROPOUT,
    "train.learning_rate": POSITIVE,
    "train.batch_size": COUNT,
    "train.epochs": POSITIVE,
    "train.weight_decay": NOT_NEGATIVE,
    "train.dropout": DROPOUT,
    "train.max_grad_norm": NOT_NEGATIVE,
    "train.patience": COUNT_OR_0,
    "train.trained_dtype": _in(*DTYPES),
    "train.betas": (
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


def _look_up(raw: Mapping[str, Any], key: str) -> tuple[bool, Any]:
    """Whether the dotted key is there, and its value."""
    value: Any = raw
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False, None
        value = value[part]
    return True, value


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
def _fits(when: Mapping[str, Any], model: str, task: str, density: Any) -> bool:
    if model not in when.get("model", [model]) or task not in when.get("task", [task]):
        return False
    if not _number(density):
        return "density_from" not in when and "density_to" not in when
    return bool(when.get("density_from", density) <= density < when.get("density_to", inf))


def _with_presets(raw: dict[str, Any]) -> dict[str, Any]:
    """`train` with every null that a preset of the method knows replaced."""
    method = raw["method"]
    preset: dict[str, Any] = {"trained_dtype": "float32"}
    for entry in method.get("presets", []):
        density = method.get("density")
        if _fits(entry["when"], raw["model"]["name"], raw["task"]["name"], density):
            preset |= entry["set"]
    return {key: preset.get(key) if value is None else value for key, value in raw["train"].items()}


# --------------------------------------------------------------------------------- checks
def _rule_errors(raw: dict[str, Any]) -> list[str]:
    lines = []
    for key, (check, rule) in RULES.items():
        there, value = _look_up(raw, key)
        if there and not check(value):
            near = did_you_mean(value, rule.split()) if isinstance(value, str) else ""
            lines.append(f"{key}={value}: {rule}{near}")
    return lines


def _model_errors(model: dict[str, Any]) -> list[str]:
    lines = []
    path = model["path"]
    if not (path or model["hub_id"] or model["embedded"]):
        lines.append("model.path=null: model=local needs the folder of a Hugging Face model")
    for key in ("path", "tokenizer"):
        folder = model[key]
        if isinstance(folder, str) and not Path(folder).is_dir():
            lines.append(f"model.{key}={folder}: there is no such folder")
    if isinstance(path, str) and Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        lines.append(f"model.path={path}: the folder has no config.json")
    return lines


def _task_errors(task: dict[str, Any]) -> list[str]:
    lines = []
    data_dir, dev, prompt, labels = task["data_dir"], task["dev"], task["prompt"], task["labels"]
    if isinstance(data_dir, str) and not Path(data_dir).is_dir():
        lines.append(f"task.data_dir={data_dir}: there is no such folder")
    if dev["take"] in ("last", "random") and dev["examples"] is None:
        lines.append(f"task.dev.examples=null: take={dev['take']} needs a number of examples")
    if dev["take"] == "all" and dev["split"] in [task["train_split"], *task["test_splits"]]:
        lines.append(
            f"task.dev.take=all: would leave nothing of split {dev['split']} to train on or test"
        )
    if dev["take"] == "all" and dev["examples"] is not None:
        lines.append(f"task.dev.examples={dev['examples']}: must be null with take=all")
    if task["train_split"] in task["test_splits"]:
        lines.append(f"task.test_splits={task['test_splits']}: must not hold the training split")
    if isinstance(labels, list) and len(prompt["answers"]) != len(labels):
        lines.append(
            f"task.prompt.answers={prompt['answers']}: must hold one word for each of "
            f"{len(labels)} labels"
        )
    if len(set(prompt["answers"])) != len(prompt["answers"]):
        lines.append(f"task.prompt.answers={prompt['answers']}: two labels have the same word")
    if len(prompt["fields"]) != len(task["columns"]):
        lines.append(
            f"task.prompt.fields={prompt['fields']}: must name each of "
            f"{len(task['columns'])} columns"
        )
    return lines


def _method_errors(method: dict[str, Any]) -> list[str]:
    targets = method.get("targets")
    if "targets" not in method or _words(targets):
        return []
    if method["name"] == "sparta" and targets == "all":
        return []
    rule = "must be a list of module names" + (", or all" if method["name"] == "sparta" else "")
    return [f"method.targets={targets}: {rule}"]


def _train_errors(train: dict[str, Any]) -> list[str]:
    parts, batch = train["accumulation_steps"], train["batch_size"]
    if _whole(parts, 1) and _whole(batch, 1) and parts > batch:
        return [f"train.accumulation_steps={parts}: must not be above train.batch_size={batch}"]
    return []


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
    raw: dict[str, Any] = _fold_numbers(dict(composed))
    if raw["model"]["name"] is None and isinstance(raw["model"]["path"], str):
        raw["model"]["name"] = Path(raw["model"]["path"]).resolve().name
    for group in ("model", "task"):
        if raw[group]["name"] is None and not (group == "model" and raw[group]["path"] is None):
            raise InputError(f"{group}: _base is what every {group} has, not a {group} itself")
    raw["train"] = _with_presets(raw)
    lines = [
        *_rule_errors(raw),
        *_model_errors(raw["model"]),
        *_task_errors(raw["task"]),
        *_method_errors(raw["method"]),
        *_train_errors(raw["train"]),
    ]
    if lines:
        raise InputError(*lines)
    return _freeze(raw)


def _floats(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    # 5 and 5.0 epochs are the same experiment, and must hash alike.
    floats = {field.name for field in fields(kind) if field.type == "float"}
    return {key: float(value) if key in floats else value for key, value in values.items()}


def _freeze(raw: dict[str, Any]) -> Config:
    task = dict(raw["task"])
    for key, kind in (("hub", Hub), ("tsv", Tsv), ("dev", Dev), ("prompt", Prompt)):
        task[key] = kind(**task[key]) if task[key] is not None else None
    method = {key: value for key, value in raw["method"].items() if key != "presets"}
    rest = {k: v for k, v in raw.items() if k not in ("model", "task", "method", "train")}
    method_class = METHOD_CLASSES[method["name"]]
    return Config(
        model=ModelConfig(**raw["model"]),
        task=TaskConfig(**task),
        method=method_class(**_floats(method_class, method)),
        train=TrainConfig(**_floats(TrainConfig, raw["train"])),
        **rest,
    )
