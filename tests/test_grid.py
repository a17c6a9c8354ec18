"""Sweeps: nothing twice, nothing lost, and each run as if it were alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from quick import QUICK_RUN

from sparta_bench.analysis import run_cost
from sparta_bench.cli import experiments as cli
from sparta_bench.cli.main import main
from sparta_bench.config.check import from_dict
from sparta_bench.config.compose import compose, compose_all, to_plain
from sparta_bench.config.conf_folder import config_dir
from sparta_bench.config.schema import Config
from sparta_bench.config.sweeps import sweep_jobs
from sparta_bench.errors import InputError
from sparta_bench.files import write_json
from sparta_bench.records.record import LOCK, RUNNING
from sparta_bench.runs import grid as grid_module
from sparta_bench.runs import job
from sparta_bench.runs.assets import AssetCache
from sparta_bench.runs.grid import Grid
from sparta_bench.runs.lock import CHECKPOINT, BusyError
from sparta_bench.runs.outcome import Outcome
from sparta_bench.runs.run import run
from sparta_bench.runs.time_estimates import Times, kinds_of
from sparta_bench.text import as_duration

QUICK = [*QUICK_RUN, "save=none"]
SCORES = ("dev", "test", "history", "parameters", "data")


def places(tmp_path: Path, name: str = "results") -> list[str]:
    return [f"results_dir={tmp_path / name}", f"cache_dir={tmp_path / 'cache'}"]


def records(folder: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in folder.rglob("result.json")]
    return {record["run_id"]: record for record in found}


def scores(folder: Path) -> dict[str, Any]:
    return {
        run_id: [record["status"], *(record[key] for key in SCORES)]
        for run_id, record in records(folder).items()
    }


# ------------------------------------------------------------------------------- the sweeps
def test_a_sweep_is_its_file_and_the_command_line_goes_before_it() -> None:
    jobs = sweep_jobs(["+sweep=tiny_table3_head", "seed=0,1", "model=tiny-mistral"])
    file = ["task=tiny-imdb", "save=none", "method=head"]
    assert jobs == [
        [*file, "seed=0", "model=tiny-mistral"], [*file, "seed=1", "model=tiny-mistral"]
    ]  # fmt: skip
    configs = compose_all(jobs)
    assert [(c.task.name, c.method.name, c.seed) for c in configs] == [
        ("tiny-imdb", "head", 0),
        ("tiny-imdb", "head", 1),
    ]


def test_several_sweeps_are_one_after_the_other() -> None:
    jobs = sweep_jobs(["+sweep=tiny_table3_head,tiny_table3_lora", "model=tiny-gemma"])
    assert [config.method.name for config in compose_all(jobs)] == ["head", "lora"]


def test_shared_composing_gives_what_hydra_gives() -> None:
    jobs = sweep_jobs(
        ["method=sparta", "method.density=0.05,0.005", "task=tiny-rte,tiny-cola", "seed=0,1",
         "train.learning_rate=1e-3,null", "method.targets=[v_proj],all"]
    )  # fmt: skip
    assert len(jobs) == 32
    jobs = [*jobs[::7], *jobs[-1:]]
    jobs += [
        ["seed=1", "++seed=2"],  # the later one counts
        ["task.dev.examples=3", "task.dev={examples:5}"],
        ["task.dev={examples:5}", "task.dev.examples=3"],
        ["train.betas=[0.8,0.9]", "task.separator=sep_token"],
        ["seed=${train.max_steps}", "train.max_steps=7", "results_dir=${task.name}/x"],
        ["task=sst2", "task.hub={name:x}", "++task.tsv.fields=4", "++task.tsv.positions=null"],
        ["model.shape={model_type:gemma}", "+model.shape.hidden_size=8"],
        ["+task.hub={path:a,name:b,revision:c}", "task=tiny-rte"],
    ]

    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        by_hydra = [from_dict(to_plain(hydra_compose("config", job))) for job in jobs]
    assert compose_all(jobs) == by_hydra


def test_a_key_that_only_a_swept_method_has() -> None:
    configs = compose_all(sweep_jobs(["method=lora", "method.r=4,8"]))
    assert [config.method.r for config in configs] == [4, 8]  # type: ignore[union-attr]
    assert len(sweep_jobs(["method=lora,lora", "method.r=4"])) == 2
    with pytest.raises(InputError, match=r"method.r=4: no such key"):
        compose_all(sweep_jobs(["method=lora,head", "method.r=4"]))


def test_a_fault_of_many_jobs_is_told_once() -> None:
    with pytest.raises(InputError) as caught:
        compose_all([["seed=-1", f"train.batch_size={n}"] for n in range(1, 100)])
    assert caught.value.lines == ("seed=-1: must be a whole number from 0 to 2^63 - 1",)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["+sweep=nope"], "+sweep=nope: no such sweep"),
        (["+sweep=table4_foo"], "+sweep=table4_foo: no such sweep (did you mean table4"),
        (["+sweep=table4", "seed=interval(0,1)"], "seed=interval(0,1): has no list of values"),
    ],
)
def test_a_wrong_sweep_is_told(overrides: list[str], line: str) -> None:
    with pytest.raises(InputError) as caught:
        compose_all(sweep_jobs(overrides))
    assert caught.value.lines[0].startswith(line)


def test_a_sweep_without_m_is_told() -> None:
    with pytest.raises(InputError, match=r"\+sweep=table4_lora: a sweep is a grid, and needs -m"):
        compose(["+sweep=table4_lora"])


# ------------------------------------------------------------------------------ exactness
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_runs_that_share_a_process_end_as_if_alone(tmp_path: Path) -> None:
    assets = AssetCache()
    orders = [
        ["method=lora"],
        ["method=sparta", "train.dropout=0.1"],
        ["method=head"],
        ["method=sparta", "model=tiny-mistral-it"],
        ["method=full_ft"],
        ["method=sparta", "save=full"],
        ["method=lora", "train.gradient_checkpointing=true"],
        ["method=head", "train.dropout=0.1"],
        ["method=lora", "task=tiny-mnli"],
        ["method=sparta", "task=tiny-rte", "task.separator=sep_token"],
    ]
    for number, overrides in enumerate(orders):
        small = ["train.max_steps=2", "train.batch_size=4", "limit=16"]
        base = [*QUICK, *small, *overrides]
        together, _, _ = run(compose([*base, *places(tmp_path, "together")]), assets)
        alone, _, _ = run(compose([*base, *places(tmp_path, f"alone{number}")]))
        assert together["status"] == alone["status"] == "completed"
        assert [together[key] for key in SCORES] == [alone[key] for key in SCORES], overrides


def test_a_backbone_is_loaded_once_for_runs_that_restore_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparta_bench.models import load

    loads: list[str] = []
    original = load.load_backbone

    def counted(model: Any, *rest: Any) -> Any:
        loads.append(model.name)
        return original(model, *rest)

    monkeypatch.setattr(load, "load_backbone", counted)
    assets = AssetCache()
    for seed, method in enumerate(("lora", "sparta", "head", "sparta", "full_ft", "head")):
        settings = [f"method={method}", f"seed={seed}", "train.dropout=0.1"]
        run(compose([*QUICK, *places(tmp_path), *settings]), assets)
    # full fine-tuning keeps no second copy of the weights
    assert loads == ["tiny-gemma", "tiny-gemma"]


def test_a_failed_run_leaves_nothing_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparta_bench.training import loop

    assets = AssetCache()
    alone, _, _ = run(compose([*QUICK, *places(tmp_path, "alone"), "method=sparta"]))
    with monkeypatch.context() as patch:
        original = loop.Training._step

        def breaks(self: Any, rows: list[int], rate: float) -> Any:
            loss = original(self, rows, rate)
            if self.progress.step == 2:
                raise RuntimeError("it broke")
            return loss

        patch.setattr(loop.Training, "_step", breaks)
        failed, _, _ = run(compose([*QUICK, *places(tmp_path), "seed=1"]), assets)
    assert failed["status"] == "failed"
    after, _, _ = run(compose([*QUICK, *places(tmp_path), "method=sparta"]), assets)
    assert [after[key] for key in SCORES] == [alone[key] for key in SCORES]


def test_a_failed_run_is_freed_before_the_next_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparta_bench.models import load as module
    from sparta_bench.training import loop

    seen: list[weakref.ref[Any]] = []
    alive: list[int] = []
    original = module.load_classifier

    def watched(*arguments: Any) -> Any:
        alive.append(sum(ref() is not None for ref in seen))
        classifier = original(*arguments)
        seen.append(weakref.ref(classifier.backbone))
        return classifier

    def breaks(*_: Any) -> None:
        raise RuntimeError("it broke")

    monkeypatch.setattr(module, "load_classifier", watched)
    monkeypatch.setattr(loop.Training, "_step", breaks)
    assets = AssetCache()
    for seed in range(3):
        run(compose([*QUICK, *places(tmp_path), f"seed={seed}"]), assets)
    assert alive == [0, 0, 0]


def test_a_forced_run_that_fails_does_not_lose_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparta_bench.training import loop

    settings = [*QUICK, *places(tmp_path), "method=head"]
    record, path, _ = run(compose(settings))

    def breaks(*_: Any) -> None:
        raise RuntimeError("it broke")

    monkeypatch.setattr(loop.Training, "_step", breaks)
    failed, _, _ = run(compose([*settings, "force=true"]))
    assert failed["status"] == "failed"
    assert json.loads(path.read_text())["test"] == record["test"]


def test_a_sweep_ends_where_the_device_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sparta_bench.runs import grid as module
    from sparta_bench.training import loop

    def breaks(*_: Any) -> None:
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(loop.Training, "_step", breaks)
    monkeypatch.setattr(module, "_answers", lambda device: False)
    grid = Grid(compose_all(sweep_jobs([*QUICK, *places(tmp_path), "seed=0,1,2"])), AssetCache())
    lines = [outcome.line for outcome in grid.run_all(lambda _: None)]
    assert [line.endswith("not tried") for line in lines] == [False, True, True]
    assert len(records(tmp_path / "results")) == 1
    assert "the device does not answer any more" in capsys.readouterr().err


def test_the_checkpoint_goes_after_the_record_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sparta_bench.runs.run as module

    original = module.write_record
    there: list[bool] = []

    def watched(spec: Any, result: Any) -> Any:
        there.append((spec.folder / CHECKPOINT).exists())
        return original(spec, result)

    monkeypatch.setattr(module, "write_record", watched)
    _, path, _ = run(compose([*QUICK, *places(tmp_path), "train.checkpoint_every=2"]))
    assert there == [True]
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_what_a_killed_process_had_begun_to_write_is_removed(tmp_path: Path) -> None:
    config = compose([*QUICK, *places(tmp_path)])
    record, path, _ = run(config)
    write_json(path, record | {"status": "interrupted"})
    for name in (CHECKPOINT, "adapter"):
        (path.parent / f".{name}.1.tmp").mkdir()
        (path.parent / f".{name}.1.tmp" / "new").write_bytes(b"half")
    run(config)
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


# ---------------------------------------------------------------------------------- locks
def test_a_run_that_another_is_at_is_left_alone(tmp_path: Path) -> None:
    config = compose([*QUICK, *places(tmp_path)])
    record, path, _ = run(config)
    write_json(path, record | {"status": "interrupted"})
    with FileLock(path.parent / LOCK), pytest.raises(BusyError):
        run(config, wait=False)
    again, _, was_there = run(config, wait=False)
    assert not was_there and again["test"] == record["test"]
    assert not (path.parent / LOCK).exists() and not (path.parent / RUNNING).exists()


def test_the_heading_counts_and_what_failed_elsewhere_is_not_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["method=head", "seed=0,1,2", *QUICK, *places(tmp_path)]
    configs = compose_all(sweep_jobs(overrides))
    run(configs[0])
    failed, path, _ = run(configs[1])
    error = {"type": "X", "message": "it broke there", "traceback": ""}
    failed |= {"status": "failed", "error": error}
    write_json(path, failed)
    grid = Grid(configs, AssetCache())
    start = "3 runs: 1 done, 2 to go (1 of them failed before); about "
    assert grid.heading().startswith(start)
    assert grid.heading().endswith(" left for one process, by what such runs took")
    write_json(path, failed)  # by another process, after the start
    stamp = path.stat().st_mtime_ns
    outcomes = grid.run_all(lambda _: None)
    assert [outcome.kind for outcome in outcomes] == ["done", "failed", "done"]
    assert "it broke there" in outcomes[1].line
    assert path.stat().st_mtime_ns == stamp
    assert [o.kind for o in Grid(configs, AssetCache()).run_all(lambda _: None)] == ["done"] * 3


def test_the_time_of_runs_that_nobody_has_made_is_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = compose_all(sweep_jobs(["method=head,lora", *QUICK, *places(tmp_path)]))
    heading = Grid(configs, AssetCache()).heading()
    assert re.fullmatch(
        r"2 runs: 0 done, 2 to go; \d+ s to \d+ s left for one process, an estimate from FLOPs, at "
        "the speed measured on a thread or two of another CPU",
        heading,
    )
    run(configs[0])
    assert "1 done, 1 to go; " in Grid(configs, AssetCache()).heading()
    monkeypatch.setattr(run_cost, "lengths_for", lambda config: None)
    end = "time left unknown: no run like some of these is done yet"
    assert Grid(configs, AssetCache()).heading() == f"2 runs: 1 done, 1 to go; {end}"


def test_the_time_of_a_run_is_the_median_of_runs_like_it(tmp_path: Path) -> None:
    head, small, large, lora, longer = compose_all(
        [
            [*QUICK, *places(tmp_path), *words]
            for words in (
                ["method=head", "train.batch_size=8"],
                ["method=head", "train.batch_size=16"],
                ["method=head", "train.batch_size=32"],
                ["method=lora"],
                ["method=head", "train.max_steps=500"],
            )
        ]
    )
    times = Times()
    for config, seconds in ((head, 1.0), (head, 5.0), (head, 2.0), (small, 9.0), (lora, None)):
        times.add(kinds_of(config), seconds)
    assert times.left([kinds_of(head), kinds_of(head)]) == 4.0
    assert times.left([kinds_of(small)]) == 9.0
    assert times.left([kinds_of(large)]) == 3.5  # of all four: no run has its batch size
    assert times.left([kinds_of(head), kinds_of(lora)]) is None
    assert times.left([kinds_of(longer)]) is None
    assert times.left([]) == 0.0


def test_durations() -> None:
    texts = [as_duration(seconds) for seconds in (0.4, 119, 121, 7199, 7200, 172_799, 200_000)]
    assert texts == ["0 s", "119 s", "2 min", "120 min", "2 h 0 min", "2.0 days", "2.3 days"]


def test_a_fault_of_many_runs_is_looked_for_and_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparta_bench.runs import assets as module

    asked: list[str] = []

    def unreachable(model: Any) -> str:
        asked.append(model.name)
        raise InputError("model=tiny-gemma: cannot be loaded")

    monkeypatch.setattr(module, "source_fingerprint", unreachable)
    monkeypatch.setattr(job, "assets", lru_cache(AssetCache))
    monkeypatch.setattr(cli, "assets", job.assets)
    assert main(["-m", "seed=0,1,2", *QUICK, *places(tmp_path)]) == 2
    assert asked == ["tiny-gemma"]
    assert capsys.readouterr().err.splitlines() == [
        "sparta-bench: 3 runs: 0 done, 0 to go, 3 cannot run",
        "sparta-bench: model=tiny-gemma: cannot be loaded",
        "sparta-bench: 3 of 3 runs did not complete:",
        "sparta-bench: model=tiny-gemma: cannot be loaded (3 runs)",
    ]


def test_the_same_run_twice_in_a_grid_is_one(tmp_path: Path) -> None:
    configs = compose_all([[*QUICK, *places(tmp_path)], [*QUICK, "device=cpu", *places(tmp_path)]])
    assert Grid(configs, AssetCache()).runs == 1


def test_a_forced_run_that_another_process_has_made_since_is_not_made_again(
    tmp_path: Path,
) -> None:
    configs = compose_all([[*QUICK, *places(tmp_path), "force=true"]])
    _, path, _ = run(configs[0])
    grid = Grid(configs, AssetCache())
    assert grid.heading().startswith("1 run: 0 done, 1 to go")
    assert not run(configs[0])[2]
    stamp = path.stat().st_mtime_ns
    (outcome,) = grid.run_all(lambda _: None)
    assert outcome.kind == "done" and path.stat().st_mtime_ns == stamp


# -------------------------------------------------------------------------- as processes
GRID = ["-m", "method=sparta,head,lora", "seed=0,1", "task=tiny-sst2,tiny-cola"]
GRID += ["train.epochs=1", "train.checkpoint_every=8", "save=none"]


def start(tmp_path: Path, name: str, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sparta_bench.cli", *GRID, *more, *places(tmp_path, name)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def ended(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text
    return text


@pytest.mark.slow
def test_a_sweep_killed_three_times_ends_as_without(tmp_path: Path) -> None:
    ended(start(tmp_path, "whole"))
    for seconds_at_work in (1.0, 4.0, 2.5):
        process = start(tmp_path, "cut")
        assert process.stdout is not None
        while not process.stdout.readline().startswith("["):  # the first run of this process
            assert process.poll() is None
        time.sleep(seconds_at_work)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    text = ended(start(tmp_path, "cut"))
    assert "12 runs: " in text
    assert scores(tmp_path / "cut") == scores(tmp_path / "whole")
    assert len(records(tmp_path / "cut")) == 12


@pytest.mark.slow
def test_two_processes_share_a_sweep_and_do_nothing_twice(tmp_path: Path) -> None:
    both = [start(tmp_path, "shared"), start(tmp_path, "shared")]
    texts = [ended(process) for process in both]
    ran = [[line for line in text.splitlines() if " s of training → " in line] for text in texts]
    assert len(ran[0]) + len(ran[1]) == 12 and min(len(ran[0]), len(ran[1])) >= 2
    assert not {line.split(" → ")[1] for line in ran[0]} & {line.split(" → ")[1] for line in ran[1]}
    assert [text.count("there already") for text in texts] == [12 - len(part) for part in ran]
    assert len(records(tmp_path / "shared")) == 12


@pytest.mark.slow
def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    process = start(tmp_path, "results", "method=sparta", "seed=0", "task=tiny-sst2")
    assert process.stdout is not None
    while "step 0/" not in process.stdout.readline():
        assert process.poll() is None
    (lock,) = (tmp_path / "results").rglob(LOCK)
    config = compose([
        "train.epochs=1", "train.checkpoint_every=8", "save=none", *places(tmp_path)
    ])  # fmt: skip
    with pytest.raises(BusyError):
        run(config, wait=False)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (lock.parent / RUNNING).exists()
    assert run(config, wait=False)[0]["status"] == "completed"


@pytest.mark.slow
def test_an_interrupted_sweep_says_so_and_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, "results")
    assert process.stdout is not None
    while not process.stdout.readline().startswith("[3/12] "):
        assert process.poll() is None
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in text
    assert text.splitlines()[-1].startswith("sparta-bench: interrupted: 2 of 12 runs are done; ")
    assert "12 runs: 2 done, 10 to go" in ended(start(tmp_path, "results"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"],
    ],
)
def test_hydras_launchers_give_the_same_runs(
    tmp_path: Path, launcher: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    grid = ["method=sparta,head", "seed=0,1"]
    assert main(["-m", *grid, *QUICK, *places(tmp_path, "here")]) == 0
    command = [sys.executable, "-m", "sparta_bench.cli", "-m", *grid, *QUICK, *launcher]
    command += places(tmp_path, "there")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert first.returncode == 0, first.stderr
    assert scores(tmp_path / "there") == scores(tmp_path / "here")
    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert again.returncode == 0
    assert "4 runs: 4 done, 0 to go" in again.stderr


@pytest.mark.parametrize(("seeds", "what"), [("0", "1 run"), ("0,1", "2 runs")])
def test_waiting_for_other_processes_is_told_once(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    seeds: str,
    what: str,
) -> None:
    looks = []

    def attempt(config: Config, *_: Any, **__: Any) -> tuple[Outcome, None]:
        looks.append(config)
        if len(looks) < 5:
            raise BusyError
        return Outcome("done", "done"), None

    monkeypatch.setattr(grid_module, "attempt", attempt)
    monkeypatch.setattr(grid_module, "SECONDS_BETWEEN_LOOKS", 0)
    assert main(["-m", f"seed={seeds}", *places(tmp_path)]) == 0
    waiting = [line for line in capfd.readouterr().err.splitlines() if "waiting" in line]
    assert waiting == [f"sparta-bench: waiting for {what} that other processes are at"]


SLURM = ["-m", "seed=5,6", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu"]


def test_the_launcher_of_slurm_needs_slurm(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*SLURM, *places(tmp_path)]) == 2
    assert capfd.readouterr() == (
        "",
        "sparta-bench: hydra/launcher=submitit_slurm: needs Slurm, and this machine has no srun; "
        "start it on a machine of the cluster\n",
    )


def test_jobs_that_no_cluster_takes_are_told_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name in ("srun", "sbatch"):
        (bin_ / name).write_text(
            "#!/bin/sh\necho 'sbatch: error: invalid partition: gpu' >&2\nexit 1\n"
        )
        (bin_ / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_), prepend=os.pathsep)
    assert main([*SLURM, *places(tmp_path)]) == 2
    out, err = capfd.readouterr()
    heading, *lines = err.splitlines()
    assert out == "" and heading.startswith("sparta-bench: 2 runs: 0 done, 2 to go; ")
    fault = "sbatch: error: invalid partition: gpu"  # submitit lets sbatch's own words through
    assert lines == [
        fault,
        f"sparta-bench: hydra/launcher=submitit_slurm: nothing could be submitted: {fault}",
    ]


# ------------------------------------------------------------- several processes of one run
ONE_FAILS = """
import os, sys
from sparta_bench.cli.main import main
from sparta_bench.training import loop

original, calls = loop.Training._backward, []

def breaks(self, *rest):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) == 2:
        raise RuntimeError("one process alone")
    return original(self, *rest)

loop.Training._backward = breaks
sys.exit(main(sys.argv[1:]))
"""
ONE_SEES_A_RUN_DONE = """
import json, os, sys
from pathlib import Path
import sparta_bench.runs.grid as grid
from sparta_bench.cli.main import main

original, calls = grid.read_json, []

def sees_more(folder):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) == 1:
        return json.loads(Path(os.environ["DONE"]).read_text())
    return original(folder)

grid.read_json = sees_more
sys.exit(main(sys.argv[1:]))
"""


def two_processes(
    script: str, port: int, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    return subprocess.run(
        [sys.executable, *launch, script, *arguments, "device=cpu"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
def test_where_one_of_two_processes_fails_both_end(tmp_path: Path) -> None:
    script = tmp_path / "one_fails.py"
    script.write_text(ONE_FAILS)
    done = two_processes(str(script), 29531, "-m", "seed=0,1", *QUICK, *places(tmp_path))
    assert done.returncode != 0
    assert "one process alone" in done.stderr
    assert not [r for r in records(tmp_path / "results").values() if r["status"] == "completed"]


@pytest.mark.slow
def test_two_processes_of_a_sweep_agree_on_what_is_to_do(tmp_path: Path) -> None:
    _, path, _ = run(compose([*QUICK, *places(tmp_path, "alone"), "seed=0"]))
    run(compose([*QUICK, *places(tmp_path, "alone"), "seed=1"]))
    script = tmp_path / "one_sees_more.py"
    script.write_text(ONE_SEES_A_RUN_DONE)
    arguments = ["-m", "seed=0,1", *QUICK, *places(tmp_path)]
    done = two_processes(str(script), 29532, *arguments, DONE=str(path))
    assert done.returncode == 0, done.stderr
    alone, both = records(tmp_path / "alone"), records(tmp_path / "results")
    assert alone.keys() == both.keys() and len(both) == 2
    for run_id, record in both.items():
        assert record["environment"]["processes"] == 2
        assert record["test"]["loss"] == pytest.approx(alone[run_id]["test"]["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_launcher_whose_worker_dies_waits_for_the_others(tmp_path: Path) -> None:
    """The other job's result counts; the dead one's is told, and the same command makes it."""
    killer = tmp_path / "sitecustomize.py"
    killer.write_text(
        "import os, sys, threading, time\n"
        "def look():\n"
        "    while True:\n"
        "        time.sleep(0.05)\n"
        "        loop = sys.modules.get('sparta_bench.training.loop')\n"
        "        if loop is not None and hasattr(loop, 'Training'):\n"
        "            original = loop.Training.train\n"
        "            def train(self, *rest, **more):\n"
        "                if self.seed == 1:\n"
        "                    os.kill(os.getpid(), 9)\n"
        "                return original(self, *rest, **more)\n"
        "            loop.Training.train = train\n"
        "            return\n"
        "if os.environ.get('KILL_SEED_1'):\n"
        "    threading.Thread(target=look, daemon=True).start()\n"
    )
    arguments = ["-m", "seed=0,1", "hydra/launcher=submitit_local", *QUICK, *places(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "sparta_bench.cli", *arguments]
    died = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment | {"KILL_SEED_1": "1"},
        timeout=240,
        check=False,
    )
    assert died.returncode == 1, died.stderr
    assert "seed 1: no result; give the same command again" in died.stderr
    assert [r["seed"] for r in records(tmp_path / "results").values()] == [0]
    again = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=240, check=False
    )
    assert again.returncode == 0, again.stderr
    assert len(records(tmp_path / "results")) == 2
