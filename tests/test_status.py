"""How far the sweeps are: from records and locks."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from forged_records import forge, write
from forks import Forks

from sparta_bench.cli.main import main
from sparta_bench.config.sweeps import Sweep, sweeps_of
from sparta_bench.records.record import LOCK, PROTOCOL, RUNNING, Setting
from sparta_bench.records.write import write_race
from sparta_bench.tables.paper_tables import LAYOUTS

RUNS = {"table3": 72, "table4": 2646, "table5": 2646, "table10": 2646, "table11": 2646}
TWINS = {"table3-twins": 24, **{f"table{n}-twins": 42 for n in (4, 5, 10, 11)}}


@cache
def sweeps(table: str) -> dict[str, Sweep]:
    return {sweep.method: sweep for sweep in sweeps_of(table)}


def gemma(seed: int = 0, rate: float = 1e-4, **changes: Any) -> dict[str, Any]:
    """A run of the sweep table4_head."""
    train = sweeps("table4")["head"].train("gemma-2b-it", "rte", None)
    settings = {
        "config__train": train | {"learning_rate": rate, "batch_size": 24},
        "training": {"seconds": 90.0, "evaluation_seconds": 10.0, "features_seconds": None},
    }
    return forge("gemma-2b-it", "rte", "head", seed=seed, **(settings | changes))


def status(capsys: pytest.CaptureFixture[str], folder: Path) -> dict[str, dict[str, Any]]:
    assert main(["status", "--json", str(folder)]) == 0
    tables = json.loads(capsys.readouterr().out)["tables"]
    return {table["table"]: table for table in tables}


def test_every_run_of_every_table_is_counted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tables = status(capsys, tmp_path)
    assert {name: table["runs"] for name, table in tables.items()} == RUNS | TWINS
    assert {table["cells"] for table in tables.values()} == {24, 42}
    assert all(table["missing"] == table["runs"] for table in tables.values())
    assert all(table["seconds_left"] is None for table in tables.values())


def test_done_failed_and_running(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    done = [gemma(seed, rate) for seed in (0, 1, 2) for rate in (1e-3, 1e-4)]
    failed = gemma(status="failed", rate=5e-6, training=None)
    other = [
        gemma(rate=3e-4),  # not a rate of the grid
        gemma(seed=7),
        gemma(config__train__epochs=5.0),  # the sweep has two
        gemma(config__task__max_train_examples=100),
        gemma(protocol=1),
        gemma(status="failed", rate=1e-3, training=None),  # failed once, done since
    ]
    write(tmp_path, *done, failed, *other)
    at_work, cut_off = gemma(rate=5e-4, status="interrupted"), gemma(2, 5e-4, status="interrupted")
    for record in (at_work, cut_off):
        folder = tmp_path / "runs" / str(record["run_id"])
        folder.mkdir(parents=True)
        (folder / RUNNING).write_text(json.dumps(record))
        (folder / LOCK).touch()
    with FileLock(tmp_path / "runs" / str(at_work["run_id"]) / LOCK):
        table = status(capsys, tmp_path)["table4"]
    assert (table["done"], table["failed"], table["running"]) == (6, 1, 1)
    assert table["missing"] == 2646 - 8 and table["cells_done"] == 0
    assert table["seconds_left"] is None  # nobody knows how long the other tasks take


def test_a_table_that_is_done(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    records = [
        forge(
            model,
            "tiny-imdb",
            sweep.method,
            density,
            config__train=sweep.train(model, "tiny-imdb", density),
        )
        for sweep in sweeps_of("table3-twins")
        for model in sweep.axes["model"]
        for density in sweep.axes.get("method.density", [None])
    ]
    took = {"seconds": 5.0, "evaluation_seconds": 1.0}
    for record in records:
        record["training"] = took
    other = forge("tiny-gemma", "tiny-imdb", "head", rate=0.5, training=took)
    missing = next(record for record in reversed(records) if record["method"] == "sparta")
    write(tmp_path, *(record for record in records if record is not missing), other)
    table = status(capsys, tmp_path)["table3-twins"]
    assert (table["done"], table["missing"], table["cells_done"]) == (23, 1, 23)
    assert table["seconds_left"] == 6.0
    write(tmp_path, missing)
    assert main(["status", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "table", "cells", "runs", "done", "running", "failed", "missing", "time", "left"
    ]  # fmt: skip
    assert lines[6].split() == ["table3-twins", "24/24", "24", "24", "0", "0", "0", "–"]


def test_what_changes_no_outcome_is_not_compared_nor_asked_of_older_records(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparta_bench.runs.status.LAYOUTS", LAYOUTS[1:2])  # table4
    older, other = gemma(0), gemma(1, config__train__eval_first=False)
    for key in ("share_prefix", "sharding", "eval_first", "eval_tokens"):
        del older["config"]["train"][key]
    write(tmp_path, older, other)
    assert status(capsys, tmp_path)["table4"]["done"] == 2


def test_runs_of_an_earlier_protocol_are_told_as_such(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep makes them again; without a word their records would seem to be lost."""
    monkeypatch.setattr("sparta_bench.runs.status.LAYOUTS", LAYOUTS[1:2])  # table4
    old = [gemma(seed, protocol=PROTOCOL - 1) for seed in (0, 1, 2)]
    write(tmp_path, *old, gemma(0), gemma(7, protocol=PROTOCOL - 1))
    table = status(capsys, tmp_path)["table4"]
    assert (table["done"], table["outdated"], table["missing"]) == (1, 2, 2645)
    assert main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "Not done are also runs of an earlier protocol, whose numbers this version does not give "
        "(table4 2): their records stay in the tables, and a sweep makes them again."
    )


def test_without_a_folder_the_runs_of_results_count_and_no_others_beside_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sparta_bench.runs.status.LAYOUTS", LAYOUTS[1:2])
    write(Path("results/other"), gemma())
    write(Path("results/runs"), gemma(1), gemma(2))
    for arguments, done, note in (([], 2, True), (["results"], 3, False)):
        assert main(["status", *arguments]) == 0
        told = capsys.readouterr().out.splitlines()
        assert told[1].split()[3] == str(done)
        assert told[-1].startswith("Counted are the runs of results/runs alone; ") is note


def test_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["status", str(tmp_path / "none")]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_no_torch(tmp_path: Path, forks_without: Callable[..., Forks]) -> None:
    done = forks_without("torch", "transformers", "datasets", "peft", "accelerate").call(
        "status", str(tmp_path)
    )
    assert (done.code, done.err) == (0, "")


def test_a_race_counts_what_it_stopped_and_what_it_did_not_need(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparta_bench.runs.status.LAYOUTS", LAYOUTS[1:2])  # table4
    best = [gemma(seed) for seed in (0, 1, 2)]
    steps = 168  # 2 epochs of 2,000 examples in batches of 24
    stopped = gemma(rate=1e-3, status="stopped", training={"steps": steps // 4})
    write(tmp_path, *best, stopped)
    table = status(capsys, tmp_path)["table4"]
    assert (table["done"], table["stopped"], table["not_needed"]) == (3, 1, 0)
    assert (table["missing"], table["cells_done"]) == (2646 - 4, 0)
    axes = sweeps("table4")["head"].axes
    run_ids = {(run["config"]["train"]["learning_rate"], run["seed"]): run["run_id"] for run in
               (*best, stopped)}  # fmt: skip
    settings = [
        Setting(
            gemma()["config"]["train"] | {"learning_rate": rate, "batch_size": batch},
            {seed: run_ids.get((rate, seed) if batch == 24 else (), "0") for seed in (0, 1, 2)},
        )
        for rate in axes["train.learning_rate"]
        for batch in axes["train.batch_size"]
    ]
    write_race(tmp_path / "runs", settings)
    table = status(capsys, tmp_path)["table4"]
    assert (table["done"], table["stopped"], table["not_needed"]) == (3, 1, 63 - 4)
    assert (table["missing"], table["cells_done"]) == (2646 - 63, 1)
    assert table["run_equivalents"] == 3.25
    assert main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "table4 was raced: 1 run stopped, 59 not needed; 3.2 run-equivalents made of 2,646."
    )
