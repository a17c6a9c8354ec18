"""YAML of the user's own beside ours: `--config-dir DIR`, for every command that composes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli import call

from sparta_bench.cli.main import main
from sparta_bench.config.compose import compose
from sparta_bench.config.conf_folder import choices, use_folders
from sparta_bench.config.sweeps import sweep_jobs
from sparta_bench.errors import InputError

QUICK_RUN = ["train.max_steps=2", "task.max_train_examples=64", "cache_dir=cache"]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    use_folders([])


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "it's my conf"
    for group in ("task", "model", "sweep"):
        (folder / group).mkdir(parents=True)
    (folder / "task" / "short.yaml").write_text(
        "defaults: [tiny-sst2, _self_]\nname: short\nmax_train_tokens: 40\n"
    )
    (folder / "model" / "small.yaml").write_text(
        "defaults: [_base, _self_]\nname: small\nkind: base\nshape:\n"
        "  {model_type: llama, vocab_size: 9, hidden_size: 8, num_hidden_layers: 1,\n"
        "   intermediate_size: 8, num_attention_heads: 1}\nhub_id: me/small\n"
    )
    (folder / "sweep" / "mine.yaml").write_text("task: short\nseed: [0, 1]\nmethods: {head: {}}\n")
    return folder


def test_its_tasks_models_and_sweeps_can_be_chosen(mine: Path) -> None:
    before = choices("task")
    use_folders([str(mine)])
    assert choices("task") == sorted([*before, "short"])
    config = compose(["task=short", "model=small"])
    assert (config.task.name, config.task.max_train_tokens) == ("short", 40)
    assert config.task.columns == ("sentence",)  # from the file that it builds on
    assert (config.model.name, config.model.hub_id) == ("small", "me/small")
    assert sweep_jobs(["+sweep=mine"]) == [
        ["task=short", f"seed={seed}", "method=head"] for seed in (0, 1)
    ]
    use_folders([])
    assert choices("task") == before


def test_what_is_no_folder_of_yaml_is_refused(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (mine / "task" / "sst2.yaml").write_text("name: sst2\n")
    for folder, end in (
        (tmp_path / "nope", "there is no such folder"),
        (
            tmp_path / "empty",
            "must hold folders with YAML: model, task, method, train, search or sweep",
        ),
        (mine, "task/sst2.yaml: there is a task of this name; call it otherwise"),
    ):
        with pytest.raises(InputError) as caught:
            use_folders([str(folder)])
        assert caught.value.lines == (f"--config-dir {folder}: {end}",)


def test_every_command_takes_it(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "plan", "--config-dir", str(mine), "--json", "task=short")
    assert (code, json.loads(out)["task"]) == (0, "short")
    code, out, _ = call(capsys, "--cfg", "job", f"--config-dir={mine}", "task=short")
    assert code == 0 and "max_train_tokens: 40" in out
    words = ["-m", "--config-dir", str(mine), "+sweep=mine", *QUICK_RUN]
    code, out, err = call(capsys, *words)
    assert (code, out.count("→")) == (0, 2), err
    (adapter, _) = sorted(tmp_path.glob("results/runs/short/tiny-gemma/head/*/adapter"))
    code, out, _ = call(capsys, "evaluate", str(adapter), "--config-dir", str(mine), "--json")
    assert (code, json.loads(out)[0]["task"]) == (0, "short")
    code, _, err = call(capsys, "task=short")  # is no part of the next command
    assert code == 2 and err[0].startswith("sparta-bench: task=short: no such task")
    assert main(["--config-dir"]) == 2
    assert capsys.readouterr().err == "sparta-bench: --config-dir: needs a folder\n"


@pytest.mark.slow
def test_runs_of_a_launcher_have_it(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-m", "--config-dir", str(mine), "+sweep=mine", *QUICK_RUN, "hydra/launcher=joblib"]
    code, _, err = call(capsys, *words, "hydra.launcher.n_jobs=1")
    assert code == 0, err
    assert len(list(tmp_path.glob("results/runs/short/tiny-gemma/head/*/result.json"))) == 2
