"""From command-line overrides to checked configurations, through Hydra; no torch.

Hydra stops at its first error and shows it as several lines. Here every override is tried, and
each fault becomes one line with the nearest right name.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparta_bench.config import Config, from_dict
from sparta_bench.errors import InputError, did_you_mean, reason_of

GROUPS = ("model", "task", "method", "train")
HYDRA_ERRORS = (HydraException, OmegaConfBaseException)
KEY = re.compile(r"(\+\+?|~)?\w+([./@-]\w+)*", re.ASCII)


def config_dir() -> Path:
    """The folder with the YAML: inside the installed package, or beside it in a checkout."""
    package = Path(str(resources.files("sparta_bench")))
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def choices(group: str) -> list[str]:
    """The names that a group offers, without the `_base` that the others share."""
    return sorted(
        path.stem for path in (config_dir() / group).glob("*.yaml") if path.stem[0] != "_"
    )


def to_plain(composed: Any) -> dict[str, Any]:
    """Hydra's composed configuration as plain dictionaries, interpolations resolved."""
    plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


def compose(overrides: list[str]) -> Config:
    """One experiment from overrides such as `["task=rte", "seed=1"]`.

    Raises
    ------
    InputError
        With a line for every override that names nothing, and for every value against a rule.
    """
    return compose_all([overrides])[0]


def compose_all(jobs: list[list[str]]) -> list[Config]:
    """The experiments of several jobs; equal lines of several jobs are told once."""
    GlobalHydra.instance().clear()
    lines: dict[str, None] = {}
    configs = []
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        for job in jobs:
            try:
                configs.append(_compose_one(job))
            except InputError as error:
                lines |= dict.fromkeys(error.lines)
    if lines:
        raise InputError(*lines)
    return configs


def sweep_jobs(overrides: list[str]) -> list[list[str]]:
    """The jobs of a `-m` command line: every combination of the comma-separated values."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        parsed = _parse(overrides)
        fixed = [
            str(override.input_line) for override in parsed if not override.is_sweep_override()
        ]
        if any(_misuse(override) for override in parsed if not override.is_sweep_override()):
            return [fixed]  # composing it will tell what is wrong
        try:
            sweeper = hydra_compose("config", fixed, return_hydra_config=True).hydra.sweeper
        except HYDRA_ERRORS:
            return [fixed]
        if not sweeper._target_.endswith(".BasicSweeper"):
            return []  # another sweeper decides at run time what its jobs are
        parameters = [f"{key}={values}" for key, values in (sweeper.params or {}).items()]
        try:
            batches = BasicSweeper.split_arguments(_parse(parameters) + parsed, max_batch_size=None)
        except HYDRA_ERRORS as error:
            raise InputError(reason_of(error)) from None
    if not batches or not batches[0]:
        raise InputError("-m: the values given make no job at all")
    return [list(job) for job in batches[0]]


def _parse(overrides: list[str]) -> list[Override]:
    lines, parsed = [], []
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    for text in overrides:
        key, equals, _ = text.partition("=")
        try:
            override = parser.parse_overrides([text])[0]
        except HydraException:
            override = None
        if override is not None and override.key_or_group:
            parsed.append(override)
        elif equals and KEY.fullmatch(key):
            lines.append(f"{text}: the value has characters that need quotes: '{key}=\"...\"'")
        else:
            lines.append(f"{text}: not of the form key=value")
    if lines:
        raise InputError(*lines)
    return parsed


def _compose_one(overrides: list[str]) -> Config:
    parsed = _parse(overrides)
    if not any(_misuse(override) for override in parsed):
        try:
            return from_dict(to_plain(hydra_compose("config", overrides=overrides)))
        except HYDRA_ERRORS as error:
            raise InputError(*(_explain(parsed) or [reason_of(error)])) from None
    raise InputError(*_explain(parsed))


def _misuse(override: Override) -> str | None:
    """What is wrong with a choice of a group, or with several values for one run."""
    group = override.key_or_group
    if group.startswith("hydra.sweeper.params"):
        return "write a grid as key=value,value"  # Hydra asserts here
    if override.is_sweep_override():
        return "several values are a grid, and need -m"
    if group not in GROUPS:
        return None
    known = choices(group)
    if override.is_add() or override.is_delete() or override.package is not None:
        return f"choose one with {group}=NAME; known: {', '.join(known)}"
    choice = override.value()
    if choice in known:
        return None
    near = did_you_mean(choice, known) if isinstance(choice, str) else ""
    return f"no such {group}{near}; known: {', '.join(known)}"


def _explain(overrides: list[Override]) -> list[str]:
    """Try the overrides one by one and say of each that fails why."""
    lines: list[str] = []
    groups: list[Override] = []
    values: list[Override] = []
    for override in overrides:
        misuse = _misuse(override)
        if misuse is not None:
            lines.append(f"{override.input_line}: {misuse}")
        else:
            (groups if override.key_or_group in GROUPS else values).append(override)
    good = [str(override.input_line) for override in groups]
    keys = _all_keys(to_plain(hydra_compose("config", overrides=good)))
    against_rules: dict[str, None] = {}
    for override in values:
        key, text = override.key_or_group, str(override.input_line)
        try:
            from_dict(to_plain(hydra_compose("config", overrides=[*good, text])))
        except HYDRA_ERRORS as error:
            known = key in keys or key.startswith("hydra")
            why = reason_of(error) if known else f"no such key{did_you_mean(key, keys)}"
            lines.append(f"{text}: {why}")
        except InputError as error:
            mine = [line for line in error.lines if line.startswith((f"{key}=", f"{key}:"))]
            against_rules |= dict.fromkeys(mine)
    return [*lines, *against_rules]


def _all_keys(tree: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in tree.items():
        keys.append(prefix + key)
        if isinstance(value, dict):
            keys += _all_keys(value, f"{prefix}{key}.")
    return keys
