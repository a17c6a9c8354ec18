"""What a setting means and what a group offers, from the comments of `conf/`; no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from sparta_bench.config.conf_folder import GROUPS, choices, config_dir, file_of
from sparta_bench.config.rules import RULES
from sparta_bench.errors import InputError, did_you_mean_key

SETTING = re.compile(r"(\w+): +(.*?)(?: +# +(.*))?")
MORE = re.compile(r" +# +(.*)")  # of the comment of the line before


class Setting(NamedTuple):
    """A key, its value in the file, and the comment beside it."""

    key: str
    value: str
    meaning: str


def explained(name: str) -> str:
    """What `name` means: a group, a key such as `train.patience`, or its last part. Raises
    InputError with the nearest keys if there is none."""
    if name in GROUPS:
        return _group(name)
    every = [(path, setting) for path in _files() for setting in settings_of(path)]
    wanted = [(path, one) for path, one in every if one.key == name]
    wanted = wanted or [(path, one) for path, one in every if one.key.endswith(f".{name}")]
    if not wanted and "." in name:  # a part of a setting, such as task.dev.examples
        outer = name.rpartition(".")[0]
        wanted = [(path, one) for path, one in every if one.key == outer and "." in outer]
    if not wanted:
        near = did_you_mean_key(name, [one.key for _, one in every])
        raise InputError(f"help: {name}: neither a setting nor a group ({', '.join(GROUPS)}){near}")
    return "\n\n".join(_text(path, setting) for path, setting in wanted)


def settings_of(path: Path) -> list[Setting]:
    """The settings of a file of `conf`, by their whole keys. Only what has a comment counts: other
    lines choose values for one task or model."""
    prefix = "" if path.parent == config_dir() else f"{path.parent.name}."
    settings: list[Setting] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if (match := SETTING.fullmatch(line)) and match[3]:
            settings.append(Setting(f"{prefix}{match[1]}", match[2], match[3]))
        elif settings and (match := MORE.fullmatch(line)):
            settings[-1] = settings[-1]._replace(meaning=f"{settings[-1].meaning} {match[1]}")
    return settings


def heading_of(path: Path) -> str:
    """What a file of `conf` begins with, in one line."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        lines.append(line.removeprefix("# "))
    return " ".join(lines)


def _files() -> list[Path]:
    folder = config_dir()
    bases = [folder / group / "_base.yaml" for group in ("model", "task")]
    methods = [folder / "method" / f"{name}.yaml" for name in choices("method")]
    others = [folder / name for name in ("train/default.yaml", "search/race.yaml")]
    return [folder / "config.yaml", *bases, *methods, *others]


def _group(group: str) -> str:
    names = choices(group)
    offered = [f"  {name}: {heading_of(file_of(group, name))}" for name in names]
    settings = [
        f"  {one.key}={one.value}{f' ({path.stem})' * (group == 'method')}: {one.meaning}"
        for path in _files()
        if path.parent.name == group
        for one in settings_of(path)
    ]
    return "\n".join([f"Choose with {group}=NAME:", *offered, "", "Settings:", *settings])


def _text(path: Path, setting: Setting) -> str:
    lines = [f"{setting.key}={setting.value}", f"  {setting.meaning}"]
    if setting.key in RULES:
        lines.append(f"  {RULES[setting.key].text}")
    if setting.value == "null" and path.parent.name == "train":
        lines.append(f"  {heading_of(path)}")
    return "\n".join([*lines, f"  (conf/{path.relative_to(config_dir())})"])
