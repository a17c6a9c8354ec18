"""The GPU session, rehearsed at toy size on a CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "gpu_session.py"
# Tables of each part, and how many rows they have.
ROWS = {
    "correct": {"kernels": 12, "AdamW": 1, "tests": 24},
    "crossover": {"sampled over dense": 2, "constants of the cost model": 4},
    "steps": {"gemma-2b, imdb": 12, "gemma-2b, sst2": 12, "mistral-7b, imdb": 3},
    "memory": {"gemma-2b, 2 × 8": 12, "mistral-7b, 2 × 8": 12},
    "compile": {"regional compilation": 6},
    "real": {"runs": 6},
}


def session(out: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), "toy", "--toy", "--out", str(out), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, text=True, start_new_session=True)


def report(out: Path, part: str) -> dict[str, Any]:
    return dict(json.loads((out / "toy" / f"{part}.json").read_text(encoding="utf-8")))


@pytest.mark.slow
def test_every_part_leaves_its_files(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    assert session(tmp_path).wait(timeout=1800) == 0
    for part, tables in ROWS.items():
        found = report(tmp_path, part)
        assert found["status"] == "completed", found
        assert {name: len(rows) for name, rows in found["tables"].items()} == tables
        assert (tmp_path / "toy" / f"{part}.md").read_text(encoding="utf-8").startswith(f"# {part}")
    assert report(tmp_path, "correct")["kernels_wrong"] == 0
    assert len(list((tmp_path / "toy" / "real").rglob("result.json"))) == 6


@pytest.mark.slow
def test_a_session_that_is_killed_keeps_what_it_has_found(tmp_path: Path) -> None:
    path = tmp_path / "toy" / "crossover.json"
    with session(tmp_path, "--only", "crossover", "--only", "real") as running:
        deadline = time.monotonic() + 300
        while not (path.exists() and json.loads(path.read_text(encoding="utf-8"))["tables"]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(running.pid, signal.SIGKILL)
    assert report(tmp_path, "crossover")["tables"]["sampled over dense"]
    assert not (tmp_path / "toy" / "real.json").exists()


@pytest.mark.slow
def test_a_part_is_ended_at_its_limit_and_the_next_one_runs(tmp_path: Path) -> None:
    words = ("--only", "crossover", "--only", "compile", "--limit", "1")
    assert session(tmp_path, *words).wait(timeout=120) == 1
    for part in ("crossover", "compile"):
        assert report(tmp_path, part)["status"] in ("timed out", "failed")
        assert report(tmp_path, part)["error"]
