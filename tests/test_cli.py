"""The command as a person or a script meets it: exit codes, messages, standard output."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import pytest
from forks import Done, Forks
from quick import FEW_ROWS

from sparta_bench.cli.main import COMMANDS, main
from sparta_bench.config.conf_folder import GROUPS, choices, explained
from sparta_bench.config.rules import RULES
from sparta_bench.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "sparta_bench.cli"]
NAME = "tiny-sst2 tiny-gemma sparta 5 %, rate 0.01, batch 32"
QUICK = ["train.max_steps=1", "train.eval_every=1", *FEW_ROWS]


def folders(tmp_path: Path) -> list[str]:
    return [f"results_dir='{tmp_path}/results'", f"cache_dir='{tmp_path}/cache'"]


def records(tmp_path: Path) -> list[dict[str, Any]]:
    paths = sorted((tmp_path / "results").rglob("result.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, standard output, and the lines of standard error."""
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


# --------------------------------------- wrong input: code 2 (its wording: test_messages.py)
def test_all_faults_come_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "seed=x", "method.density=2", "train.epochs=-1")
    assert (code, out, len(err)) == (2, "", 3)


# ------------------------------------------------------------------------------------- runs
def test_a_run_prints_its_result_and_leaves_a_record(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = call(capsys, *QUICK, *folders(tmp_path))
    assert code == 0
    assert err[0] == f"{NAME}, seed 0"  # no heading and no number, as a grid has
    (record,) = records(tmp_path)
    assert record["status"] == "completed"
    lines = out.splitlines()  # each kind of line: test_summary.py
    assert lines[1] == "tiny-sst2 with tiny-gemma, seed 0"
    assert lines[7].endswith(f"/{record['run_id']}/result.json")
    assert lines[-1].endswith(" method=lora")
    code, again, _ = call(capsys, *QUICK, *folders(tmp_path))
    title = "tiny-sst2 with tiny-gemma, seed 0 (there already)"
    assert (code, again.splitlines()) == (0, ["", title, *lines[2:]])


def test_help_says_what_a_setting_means(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "help", "patience")
    assert (code, err) == (0, [])
    assert " ".join(out.split()) == (
        "train.patience=null evaluations without improvement after which training stops; 0: no "
        "early stopping must be a whole number of at least 0 How every method is trained. A null "
        "takes the value of its row in conf/presets.csv. (conf/train/default.yaml)"
    )
    code, out, err = call(capsys, "help", "method", "task.dev.examples")
    assert (code, err) == (0, [])
    assert "  lora: LoRA (Hu et al., 2022) through peft, " in out
    assert "  method.lora_dropout=0.1 (lora): on the adapter's input" in out
    assert "\ntask.dev=null\n  {split, take, examples}: " in out
    assert call(capsys, "help", "pacience") == (2, "", [
        "sparta-bench: help: pacience: neither a setting nor a group (model, task, method, train, "
        "search) (did you mean train.patience?)"
    ])  # fmt: skip


def test_help_knows_every_setting() -> None:
    for key in RULES:
        if not key.endswith(".name"):  # each file's own
            outer = key.rpartition(".")[0] if key.count(".") == 2 else key
            assert explained(key).startswith(f"{outer}="), key


def test_a_script_gets_the_record_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sparta_bench.runs.experiment

    words = [*QUICK, *folders(tmp_path), "method=head"]
    record = sparta_bench.run(words)
    assert [record] == records(tmp_path) and sparta_bench.run(words) == record
    with pytest.raises(InputError, match=r"^seed=x: must be a whole number"):
        sparta_bench.run(["seed=x"])

    def fails(*_: Any) -> None:
        raise LookupError("it broke")

    monkeypatch.setattr(sparta_bench.runs.experiment, "prepare", fails)
    with pytest.raises(RuntimeError, match=r"^LookupError: it broke → .*/result\.json$"):
        sparta_bench.run([*words, "seed=1"])


def test_a_bad_job_of_a_grid_is_told_before_anything_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = call(capsys, "-m", "seed=0,1,x", *QUICK, *folders(tmp_path))
    assert (code, out) == (2, "")
    assert err == ["sparta-bench: seed=x: must be a whole number from 0 to 2^63 - 1"]
    assert not (tmp_path / "results").exists()


def test_a_job_with_bad_input_does_not_keep_others_from_running(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = call(
        capsys, "-m", "task.train_split=nope,train", "seed=0", *QUICK[:2], *folders(tmp_path)
    )
    assert code == 2
    assert len(out.splitlines()) == len(records(tmp_path)) == 1
    fault = "split nope: task tiny-sst2 has only train or validation"
    assert err[0].startswith("sparta-bench: 2 runs: 0 done, 1 to go, 1 cannot run; 0 s to ")
    assert err[1] == f"sparta-bench: {fault}"
    assert err[-2:] == ["sparta-bench: 1 of 2 runs did not complete:", f"sparta-bench: {fault}"]


def test_a_fault_of_the_program_does_not_keep_others_from_running(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sparta_bench.runs.grid

    def broken(config: Any, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device") if config.seed else LookupError("a fault")

    monkeypatch.setattr(sparta_bench.runs.grid, "run", broken)
    code, out, err = call(capsys, "-m", "seed=0,1", *folders(tmp_path))
    lines = [
        f"failed: {NAME}, seed 0: LookupError: a fault",
        f"failed: {NAME}, seed 1: No space left on device",
    ]
    assert (code, out.splitlines()) == (1, lines)
    assert err.count("Traceback (most recent call last):") == 1  # none for the full disk
    assert err[-3] == "sparta-bench: 2 of 2 runs did not complete:"
    assert err[-2:] == [f"sparta-bench: {line}" for line in lines]


def test_a_failed_run_is_code_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sparta_bench.runs.experiment

    def fails(*_: Any) -> None:
        raise RuntimeError("it broke")

    monkeypatch.setattr(sparta_bench.runs.experiment, "prepare", fails)
    code, out, _ = call(capsys, *QUICK, *folders(tmp_path))
    assert code == 1
    assert out.startswith(f"failed: {NAME}, seed 0: it broke → ")
    (record,) = records(tmp_path)
    assert (record["status"], record["error"]["type"]) == ("failed", "RuntimeError")


# ------------------------------------------------------------------------------------- plan
def test_plan_json_is_one_object_and_nothing_else(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = call(capsys, "plan", "--json", "seed=1", *folders(tmp_path))
    assert (code, err) == (0, [])
    planned = json.loads(out)
    assert {"parameters", "data", "steps", "memory_bytes"} <= planned.keys()
    assert not (tmp_path / "results").exists()


def test_help_begins_with_the_commands_and_names_what_can_be_chosen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = call(capsys, "--help")
    assert (code, err) == (0, [])
    lines = out.splitlines()
    assert lines[0].startswith("usage: sparta-bench [key=value ...]")
    start = lines.index("Commands:") + 1
    commands = [line.split()[0] for line in lines[start : lines.index("", start)]]
    assert sorted(commands) == sorted(COMMANDS)
    assert start < 10 and max(map(len, lines)) <= 100
    words = set(out.replace(",", " ").split())
    for group in (*GROUPS, "sweep"):
        assert set(choices(group)) <= words
    assert not [word for word in words if word.startswith("_")]
    assert len(lines) <= 45 and "hub_id" not in out  # the composed settings are `--cfg job`'s


def test_help_and_the_page_of_commands_know_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    named = re.findall(r"^sparta-bench ([a-z]+)(?![a-z=.])", page, re.MULTILINE)
    assert set(named) == set(COMMANDS)


def test_plan_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "plan", "--help")
    assert (code, err) == (0, []) and out.startswith("usage: sparta-bench plan [options]")


# ----------------------------------------------------------------------- as its own process
HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate")
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


@pytest.fixture
def light(tmp_path: Path, forks_without: Callable[..., Forks]) -> Callable[..., Done]:
    """The command in a process that cannot import torch and what needs it, in an empty folder."""

    def command(*arguments: str, **how: Any) -> Done:
        (tmp_path / "light").mkdir(exist_ok=True)
        return forks_without(*HEAVY).call(*arguments, cwd=tmp_path / "light", **how)

    return command


def test_help_in_a_fresh_process_takes_little(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen([*COMMAND, "--help"], cwd=tmp_path, **PIPES) as started:
        out, err = started.communicate(timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (started.returncode, err) == (0, "") and out.startswith("usage: sparta-bench ")
    # not by the clock: other tests run beside this one
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--help"], "Groups (choose with GROUP=NAME)"),
        (["--version"], "sparta-bench "),
        (["--cfg", "job", "task=rte"], "name: rte"),
        (["--hydra-help"], "Hydra"),
        (["-sc", "install=bash"], "complete"),
        (["-sc", "query=bash"], "method=sparta"),
        (["plan", "--help"], "usage: "),
        (["predict", "--help"], "usage: "),
        (["merge", "--help"], "bake"),
    ],
)
def test_help_and_completion_need_no_torch(
    light: Callable[..., Done], arguments: list[str], shown: str
) -> None:
    line = "sparta-bench method=s"
    done = light(*arguments, COMP_LINE=line, COMP_POINT=str(len(line)))
    assert (done.code, done.err) == (0, "")
    assert shown in done.out


def test_a_wrong_word_needs_no_torch_and_shows_no_traceback(light: Callable[..., Done]) -> None:
    assert light("train=x", "seed=-1") == (
        2,
        "",
        "sparta-bench: train=x: no such train; known: default\n"
        "sparta-bench: seed=-1: must be a whole number from 0 to 2^63 - 1\n",
    )


@pytest.mark.skipif(find_library("cuda") is not None, reason="there may be CUDA here")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["device=cuda"], "device=cuda"),
        (["-m", "device=cuda", "seed=0,1"], "device=cuda"),
        (["predict", ".", "--device", "cuda", "x"], "predict: --device cuda"),
        (["evaluate", ".", "--device", "cuda"], "evaluate: --device cuda"),
    ],
)
def test_a_device_that_is_not_there_is_told_before_torch_comes(
    tmp_path: Path, forks_without: Callable[..., Forks], arguments: list[str], line: str
) -> None:
    forks = forks_without("torch", "transformers", "datasets", "peft", "accelerate")
    told = f"sparta-bench: {line}: torch sees no CUDA device here; use cpu or auto\n"
    assert forks.call(*arguments, cwd=tmp_path) == (2, "", told)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_is_code_130_and_leaves_a_record(
    tmp_path: Path, forks: Forks, number: signal.Signals
) -> None:
    arguments = ["train.epochs=1000", "train.eval_every=1", *FEW_ROWS, *folders(tmp_path)]
    running = forks.start(*arguments, cwd=tmp_path, apart=True)
    running.waits_for("step 2/")
    os.kill(running.pid, number)
    done = running.done()
    assert (done.code, done.out) == (130, "") and "Traceback" not in done.err
    assert done.err.splitlines()[-1] == "sparta-bench: interrupted"
    (record,) = records(tmp_path)
    assert (record["status"], record["test"]) == ("interrupted", None)
    assert record["training"]["steps"] >= 2
    assert not list(tmp_path.rglob("*.tmp"))


IN_THE_WHEEL = """
from sparta_bench.cli.main import main
from sparta_bench.config.conf_folder import config_dir
print(config_dir())
assert main(["--help"]) == 0
print("plan")
assert main(["plan", "--json", "task=tiny-rte"]) == 0
"""


@pytest.mark.slow
def test_the_wheel_works_from_any_directory(tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, check=True, cwd=ROOT, timeout=120, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)  # all that installing a wheel of plain files does
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", IN_THE_WHEEL]
    with subprocess.Popen(command, cwd=elsewhere, env=environment, **PIPES) as started:
        out, err = started.communicate(timeout=120)
    assert (started.returncode, err) == (0, "")
    where, _, rest = out.partition("\n")
    shown, _, planned = rest.partition("plan\n{")
    assert where == f"{site}/sparta_bench/conf" and shown.startswith("usage: sparta-bench ")
    assert json.loads("{" + planned)["parameters"]["total"] > 200_000
    assert list(elsewhere.iterdir()) == []
