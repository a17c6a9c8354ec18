"""From command-line overrides to checked configurations, through Hydra; no torch.

Hydra stops at its first error and shows it as several lines. Here every override is tried, and
each fault becomes one line with the nearest right name.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
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

from sparta_bench.config.check import from_dict
from sparta_bench.config.schema import Config
from sparta_bench.errors import InputError, did_you_mean, did_you_mean_key, reason_of

GROUPS = ("model", "task", "method", "train", "sweep")
MOST_FAULTY = 20  # jobs whose faults are told
MOST_LISTED = 12  # choices that a message lists
HYDRA_ERRORS = (HydraException, OmegaConfBaseException)
# `${oc.env:NAME}`, also where the name of the resolver is put together
ENVIRONMENT = re.compile(r"\$\{\s*(oc\.env\b|[^:{}]*\$\{[^}]*\}[^:{}]*:)")
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


def write_choice(word: str, name: str = "NAME") -> str:
    """`; write task=tiny-rte`, where a word is a group, of which `name` is chosen, or a choice."""
    if word not in GROUPS:
        group = next((group for group in GROUPS if word in choices(group)), None)
        if group is None:
            return ""
        word, name = group, word
    return f"; write {'-m +' if word == 'sweep' else ''}{word}={name}"


def known_keys() -> list[str]:
    """The dotted keys of all settings, whatever the method."""
    keys: dict[str, None] = {}
    with our_hydra():
        for method in choices("method"):
            keys |= dict.fromkeys(_all_keys(to_plain(composed_by_hydra([f"method={method}"]))))
    return list(keys)


def to_plain(composed: Any) -> dict[str, Any]:
    """Hydra's composed configuration as plain dictionaries, interpolations resolved.

    Raises
    ------
    InputError
        If a value is taken from the environment: it would go into records, secrets among it.
    """
    _refuse_environment(OmegaConf.to_container(composed), ())
    plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


def _refuse_environment(value: Any, above: tuple[str, ...]) -> None:
    if above == ("hydra",):  # not in records
        return
    if isinstance(value, str) and ENVIRONMENT.search(value):
        raise InputError(
            f"{'.'.join(above)}={value}: the environment is not read, since records would hold "
            "what it says; write the value itself, or let the shell do that"
        )
    for key, inner in value.items() if isinstance(value, dict) else ():
        _refuse_environment(inner, (*above, str(key)))
    for inner in value if isinstance(value, list) else ():
        _refuse_environment(inner, above)


def composed_by_hydra(overrides: list[str], **how: Any) -> Any:
    """What Hydra composes.

    Raises
    ------
    HydraException, OmegaConfBaseException
        If the overrides are at fault.
    InputError
        If a file of `conf/` is.
    """
    try:
        return hydra_compose("config", overrides, **how)
    except HYDRA_ERRORS:
        raise
    except Exception as error:  # many kinds, for what is no YAML or not as Hydra wants it
        mark = getattr(error, "problem_mark", None)
        place = getattr(error, "name", None) or f"a file of {config_dir()}"
        place = f"{mark.name}, line {mark.line + 1}" if mark else place
        problem = getattr(error, "problem", None) or reason_of(error)
        raise InputError(f"{place}: cannot be read: {problem}") from None


@contextmanager
def our_hydra() -> Iterator[None]:
    """Hydra's compose API, with the folder of our YAML."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield


class _OnlyHydraError(Exception):
    """A job that must be composed by Hydra itself, for its result or for the words of its fault."""


def compose(overrides: list[str]) -> Config:
    """One experiment from overrides such as `["task=rte", "seed=1"]`.

    Raises
    ------
    InputError
        With a line for every override that names nothing, and for every value against a rule.
    """
    sweeps = [text for text in overrides if text.lstrip("+").startswith("sweep=")]
    if sweeps:
        raise InputError(*(f"{text}: a sweep is a grid, and needs -m" for text in sweeps))
    return compose_all([overrides])[0]


def compose_all(jobs: list[list[str]]) -> list[Config]:
    """The experiments of several jobs; equal lines of several jobs are told once.

    Hydra takes some 50 ms for a configuration. Jobs that differ in plain values alone share one.
    """
    lines: dict[str, None] = {}
    configs = []
    bases: dict[tuple[str, ...], dict[str, Any]] = {}
    faulty = 0
    with our_hydra():
        parsed_once: dict[str, Override] = {}
        for job in jobs:
            try:
                for text in job:
                    if text not in parsed_once:
                        parsed_once[text] = _parse([text])[0]
                configs.append(_compose_like([parsed_once[text] for text in job], bases))
            except (InputError, _OnlyHydraError):
                try:
                    configs.append(_compose_one(job))
                except InputError as error:
                    lines |= dict.fromkeys(error.lines)
                    faulty += 1
            if faulty == MOST_FAULTY:  # each takes Hydra a while, and the lines are alike
                break
    if lines:
        raise InputError(*lines)
    return configs


def _compose_like(job: list[Override], bases: dict[tuple[str, ...], dict[str, Any]]) -> Config:
    """A configuration from one of the `bases` that has the same groups and values of a kind that
    only Hydra can set; a base that is not there yet is composed and put there."""
    if any(_misuse(override) for override in job):
        raise _OnlyHydraError
    plain = {str(override.input_line) for override in job if _is_plain(override)}
    others = [override for override in job if str(override.input_line) not in plain]
    for override in job:
        parts = override.key_or_group.split(".")
        parents = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
        if str(override.input_line) in plain and parents & {o.key_or_group for o in others}:
            raise _OnlyHydraError  # their order counts
    key = tuple(str(override.input_line) for override in others)
    if key not in bases:
        try:
            composed = composed_by_hydra(list(key))
            if "${" in OmegaConf.to_yaml(composed):  # a value that may follow one of the job's
                raise _OnlyHydraError
            bases[key] = to_plain(composed)
        except HYDRA_ERRORS:
            raise _OnlyHydraError from None
    config = copy.deepcopy(bases[key])
    for override in job:
        if str(override.input_line) in plain:
            _set(config, override.key_or_group.split("."), override.value())
    return from_dict(config)


def _is_plain(override: Override) -> bool:
    """Whether it sets a key that is there to a number, a truth value, a word or null."""
    if override.is_add() or override.is_delete() or override.is_force_add():
        return False
    key, value = override.key_or_group, override.value()
    in_group = key in GROUPS or "/" in key or key.startswith("hydra")
    kind = value is None or type(value) in (bool, int, float, str)
    return kind and not in_group and override.package is None and not set("$?") & set(str(value))


def _set(config: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    for name in parents:
        config = config.get(name, {}) if isinstance(config, dict) else {}
    if not isinstance(config, dict) or last not in config or isinstance(config[last], dict):
        raise _OnlyHydraError
    config[last] = value


def sweep_jobs(overrides: list[str]) -> list[list[str]]:
    """The jobs of a `-m` command line: every combination of the comma-separated values, and of
    those in the files of `conf/sweep` that are asked for with `+sweep=NAME,NAME`.

    A key on the command line takes the place of the same key in a sweep's file.
    """
    with our_hydra():
        parsed = _parse(overrides)
        sweeps = [override for override in parsed if override.key_or_group == "sweep"]
        parsed = [override for override in parsed if override.key_or_group != "sweep"]
        names = [text for override in sweeps for text in _values_of(override)]
        return [job for name in names or [""] for job in _jobs_of(name, parsed)]


def _values_of(override: Override) -> list[str]:
    if override.is_sweep_override():
        return [f"+sweep={value}" for value in override.sweep_string_iterator()]
    return [str(override.input_line)]


def _jobs_of(sweep: str, parsed: list[Override]) -> list[list[str]]:
    named = [sweep] if sweep else []
    fixed = [str(override.input_line) for override in parsed if not override.is_sweep_override()]
    alone = [*_parse(named), *(override for override in parsed if not override.is_sweep_override())]
    if any(_misuse(override) for override in alone):
        return [[*named, *fixed]]  # composing it will tell what is wrong
    # a fixed key may be one that only a swept choice has, such as method.r with method=lora,head
    firsts = [
        f"{override.key_or_group}={next(iter(override.sweep_string_iterator()), '')}"
        for override in parsed
        if override.is_sweep_override() and override.key_or_group in GROUPS
    ]
    try:
        composed = composed_by_hydra([*named, *firsts, *fixed], return_hydra_config=True)
    except HYDRA_ERRORS:
        return [[*named, *fixed]]
    sweeper = composed.hydra.sweeper
    if not sweeper._target_.endswith(".BasicSweeper"):
        return []  # another sweeper decides at run time what its jobs are
    given = {override.key_or_group for override in parsed}
    parameters = [
        f"{key}={values}" for key, values in (sweeper.params or {}).items() if key not in given
    ]
    try:
        batches = BasicSweeper.split_arguments(_parse(parameters) + parsed, max_batch_size=None)
    except HYDRA_ERRORS as error:
        raise InputError(reason_of(error)) from None
    if not batches or not batches[0]:
        raise InputError("-m: the values given make no job at all")
    return [[*named, *job] for job in batches[0]]


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
            lines.append(f"{text}: not of the form key=value{write_choice(text)}")
    if lines:
        raise InputError(*lines)
    return parsed


def _compose_one(overrides: list[str]) -> Config:
    parsed = _parse(overrides)
    if not any(_misuse(override) for override in parsed):
        try:
            return from_dict(to_plain(composed_by_hydra(overrides)))
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
    appended = group == "sweep"  # not in the defaults, so that Hydra wants a plus
    if override.is_add() != appended or override.is_delete() or override.package is not None:
        plus = "+" if appended else ""
        return f"choose one with {plus}{group}=NAME; {_listed(known)}"
    choice = override.value()
    if choice in known:
        return None
    near = did_you_mean(choice, known) if isinstance(choice, str) else ""
    return f"no such {group}{near}; {_listed(known)}"


def _listed(known: list[str]) -> str:
    if len(known) > MOST_LISTED:
        return f"--help lists all {len(known)}"
    return f"known: {', '.join(known)}"


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
    try:
        keys = _all_keys(to_plain(composed_by_hydra(good)))
    except HYDRA_ERRORS as error:
        return [*lines, reason_of(error)]
    against_rules: dict[str, None] = {}
    for override in values:
        key, text = override.key_or_group, str(override.input_line)
        try:
            from_dict(to_plain(composed_by_hydra([*good, text])))
        except HYDRA_ERRORS as error:
            known = key in keys or key.startswith("hydra")
            why = reason_of(error) if known else f"no such key{did_you_mean_key(key, keys)}"
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
