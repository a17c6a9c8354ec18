"""Races: what is run, what is ended early, and that kills change no winner."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from forged_records import forge, write
from quick import QUICK_RUN

from sparta_bench.analysis.run_cost import race_share
from sparta_bench.cli.experiments import _job
from sparta_bench.cli.main import main
from sparta_bench.config.compose import compose, compose_all
from sparta_bench.config.sweeps import sweep_jobs
from sparta_bench.records.read import read_races, read_records
from sparta_bench.runs import grid as grid_module
from sparta_bench.runs.assets import AssetCache
from sparta_bench.runs.grid import Grid
from sparta_bench.runs.lock import CHECKPOINT
from sparta_bench.runs.race import MARGIN, Point, needed, share_done, why_hopeless
from sparta_bench.runs.run import run
from sparta_bench.tables.build import build_tables
from sparta_bench.tables.select import select

RATES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
GRID = [(rate, batch) for rate in RATES for batch in (8.0, 16.0, 32.0)]


# ------------------------------------------------------------------------------ what is needed
def raced(losses: dict[Point, float], **how: Any) -> list[Point]:
    """The order in which one process runs a grid with these final dev losses."""
    known: dict[Point, float] = {}
    while left := needed(losses, known, **how):
        known[left[0]] = losses[left[0]]
    return list(known)


def bowl(best: Point) -> dict[Point, float]:
    return {p: 0.1 + abs(p[0] - best[0]) + abs(p[1] - best[1]) / 100 for p in GRID}


def test_rates_are_tried_outwards_while_the_loss_falls_then_batch_sizes() -> None:
    assert raced(bowl((5.0, 16.0))) == [
        (4.0, 16.0), (5.0, 16.0), (6.0, 16.0), (5.0, 32.0), (5.0, 8.0)
    ]  # fmt: skip


def test_after_another_batch_size_the_rates_beside_it_are_tried_again() -> None:
    losses = bowl((4.0, 16.0)) | {(4.0, 8.0): 0.05, (3.0, 8.0): 0.01}
    assert raced(losses) == [
        (4.0, 16.0), (5.0, 16.0), (3.0, 16.0), (4.0, 32.0), (4.0, 8.0),
        (5.0, 8.0), (3.0, 8.0), (2.0, 8.0),
    ]  # fmt: skip


def test_what_is_known_of_neighbours_is_where_a_race_begins() -> None:
    assert raced(bowl((2.0, 8.0)), start=(2.0, 8.0)) == [
        (2.0, 8.0), (3.0, 8.0), (1.0, 8.0), (2.0, 16.0)
    ]  # fmt: skip


def test_while_nothing_has_learnt_all_rates_are_tried() -> None:
    losses = {(rate, 16.0): 0.69 + rate / 1000 for rate in RATES} | {(7.0, 16.0): 0.2}
    assert raced(losses, start=(1.0, 16.0)) == [(1.0, 16.0), (2.0, 16.0)]
    assert raced(losses, start=(1.0, 16.0), untrained=0.70)[-1] == (7.0, 16.0)


def test_settings_that_failed_are_worse_than_any() -> None:
    losses = dict.fromkeys(GRID, math.inf) | {(2.0, 16.0): 0.3}
    assert raced(losses) == [
        (4.0, 16.0), (3.0, 16.0), (5.0, 16.0), (2.0, 16.0), (1.0, 16.0), (2.0, 32.0), (2.0, 8.0)
    ]  # fmt: skip
    assert needed(GRID, dict.fromkeys(GRID, math.inf)) == []


def test_other_processes_get_what_is_beside_the_first_run() -> None:
    beside = [(4.0, 16.0), (3.0, 16.0), (5.0, 16.0)]
    assert needed(GRID, {}) == beside
    # what others know by now does not move a race that has begun
    assert needed(GRID, {}, running=[(4.0, 16.0)], start=(1.0, 8.0)) == beside


def test_a_race_with_one_axis_or_none_or_holes() -> None:
    assert raced({(1.0,): 0.3, (2.0,): 0.2, (4.0,): 0.4}) == [(2.0,), (4.0,), (1.0,)]
    assert raced({(): 0.3}) == [()]
    holes = {(1.0, 8.0): 0.3, (3.0, 8.0): 0.2, (2.0, 16.0): 0.1}
    assert raced(holes) == [(2.0, 16.0), (1.0, 8.0), (3.0, 8.0)]


# ------------------------------------------------------------------------------ what is hopeless
RIVAL = [(0.0, 0.7), (0.25, 0.5), (0.5, 0.6), (0.75, 0.3), (1.0, 0.2)]


@pytest.mark.parametrize(
    ("curve", "reason"),
    [
        ([(0.0, 0.7), (0.5, 0.54)], None),
        ([(0.0, 0.7), (0.5, 0.56)], "its best dev loss 0.5600 is more than 0.05 above the 0.5000"),
        # its best so far counts, and the rival's
        ([(0.0, 0.7), (0.25, 0.54), (0.5, 0.9)], None),
        # another batch size: the rival's last evaluation at no larger share of the steps
        ([(0.0, 0.7), (0.74, 0.54)], None),
        ([(0.0, 0.7), (0.76, 0.54)], "its best dev loss 0.5400 is more than 0.05 above the 0.3000"),
        ([(0.0, 0.7), (0.49, 9.0)], None),  # too early
    ],
)
def test_a_run_is_hopeless_by_a_margin_at_the_same_share(
    curve: list[tuple[float, float]], reason: str | None
) -> None:
    assert why_hopeless(curve, RIVAL, 0.05) == reason


def test_a_run_that_has_not_left_its_initial_loss_is_hopeless() -> None:
    stuck = [(0.0, 0.7), (0.5, 0.699)]
    assert why_hopeless(stuck, RIVAL, 1.0) == "its dev loss has fallen by 0.0010, beside the 0.2000"
    assert why_hopeless(stuck, [(0.0, 0.7), (0.5, 0.66)], 1.0) is None  # nor has the rival


# ------------------------------------------------------------------------------------ real races
AXES = ["train.learning_rate=1e-3,2e-2,5e-1,9", "train.batch_size=16,32", "seed=0,1,2"]
RACE = ["-m", "method=head", *QUICK_RUN, "save=none", "train.max_steps=8", *AXES, "search=race"]
RACE.append("search.confirm=1")


def places(tmp_path: Path, name: str = "results") -> list[str]:
    return [f"results_dir={tmp_path / name}", f"cache_dir={tmp_path / 'cache'}"]


def contents(folder: Path) -> dict[str, Any]:
    keys = ("status", "dev", "test", "history")
    found = [json.loads(path.read_text()) for path in folder.rglob("result.json")]
    return {record["run_id"]: [record[key] for key in keys] for record in found}


def test_a_race_compares_on_the_first_seed_and_gives_the_best_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*RACE, *places(tmp_path)]) == 0
    records, _ = read_records([tmp_path / "results"])
    ended = {(r.train["learning_rate"], r.train["batch_size"], r.seed): r.status for r in records}
    assert ended == {
        (0.5, 16, 0): "completed", (0.02, 16, 0): "completed", (0.001, 16, 0): "stopped",
        (0.02, 32, 0): "stopped", (0.02, 16, 1): "completed", (0.02, 16, 2): "completed",
    }  # fmt: skip
    best = next(record for record in records if ended_as(record) == (0.02, 16, 0))
    stopped = next(record for record in records if ended_as(record) == (0.001, 16, 0)).raw
    assert stopped["rival"] == best.run_id and stopped["test"] is None
    assert [entry["step"] for entry in stopped["history"]] == [0, 2, 4]
    best_so_far = min(entry["dev_loss"] for entry in stopped["history"][1:])
    assert stopped["dev"]["loss"] == best_so_far
    assert share_done(stopped) == 0.5
    first, *_, last = [line for line in capfd.readouterr().err.splitlines() if " race" in line]
    assert first == (
        "sparta-bench: 24 runs in 1 race, which will make about 5 of them; "
        "0.0 made so far, in run-equivalents"
    )
    assert last == (
        "sparta-bench: race: 8 settings: 2 completed, 2 stopped, 4 not needed, 5.0 run-equivalents "
        "of 24, best on the first seed: tiny-sst2 tiny-gemma head, rate 0.02, batch 16, seed 0, "
        f"dev loss {best.score('dev', 'loss'):.4f}; 3 seeds of it"
    )
    # the same again has nothing to do, and tables show what was compared
    assert main([*RACE, *places(tmp_path)]) == 0
    assert len(read_records([tmp_path / "results"])[0]) == 6
    (race_file,) = (tmp_path / "results").rglob("race.json")
    assert race_file.parent.parent == best.path.parent.parent
    (race,) = read_races([tmp_path / "results"])
    selection = select(records, [race[:3], race])  # one of fewer settings came before it
    (chosen,) = selection.cells.values()
    assert (chosen.runs[0].run_id, len(chosen.runs)) == (best.run_id, 3)
    table = build_tables(selection)[0]
    assert (
        "Raced (search=race): 8 settings: 2 completed, 2 stopped, 4 not needed; "
        "3 seeds of the best."
    ) in table.notes


def ended_as(record: Any) -> tuple[float, int, int]:
    return record.train["learning_rate"], record.train["batch_size"], record.seed


def test_a_race_that_was_killed_ends_with_the_same_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*RACE, *places(tmp_path, "whole")]) == 0
    original = grid_module.attempt
    runs = []

    def killed(*arguments: Any, **how: Any) -> Any:
        runs.append(arguments)
        if len(runs) in (2, 5):
            raise KeyboardInterrupt
        return original(*arguments, **how)

    monkeypatch.setattr(grid_module, "attempt", killed)
    assert [main([*RACE, *places(tmp_path, "cut")]) for _ in range(3)] == [130, 130, 0]
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    (whole,), (cut,) = (read_races([tmp_path / name]) for name in ("whole", "cut"))
    assert whole == cut and len(whole) == 8


def winner(folder: Path) -> list[tuple[float, int, int]]:
    (chosen,) = select(read_records([folder])[0]).cells.values()
    return [ended_as(run) for run in chosen.runs]


@pytest.mark.slow
def test_two_processes_share_a_race_and_do_nothing_twice(tmp_path: Path) -> None:
    assert main([*RACE, *places(tmp_path, "alone")]) == 0
    command = [sys.executable, "-m", "sparta_bench.cli", *RACE, *places(tmp_path, "shared")]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    texts = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    paths = [
        line.split(" → ")[1]
        for text in texts
        for line in text.splitlines()
        if " → " in line and "there already" not in line
    ]
    assert len(paths) == len(set(paths)) == len(contents(tmp_path / "shared"))
    assert winner(tmp_path / "shared") == winner(tmp_path / "alone")
    assert len(read_races([tmp_path / "shared"])) == 1


@pytest.mark.slow
def test_a_race_through_a_launcher_has_rounds(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*RACE, *places(tmp_path, "alone")]) == 0
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    command = [*RACE, *launcher, *places(tmp_path, "launched")]
    done = subprocess.run(
        [sys.executable, "-m", "sparta_bench.cli", *command],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert winner(tmp_path / "launched") == winner(tmp_path / "alone")
    records, _ = read_records([tmp_path / "launched"])
    statuses = Counter(record.status for record in records)
    assert statuses["stopped"] >= 1 and len(records) < 24  # the rival goes along to the workers
    assert "race: 8 settings: " in done.stderr


def test_a_grid_goes_on_with_what_a_race_has_stopped(tmp_path: Path) -> None:
    def job(name: str, rate: str, *more: str) -> Any:
        settings = ["method=head", f"train.learning_rate={rate}", "train.checkpoint_every=100"]
        return compose([*QUICK_RUN, *settings, "save=none", *places(tmp_path, name), *more])

    rival = run(job("raced", "0.02"))[0]["run_id"]
    stopped, path, _ = run(job("raced", "9", "search=race", f"search.rival={rival}"))
    assert (stopped["status"], stopped["training"]["steps"]) == ("stopped", 2)
    assert (path.parent / CHECKPOINT).exists()
    assert run(job("raced", "9", "search=race", f"search.rival={rival}"))[2]  # there already
    # from the checkpoint: the scores at step 0 are not made again
    completed, _, was_there = run(job("raced", "9"))
    assert completed["status"] == "completed" and not was_there and "rival" not in completed
    alone, _, _ = run(job("alone", "9"))
    assert [completed[key] for key in ("run_id", "dev", "test", "history")] == [
        alone[key] for key in ("run_id", "dev", "test", "history")
    ]
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_a_loss_that_is_not_finite_ends_a_run_of_a_race(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparta_bench.training import loop

    original = loop.evaluate

    def diverges(*arguments: Any) -> dict[str, float]:
        scores = original(*arguments)
        return scores | {"loss": math.nan} if diverges.on else scores  # type: ignore[attr-defined]

    diverges.on = False  # type: ignore[attr-defined]
    rival = run(compose([*QUICK_RUN, "method=head", "save=none", *places(tmp_path)]))[0]["run_id"]
    settings = [*QUICK_RUN, "method=head", "seed=1", "save=none", *places(tmp_path)]
    step = loop.Training._step

    def breaks(self: Any, rows: list[int], rate: float) -> Any:
        diverges.on = True  # type: ignore[attr-defined]
        return step(self, rows, rate)

    monkeypatch.setattr(loop, "evaluate", diverges)
    monkeypatch.setattr(loop.Training, "_step", breaks)
    record, _, _ = run(compose([*settings, "search=race", f"search.rival={rival}"]))
    assert record["status"] == "stopped" and record["dev"] is None
    assert record["reason"].startswith("the dev loss is nan after step 2: the learning rate of")
    assert record["rival"] is None  # it is not behind any
    diverges.on = False  # type: ignore[attr-defined]
    assert run(compose(settings))[0]["status"] == "failed"


def test_the_default_margin_is_the_one_that_was_measured() -> None:
    assert compose(["search=race"]).search.margin == MARGIN
    assert race_share(21, 3, 2) == pytest.approx((0.3 * 21 + 4) / 63)
    assert race_share(5, 1, 2) == 3 / 5  # the best rate and those beside it
    assert compose(["search=race"]).search.confirm == 2
    assert compose([]).search.confirm == 2  # by which prices of sweeps are told


def test_a_race_needs_settings_to_compare(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["search=race"], ["-m", "search=race", "seed=0,1"]):
        assert main([*arguments, *places(tmp_path)]) == 2
        assert capfd.readouterr().err == (
            "sparta-bench: search=race: needs -m and several values of a setting of train, as in "
            "train.learning_rate=1e-3,3e-4,1e-4; search=grid runs what is given\n"
        )
    assert main(["search.rival=0123", *places(tmp_path)]) == 2
    assert capfd.readouterr().err == ("sparta-bench: search.rival=0123: is for search=race alone\n")
    assert main(["-m", "search=race,grid", *places(tmp_path)]) == 2
    assert capfd.readouterr().err == (
        "sparta-bench: search: has several values, and the runs of one grid share one\n"
    )


def test_a_race_without_a_winner_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from sparta_bench.runs.outcome import Outcome

    def fails(config: Any, *_: Any, **__: Any) -> tuple[Outcome, None]:
        return Outcome("failed", "failed: it broke"), None

    monkeypatch.setattr(grid_module, "attempt", fails)
    rates = "train.learning_rate=1e-3,1e-2"
    assert main(["-m", "search=race", rates, *QUICK_RUN, *places(tmp_path)]) == 1
    assert "no setting of its race has completed" in capfd.readouterr().err


@pytest.mark.parametrize("rival", ["123456789012", "12e345678901", "0b1a5c9d2e3f"])
def test_a_rival_reaches_a_launchers_worker_as_text(rival: str) -> None:
    config = compose(["search=race", f"search.rival='{rival}'"])
    assert compose(_job(["search=race"], config)).search.rival == rival


def test_a_race_begins_where_a_neighbour_was_best(tmp_path: Path) -> None:
    rates = "train.learning_rate=1e-3,1e-2,1e-1,1"
    jobs = sweep_jobs(["method=head", "task=tiny-cola", rates, "search=race", *places(tmp_path)])
    assert next_rates(jobs) == [0.1, 0.01, 1.0]
    other = {"model": "tiny-gemma", "task": "tiny-rte", "method": "head"}
    write(tmp_path / "results", forge(**other, rate=2e-3), forge(**other, rate=1.0, dev=0.9))
    assert next_rates(jobs) == [0.001, 0.01]


def next_rates(jobs: list[list[str]]) -> list[float]:
    runs = Grid(compose_all(jobs), AssetCache()).next_runs()
    return [config.train.learning_rate for config in runs.values()]


# -------------------------------------------------------------------------- tables and status
def test_a_stopped_run_fills_no_cell(tmp_path: Path) -> None:
    stopped = [forge(seed=seed, status="stopped", training={"steps": 9}) for seed in (0, 1)]
    chosen = select(records_of(tmp_path / "none", *stopped)).cells.popitem()[1]
    assert (chosen.runs, chosen.stopped, chosen.failed) == ((), 2, 0)
    completed = forge(seed=0, dev=0.3, rate=1e-3)
    chosen = select(records_of(tmp_path / "one", completed, *stopped)).cells.popitem()[1]
    assert [run.raw["dev"]["loss"] for run in chosen.runs] == [0.3] and chosen.ahead is None


def records_of(folder: Path, *forged: dict[str, Any]) -> list[Any]:
    return read_records([write(folder, *forged)])[0]


@pytest.mark.parametrize(
    ("real_seed", "said"),
    [
        (0, "its dev loss is lower on the same seeds: 0.2000, not 0.9000."),
        (7, "its dev loss is lower: 0.2000, not 0.8000."),
    ],
)
def test_a_better_setting_with_fewer_seeds_is_named(
    tmp_path: Path, real_seed: int, said: str
) -> None:
    smoke = [forge(seed=seed, dev=dev, rate=1e-5) for seed, dev in enumerate((0.9, 0.8, 0.7))]
    table = build_tables(select(records_of(tmp_path, *smoke, forge(seed=real_seed, dev=0.2))))[0]
    assert [note for note in table.notes if note.startswith("*")] == [
        "* SpaRTA (5%) on SST2: rate 1e-4, batch size 32, epochs 2 was not compared, since it has "
        f"1 seed and the setting shown 3; {said} Run its other seeds."
    ]
    assert all(cell.endswith("*") for cell in table.rows[0][1:])
    worse = [forge(seed=0, dev=0.91), forge(seed=1, dev=0.81)]
    assert "*" not in str(build_tables(select(records_of(tmp_path / "worse", *smoke, *worse))))
