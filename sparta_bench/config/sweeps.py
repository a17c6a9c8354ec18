"""The sweeps in `conf/sweep`, and the jobs of a `-m` command line.

A file has a value, or a list of values to go through, for each key. `methods` has the methods, each
with the keys that are other or more for it, and `like` names a sweep that has the keys which the
file has not. NAME_METHOD is the part of the sweep NAME that runs METHOD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Glob, Override
from omegaconf import OmegaConf

from sparta_bench.config.check import train_of
from sparta_bench.config.compose import composed_choices, parse_all
from sparta_bench.config.conf_folder import GROUPS, choices, config_dir, file_of, read_yaml
from sparta_bench.config.rate_search import searched
from sparta_bench.config.rules import RULES, rule_fault, show
from sparta_bench.config.schema import plain
from sparta_bench.errors import InputError, did_you_mean, did_you_mean_key


@dataclass(frozen=True)
class Sweep:
    """A sweep of one method; each key that its file sets, with the values that it goes through."""

    name: str
    method: str
    axes: dict[str, list[Any]]

    def jobs(self, given: Mapping[str, list[str]] | None = None) -> list[list[str]]:
        """All combinations of the values, each as overrides. A `given` key takes the place of the
        sweep's own; of given methods only the sweep's is left."""
        given = dict(given or {})
        if "method" in given and self.method:
            given["method"] = [text for text in given["method"] if _may_run(self, text)]
        keys = {key.lstrip("+~") for key in given}
        own = {
            key: [f"{key}={show(value)}" for value in values]
            for key, values in self.axes.items()
            if key not in keys
        }
        return [list(job) for job in product(*(own | given).values())]

    def train(self, model: str, task: str, density: float | None) -> dict[str, Any]:
        """The training settings that a run of a cell gets where the sweep varies none."""
        fixed = {
            key.removeprefix("train."): values[0]
            for key, values in self.axes.items()
            if key.startswith("train.") and len(values) == 1
        }
        method = {"name": self.method} | ({} if density is None else {"density": density})
        return plain(train_of(_train_defaults(config_dir()) | fixed, method, model, task))


def sweep_names() -> list[str]:
    """The name of each sweep of one method."""
    return sorted(
        f"{name}_{method}" if method else name
        for name in choices("sweep")
        for method in _content(name).get("methods", [""])
    )


def sweeps_of(table: str) -> list[Sweep]:
    """Return the sweeps of `table4` or `table4-twins`, one for each method."""
    number = table.removesuffix("-twins")
    name = f"tiny_{number}" if table.endswith("-twins") else number
    return read_sweep(name) if name in choices("sweep") else []


def read_sweep(name: str) -> list[Sweep]:
    """Return the sweeps, one for each method, that NAME or NAME_METHOD stands for. Raises
    InputError if there is none, or with a line for each value that may not be."""
    files, wanted = choices("sweep"), None
    if name in files:
        content = _content(name)
    else:
        file = next((file for file in reversed(files) if name.startswith(f"{file}_")), "")
        content = _content(file) if file else {}
        wanted = name.removeprefix(f"{file}_")
        if wanted not in content.get("methods", {}):
            near = did_you_mean(name, [*files, *sweep_names()])
            raise InputError(f"+sweep={name}: no such sweep{near}; known: {', '.join(files)}")
    common = {key: value for key, value in content.items() if key not in ("methods", "like")}
    if "methods" not in content:
        return [_sweep(name, common)]
    return [
        _sweep(name, {**common, "method": method, **own})
        for method, own in content["methods"].items()
        if wanted in (None, method)
    ]


def _sweep(name: str, settings: dict[str, Any]) -> Sweep:
    axes = {key: value if isinstance(value, list) else [value] for key, value in settings.items()}
    lines = []
    for key, values in axes.items():
        if not values:
            lines.append(f"{key}=[]: must have a value to go through")
        for value in values:
            if key in GROUPS and value not in choices(key):
                lines.append(f"{key}={show(value)}: no such {key}")
            elif key not in (*GROUPS, *RULES, "method.targets"):
                lines.append(f"{key}={show(value)}: no such key{did_you_mean_key(key, RULES)}")
            elif line := rule_fault(key, value):
                lines.append(line)
    if lines:
        raise InputError(*(f"conf/sweep/{name}: {line}" for line in lines))
    return Sweep(name, str(axes.get("method", [""])[0]), axes)


def _content(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a sweep's file says, beside what it says by its `like`."""
    path = file_of("sweep", name)
    content = read_yaml(path)
    methods = content.get("methods", {"": {}})
    if not isinstance(methods, dict) or not methods:
        raise InputError(f"{path}: methods={show(methods)}: must have a key for each method")
    for method, own in methods.items():
        if not isinstance(own, dict):
            raise InputError(f"{path}: methods.{method}={show(own)}: must have keys of its own")
    like = content.get("like")
    if like is None:
        return content
    if like not in choices("sweep") or like in above or like == name:
        raise InputError(f"{path}: like={show(like)}: must be another sweep, and not like this one")
    merged = OmegaConf.merge(_content(like, (*above, name)), content)
    return {str(key): value for key, value in OmegaConf.to_container(merged).items()}  # type: ignore[union-attr]


@cache
def _train_defaults(folder: Path) -> dict[str, Any]:
    return read_yaml(folder / "train" / "default.yaml")


# ------------------------------------------------------------------------ a `-m` command line
def sweep_jobs(overrides: list[str]) -> list[list[str]]:
    """Return the jobs of a `-m` command line: every combination of the comma-separated values, and
    of those in the files of `conf/sweep` that are asked for with `+sweep=NAME,NAME`. A search of
    the rate becomes its rates."""
    parsed = parse_all(overrides)
    given = {
        override.get_key_element(): _texts(override)
        for override in parsed
        if override.key_or_group != "sweep"
    }
    names = [
        text.partition("=")[2]
        for override in parsed
        if override.key_or_group == "sweep"
        for text in _texts(override)
    ]
    jobs = [job for name in names for sweep in read_sweep(name) for job in sweep.jobs(given)]
    jobs += [] if names else [list(job) for job in product(*given.values())]
    if not jobs:
        methods = [text for text in overrides if text.startswith("method=")]
        why = f"; the sweep runs no {methods[0]}" if names and methods else ""
        raise InputError(f"-m: the values given make no job at all{why}")
    return searched(jobs)


def _texts(override: Override) -> list[str]:
    """An override for each of the values, in the order given."""
    key, group = override.get_key_element(), override.key_or_group
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if isinstance(glob := override.value(), Glob):
        names = sweep_names() if group == "sweep" else choices(group) if group in GROUPS else []
        return [f"{key}={name}" for name in glob.filter(names)]
    if not override.is_discrete_sweep():
        raise InputError(f"{override.input_line}: has no list of values; write {group}=1,2,3")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _may_run(sweep: Sweep, override: str) -> bool:
    choice = override.partition("=")[2]
    if choice not in choices("method"):
        return True  # composing it says what is wrong
    return bool(composed_choices({"method": choice})["method"]["name"] == sweep.method)
