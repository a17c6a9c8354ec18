"""The folder `conf`: where it is, what can be chosen there, and its YAML read as it stands."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from sparta_bench.errors import InputError, one_of, reason_of
from sparta_bench.files import why_no_folder

GROUPS = ("model", "task", "method", "train", "search")
NEED_MORE = ("local", "hub")  # models that are none before a folder or a repository is named
_own: list[Path] = []  # folders of the user's, beside ours


def config_dir() -> Path:
    """The folder with the YAML: inside the installed package, or beside it in a checkout."""
    package = Path(str(resources.files("sparta_bench")))
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def use_folders(names: Sequence[str]) -> None:
    """Take the user's folders of YAML (`--config-dir`) in beside ours; earlier ones are dropped.

    Raises
    ------
    InputError
        If one cannot be read, has none of the groups, or gives a name that is taken already.
    """
    _own.clear()
    for name in names:
        folder = Path(name).resolve()
        if problem := why_no_folder(folder):
            raise InputError(f"--config-dir {name}: {problem}")
        files = {group: _names_in(folder / group) for group in (*GROUPS, "sweep")}
        if not any(files.values()):
            groups = one_of([*GROUPS, "sweep"])
            raise InputError(f"--config-dir {name}: must hold folders with YAML: {groups}")
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
    places = ", ".join("'file://" + str(path).replace("'", "\\'") + "'" for path in _own)
    return [f"hydra.searchpath=[{places}]"] if _own else []


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
    place = getattr(error, "name", None) or path
    place = f"{mark.name}, line {mark.line + 1}" if mark else place
    return InputError(
        f"{place}: cannot be read: {getattr(error, 'problem', None) or reason_of(error)}"
    )
