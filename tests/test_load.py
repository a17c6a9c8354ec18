"""Many runs of one process leave nothing behind; the scripts of results/load work."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def load() -> ModuleType:
    """scripts/load.py."""
    return _script("load")


def test_runs_leave_no_tensor_behind(load: ModuleType, tmp_path: Path) -> None:
    from sparta_bench.config.compose import compose_all
    from sparta_bench.config.sweeps import sweep_jobs
    from sparta_bench.models.tensor_memory import live_bytes
    from sparta_bench.runs.assets import AssetCache
    from sparta_bench.runs.grid import Grid

    grid_words = [*load._settings(tmp_path), "seed=0,1,2", "method=sparta,lora,head"]
    grid = Grid(compose_all(sweep_jobs(grid_words)), AssetCache())
    after: list[int] = []

    def sample(outcome: Any) -> None:
        assert outcome.kind == "done", outcome.line
        after.append(live_bytes(CPU))

    grid.run_all(sample)
    assert len(after) == 9
    # after a seed's three methods there is what there was after the last seed's
    assert after[5] == after[8] > 0


def test_the_committed_figures_are_of_this_script(load: ModuleType) -> None:
    folder = ROOT / "results" / "load"
    sweep = json.loads((folder / "sweep.json").read_text())
    assert (sweep["runs"], sweep["failed"]) == (1000, 0)
    assert sweep["slope_bytes_per_run"] < load.MOST_GROWTH
    processes = json.loads((folder / "processes.json").read_text())
    assert processes["processes"] == 10 and processes["records"] == processes["runs"]
    assert json.loads((folder / "records.json").read_text())["records"] == 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["records", "--records", "300"], ["processes", "--processes", "3", "--runs", "6"]]
)
def test_the_script_works(
    load: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["load.py", *words, "--out", str(tmp_path)])
    load.main()
    found = json.loads((tmp_path / f"{words[0]}.json").read_text())
    assert found["passed"] is True and found["device"]


# ------------------------------------------------------------------ a training file of many rows
@pytest.fixture(scope="module")
def load_rows() -> ModuleType:
    """scripts/load_rows.py."""
    return _script("load_rows")


@pytest.mark.parametrize("suffix", ["tsv", "jsonl", "parquet"])
def test_rows_are_written_and_measured(load_rows: ModuleType, tmp_path: Path, suffix: str) -> None:
    load_rows.write_files(tmp_path, 1500, suffix)
    for cap in (None, 100):
        found = load_rows.measure(tmp_path, cap)
        assert set(found) <= set(load_rows.COLUMNS)
        assert found["peak_mb"] >= found["held_mb"]  # which is below 0 where pages were given back
        assert (tmp_path / f"cache{cap}").is_dir()


def test_the_committed_figures_of_rows(load_rows: ModuleType) -> None:
    with (ROOT / "results" / "load" / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(load_rows.COLUMNS)
    peaks = {(row["format"], row["cap"], int(row["rows"])): int(row["peak_mb"]) for row in rows}
    assert len(peaks) == len(load_rows.FORMATS) * 2 * 3
    for suffix in load_rows.FORMATS:
        a_row = (peaks[suffix, "", 10**6] - peaks[suffix, "", 10**5]) * 1e6 / 900_000
        assert a_row < 350, "bytes"
        assert peaks[suffix, "1000", 10**6] < 60
