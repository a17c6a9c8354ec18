"""Disks that are full, or may only be read: one clear line, nothing half written, the rest goes on,
and the same command ends as it should when there is room."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from forks import Forks

from faults.disks import ENOUGH, READ_ONLY, REASONS, Disk
from faults.harness import LONG, check_whole, completed, leftovers, outcome, records

pytestmark = pytest.mark.faults
Small = Callable[..., list[str]]

# From nothing over each file that does not fit to enough: the record has 8 KB, the adapter and the
# checkpoint some 100 and 200.
SIZES = [4 << 10 << step for step in range(9)] if LONG else [4 << 10, 32 << 10, 160 << 10, 1 << 20]
STDOUT_IS_FULL = "import os\nos.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"


@pytest.fixture(scope="module")
def whole(forks: Forks, small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep of two runs, as it should be."""
    folder = tmp_path_factory.mktemp("whole")
    forks.run("-m", *small(folder, "method=sparta,head"))
    return folder


def lines_with(told: str, reasons: tuple[str, ...]) -> list[str]:
    return [line for line in told.splitlines() if any(reason in line for reason in reasons)]


@pytest.mark.parametrize("size", SIZES)
def test_a_run_on_a_full_disk(
    size: int, disk: Disk, forks: Forks, small: Small, whole: Path
) -> None:
    sweep = ["-m", *small(disk.folder, "method=sparta,head")]
    disk.resize(size)
    command = forks.start(*sweep, prelude=disk.prelude)
    code, told = command.ends(), command.told()
    assert code in (0, 1, 2) and "Traceback" not in told, told
    assert (code == 0) == (len(completed(disk.folder)) == 2)
    assert code == 0 or lines_with(told, REASONS)
    assert size != SIZES[0] or code != 0
    assert size != SIZES[-1] or not lines_with(told, REASONS)
    check_whole(disk.folder)
    for record in records(disk.folder).values():
        assert str(disk.folder) not in str(record)
    disk.resize(ENOUGH)
    forks.run(*sweep)
    assert outcome(disk.folder) == outcome(whole) and leftovers(disk.folder) == []


def test_what_does_not_fit_fails_alone(
    disk: Disk, forks: Forks, small: Small, whole: Path, tmp_path: Path
) -> None:
    """SpaRTA's adapter and checkpoints are too large for the disk, Head's are not."""
    disk.resize(64 << 10)
    sweep = ["-m", *small(disk.folder, "method=sparta,head", f"cache_dir={tmp_path}")]
    told = forks.run(*sweep, code=1, prelude=disk.prelude)
    assert "1 of 2 runs did not complete:" in told
    warned = [line for line in told.splitlines() if "training goes on without this" in line]
    assert len(warned) == 6 and "checkpoint.safetensors: " in warned[0]
    found = {record["method"]: record for record in records(disk.folder).values()}
    assert found["head"]["status"] == "completed" and found["sparta"]["status"] == "failed"
    assert found["sparta"]["error"]["message"].startswith("adapter")
    assert found["sparta"]["test"] == records_of(whole)["sparta"]["test"]


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_on_a_full_disk_can_be_interrupted(
    sign: signal.Signals, disk: Disk, forks: Forks, small: Small, tmp_path: Path
) -> None:
    disk.resize(3_000)  # running.json has 2.5 KB, the record of an interrupted run 4
    long = ["train.epochs=1e4", "train.max_steps=10000", "train.patience=null"]
    words = small(disk.folder, "seed=0,1", f"cache_dir={tmp_path}", *long)
    command = forks.start("-m", *words, "train.checkpoint_every=null", prelude=disk.prelude)
    command.waits_for("step 0/")
    os.kill(command.pid, sign)
    assert command.ends() == 130
    assert "interrupted: 0 of 2 runs are done; the same command goes on" in command.told()
    assert not list(disk.folder.rglob("*.json")) and leftovers(disk.folder) == []


def records_of(folder: Path) -> dict[str, dict[str, object]]:
    return {record["method"]: record for record in records(folder).values()}


def test_a_cache_without_room_costs_time_alone(
    disk: Disk, forks: Forks, small: Small, whole: Path, tmp_path: Path
) -> None:
    disk.resize(12 << 10)  # the features of the training set have 16 KB
    forks.run(*small(tmp_path, "method=head", f"cache_dir={disk.folder}"), prelude=disk.prelude)
    assert records_of(tmp_path)["head"]["test"] == records_of(whole)["head"]["test"]
    assert all(path.stat().st_size < 12 << 10 for path in disk.folder.iterdir())


@pytest.mark.parametrize("name", ["tables", "report", "bake"])
def test_other_writers_on_a_full_disk(name: str, disk: Disk, forks: Forks, whole: Path) -> None:
    out = disk.folder / "out"
    adapter = str(next(whole.rglob("sparta/*/adapter")))
    words = {
        "tables": ["tables", str(whole)],
        "report": ["report", str(whole)],
        "bake": ["merge", "bake", adapter],
    }[name]
    disk.resize(4 << 10)
    told = forks.run(*words, "--out", str(out), code=2, prelude=disk.prelude)
    (line,) = told.splitlines()
    assert line.startswith("sparta-bench: ") and str(out) in line and lines_with(line, REASONS)
    check_whole(disk.folder)
    assert leftovers(disk.folder) == []
    disk.resize(ENOUGH)
    forks.run(*words, "--out", str(out))


@pytest.mark.parametrize("what", [["tables"], ["plan"], ["--help"], []])
def test_standard_output_on_a_full_disk(
    what: list[str], forks: Forks, small: Small, whole: Path, tmp_path: Path
) -> None:
    words = [*what, str(whole), "--out", str(tmp_path)] if what == ["tables"] else what
    if what != ["tables"]:
        words = [*what, *small(tmp_path)]
    told = forks.run(*words, code=1, prelude=STDOUT_IS_FULL)
    assert told.splitlines()[-1] == "sparta-bench: No space left on device"
    assert "Traceback" not in told
    assert len(completed(tmp_path)) == (not what)


def test_a_folder_that_may_only_be_read(
    disk: Disk, forks: Forks, small: Small, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, disk.folder, dirs_exist_ok=True)
    disk.only_to_be_read()
    before = outcome(whole)
    results = str(disk.folder / "results")
    line = (
        f"sparta-bench: results_dir={results}: must be a folder that can be written; "
        f"{results} cannot be written to\n"
    )
    assert forks.run(*small(disk.folder), code=2, prelude=disk.prelude) == line
    sweep = ["-m", *small(disk.folder, "method=sparta,head")]
    assert forks.run(*sweep, code=2, prelude=disk.prelude) == line
    told = forks.run("tables", results, code=2, prelude=disk.prelude)
    assert told.startswith(f"sparta-bench: tables: --out {results}/tables: ")
    assert lines_with(told, READ_ONLY) == told.splitlines()
    assert "2 used" in forks.run("tables", results, "--out", str(tmp_path), prelude=disk.prelude)
    assert outcome(disk.folder) == before
