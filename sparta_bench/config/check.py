"""From composed values to a `Config`: presets filled in, all faults at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sparta_bench.config import schema
from sparta_bench.config.presets import RateRule, preset_of, size_of
from sparta_bench.config.rules import RULES, is_text, look_up, relation_faults, rule_fault, show
from sparta_bench.config.schema import METHOD_CLASSES, Config, MethodConfig, TaskConfig, TrainConfig
from sparta_bench.errors import InputError, did_you_mean

NOT_FOUND_YET = {  # or not needed
    "hub": None,
    "tsv": None,
    "dev": schema.Dev("", "all", None),
    "prompt": schema.Prompt("", (), "", ()),
}
Faults = dict[str, str]  # a line for each dotted key
SOURCES = ("data", "data_dir", "hub", "generated")
PARTS: dict[str, type] = {
    "model": schema.ModelConfig, "task": TaskConfig, "train": TrainConfig,
    "search": schema.SearchConfig, "task.dev": schema.Dev, "task.prompt": schema.Prompt,
    "task.hub": schema.Hub, "task.tsv": schema.Tsv,
}  # fmt: skip


def from_dict(composed: Mapping[str, Any]) -> Config:
    """Check a configuration, plain dictionaries as composed from `conf/`, and freeze it. Raises
    InputError with one line for every fault: key, value, rule."""
    raw = dict(composed)
    for group in ("method", "train"):
        if group in raw:
            raw[group] = _fold_numbers(raw[group])
    if isinstance(raw.get("task"), Mapping):
        raw["task"] = _named_task(raw["task"])
    faults = _shape_faults(raw)
    unknown_rate: Faults = {}
    if not faults.keys() & {"model", "task", "method", "train"}:
        model = raw["model"] = _named_model(raw["model"])
        train = _with_presets(raw["train"], raw["method"], model["name"], raw["task"].get("name"))
        raw["train"] = train
        if isinstance(rule := train.get("learning_rate"), RateRule):
            try:
                size, density = size_of(model) or 1e9, raw["method"].get("density")
                train["learning_rate"] = rule.rate(size, density)
            except InputError as error:
                unknown_rate["train.learning_rate"] = error.lines[0]
    faults |= _rule_faults(raw) | unknown_rate
    known = [look_up(raw, f"model.{key}")[1] for key in ("name", "hub_id", "embedded")]
    if known[0] is None and not any(known):
        faults.pop("model.name", None)  # the line about model.path says enough
    if not any(look_up(raw, f"task.{key}")[1] for key in ("name", *SOURCES)):
        faults.pop("task.name", None)  # and so does that about the data
    _raise(raw, faults)
    task = dict(raw["task"])
    for key, empty in NOT_FOUND_YET.items():
        task[key] = empty if task[key] is None else _made(PARTS[f"task.{key}"], task[key])
    for key in ("columns", "labels", "test_splits"):
        task[key] = task[key] or []
    parts = {key: _made(PARTS[key], raw[key]) for key in ("model", "train", "search")}
    parts["task"] = _made(TaskConfig, task)
    parts["method"] = _made(METHOD_CLASSES[raw["method"]["name"]], raw["method"])
    config: Config = _made(Config, raw | parts)
    return config


def method_of(values: Mapping[str, Any]) -> MethodConfig:
    """Return a method's settings from plain values, such as those of a saved adapter. Raises
    InputError with a line for each fault."""
    raw = {"method": values}
    faults = _rule_faults(raw)
    if "method.name" not in faults:
        faults |= _key_faults(values, METHOD_CLASSES[values["name"]], "method.")
    _raise(raw, faults)
    method: MethodConfig = _made(METHOD_CLASSES[values["name"]], values)
    return method


def train_of(
    train: Mapping[str, Any], method: Mapping[str, Any], model: str, task: str
) -> TrainConfig:
    """Return the training settings of a run of this method, model and task, presets filled in.
    Raises InputError with a line for each fault."""
    raw = {"train": _with_presets(train, method, model, task)}
    _raise(raw, _key_faults(raw["train"], TrainConfig, "train.") | _rule_faults(raw))
    settings: TrainConfig = _made(TrainConfig, raw["train"])
    return settings


def _raise(raw: Mapping[str, Any], faults: Faults) -> None:
    if lines := [*faults.values(), *relation_faults(raw, faults)]:
        raise InputError(*lines)


def _shape_faults(raw: Mapping[str, Any]) -> Faults:
    """Keys that are missing and keys that nothing knows."""
    faults = _key_faults(raw, Config, "")
    name = look_up(raw, "method.name")[1]
    method = METHOD_CLASSES.get(name) if isinstance(name, str) else None
    for key, kind in [("method", method), *PARTS.items()]:
        is_there, value = look_up(raw, key)
        if not is_there or (value is None and key.removeprefix("task.") in NOT_FOUND_YET):
            continue
        if not isinstance(value, Mapping):
            faults[key] = f"{key}={show(value)}: must have keys of its own"
        elif kind is not None:
            faults |= _key_faults(value, kind, f"{key}.")
    return faults


def _key_faults(part: Mapping[str, Any], kind: type, prefix: str) -> Faults:
    known = {field.name for field in fields(kind)}
    optional = {"positions", "fields"} if kind is schema.Tsv else set()
    missing = [f"{prefix}{key}" for key in known - part.keys() - optional]
    faults = {key: f"{key}: is missing" for key in sorted(missing)}
    for key in (key for key in part if key not in known):
        near = did_you_mean(str(key), known)
        faults[f"{prefix}{key}"] = f"{prefix}{key}={show(part[key])}: no such key{near}"
    return faults


def _rule_faults(raw: Mapping[str, Any]) -> Faults:
    values = {key: look_up(raw, key) for key in RULES}
    lines = {key: rule_fault(key, value) for key, (is_there, value) in values.items() if is_there}
    return {key: line for key, line in lines.items() if line}


def _named_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """Name a model by its folder where it has no name. An embedded model with a folder is a model
    of its own, as with `model=local`: it must not bear the embedded one's name in a record."""
    path = model.get("path")
    if model.get("embedded") is True and path is not None:
        model = {**model, "embedded": False, "name": None}
    name = model.get("name")
    if name is None and is_text(path) and "\0" not in str(path):
        name = Path(str(path)).resolve().name
    elif name is None and is_text(model.get("hub_id")):
        name = str(model["hub_id"]).rpartition("/")[2]
    return {**model, "name": name}


def _named_task(task: Mapping[str, Any]) -> dict[str, Any]:
    """Write a data set of the hub in full, and name a task by its data where it has no name."""
    task, hub = dict(task), task.get("hub")
    if isinstance(hub, str):
        hub = {"path": hub}
    repository = None
    if isinstance(hub, Mapping):
        task["hub"] = {"name": None, "revision": "main", **hub}
        repository = hub.get("path")
    file = task.get("data") or task.get("data_dir")
    source: Any = file or repository
    if task.get("name") is None and is_text(source) and "\0" not in source:
        task["name"] = Path(source).resolve().stem if file else source.rpartition("/")[2]
    return task


def _with_presets(
    train: Mapping[str, Any], method: Mapping[str, Any], model: Any, task: Any
) -> dict[str, Any]:
    """Return `train` with every None that the run's preset knows replaced."""
    name, density = method.get("name"), method.get("density")
    wrong_density = "density" in method and not RULES["method.density"].check(density)
    if wrong_density or not RULES["method.name"].check(name):
        # that has a line of its own, and what would be filled in is no fault
        return {key: value for key, value in train.items() if value is not None}
    preset = preset_of(str(name), model, task, density)
    values = {} if preset is None else preset.values
    return {key: values.get(key) if value is None else value for key, value in train.items()}


def _made(kind: type, values: Mapping[str, Any]) -> Any:
    """A dataclass of checked values: lists as tuples, which have a hash, and 5 epochs as 5.0, since
    both are the same experiment and must hash alike."""
    kinds = {field.name: str(field.type) for field in fields(kind)}
    made = dict(values)
    for key, value in values.items():
        if isinstance(value, list):
            made[key] = tuple(map(float, value) if kinds[key] == "tuple[float, ...]" else value)
        elif value is not None and kinds[key] in ("float", "int", "int | None"):
            made[key] = float(value) if kinds[key] == "float" else int(value)
    return kind(**made)


def _fold_numbers(value: Any) -> Any:
    """YAML 1.1 reads 1e-5 as text; whoever writes it means the number."""
    if isinstance(value, dict):
        return {key: _fold_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_fold_numbers(part) for part in value]
    try:
        is_number = isinstance(value, str) and "e" in value.lower() and value[0] in "+-.0123456789"
        return float(value) if is_number else value
    except ValueError:
        return value
