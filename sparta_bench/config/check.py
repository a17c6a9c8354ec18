"""From composed values to a `Config`: presets filled in, all faults at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sparta_bench.config.presets import preset_of
from sparta_bench.config.rates import RateRule, size_of
from sparta_bench.config.relations import relation_faults
from sparta_bench.config.rules import RULES, is_text, look_up, rule_fault, show
from sparta_bench.config.schema import (
    METHOD_CLASSES,
    METHODS,
    Config,
    Dev,
    Hub,
    MethodConfig,
    ModelConfig,
    Prompt,
    SearchConfig,
    TaskConfig,
    TrainConfig,
    Tsv,
)
from sparta_bench.errors import InputError, did_you_mean

MAY_BE_NULL = ("task.hub", "task.tsv", "task.dev", "task.prompt")
NOT_FOUND_YET = {"dev": Dev("", "all", None), "prompt": Prompt("", (), "", ())}
Faults = dict[str, str]  # a line for each dotted key
SOURCES = ("data", "data_dir", "hub", "generated")
PARTS: dict[str, type] = {
    "model": ModelConfig, "task": TaskConfig, "train": TrainConfig, "search": SearchConfig,
    "task.dev": Dev, "task.prompt": Prompt, "task.hub": Hub, "task.tsv": Tsv,
}  # fmt: skip


def from_dict(composed: Mapping[str, Any]) -> Config:
    """Check a composed configuration and freeze it.

    Parameters
    ----------
    composed
        Plain dictionaries as composed from `conf/`.

    Raises
    ------
    InputError
        With one line for every fault: key, value, rule.
    """
    raw = dict(composed)
    for group in ("method", "train"):
        if group in raw:
            raw[group] = _fold_numbers(raw[group])
    if isinstance(raw.get("task"), Mapping):
        raw["task"] = _named_task(raw["task"])
    faults = _shape_faults(raw)
    unknown_rate: Faults = {}
    if not faults.keys() & {"model", "task", "method", "train"}:
        raw["model"] = _where_it_is(raw["model"])
        raw["train"] = _with_presets(
            raw["train"], raw["method"], raw["model"]["name"], raw["task"].get("name")
        )
        try:
            raw["train"] = _with_rate(raw["train"], raw["model"])
        except InputError as error:
            unknown_rate["train.learning_rate"] = error.lines[0]
    faults |= _rule_faults(raw) | unknown_rate
    if _named_by_path(look_up(raw, "model")[1]):
        faults.pop("model.name", None)  # the line about model.path says enough
    if not any(look_up(raw, f"task.{key}")[1] for key in ("name", *SOURCES)):
        faults.pop("task.name", None)  # and so does that about the data
    _raise(raw, faults)
    task = dict(raw["task"])
    for key, kind in (("hub", Hub), ("tsv", Tsv), ("dev", Dev), ("prompt", Prompt)):
        task[key] = NOT_FOUND_YET.get(key) if task[key] is None else _made(kind, task[key])
    for key in ("columns", "labels", "test_splits"):
        task[key] = task[key] or []
    parts = {
        "model": _made(ModelConfig, raw["model"]),
        "task": _made(TaskConfig, task),
        "method": _made(METHOD_CLASSES[raw["method"]["name"]], raw["method"]),
        "train": _made(TrainConfig, raw["train"]),
        "search": _made(SearchConfig, raw["search"]),
    }
    config: Config = _made(Config, raw | parts)
    return config


def method_of(values: Mapping[str, Any]) -> MethodConfig:
    """Return a method's settings from plain values, such as those of a saved adapter.

    Raises
    ------
    InputError
        With a line for each fault.
    """
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

    Raises
    ------
    InputError
        With a line for each fault.
    """
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
    method = METHOD_CLASSES[name] if name in METHODS else None
    for key, kind in [("method", method), *PARTS.items()]:
        is_there, value = look_up(raw, key)
        if not is_there or (value is None and key in MAY_BE_NULL):
            continue
        if not isinstance(value, Mapping):
            faults[key] = f"{key}={show(value)}: must have keys of its own"
        elif kind is not None:
            faults |= _key_faults(value, kind, f"{key}.")
    return faults


def _key_faults(part: Mapping[str, Any], kind: type, prefix: str) -> Faults:
    known = {field.name for field in fields(kind)}
    optional = {"positions", "fields"} if kind is Tsv else set()
    missing = [f"{prefix}{key}" for key in known - part.keys() - optional]
    faults = {key: f"{key}: is missing" for key in sorted(missing)}
    for key in (key for key in part if key not in known):
        near = did_you_mean(str(key), known)
        faults[f"{prefix}{key}"] = f"{prefix}{key}={show(part[key])}: no such key{near}"
    return faults


def _rule_faults(raw: Mapping[str, Any]) -> Faults:
    faults = {}
    for key in RULES:
        is_there, value = look_up(raw, key)
        if is_there and (line := rule_fault(key, value)):
            faults[key] = line
    return faults


def _where_it_is(model: Mapping[str, Any]) -> dict[str, Any]:
    """Name a model by its folder where it has no name.

    An embedded model with a folder is a model of its own, as with `model=local`: it may be
    anything, and must not bear the embedded one's name in a record.
    """
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


def _named_by_path(model: Any) -> bool:
    if not isinstance(model, Mapping) or model.get("name") is not None:
        return False
    return not (model.get("hub_id") or model.get("embedded"))


def _with_presets(
    train: Mapping[str, Any], method: Mapping[str, Any], model: Any, task: Any
) -> dict[str, Any]:
    """Return `train` with every None that the run's preset knows replaced."""
    density = method.get("density")
    if method.get("name") not in METHODS or (
        "density" in method and not RULES["method.density"].check(density)
    ):  # which has a line of its own, and what would be filled in is no fault
        return {key: value for key, value in train.items() if value is not None}
    preset = preset_of(method["name"], model, task, density)
    values = {} if preset is None else preset.values
    return {key: values.get(key) if value is None else value for key, value in train.items()}


def _with_rate(train: dict[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Return `train` with a rate that the presets give by a rule worked out for the model."""
    rule = train.get("learning_rate")
    if not isinstance(rule, RateRule):
        return train
    return {**train, "learning_rate": rule.rate(size_of(model) or 1e9)}


def _made(kind: type, values: Mapping[str, Any]) -> Any:
    # 5 and 5.0 epochs are the same experiment, and must hash alike
    kinds = {field.name: str(field.type) for field in fields(kind)}
    return kind(**{key: _as_kind(kinds[key], value) for key, value in values.items()})


def _as_kind(kind: str, value: Any) -> Any:
    if isinstance(value, list):  # tuples have a hash
        return tuple(float(part) if kind == "tuple[float, ...]" else part for part in value)
    if value is None or kind not in ("float", "int", "int | None"):
        return value
    return float(value) if kind == "float" else int(value)


def _fold_numbers(value: Any) -> Any:
    # YAML 1.1 reads 1e-5 as text; whoever writes it means the number
    if isinstance(value, dict):
        return {key: _fold_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_fold_numbers(part) for part in value]
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() and value[0] in "+-.0123456789" else value
        except ValueError:
            return value
    return value
