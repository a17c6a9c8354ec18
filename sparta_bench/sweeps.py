"""The sweeps in `conf/sweep`, as lists of values; no job of theirs is composed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from sparta_bench.compose import choices, config_dir, to_plain


@dataclass(frozen=True)
class Sweep:
    """`axes` has model, task and seed, and every key that varies; `train` what the file fixes."""

    name: str
    method: str
    axes: dict[str, list[Any]]
    train: dict[str, Any]


def sweeps_of(table: str) -> list[Sweep]:
    """The sweeps of `table4` or `table4-twins`, one for each method."""
    number = table.removesuffix("-twins")
    prefix = f"tiny_{number}_" if table.endswith("-twins") else f"{number}_"
    return [_read(name) for name in choices("sweep") if name.startswith(prefix)]


def _read(name: str) -> Sweep:
    unset = _unset_train()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        composed = hydra_compose("config", [f"+sweep={name}"], return_hydra_config=True)
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        axes = {
            key: _values(parser.parse_override(f"{key}={values}"))
            for key, values in composed.hydra.sweeper.params.items()
        }
    groups = ["model", "task", "method", "train", "seed"]
    config = to_plain(OmegaConf.masked_copy(composed, groups))
    for key, value in (
        ("model", config["model"]["name"]),
        ("task", config["task"]["name"]),
        ("seed", config["seed"]),
    ):
        axes.setdefault(key, [value])
    fixed = {
        key: value
        for key, value in config["train"].items()
        if value != unset[key] and key != "checkpoint_every"
    }
    return Sweep(name, config["method"]["name"], axes, fixed)


@cache
def _unset_train() -> dict[str, Any]:
    """`train` as it is without a sweep."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        train: dict[str, Any] = to_plain(hydra_compose("config"))["train"]
    return train


def _values(override: Any) -> list[Any]:
    if override.is_sweep_override():
        return list(override.sweep_iterator())
    return [override.value()]
