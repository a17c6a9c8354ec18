"""The folder `conf`: where it is, what can be chosen there, and its YAML read as it stands."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from sparta_bench.errors import InputError, reason_of

GROUPS = ("model", "task", "method", "train", "search")


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
