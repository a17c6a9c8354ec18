"""Put each fault of tests/faults_by_hand.yaml into a copy of the tree, and see which test fails.

    python scripts/try_faults.py --column "this suite"            # all faults; an hour on one core
    python scripts/try_faults.py --column "this suite" merge-sign # some

First the tests that are likely to fail, then all fast tests of the fault's folder, until one fails.
The outcome goes into that column of tests/faults_by_hand.md; other columns and faults stay as they
are. `--tree DIR` tries another version of the project. Exit code 1: a fault was not caught.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FAULTS, TABLE = ROOT / "tests" / "faults_by_hand.yaml", ROOT / "tests" / "faults_by_hand.md"
SECONDS = 1500  # for the tests of one fault
DIED = "the tests' process died"
HEADER = """# Faults written by hand, and the tests that catch them

Made by `scripts/try_faults.py` from `faults_by_hand.yaml`: the first test that fails.
"""
# what takes seconds to import and is not ours; the tests of each fault run in a fork
SLOW_IMPORTS = ("torch", "transformers", "peft", "datasets", "accelerate", "sklearn")


class First:
    """A plugin of pytest that keeps the first failure."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid.removeprefix("tests/"))

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid.removeprefix("tests/") or "collection")


def _tests(tree: Path, files: list[str], skipped: list[str], stop: bool, sender: Any) -> None:
    """In a child: run these test files of the tree, and send what failed."""
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    sys.path[:0] = [str(tree), str(tree / "tests")]
    first = First()
    words = ["-q", "-p", "no:cacheprovider", "-m", "not slow and not faults"]
    # some plugins are imported already, by what is in SLOW_IMPORTS
    words += ["-W", "ignore::pytest.PytestAssertRewriteWarning", *(["-x"] if stop else [])]
    words += [f"--deselect=tests/{name}" for name in skipped]
    words += dict.fromkeys(f"tests/{name}" for name in map(partial(_there, tree), files) if name)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        pytest.main(words, plugins=[first])
    sender.send(first.failed)


def _there(tree: Path, name: str) -> str:
    """The file or test if the tree has it; the test's file if that has no such test."""
    file, _, test = name.partition("::")
    path = tree / "tests" / file
    if not path.exists():
        return ""
    return name if f"def {test}" in path.read_text(encoding="utf-8") else file


def failing(tree: Path, files: list[str], skipped: list[str], stop: bool = True) -> list[str]:
    """The tests in these files that fail; at most one with `stop`."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=_tests, args=(tree, files, skipped, stop, sender)
    )
    child.start()
    sender.close()
    try:
        answered = receiver.poll(SECONDS if stop else None)
        return list(receiver.recv()) if answered else []  # what takes so long is no failure
    except EOFError:
        return [DIED]
    finally:
        child.kill()
        child.join()


def put_in(fault: dict[str, Any], package: Path) -> tuple[Path, str] | None:
    """Write the fault into the package; the file and its text before, or None if nothing fits."""
    for change in (fault, *fault.get("or", [])):
        own = package / change.get("file", fault["file"])
        old, new = change["old"], change["new"]
        elsewhere = sorted(path for path in package.rglob("*.py") if path != own)
        for paths in ([own], elsewhere):
            texts = {path: path.read_text(encoding="utf-8") for path in paths if path.is_file()}
            fitting = [path for path, text in texts.items() if old in text]
            if len(fitting) == 1 and texts[fitting[0]].count(old) == 1:
                before = texts[fitting[0]]
                fitting[0].write_text(before.replace(old, new), encoding="utf-8")
                return fitting[0], before
    return None


def try_one(
    fault: dict[str, Any], areas: dict[str, list[str]], tree: Path, known: list[str]
) -> str:
    """Which test catches the fault, `not caught`, or `not applicable`."""
    changed = put_in(fault, tree / "sparta_bench")
    if changed is None:
        return "not applicable"
    path, before = changed
    try:
        caught = failing(tree, fault["tests"], known)
        if not caught:
            globs = areas[fault["file"].partition("/")[0]]
            every = sorted({p.name for glob in globs for p in (tree / "tests").glob(glob)})
            caught = failing(tree, [name for name in every if name not in fault["tests"]], known)
    finally:
        path.write_text(before, encoding="utf-8")
    return caught[0] if caught else "not caught"


def copy_of(tree: Path, folder: Path) -> Path:
    """The tree without results and git's own files; results are a link."""
    left_out = shutil.ignore_patterns(".git", ".venv*", "results", "__pycache__", ".*_cache")
    shutil.copytree(tree, folder, ignore=left_out, symlinks=True)
    (folder / "results").symlink_to(tree / "results")
    return folder


def read_table() -> dict[str, dict[str, str]]:
    """By fault what each column says."""
    if not TABLE.exists():
        return {}
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(heads[2:], row[2:], strict=True)) for row in rows}


def write_table(faults: list[dict[str, Any]], found: dict[str, dict[str, str]]) -> None:
    """All faults in the list's order."""
    columns = list(dict.fromkeys(name for cells in found.values() for name in cells))
    rows = [["fault", "what it breaks", *columns], ["---"] * (2 + len(columns))]
    for fault in faults:
        cells = found.get(fault["id"], {})
        about = f"{fault['file']}: {fault['breaks']}"
        rows.append([fault["id"], about, *(cells.get(name, "not tried") for name in columns)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    TABLE.write_text(f"{HEADER}\n{table}\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ids", nargs="*", help="of the faults; all where none is given")
    parser.add_argument("--column", required=True, help="of the table, such as a commit")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the project's root")
    parser.add_argument("--green", action="store_true", help="the suite is known to pass")
    arguments = parser.parse_args()
    listed = yaml.safe_load(FAULTS.read_text(encoding="utf-8"))
    faults, areas = listed["faults"], listed["areas"]
    chosen = [fault for fault in faults if not arguments.ids or fault["id"] in arguments.ids]
    with tempfile.TemporaryDirectory(prefix="sparta-bench-faults-") as folder:
        # these are read at import, which is before the tests' own conftest.py sets them
        os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(Path(folder, "huggingface"))}
        for name in SLOW_IMPORTS:
            importlib.import_module(name)
        tree = copy_of(arguments.tree.resolve(), Path(folder, "tree"))
        likely = sorted({name for fault in chosen for name in fault["tests"]})
        # what fails without any fault shows nothing
        known = [] if arguments.green else failing(tree, likely, [], stop=False)
        print(f"without a fault {len(known)} tests fail: {known}", flush=True)
        if DIED in known:
            return 2
        outcomes = []
        for fault in chosen:
            started = time.monotonic()
            outcomes.append(try_one(fault, areas, tree, known))
            seconds = time.monotonic() - started
            print(f"{fault['id']}: {outcomes[-1]} ({seconds:.0f} s)", flush=True)
            found = read_table()
            found.setdefault(fault["id"], {})[arguments.column] = outcomes[-1]
            write_table(faults, found)
    return int("not caught" in outcomes)


if __name__ == "__main__":
    sys.exit(main())
