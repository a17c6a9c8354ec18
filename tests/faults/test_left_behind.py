"""What is found in a results folder and is not as this version left it: records, checkpoints,
times; and other processes at work."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forks import Forks

from faults.harness import check_whole, completed, leftovers, outcome, records
from sparta_bench.files import read_kept, write_kept

pytestmark = pytest.mark.faults
Small = Callable[..., list[str]]

BREAKS = """
from sparta_bench.training import loop
def breaks(*_):
    raise RuntimeError("it broke")
loop.Training._step = breaks
"""
# the clock of the process goes backwards, an hour at each look
BACKWARDS = """
import time
now = [time.time()]
def backwards():
    now[0] -= 3600
    return now[0]
time.time = backwards
"""
DIES_IN_STEP_4 = """
import os
from sparta_bench.training import loop
original = loop.Training._step
def dies(self, *rest):
    if self.progress.step == 3:
        os.kill(os.getpid(), 9)
    return original(self, *rest)
loop.Training._step = dies
"""


@pytest.fixture(scope="module")
def whole(forks: Forks, small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep of three runs, as it should be."""
    folder = tmp_path_factory.mktemp("whole")
    forks.run("-m", *small(folder, "seed=0,1,2"))
    return folder


@pytest.fixture
def found(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    return Path(shutil.copytree(whole, tmp_path / "found"))


def record_of(folder: Path, seed: int) -> Path:
    paths = folder.rglob("result.json")
    return next(path for path in paths if json.loads(path.read_text())["seed"] == seed)


def change(path: Path, **values: Any) -> None:
    """Write a record anew with other values."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# -------------------------------------------------------------------------------- records
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_record_cut_short_is_made_again(
    share: float, forks: Forks, small: Small, whole: Path, found: Path
) -> None:
    path = record_of(found, 1)
    text = path.read_text()
    path.write_text(text[: int(share * len(text.rstrip()))])
    told = forks.run("tables", str(found))
    assert "3 records found: 2 used" in told and "- left out, 1: is no JSON" in told
    told = forks.run("-m", *small(found, "seed=0,1,2"))
    assert "3 runs: 2 done, 1 to go" in told and "Traceback" not in told
    assert f"{path}: is no JSON; the run is made again" in told
    assert outcome(found) == outcome(whole)


@pytest.mark.parametrize(
    "broken",
    [
        {"training": None},
        {"test": {"loss": 0.5}},
        {"status": "failed", "error": None},
        {"config": None},
        {"status": None},
    ],
)
def test_a_record_that_lacks_something_is_made_again(
    broken: dict[str, Any], forks: Forks, small: Small, whole: Path, found: Path
) -> None:
    change(record_of(found, 1), **broken)
    assert "3 records found: " in forks.run("tables", str(found))
    told = forks.run("-m", *small(found, "seed=0,1,2"))
    assert "the run is made again" in told and "Traceback" not in told
    assert outcome(found) == outcome(whole)


def test_a_record_of_another_version_is_left_alone(
    forks: Forks, small: Small, whole: Path, found: Path
) -> None:
    path = record_of(found, 1)
    change(path, schema=2)
    before = path.read_bytes()
    reason = "schema 2; this version reads schema 1"
    assert f"- left out, 1: {reason}" in forks.run("tables", str(found))
    record_of(found, 2).unlink()
    told = forks.run("-m", *small(found, "seed=0,1,2"), code=2)
    assert f"sparta-bench: {path}: {reason}; " in told and "Traceback" not in told
    assert path.read_bytes() == before and len(completed(found)) == 3
    forks.run(*small(found, "seed=1"), code=2)
    forks.run(*small(found, "seed=1", "force=true"))
    assert outcome(found) == outcome(whole)


def test_status_and_report_survive_spoiled_records(forks: Forks, found: Path) -> None:
    change(record_of(found, 0), training=None)
    change(record_of(found, 1), schema=2)
    record_of(found, 2).write_text("{")
    (found / "results" / "running.json").write_text("[")
    assert "A cell is done when" in forks.run("status", str(found))
    forks.run("report", str(found), "--page-only")
    text = (found / "report" / "report.html").read_text()
    assert "schema 2; this version reads schema 1" in text and "is no JSON" in text


# ----------------------------------------------------------------------------- checkpoints
def written_anew(path: Path, change: Callable[[Any, Any, Any], Any]) -> None:
    """As another version would have written it; `change` gets who made it, progress and tensors."""
    kept = read_kept(path)
    assert kept is not None
    tensors, about = kept
    made_by, progress = json.loads(about)
    change(made_by, progress, tensors)
    write_kept(path, tensors, json.dumps([made_by, progress]))


def other_version(path: Path) -> None:
    written_anew(path, lambda made_by, _, __: made_by["versions"].update(torch="2.0.0"))


def other_fields(path: Path) -> None:
    written_anew(path, lambda _, progress, __: progress.update(colour="blue"))


def older_fields(path: Path) -> None:
    """As it was written while `Progress` had a field `finished`."""
    written_anew(path, lambda _, progress, __: progress.update(finished=False))


def other_shapes(path: Path) -> None:
    def cut(_: Any, __: Any, tensors: Any) -> None:
        tensors |= {name: tensor.flatten()[:3].clone() for name, tensor in tensors.items()}

    written_anew(path, cut)


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (other_version, "other versions (torch 2.0.0, here "),
        (other_fields, "is not as this version writes it"),
        (older_fields, "is not as this version writes it"),
        (other_shapes, "is not as this version writes it"),
        (cut_short, "cannot be read"),
        (flipped, "is not as it was written"),
    ],
)
def test_a_checkpoint_that_is_not_ours_is_not_gone_on_from(
    spoil: Callable[[Path], None], reason: str, forks: Forks, small: Small, whole: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    forks.run(*small(tmp_path, "seed=0"), code=-9, prelude=DIES_IN_STEP_4)
    (path,) = tmp_path.rglob("checkpoint.safetensors")
    spoil(path)
    told = forks.run("-m", *small(tmp_path, "seed=0,1,2"))
    line = next(line for line in told.splitlines() if str(path) in line)
    assert reason in line and line.endswith("; the run begins anew")
    assert "Traceback" not in told
    assert outcome(tmp_path) == outcome(whole)


def test_a_checkpoint_of_another_configuration_is_not_gone_on_from(
    forks: Forks, small: Small, whole: Path, tmp_path: Path
) -> None:
    for number in (0, 1):
        place = small(tmp_path / str(number), f"seed={number}")
        forks.run(*place, code=-9, prelude=DIES_IN_STEP_4)
    (theirs,) = (tmp_path / "1").rglob("checkpoint.safetensors")
    (ours,) = (tmp_path / "0").rglob("checkpoint.safetensors")
    shutil.copy(theirs, ours)
    told = forks.run("-m", *small(tmp_path / "0", "seed=0,1,2"))
    assert f"{ours}: is of another run; the run begins anew" in told
    assert outcome(tmp_path / "0") == outcome(whole)


# ---------------------------------------------------------------------------------- clocks
@pytest.mark.parametrize("hours", [-1e5, 1e5])
def test_a_failure_is_tried_again_whatever_its_time(
    hours: float, forks: Forks, small: Small, whole: Path, tmp_path: Path
) -> None:
    sweep = ["-m", *small(tmp_path, "seed=0,1,2")]
    forks.run(*sweep, code=1, prelude=BREAKS)
    for path in tmp_path.rglob("result.json"):
        stamp = path.stat().st_mtime + 3600 * hours
        os.utime(path, (stamp, stamp))
    told = forks.run(*sweep)
    assert "3 runs: 0 done, 3 to go (3 of them failed before)" in told
    assert outcome(tmp_path) == outcome(whole)


@pytest.mark.parametrize("hours", [-1e5, 1e5])
def test_what_is_forced_is_made_again_whatever_its_time(
    hours: float, forks: Forks, small: Small, whole: Path, found: Path
) -> None:
    for path in found.rglob("result.json"):
        stamp = path.stat().st_mtime + 3600 * hours
        os.utime(path, (stamp, stamp))
    before = completed(found)
    forks.run("-m", *small(found, "seed=0,1,2", "force=true"))
    after = completed(found)
    assert before.keys() == after.keys() and all(after[path] != before[path] for path in before)
    assert outcome(found) == outcome(whole)


def test_a_clock_that_goes_backwards_changes_nothing(
    forks: Forks, small: Small, whole: Path, tmp_path: Path
) -> None:
    sweep = ["-m", *small(tmp_path, "seed=0,1,2")]
    forks.run(*sweep, prelude=BACKWARDS)
    assert outcome(tmp_path) == outcome(whole)
    before = completed(tmp_path)
    forks.run(*sweep, "force=true", prelude=BACKWARDS)
    assert all(completed(tmp_path)[path] != before[path] for path in before)
    assert outcome(tmp_path) == outcome(whole)


# ------------------------------------------------------------------- other processes at work
def test_of_two_sweeps_on_one_folder_one_is_killed(
    forks: Forks, small: Small, whole: Path, tmp_path: Path
) -> None:
    sweep = ["-m", *small(tmp_path, "seed=0,1,2")]
    one = forks.start(*sweep)
    one.waits_for("step 2/6")
    two = forks.start(*sweep)
    two.waits_for("step 0/6")
    assert one.kill_after(0) == -9
    assert two.ends() == 0, two.told()
    assert "Traceback" not in two.told()
    assert outcome(tmp_path) == outcome(whole) and leftovers(tmp_path / "results") == []


def test_readers_beside_a_sweep_at_work(
    forks: Forks, small: Small, whole: Path, tmp_path: Path
) -> None:
    sweep = forks.start("-m", *small(tmp_path, "seed=0,1,2"))
    sweep.waits_for("step 0/6")
    read = 0
    while len(completed(tmp_path)) < 3:
        told = forks.run("tables", str(tmp_path / "results"), "--out", str(tmp_path / "tables"))
        assert " 0 left out." in told
        check_whole(tmp_path)
        read += 1
    assert sweep.ends() == 0 and read > 3
    assert len(records(tmp_path)) == 3 and outcome(tmp_path) == outcome(whole)
