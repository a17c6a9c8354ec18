"""The command as a person or a script meets it: exit codes, messages, standard output."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sparta_bench.cli.main import COMMANDS, main
from sparta_bench.config.conf_folder import GROUPS, choices
from sparta_bench.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "sparta_bench.cli"]
NAME = "tiny-sst2 tiny-gemma sparta 5 %, rate 0.01, batch 32"
QUICK = ["train.max_steps=1", "train.eval_every=1"]


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


# --------------------------------------------------------------------- wrong input: code 2
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["plann"], "plann: neither a subcommand (did you mean plan?) nor of the form key=value"),
        (["seed=x"], "seed=x: must be a whole number from 0 to 2^63 - 1"),
        (["plan", "seed=x"], "seed=x: must be a whole number from 0 to 2^63 - 1"),
        (["foo=1"], "foo=1: no such key (did you mean force?)"),
        (["train=defualt"], "train=defualt: no such train (did you mean default?); known: default"),
        (["seed=0,1"], "seed=0,1: several values are a grid, and need -m"),
        (["--nope"], "--nope: no such option; settings are written key=value (see --help)"),
        (["--density", "0.05"], "--density: no such option; settings are written key=value "
         "(see --help)"),
        (["run"], "run: neither a subcommand (did you mean ranks?) nor of the form key=value"),
        (["tiny-rte", "seed=1"], "tiny-rte: neither a subcommand nor of the form key=value"),
        (["seed=1", "tiny-rte"], "tiny-rte: not of the form key=value"),
        (["plan", "--seed", "3"], "--seed: plan knows no option but --json"),
        (["density=0.05"], "density=0.05: no such key (did you mean method.density?)"),
        (["method.epochs=3"], "method.epochs=3: no such key (did you mean train.epochs?)"),
        (["learnin_rate=1"], "learnin_rate=1: no such key (did you mean train.learning_rate?)"),
        (["modl=gemma-2b"], "modl=gemma-2b: no such key (did you mean model, method or "
         "model.path?)"),
        (["+sweep=table3_lora"], "+sweep=table3_lora: a sweep is a grid, and needs -m"),
        (["--cfg", "job", "+sweep=table3"], "+sweep=table3: a sweep is a grid, and needs -m"),
        (["-m", "+sweep=table3_foo"], "+sweep=table3_foo: no such sweep (did you mean "
         "table3_lora, table3 or table5_lora?); known: merging_table6, merging_tiny, "
         "merging_tiny_table6, table10, table11, table3, table4, table5, tiny_table10, "
         "tiny_table11, tiny_table3, tiny_table4, tiny_table5"),
        (["plan", "--jsn"], "--jsn: plan knows no option but --json"),
        (
            ["--cfg", "x"],
            "argument --cfg/-c: invalid choice: 'x' (choose from 'job', 'hydra', 'all')",
        ),
        (["--cfg", "job", "foo=1"], "foo=1: no such key (did you mean force?)"),
        (["--cfg", "job", "seed"], "seed: not of the form key=value"),
        (["--config-dir", "/x"], "--config-dir: this option of Hydra's is not supported"),
        (
            ["-sc", "x"],
            "--shell-completion: needs install=, uninstall= or query= and a shell's name",
        ),
        (["-m", "seed=glob(*)"], "-m: the values given make no job at all"),
        (
            ["-m", "hydra/sweeper=x"],
            "hydra/sweeper=x: no sweeper of Hydra's is used; write a grid as key=value,value",
        ),
        (
            ["model=gemma-2b", "model.dtype=float16"],
            "model.dtype=float16: must be auto, float32 or bfloat16 "
            "(did you mean bfloat16 or float32?)",
        ),
        (
            ["task.dev.examples=9999999"],
            "task.dev.examples=9999999: split train has only 2300 rows, and some must be left",
        ),
    ],
)  # fmt: skip
def test_wrong_input_gives_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    code, out, err = call(capsys, *arguments)
    assert (code, out, err) == (2, "", [f"sparta-bench: {line}"])


def test_all_faults_come_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "seed=x", "method.density=2", "train.epochs=-1")
    assert (code, out, len(err)) == (2, "", 3)


# ------------------------------------------------------------------------------------- runs
def test_a_run_prints_one_line_and_leaves_a_record(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = call(capsys, *QUICK, *folders(tmp_path))
    assert code == 0
    assert err[0] == f"{NAME}, seed 0"  # no heading and no number, as a grid has
    (record,) = records(tmp_path)
    assert record["status"] == "completed"
    (line,) = out.splitlines()
    assert line.startswith(f"{NAME}, seed 0: ")
    assert line.endswith(f"{record['run_id']}/result.json")
    code, again, _ = call(capsys, *QUICK, *folders(tmp_path))
    assert code == 0 and "there already" in again


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
        capsys, "-m", "task.train_split=nope,train", "seed=0", *QUICK, *folders(tmp_path)
    )
    assert code == 2
    assert len(out.splitlines()) == len(records(tmp_path)) == 1
    fault = "split nope: task tiny-sst2 has only train or validation"
    assert err[0].startswith(
        "sparta-bench: 2 runs: 0 done, 1 to go, 1 cannot run; time left unknown"
    )
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
    assert len(lines) <= 40 and "hub_id" not in out  # the composed settings are `--cfg job`'s


def test_help_and_the_readme_know_the_same_commands(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^sparta-bench ([a-z]+)(?![a-z=])", readme, re.MULTILINE)
    assert set(named) == set(COMMANDS)


def test_plan_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "plan", "--help")
    assert (code, err) == (0, []) and out.startswith("usage: sparta-bench plan [--json]")


# ----------------------------------------------------------------------- as its own process
def process(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "datasets", "peft", "accelerate"):
    sys.modules[name] = None  # importing it raises
from sparta_bench.cli.main import main
sys.argv = ["sparta-bench", *sys.argv[1:]]
sys.exit(main())
"""


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
    tmp_path: Path, arguments: list[str], shown: str
) -> None:
    line = "sparta-bench method=s"
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        cwd=tmp_path,
        env=os.environ | {"COMP_LINE": line, "COMP_POINT": str(len(line))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert shown in done.stdout
    assert time.perf_counter() - started < 10  # about one second where nothing else runs


def test_a_wrong_word_needs_no_torch_and_shows_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "train=x", "seed=-1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "sparta-bench: train=x: no such train; known: default\n"
        "sparta-bench: seed=-1: must be a whole number from 0 to 2^63 - 1\n"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["predict", "no/where", "x"], "no/where: there is no such folder"),
        (["evaluate", "no/where"], "no/where: there is no such folder"),
        (["evaluate", "no/where", "task=tiny-rte", "--json"], "no/where: there is no such folder"),
        (["merge", "bake", "no/where", "--out", "x"], "no/where: there is no such folder"),
        (["merge", "multi-head", "{tmp}", "no/where", "--out", "x"],
         "no/where: there is no such folder"),
        (["merge", "overlap", "no/where", "{tmp}"], "no/where: there is no such folder"),
        (["ranks", "tiny-gema", "tiny-gemma"],
         "tiny-gema: neither a file, a folder, nor a model of conf/model (did you mean "
         "tiny-gemma, tiny-gemma-it or tiny-mistral?)"),
        (["ranks", "tiny-gemma", "tiny-gemma-it", "./no"], "./no: there is no such file or folder"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_there_needs_no_torch(
    tmp_path: Path, arguments: list[str], line: str
) -> None:
    words = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"sparta-bench: {line}\n")


WITHOUT_TRANSFORMERS = WITHOUT_TORCH.replace('"torch", ', "").replace(', "accelerate"', "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["device=cuda"], "device=cuda"),
        (["-m", "device=cuda", "seed=0,1"], "device=cuda"),
        (["predict", ".", "--device", "cuda", "x"], "predict: --device cuda"),
        (["evaluate", ".", "--device", "cuda"], "evaluate: --device cuda"),
    ],
)
def test_a_device_that_is_not_there_is_told_before_transformers_comes(
    tmp_path: Path, arguments: list[str], line: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRANSFORMERS, *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    told = f"sparta-bench: {line}: torch sees no CUDA device here; use cpu or auto\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_is_code_130_and_leaves_a_record(
    tmp_path: Path, number: signal.Signals
) -> None:
    arguments = ["train.epochs=1000", "train.eval_every=1", *folders(tmp_path)]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, **pipes) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("step 2/"):
                break
        running.send_signal(number)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert out == "" and "Traceback" not in err
    assert err.splitlines()[-1] == "sparta-bench: interrupted"
    (record,) = records(tmp_path)
    assert (record["status"], record["test"]) == ("interrupted", None)
    assert record["training"]["steps"] >= 2
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_wheel_works_from_any_directory(tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run([*pip, *build], check=True, timeout=120, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    install = ["install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([*pip, *install], check=True, timeout=120, capture_output=True)

    where = "from sparta_bench.config.conf_folder import config_dir; print(config_dir())"
    told = subprocess.run(
        [sys.executable, "-c", where], cwd=elsewhere, env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout == f"{site}/sparta_bench/conf\n"
    shown = process("--help", cwd=elsewhere, PYTHONPATH=str(site))
    assert (shown.returncode, shown.stderr) == (0, "")
    planned = process("plan", "--json", "task=tiny-rte", cwd=elsewhere, PYTHONPATH=str(site))
    assert (planned.returncode, planned.stderr) == (0, "")
    assert json.loads(planned.stdout)["parameters"]["total"] > 200_000
    assert list(elsewhere.iterdir()) == []
