"""Runs in an experiment tracker: TensorBoard's files and trackio's database are read back."""

from __future__ import annotations

import json
import sqlite3
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forged_records import forge, write
from forks import Forks
from test_cli import call
from test_run import quick

from sparta_bench.config import rules
from sparta_bench.errors import InputError
from sparta_bench.records.record import METRICS
from sparta_bench.runs.assets import AssetCache
from sparta_bench.runs.run import identify, run
from sparta_bench.training.loop import Training
from sparta_bench.training.optimizer import learning_rate_at

Scalars = dict[str, list[tuple[int, float]]]
LONGER = ("train.max_steps=24", "train.eval_every=12")
tensorboard = pytest.mark.skipif(
    find_spec("tensorboard") is None, reason="the extra is not installed"
)


def read_back(folder: Path) -> tuple[Scalars, dict[str, Any]]:
    """Scalars by tag and hyper-parameters of a run, as TensorBoard sees them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    return scalars, {key: getattr(v, str(v.WhichOneof("kind"))) for key, v in values.items()}


def points(rows: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """What TensorBoard has of these rows: float32."""
    return [(row["step"], float(np.float32(row[key]))) for row in rows if row[key] is not None]


def of_record(record: dict[str, Any]) -> Scalars:
    """What a tracker has of a record, but the speed."""
    rows, end = record["history"], record["training"]["steps"]
    shown = {f"dev/{metric}": points(rows, f"dev_{metric}") for metric in METRICS}
    shown |= {"epoch": points(rows, "epoch"), "train/loss": points(rows, "train_loss")}
    shown["train/learning_rate"] = points(rows, "learning_rate")
    for part, split in (("best_dev", "dev"), ("test", "test")):
        for metric in METRICS:
            shown[f"{part}/{metric}"] = points([{"step": end, **record[split]}], metric)
    return shown


@tensorboard
def test_a_run_is_logged_as_its_record_has_it(tmp_path: Path) -> None:
    config = quick(tmp_path, *LONGER, "logger=tensorboard")
    record, path, _ = run(config)
    unlogged = identify(quick(tmp_path, *LONGER), AssetCache(), "cpu", 1)
    assert record["run_id"] == unlogged, "a logger changes no outcome"
    parts = path.relative_to(tmp_path / "results" / "runs").parent
    (file,) = (tmp_path / "results" / "tensorboard" / parts).iterdir()
    scalars, settings = read_back(file.parent)
    losses, speeds = scalars.pop("train/batch_loss"), scalars.pop("train/tokens_per_second")
    expected = of_record(record)
    rates = expected["train/learning_rate"]
    for step in (10, 22):  # the steps between evaluations at which losses are looked at
        rate = learning_rate_at(step - 1, 24, config.train)
        rates.append((step, float(np.float32(rate))))
    rates.sort()
    assert scalars == expected
    assert [step for step, _ in losses] == [10, 22]
    assert [step for step, _ in speeds] == [10, 12, 22, 24]
    assert all(value > 0 for _, value in losses + speeds)
    train = record["config"]["train"]
    assert settings["run_id"] == record["run_id"] and settings["method.density"] == 0.05
    assert settings["train.learning_rate"] == train["learning_rate"]
    assert settings["train.betas"] == "[0.9, 0.99]" and "train.max_steps" in settings
    assert "task.hub" not in settings, "what is null is left out"
    assert str(tmp_path).encode() not in file.read_bytes()


@tensorboard
def test_a_run_that_goes_on_is_logged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = quick(tmp_path, *LONGER, "logger=tensorboard", "train.checkpoint_every=14")
    save = Training._save_checkpoint

    def interrupted(training: Training, reporter: Any) -> None:
        save(training, reporter)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "_save_checkpoint", interrupted)
        run(config)
    record, path, _ = run(config)
    parts = path.relative_to(tmp_path / "results" / "runs").parent
    scalars, _ = read_back(tmp_path / "results" / "tensorboard" / parts)
    expected = of_record(record)
    assert {tag: scalars[tag] for tag in expected if tag != "train/learning_rate"} == {
        tag: values for tag, values in expected.items() if tag != "train/learning_rate"
    }


@tensorboard
def test_a_tracker_that_fails_ends_its_log_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from accelerate.tracking import TensorBoardTracker

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    config = quick(tmp_path, "logger=tensorboard")
    with monkeypatch.context() as patch, pytest.raises(InputError) as error:
        patch.setattr(TensorBoardTracker, "start", full)
        run(config)
    assert error.value.lines == ("logger=tensorboard: cannot be started: OSError: no space left",)
    monkeypatch.setattr(TensorBoardTracker, "log", full)
    capsys.readouterr()
    assert run(config)[0]["status"] == "completed"
    lines = [line for line in capsys.readouterr().err.splitlines() if "logger" in line]
    assert lines == [
        "sparta-bench: logger=tensorboard: no space left; the run goes on without its tracker"
    ]


def test_a_package_that_is_missing_is_named_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # a folder of that name, which wandb leaves where it runs, looks like a package to Python
    specs = {"wandb": ModuleSpec("wandb", None)}
    monkeypatch.setattr(rules, "find_spec", specs.get)
    for name in ("wandb", "tensorboard"):
        code, out, err = call(capsys, f"logger={name}")
        needs = f"needs a package that is not there: pip install 'sparta-bench[{name}]'"
        assert (code, out, err) == (2, "", [f"sparta-bench: logger={name}: {needs}"])
    code, out, err = call(capsys, "export", "tensorboard", str(tmp_path))
    assert (code, out, err) == (2, "", [f"sparta-bench: export tensorboard: {needs}"])


@tensorboard
def test_records_are_replayed_once(
    capsys: pytest.CaptureFixture[str], trained: Any, tmp_path: Path
) -> None:
    for method in ("sparta", "head"):
        record = trained(method)[1]
        write(tmp_path, record)
    write(tmp_path, forge(status="failed"))
    words = ["export", "tensorboard", str(tmp_path)]
    out = tmp_path / "tensorboard"
    left_out = ["sparta-bench: export: 1 record not of completed runs, or not readable"]
    assert call(capsys, *words) == (0, f"{out}: 2 runs added to tensorboard, 0 there already\n",
                                    left_out)  # fmt: skip
    parts = [record[key] for key in ("task", "model", "method", "run_id")]
    scalars, settings = read_back(out.joinpath(*parts))
    speed = record["training"]["tokens_per_second"]
    assert scalars.pop("train/tokens_per_second") == points([{"step": 4, "x": speed}], "x")
    assert scalars == of_record(record) and settings["run_id"] == record["run_id"]
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert call(capsys, *words) == (0, f"{out}: 0 runs added to tensorboard, 2 there already\n",
                                    left_out)  # fmt: skip
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files
    assert len(files) == 2


@tensorboard
def test_a_record_from_elsewhere_leads_to_no_other_folder(
    capsys: pytest.CaptureFixture[str], trained: Any, tmp_path: Path
) -> None:
    record = trained("head")[1]
    for changes in ({"model": ".."}, {"history": [{"step": "x"}]}):
        folder = tmp_path / next(iter(changes))
        write(folder, record)
        (path,) = folder.rglob("result.json")
        path.write_text(json.dumps({**record, **changes}), encoding="utf-8")
        code, out, (line,) = call(capsys, "export", "tensorboard", str(folder))
        assert (code, out) == (2, "") and line.startswith(f"sparta-bench: {path}: lacks a key")
        assert not list(folder.rglob("*tfevents*"))


@pytest.mark.skipif(find_spec("trackio") is None, reason="the extra is not installed")
def test_trackio_has_what_the_records_have_once(forks: Forks, trained: Any, tmp_path: Path) -> None:
    for method in ("sparta", "head"):
        record = trained(method)[1]
        write(tmp_path, record)
    out = tmp_path / "out"
    words = ["export", "trackio", str(tmp_path), "--out", str(out)]
    for line in (
        "2 runs added to trackio, 0 there already",
        "0 runs added to trackio, 2 there already",
    ):
        done = forks.call(*words)
        assert (done.code, done.out) == (0, f"{out}: {line}\n")
    database = sqlite3.connect(out / "sparta-bench.db")
    title = f"tiny-sst2 tiny-gemma head seed 0 {record['run_id']}"
    rows = database.execute(
        "SELECT step, metrics FROM metrics WHERE run_name = ? ORDER BY id", [title]
    )
    shown: Scalars = {}
    for step, metrics in rows:
        for name, value in json.loads(metrics).items():
            shown.setdefault(name, []).append((step, value))
    speed = record["training"]["tokens_per_second"]
    assert shown.pop("train/tokens_per_second") == [(4, speed)]
    single = {name: [(s, float(np.float32(v))) for s, v in steps] for name, steps in shown.items()}
    assert single == of_record(record)
    (text,) = database.execute("SELECT config FROM configs WHERE run_name = ?", [title]).fetchone()
    config = json.loads(text)
    assert (config["run_id"], config["seed"]) == (record["run_id"], 0)
    assert config["_Group"] == "tiny-sst2 tiny-gemma head" and config["_Username"] is None
    assert "allow_val_change" not in config
