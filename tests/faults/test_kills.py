"""kill -9 at any moment: no half file is read, nothing finished is lost, the end is the same.

Moments are drawn over the whole duration of a command, one in each of as many equal parts of it;
are taken just before each of its changes to the file system; and in the middle of a file.
"""

from __future__ import annotations

import math
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forks import Forks

from faults.harness import KILLED, LONG, check_whole, completed, contents, leftovers, outcome

pytestmark = pytest.mark.faults

KILLS = 50 if LONG else 3  # of each command
CHANGES = 120 if LONG else 6  # that are taken of those of a command

# The child notes each change to files below the folder, and dies before the one of this number.
NOTES = """
import os, sys
folder, noted, last = {folder!r}, {noted!r}, {last}
kinds = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod")
def look(event, args):
    if event not in kinds or not str(args[0]).startswith(folder):
        return
    if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return
    global last
    last -= 1
    if last == 0:
        os.kill(os.getpid(), 9)
    with open(noted, "a") as file:
        print(event, args[0], file=file)
sys.addaudithook(look)
"""

# The system kills the child (SIGXFSZ) where a file would grow beyond that size.
IN_A_FILE = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
"""


@dataclass(frozen=True)
class Case:
    """A command. `made` is put into the folder before it; `end` is what must come out."""

    made: Path | None
    argv: Callable[[Path], list[str]]
    end: Callable[[Path], Any]


@pytest.fixture(scope="module")
def cases(
    forks: Forks, small: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Case]:
    """A case by its name; what it starts from is made once."""
    root = tmp_path_factory.mktemp("made")

    def made(name: str, *commands: Callable[[Path], list[str]]) -> Path:
        folder = root / name
        if not folder.exists():
            for command in commands:
                forks.run(*command(folder))
        return folder

    def run(*more: str) -> Callable[[Path], list[str]]:
        return lambda folder: small(folder, *more)

    def adapter(folder: Path) -> str:
        return str(next(folder.glob("results/runs/*/*/*/*/adapter")))

    def bake(folder: Path) -> list[str]:
        return ["merge", "bake", adapter(folder), "--out", str(folder / "baked"), "--force"]

    def sweep(*more: str) -> Callable[[Path], list[str]]:
        return lambda folder: ["-m", *small(folder, "method=sparta,head", "seed=0,1", *more)]

    def case(name: str) -> Case:
        if name == "run":
            return Case(None, run(), outcome)
        if name == "save-full":
            return Case(None, run("save=full", "method=full_ft"), outcome)
        if name == "forced":  # over what is there
            return Case(made("run", run()), run("force=true"), outcome)
        if name == "sweep":
            return Case(None, sweep(), outcome)
        if name == "bake":
            return Case(made("run", run()), bake, contents)
        if name == "bake-again":
            return Case(made("baked", run(), bake), bake, contents)
        words = {"tables": [], "report": ["--page-only"]}[name]
        return Case(
            made("sweep", sweep("save=none")),
            lambda folder: [name, str(folder / "results"), *words],
            lambda folder: contents(folder / "results" / name),
        )

    return case


def in_folder(case: Case, folder: Path) -> list[str]:
    """The folder as it is before the command, and the command."""
    shutil.rmtree(folder, ignore_errors=True)
    if case.made is None:
        folder.mkdir()
    else:
        shutil.copytree(case.made, folder)
    return case.argv(folder)


def check(case: Case, folder: Path, told: str, expected: Any, forks: Forks) -> None:
    """What must hold after a kill, and after the same command again."""
    check_whole(folder)
    done = completed(folder)
    finished = [line.split(" → ")[1] for line in told.splitlines() if " → " in line]
    begin = "  record   "  # of a single run
    finished += [line[len(begin) :] for line in told.splitlines() if line.startswith(begin)]
    assert set(finished) <= done.keys()
    forks.run(*case.argv(folder))
    assert case.end(folder) == expected
    after = completed(folder)
    if "force=true" not in case.argv(folder):
        assert {path: after.get(path) for path in done} == done
    assert leftovers(folder) == []


NAMES = ("run", "save-full", "forced", "sweep", "bake", "bake-again", "tables", "report")


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_random(
    name: str, cases: Callable[[str], Case], forks: Forks, tmp_path: Path
) -> None:
    case, folder = cases(name), tmp_path / "here"
    argv = in_folder(case, folder)
    started = time.monotonic()
    forks.run(*argv)
    duration = time.monotonic() - started
    expected = case.end(folder)
    draw, killed, survived = random.Random(name), 0, 0
    while killed < KILLS:
        delay = duration * (killed + draw.random()) / KILLS
        command = forks.start(*in_folder(case, folder))
        code = command.kill_after(delay)
        if code == 0:  # quicker than before
            duration, survived = delay, survived + 1
            assert survived < 50
            continue
        assert code == KILLED
        killed += 1
        check(case, folder, command.told(), expected, forks)
    print(f"{name}: {killed} kills within {duration:.2f} s; {survived} times it was quicker")


@pytest.mark.parametrize("name", NAMES)
def test_killed_before_any_change(
    name: str, cases: Callable[[str], Case], forks: Forks, tmp_path: Path
) -> None:
    case, folder, noted = cases(name), tmp_path / "here", tmp_path / "changes"

    def dies_before(number: int) -> str:
        return NOTES.format(folder=str(folder), noted=str(noted), last=number)

    forks.run(*in_folder(case, folder), prelude=dies_before(0))
    expected = case.end(folder)
    changes = noted.read_text().splitlines()
    every = math.ceil(len(changes) / CHANGES)
    numbers = range(random.Random(name).randint(1, every), len(changes) + 1, every)
    for number in numbers:
        command = forks.start(*in_folder(case, folder), prelude=dies_before(number))
        assert command.ends() == KILLED, (changes[number - 1], command.told())
        try:
            check(case, folder, command.told(), expected, forks)
        except BaseException:
            print(f"killed before {changes[number - 1]}")
            raise
    print(f"{name}: killed before {len(numbers)} of {len(changes)} changes")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("run", size) for size in (2_000, 50_000, 100_000)),
        *(("save-full", size) for size in (2_000, 500_000)),
        *(("bake-again", size) for size in (2_000, 500_000)),
        ("tables", 2_000),
        ("report", 2_000),
    ],
)
def test_killed_in_the_middle_of_a_file(
    name: str, size: int, cases: Callable[[str], Case], forks: Forks, tmp_path: Path
) -> None:
    case, folder = cases(name), tmp_path / "here"
    forks.run(*in_folder(case, folder))
    expected = case.end(folder)
    command = forks.start(*in_folder(case, folder), prelude=IN_A_FILE.format(size=size))
    assert command.ends() == -signal.SIGXFSZ, command.told()
    assert leftovers(folder) != []
    check(case, folder, command.told(), expected, forks)
