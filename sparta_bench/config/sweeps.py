"""The sweeps in `conf/sweep`, as lists of values; no job of theirs is composed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from sparta_bench.config.check import from_dict
from sparta_bench.config.compose import (
    HYDRA_ERRORS,
    choices,
    composed_by_hydra,
    our_hydra,
    to_plain,
)
from sparta_bench.errors import InputError, reason_of


@dataclass(frozen=True)
class Sweep:
    """`axes` has model, task and seed, and every other key that varies."""

    name: str
    method: str
    axes: dict[str, list[Any]]
    composed: dict[str, Any]  # of its first job, presets not filled in

    def train(self, model: str, task: str, density: float | None) -> dict[str, Any]:
        """The training settings that a run of a cell gets where the sweep varies none."""
        plain = copy.deepcopy(self.composed)
        plain["model"]["name"], plain["task"]["name"] = model, task
        if density is not None:
            plain["method"]["density"] = density
        train: dict[str, Any] = from_dict(plain).as_dict()["train"]
        return train


def sweeps_of(table: str) -> list[Sweep]:
    """The sweeps of `table4` or `table4-twins`, one for each method."""
    number = table.removesuffix("-twins")
    prefix = f"tiny_{number}_" if table.endswith("-twins") else f"{number}_"
    return [_read(name) for name in choices("sweep") if name.startswith(prefix)]


def _read(name: str) -> Sweep:
    """Raises InputError if it is no sweep."""
    try:
        composed, axes = _composed(name)
    except HYDRA_ERRORS as error:
        raise InputError(f"conf/sweep/{name}.yaml: {reason_of(error)}") from None
    groups = [str(key) for key in composed if key != "hydra"]
    config = to_plain(OmegaConf.masked_copy(composed, groups))
    from_dict(config)  # in which a value may be of another kind
    for key, values in axes.items():
        if any(isinstance(value, list | dict) for value in values):
            raise InputError(f"conf/sweep/{name}.yaml: {key}: must be plain values to go through")
    for key, value in (
        ("model", config["model"]["name"]),
        ("task", config["task"]["name"]),
        ("seed", config["seed"]),
    ):
        axes.setdefault(key, [value])
    return Sweep(name, config["method"]["name"], axes, config)


def _composed(name: str) -> tuple[Any, dict[str, list[Any]]]:
    with our_hydra():
        composed = composed_by_hydra([f"+sweep={name}"], return_hydra_config=True)
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        return composed, {
            key: _values(parser.parse_override(f"{key}={values}"))
            for key, values in (composed.hydra.sweeper.params or {}).items()
        }


def _values(override: Any) -> list[Any]:
    if override.is_sweep_override():
        return list(override.sweep_iterator())
    return [override.value()]
