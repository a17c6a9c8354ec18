"""From what Hydra composed to a `Config`: presets filled in, every fault told at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import inf
from pathlib import Path
from typing import Any

from sparta_bench.config.relations import relation_faults
from sparta_bench.config.rules import RULES, are_presets, is_number, is_text, look_up, show
from sparta_bench.config.schema import (
    METHOD_CLASSES,
    METHODS,
    Config,
    Dev,
    Hub,
    MethodConfig,
    ModelConfig,
    Prompt,
    TaskConfig,
    TrainConfig,
    Tsv,
)
from sparta_bench.errors import InputError, did_you_mean, shown

Faults = dict[str, str]  # a line for each dotted key


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
        raw["model"] = _where_it_is(raw["model"])
        raw["model"] |= {"name": _model_name(raw["model"])}
        raw["train"] = _with_presets(raw)
    faults |= _rule_faults(raw)
    if _named_by_path(look_up(raw, "model")[1]):
        faults.pop("model.name", None)  # the line about model.path says enough
    lines = [*faults.values(), *relation_faults(raw, faults)]
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
    if lines := [*faults.values(), *relation_faults(raw, faults)]:
        raise InputError(*lines)
    return _method(values)


def _shape_faults(raw: Mapping[str, Any]) -> Faults:
    """Keys that are missing and keys that nothing knows."""
    faults = _key_faults(raw, Config, "")
    parts: list[tuple[str, type]] = [
        ("model", ModelConfig), ("task", TaskConfig), ("train", TrainConfig)
    ]  # fmt: skip
    name = look_up(raw, "method.name")[1]
    parts.append(("method", METHOD_CLASSES[name] if name in METHODS else Mapping))
    parts += [("task.dev", Dev), ("task.prompt", Prompt), ("task.hub", Hub), ("task.tsv", Tsv)]
    for key, kind in parts:
        there, value = look_up(raw, key)
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
        there, value = look_up(raw, key)
        if there and not rule.check(value):
            near = did_you_mean(value, rule.names) if isinstance(value, str) else ""
            faults[key] = f"{key}={shown(show(value))}: {rule.text}{near}"
    return faults


def _where_it_is(model: Mapping[str, Any]) -> dict[str, Any]:
    """A folder in the place of an embedded model is a model of its own, as with `model=local`: it
    may be anything, and must not bear the embedded one's name in a record."""
    if model.get("embedded") is not True or model.get("path") is None:
        return dict(model)
    return {**model, "embedded": False, "name": None}


def _model_name(model: Mapping[str, Any]) -> Any:
    name, path = model.get("name"), model.get("path")
    if name is not None or not is_text(path) or "\0" in str(path):
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
    if isinstance(value, list):  # tuples have a hash
        return tuple(float(part) if kind == "tuple[float, ...]" else part for part in value)
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


# -------------------------------------------------------------------------------- presets
def _fits(when: Mapping[str, Any], model: Any, task: Any, density: Any) -> bool:
    if model not in when.get("model", [model]) or task not in when.get("task", [task]):
        return False
    if not is_number(density):  # none belongs to the method, or it is told of by its own rule
        return True
    return bool(when.get("density_from", density) <= density < when.get("density_to", inf))


def _with_presets(raw: dict[str, Any]) -> dict[str, Any]:
    """`train` with every null that a preset of the method knows replaced."""
    method, train = raw["method"], raw["train"]
    entries = method.get("presets", [])
    if not are_presets(entries):  # told of by its own rule; the nulls are not faults of theirs
        return {key: value for key, value in train.items() if value is not None}
    preset: dict[str, Any] = {"trained_dtype": "float32"}
    model, task = raw["model"].get("name"), raw["task"].get("name")
    for entry in entries:
        if _fits(entry["when"], model, task, method.get("density")):
            preset |= entry["set"]
    return {key: preset.get(key) if value is None else value for key, value in train.items()}


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
