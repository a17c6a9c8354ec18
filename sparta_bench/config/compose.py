"""From command-line overrides to checked configurations; no torch.

Hydra composes the files that are chosen, once each. Values are then set here, one override after
the other as Hydra would, so that all faults are named at once, each with the nearest right name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparta_bench.config.check import from_dict
from sparta_bench.config.conf_folder import (
    GROUPS,
    choices,
    config_dir,
    own_folders,
    search_path,
    unreadable,
)
from sparta_bench.config.schema import Config
from sparta_bench.errors import InputError, did_you_mean, did_you_mean_key, reason_of

HYDRA_ERRORS = (HydraException, OmegaConfBaseException)
# `${oc.env:NAME}`, also where the name of the resolver is put together
ENVIRONMENT = re.compile(r"\$\{\s*(oc\.env\b|[^:{}]*\$\{[^}]*\}[^:{}]*:)")
KEY = re.compile(r"(\+\+?|~)?\w+([./@-]\w+)*", re.ASCII)
# by folders of YAML, top-level key and choice: what Hydra composed of it
_parts: dict[tuple[tuple[Path, ...], str, str | None], Any] = {}


def compose(overrides: list[str]) -> Config:
    """Return the experiment of overrides such as `["task=rte", "seed=1"]`. Raises InputError with a
    line for every override that names nothing, and for every value against a rule."""
    return compose_all([overrides])[0]


def compose_all(jobs: list[list[str]]) -> list[Config]:
    """Return the experiments of several jobs; equal lines of several jobs are printed once."""
    lines: dict[str, None] = {}
    configs = []
    for job in jobs:
        try:
            configs.append(_compose(job))
        except InputError as error:
            lines |= dict.fromkeys(error.lines)
    if lines:
        raise InputError(*lines)
    return configs


def with_implied(job: list[str]) -> list[str]:
    """Return a job with what its overrides imply: a cap of one's own draws its rows at random,
    since files are often sorted by label; `first` belongs to the caps of `conf/task`."""
    keys = {text.lstrip("+~").partition("=")[0] for text in job}
    implied = "task.max_train_examples" in keys and "task.cap_takes" not in keys
    return [*job, "task.cap_takes=random"] if implied else job


def _compose(job: list[str]) -> Config:
    chosen: dict[str, str] = {}
    lines: list[str] = []
    values: list[Override] = []
    of_hydra: list[str] = []
    misused: list[str] = []  # groups, whose keys cannot be known
    for override in parse_all(with_implied(job)):
        key, text = override.key_or_group, str(override.input_line)
        if fault := _misuse(override):
            lines.append(f"{text}: {fault}")
            misused.append(key)
        elif key in GROUPS:
            chosen[key] = str(override.value())
        elif is_of_hydra(key):
            of_hydra.append(text)
        else:
            values.append(override)
    lines += _faults_of_hydra(tuple(of_hydra))
    values = [value for value in values if value.key_or_group.partition(".")[0] not in misused]
    config, faults = _with_values(composed_choices(chosen), values)
    lines += faults
    try:
        checked = from_dict(config)
    except InputError as error:
        own = tuple(f"{value.key_or_group}{end}" for value in values for end in "=:")
        lines += [line for line in error.lines if not lines or line.startswith(own)]
    if lines:
        raise InputError(*lines)
    return checked


# ---------------------------------------------------------------------------- what Hydra composes
def composed_choices(chosen: dict[str, str]) -> dict[str, Any]:
    """Return all settings with these choices of groups, no other override applied. A file of a
    group sets the group's own keys alone, so that what Hydra composed of it is kept, and serves
    beside any choice of the other groups."""
    folders = (config_dir(), *own_folders())
    if any((folders, group, chosen.get(group)) not in _parts for group in GROUPS):
        try:
            composed = to_plain(_composed([f"{key}={value}" for key, value in chosen.items()]))
        except HYDRA_ERRORS as error:
            raise InputError(reason_of(error)) from None
        _parts.update({(folders, key, chosen.get(key)): part for key, part in composed.items()})
    return {
        key: deepcopy(part)
        for (at, key, choice), part in _parts.items()
        if at == folders and choice == chosen.get(key)
    }


@cache
def _faults_of_hydra(overrides: tuple[str, ...]) -> list[str]:
    """Return a line for each override of Hydra's own settings that it cannot compose."""
    lines: list[str] = []
    good: list[str] = []
    for text in sorted(overrides, key=lambda text: "/" not in text.partition("=")[0]):
        try:
            _composed([*good, text])
        except HYDRA_ERRORS as error:
            lines.append(f"{text}: {reason_of(error)}")
        else:
            good.append(text)
    return lines


def _composed(overrides: list[str]) -> Any:
    with our_hydra():
        try:
            return hydra_compose("config", [*search_path(), *overrides])
        except HYDRA_ERRORS:
            raise
        except Exception as error:  # many kinds, for what is no YAML or not as Hydra wants it
            raise unreadable(error, config_dir()) from None


@contextmanager
def our_hydra() -> Iterator[None]:
    """Hydra's compose API, with the folder of our YAML."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield


def to_plain(composed: Any) -> dict[str, Any]:
    """Return a composed configuration as plain dictionaries, interpolations resolved. Raises
    InputError if a value is taken from the environment: it would go into records, secrets too."""
    _refuse_environment(OmegaConf.to_container(composed), "")
    plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _refuse_environment(value: Any, key: str) -> None:
    if isinstance(value, str) and ENVIRONMENT.search(value):
        raise InputError(
            f"{key}={value}: the environment is not read, since records would hold what it says; "
            "write the value itself, or let the shell do that"
        )
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_environment(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            _refuse_environment(inner, key)


# -------------------------------------------------------------------------- what is set here
def parse_all(overrides: list[str]) -> list[Override]:
    """Read overrides; raise InputError with a line for each that is none."""
    parsed = [_parse(text) for text in overrides]
    if lines := [fault for fault in parsed if isinstance(fault, str)]:
        raise InputError(*lines)
    return [override for override in parsed if isinstance(override, Override)]


@cache
def _parse(text: str) -> Override | str:
    key, equals, _ = text.partition("=")
    try:
        override = OverridesParser.create().parse_overrides([text])[0]
        if override.key_or_group:
            return override
    except HydraException:
        if equals and KEY.fullmatch(key):
            return f"{text}: the value has characters that need quotes: '{key}=\"...\"'"
    return f"{text}: not of the form key=value"


def is_of_hydra(key: str) -> bool:
    """Whether a key is one of Hydra's own settings."""
    return key == "hydra" or key.startswith(("hydra.", "hydra/"))


def _misuse(override: Override) -> str | None:
    """Return what is wrong with a choice of a group, or with several values for one run."""
    group = override.key_or_group
    if group == "sweep":
        return "a sweep is a grid, and needs -m"
    if group.startswith(("hydra.sweeper", "hydra/sweeper")):
        return "no sweeper of Hydra's is used; write a grid as key=value,value"
    if override.is_sweep_override():
        return "several values are a grid, and need -m"
    if group not in GROUPS:
        return None
    known = choices(group)
    listed = f"known: {', '.join(known)}"
    if override.is_add() or override.is_delete() or override.package is not None:
        return f"choose one with {group}=NAME; {listed}"
    choice = override.value()
    if choice in known:
        return None
    near = did_you_mean(choice, known) if isinstance(choice, str) else ""
    return f"no such {group}{near}; {listed}"


def _with_values(
    config: dict[str, Any], overrides: list[Override]
) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration with all values set that can be, and a line for each other."""
    lines: list[str] = []
    refers = False
    for override in overrides:
        text = str(override.input_line)
        # an interpolation, or what OmegaConf takes as missing
        is_reference = "$" in text or "???" in text
        changed = deepcopy(config) if is_reference else config
        try:
            _set(changed, override)
            if is_reference:
                to_plain(OmegaConf.create(changed))
        except HYDRA_ERRORS as error:
            lines.append(f"{text}: {reason_of(error)}")
        except InputError as error:
            lines += error.lines
        else:
            config, refers = changed, refers or is_reference
    return to_plain(OmegaConf.create(config)) if refers else config, lines


def _set(config: dict[str, Any], override: Override) -> None:
    """Change a configuration as an override says; raise InputError if that cannot be."""
    key, text, value = override.key_or_group, override.input_line, override.value()
    adds = override.is_add() or override.is_force_add()
    *parents, last = key.split(".")
    part = config
    for name in parents:
        if adds and not isinstance(part.get(name), dict):
            part[name] = {}
        inner = part.get(name)
        part = inner if isinstance(inner, dict) else {}
    if override.is_delete() and last in part:
        del part[last]
    elif override.is_add() and part.get(last) is not None and not isinstance(value, dict | list):
        raise InputError(f"{text}: is there already; write {key}=VALUE")
    elif override.is_delete() or override.package or not _put(part, last, value, adds):
        raise InputError(f"{text}: no such key{did_you_mean_key(key, _all_keys(config))}")


def _put(part: dict[str, Any], key: str, value: Any, adds: bool) -> bool:
    """Set a key that is there, or that is to be added; a mapping changes the keys that it has."""
    old = part.get(key)
    if isinstance(value, dict) and isinstance(old, dict):
        return all(_put(old, str(name), inner, adds) for name, inner in value.items())
    if key not in part and not adds:
        return False
    part[key] = value
    return True


def _all_keys(tree: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in tree.items():
        keys.append(prefix + key)
        if isinstance(value, dict):
            keys += _all_keys(value, f"{prefix}{key}.")
    return keys
