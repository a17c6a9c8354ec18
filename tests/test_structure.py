"""The layout of docs/architecture.md: where modules are, and that imports go one way."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import sparta_bench

PACKAGE = Path(sparta_bench.__file__).parent
# each may import those after it, and none before it
ORDER = [
    "cli", "runs", "analysis", "report", "tables", "inference", "adapters", "training", "methods",
    "records", "models", "data", "sparta", "devices", "config", "paper", "hub", "text", "files",
    "errors", "__init__",
]  # fmt: skip


def test_six_modules_lie_beside_the_folders_and_no_file_name_stands_twice() -> None:
    names = {path.name for path in PACKAGE.glob("*.py")}
    assert names == {"__init__.py", "devices.py", "errors.py", "files.py", "hub.py", "text.py"}
    found = Counter(path.name for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    assert {name for name, count in found.items() if count > 1} == set()


def test_imports_go_one_way() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {part}"
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py"  # whose `run` imports what it needs when it is called
        for part in imported_parts(path)
        if ORDER.index(part) < ORDER.index(part_of(path))
    ]
    assert wrong == []


def part_of(path: Path) -> str:
    """The folder or the module on the top level."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> Iterator[str]:
    """Those that a module imports, also inside functions and for its types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            head, *rest = str(node.module).split(".")
            if head == "sparta_bench" and rest:
                yield rest[0]
            elif head == "sparta_bench":
                yield from (name.name for name in node.names if name.name in ORDER)


def test_no_modules_import_each_other_in_a_circle() -> None:
    # but through the package's root, which each import runs, and whose own imports wait for a call
    names = {
        name_of(path): path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"
    }
    graph = {name: imported_modules(path, set(names)) - {name} for name, path in names.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, modules: set[str]) -> set[str]:
    """Those of `modules` that a module imports, also inside functions and for its types alone."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{name.name}" for name in node.names} & modules
            imported |= inner or ({str(node.module)} & modules)
        elif isinstance(node, ast.Import):
            imported |= {name.name for name in node.names} & modules
    return imported
