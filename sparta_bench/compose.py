"""From command-line overrides to checked configurations, through Hydra; no torch.

Hydra stops at its first error and shows it as several lines. Here every override is tried, and
each fault becomes one line with the nearest right name.
"""

from __future__ import annotations

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
from sparta_bench.errors import InputError, did_you_mean

GROUPS = ("model", "task", "method", "train")


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
    plain = OmegaConf.to_container(composed, resolve=True)
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
    parsed = _parse(overrides)
    if any(override.key_or_group.startswith("hydra/sweeper") for override in parsed):
        return []  # another sweeper decides at run time what its jobs are
    batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(job) for job in batches[0]]


def _parse(overrides: list[str]) -> list[Override]:
    lines, parsed = [], []
    for text in overrides:
        try:
            parsed += OverridesParser.create().parse_overrides([text])
        except HydraException:
            lines.append(f"{text}: not of the form key=value")
    if lines:
        raise InputError(*lines)
    return parsed


def _compose_one(overrides: list[str]) -> Config:
    try:
        composed = hydra_compose("config", overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(*(_explain(overrides) or [_first_line(error)])) from None
    try:
        return from_dict(to_plain(composed))
    except OmegaConfBaseException as error:
        raise InputError(_first_line(error)) from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "unknown")


def _explain(overrides: list[str]) -> list[str]:
    """Try the overrides one by one and say of each that fails why."""
    lines: list[str] = []
    good_groups: list[str] = []
    values: list[tuple[str, Override]] = []
    for text, override in zip(overrides, _parse(overrides), strict=True):
        group, choice = override.key_or_group, override.get_value_element_as_str()
        if group not in GROUPS:
            values.append((text, override))
        elif choice not in choices(group):
            known = choices(group)
            lines.append(
                f"{text}: no such {group}{did_you_mean(choice, known)}; known: {', '.join(known)}"
            )
        else:
            good_groups.append(text)
    keys = _all_keys(to_plain(hydra_compose("config", overrides=good_groups)))
    for text, override in values:
        try:
            hydra_compose("config", overrides=[*good_groups, text])
        except (HydraException, OmegaConfBaseException) as error:
            known_key = override.key_or_group in keys
            near = did_you_mean(override.key_or_group, keys)
            lines.append(f"{text}: " + (_first_line(error) if known_key else f"no such key{near}"))
    return lines


def _all_keys(tree: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in tree.items():
        keys.append(prefix + key)
        if isinstance(value, dict):
            keys += _all_keys(value, f"{prefix}{key}.")
    return keys
