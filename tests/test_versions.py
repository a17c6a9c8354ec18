"""The lower bounds of pyproject.toml are the versions that `make test-oldest` tests."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def pins() -> set[tuple[str, Version]]:
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {(name, Version(version)) for name, version in pairs}


def lower_bounds() -> set[tuple[str, Version]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    return {
        (requirement.name, Version(specifier.version))
        for requirement in map(Requirement, lines)
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }


def test_the_lower_bounds_are_what_is_tested_as_oldest() -> None:
    assert pins() == lower_bounds()
