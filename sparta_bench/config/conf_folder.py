"""The folder `conf`: where it is, what can be chosen there, its YAML read as it stands, and what
its comments say of each setting; no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from sparta_bench.config.rules import RULES
from sparta_bench.errors import InputError, did_you_mean, did_you_mean_key, one_of, reason_of
from sparta_bench.files import why_no_folder

GROUPS = ("model", "task", "method", "train", "search")
NEED_MORE = ("local", "hub")  # models that are none before a folder or a repository is named
SETTING = re.compile(r"(\w+): +(.*?)(?: +# +(.*))?")
MORE = re.compile(r" +# +(.*)")  # of the comment of the line before
_own: list[Path] = []  # folders of the user's, beside ours


def config_dir() -> Path:
    """The folder with the YAML: inside the installed package, or beside it in a checkout."""
    package = Path(str(resources.files("sparta_bench")))
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def use_folders(names: Sequence[str]) -> None:
    """Take the user's folders of YAML (`--config-dir`) in beside ours; earlier ones are dropped.
    Raises InputError if one cannot be read, has none of the groups, or gives a name that is taken
    already."""
    _own.clear()
    for name in names:
        folder = Path(name).resolve()
        if problem := why_no_folder(folder):
            raise InputError(f"--config-dir {name}: {problem}")
        files = {group: _names_in(folder / group) for group in (*GROUPS, "sweep")}
        if not any(files.values()):
            raise InputError(f"--config-dir {name}: must hold folders with YAML: {one_of(files)}")
        lines = [
            f"--config-dir {name}: {group}/{file}.yaml: there is a {group} of this name; call it "
            "otherwise"
            for group in files
            for file in files[group]
            if file in choices(group)
        ]
        if lines:
            raise InputError(*lines)
        _own.append(folder)


def own_folders() -> tuple[Path, ...]:
    """The folders that `use_folders` took in."""
    return tuple(_own)


def search_path() -> list[str]:
    """The override that makes Hydra look into them as well."""
    paths = ", ".join("'file://" + str(path).replace("'", "\\'") + "'" for path in _own)
    return [f"hydra.searchpath=[{paths}]"] if _own else []


def file_of(group: str, name: str) -> Path:
    """The YAML of a choice."""
    paths = (folder / group / f"{name}.yaml" for folder in _own)
    return next((path for path in paths if path.is_file()), config_dir() / group / f"{name}.yaml")


def choices(group: str) -> list[str]:
    """The names that a group offers, without the `_base` that the others share."""
    return sorted(name for folder in (config_dir(), *_own) for name in _names_in(folder / group))


def named_models() -> list[str]:
    """The choices of `model` that stand for one model."""
    return [name for name in choices("model") if name not in NEED_MORE]


def check_source(source: str) -> None:
    """Raise InputError unless a name can be that of a file, a folder, a model of `conf/model`, or a
    repository on the hub."""
    path = Path(source)
    if path.is_file() or path.is_dir():
        return
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or path.suffix:
        raise InputError(f"{source}: there is no such file or folder")
    known = named_models()
    if "/" not in source and source not in known:
        near = did_you_mean(source, known)
        raise InputError(f"{source}: neither a file, a folder, nor a model of conf/model{near}")


def _names_in(folder: Path) -> list[str]:
    return [path.stem for path in folder.glob("*.yaml") if path.stem[0] != "_"]


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of `conf` that holds keys and values; raise InputError if it does not."""
    from omegaconf import OmegaConf

    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # of many kinds, from two libraries
        raise unreadable(error, path) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: cannot be read: it must hold keys and values")
    return {str(key): value for key, value in content.items()}


def unreadable(error: Exception, path: Path) -> InputError:
    """What to say of YAML that cannot be read: the file, the line where it is known, the reason."""
    mark = getattr(error, "problem_mark", None)
    file = getattr(error, "name", None) or path
    place = f"{mark.name}, line {mark.line + 1}" if mark else file
    reason = getattr(error, "problem", None) or reason_of(error)
    return InputError(f"{place}: cannot be read: {reason}")


# --------------------------------------------------------------------- what its comments say
class Setting(NamedTuple):
    """A key, its value in the file, and the comment beside it."""

    key: str
    value: str
    meaning: str


def explained(name: str) -> str:
    """What `name` means: a group, a key such as `train.patience`, or its last part. Raises
    InputError with the nearest keys if there is none."""
    if name in GROUPS:
        offered = [f"  {choice}: {heading_of(file_of(name, choice))}" for choice in choices(name)]
        settings = [
            f"  {one.key}={one.value}{f' ({path.stem})' * (name == 'method')}: {one.meaning}"
            for path in _files()
            if path.parent.name == name
            for one in settings_of(path)
        ]
        return "\n".join([f"Choose with {name}=NAME:", *offered, "", "Settings:", *settings])
    every = [(path, setting) for path in _files() for setting in settings_of(path)]
    wanted = [(path, one) for path, one in every if one.key == name]
    wanted = wanted or [(path, one) for path, one in every if one.key.endswith(f".{name}")]
    if not wanted and "." in name:  # a part of a setting, such as task.dev.examples
        outer = name.rpartition(".")[0]
        wanted = [(path, one) for path, one in every if one.key == outer and "." in outer]
    if not wanted:
        near = did_you_mean_key(name, [one.key for _, one in every])
        raise InputError(f"help: {name}: neither a setting nor a group ({', '.join(GROUPS)}){near}")
    texts = []
    for path, setting in wanted:
        lines = [f"{setting.key}={setting.value}", f"  {setting.meaning}"]
        if setting.key in RULES:
            lines.append(f"  {RULES[setting.key].text}")
        if setting.value == "null" and path.parent.name == "train":
            lines.append(f"  {heading_of(path)}")
        texts.append("\n".join([*lines, f"  (conf/{path.relative_to(config_dir())})"]))
    return "\n\n".join(texts)


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
    lines = path.read_text(encoding="utf-8").splitlines()
    heading = takewhile(lambda line: line.startswith("# "), lines)
    return " ".join(line.removeprefix("# ") for line in heading)


def _files() -> list[Path]:
    methods = [f"method/{name}.yaml" for name in choices("method")]
    bases = ["config.yaml", "model/_base.yaml", "task/_base.yaml"]
    names = [*bases, *methods, "train/default.yaml", "search/race.yaml"]
    return [config_dir() / name for name in names]
