"""`train.learning_rate=search`: what it stands for, what it runs, and that it can be cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from forged_records import forge
from quick import QUICK_RUN
from test_models import save_model

from sparta_bench.cli.main import main
from sparta_bench.config.compose import compose, compose_all
from sparta_bench.config.rate_search import searched
from sparta_bench.config.sweeps import sweep_jobs
from sparta_bench.errors import DivergedError, InputError
from sparta_bench.records.read import read_records
from sparta_bench.runs import grid as grid_module
from sparta_bench.runs.cell_race import CellRace
from sparta_bench.runs.run import run
from sparta_bench.training import loop

SEARCH = "train.learning_rate=search"
RATES = ("0.0022", "0.0067", "0.02", "0.06", "0.18")  # around the 2e-2 of the head's preset


def test_a_search_is_a_race_of_five_rates_around_the_runs_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert searched([["train.learning_rate=1e-3", SEARCH, "method=head"]]) == [
        ["method=head", f"train.learning_rate={rate}", "search=race"] for rate in RATES
    ]
    assert capsys.readouterr().err == (
        "sparta-bench: train.learning_rate=search: races 0.0022, 0.0067, 0.02, 0.06, 0.18 (0.02 is "
        "the rate without a search); the lowest dev loss wins\n"
    )
    for others in ([["method=head"], ["seed=1"]], [[SEARCH, "train.learning_rate=1e-3"]]):
        assert searched(others) is others
    assert capsys.readouterr().err == ""


def test_each_cell_of_a_grid_searches_around_its_own_rate(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["method=head,lora", "seed=0,1", "train.learning_rate=search,1e-3"]
    configs = compose_all(sweep_jobs(words))
    rates = {name: [c.train.learning_rate for c in configs if c.method.name == name and not c.seed]
             for name in ("head", "lora")}  # fmt: skip
    assert rates == {
        "head": [*map(float, RATES), 0.001],
        "lora": [0.00056, 0.0017, 0.005, 0.015, 0.045, 0.001],
    }
    assert {config.search.name for config in configs} == {"race"} and len(configs) == 24
    assert capsys.readouterr().err == (
        "sparta-bench: train.learning_rate=search: races 5 rates in each cell, from a ninth of its "
        "own to nine times it; the lowest dev loss wins\n"
    )
    grid = compose_all(sweep_jobs([SEARCH, "search=grid"]))
    assert [config.search.name for config in grid] == ["grid"] * 5


def test_a_guessed_rate_is_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path)
    searched([["model=local", f"model.path='{tmp_path}'", SEARCH]])
    assert f" is a guess from {tmp_path.name}'s size and the density); " in capsys.readouterr().err


def test_what_makes_one_run_takes_one_rate() -> None:
    with pytest.raises(InputError) as error:
        compose([SEARCH])
    assert error.value.lines == (
        "train.learning_rate=search: must be a number above 0, or search where runs are made",
    )


def test_the_best_run_of_a_search_is_the_commands_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = [*QUICK_RUN, "method=head", "save=none", f"results_dir={tmp_path}",
                f"cache_dir={tmp_path}/cache"]  # fmt: skip
    original = grid_module.attempt
    attempts = []

    def cut_off(*arguments: Any, **how: Any) -> Any:
        attempts.append(arguments)
        if len(attempts) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **how)

    monkeypatch.setattr(grid_module, "attempt", cut_off)
    assert main([*settings, SEARCH]) == 130
    capfd.readouterr()
    assert main([*settings, SEARCH]) == 0
    out = capfd.readouterr().out
    records, _ = read_records([tmp_path])
    completed = [record for record in records if record.status == "completed"]
    best = min(completed, key=lambda record: record.score("dev", "loss"))
    assert len(records) >= 3 and f"  record   {best.path}\n" in out
    assert "tiny-sst2 with tiny-gemma, seed 0\n" in out and SEARCH not in out
    # nothing is left to do, and a run with the rate of one of them is that run
    made = len(attempts)
    assert main([*settings, SEARCH]) == 0 and len(attempts) == made
    assert "tiny-sst2 with tiny-gemma, seed 0 (there already)\n" in capfd.readouterr().out
    assert run(compose([*settings, f"train.learning_rate={best.train['learning_rate']}"]))[2]


def test_a_rate_that_diverges_is_one_line_and_no_failure_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original = loop.Training.train

    def train(self: Any, *rest: Any, **more: Any) -> Any:
        if self.settings.learning_rate >= 0.02:  # the first rate, and one of those beside it
            raise DivergedError("the dev loss is nan after step 2")
        return original(self, *rest, **more)

    monkeypatch.setattr(loop.Training, "train", train)
    words = [*QUICK_RUN, "method=head", "save=none", f"results_dir={tmp_path}",
             f"cache_dir={tmp_path}/cache"]  # fmt: skip
    assert main([*words, SEARCH]) == 0
    out, err = capfd.readouterr()
    first, second, *_ = out.splitlines()
    name = "tiny-sst2 tiny-gemma head, rate"
    diverged = "the dev loss is nan after step 2"
    assert first.startswith(f"failed: {name} 0.02, batch 32, seed 0: {diverged} → ")
    assert second.startswith(f"{name} 0.0067, ") and "\nNext:\n" in out
    assert "which will make about 3 of them" in err and "did not complete" not in err
    assert " 0.06, batch 32, seed 0: " in out
    assert f"stopped after 0 % of its steps: {name} 0.06, batch 32, seed 0: {diverged} → " in out
    assert main([*words, "train.learning_rate=0.02"]) == 1


def test_where_the_best_rate_is_at_an_end_a_line_says_how_to_go_on() -> None:
    jobs = [["method=head", f"train.learning_rate={rate}"] for rate in (0.1, 0.3, 0.9)]
    race = CellRace(dict(zip("abc", compose_all(jobs), strict=True)))

    def advice(**losses: float) -> tuple[str, ...]:
        records = {run_id: forge(dev=loss) for run_id, loss in losses.items()}
        for record in records.values():
            record["history"] = [{"step": 0, "dev_loss": 0.7}, {"step": 4, "dev_loss": 0.1}]
        return race.advice(records.get)

    go_on = "the race: go on with -m search=race train.learning_rate="
    best = "tiny-sst2 tiny-gemma head: the best rate, "
    assert advice(a=0.3, b=0.2, c=0.3) == () == advice()
    assert advice(b=0.2, c=0.1) == (f"{best}0.9, is the highest of {go_on}0.9,2.7e+00,8.1e+00",)
    assert advice(a=0.1, b=0.2) == (f"{best}0.1, is the lowest of {go_on}0.1,3.3e-02,1.1e-02",)
