"""One command, one record: on the embedded models, a few steps each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quick import DEV, TEST, TRAIN
from quick import QUICK_RUN as QUICK
from safetensors.torch import load_file
from test_models import save_model

from sparta_bench import devices
from sparta_bench.config.compose import compose
from sparta_bench.devices import set_threads
from sparta_bench.errors import InputError
from sparta_bench.files import write_json
from sparta_bench.records.read import read_json, read_records
from sparta_bench.records.record import identity_of
from sparta_bench.runs.assets import AssetCache
from sparta_bench.runs.grid import attempt
from sparta_bench.runs.lock import CHECKPOINT
from sparta_bench.runs.run import advice, identify, name_of, run, run_folder, summary_line
from sparta_bench.tables.select import select
from sparta_bench.training import evaluation
from sparta_bench.training.loop import Training

RECORD_KEYS = {
    *("schema", "run_id", "status", "error", "model", "task", "method", "density", "seed"),
    *("config", "data", "parameters", "dev", "test", "training", "history", "environment"),
}


def quick(tmp_path: Path, *overrides: str) -> Any:
    places = [f"results_dir={tmp_path / 'results'}", f"cache_dir={tmp_path / 'cache'}"]
    return compose([*QUICK, *places, *overrides])


@pytest.fixture
def threads() -> Iterator[int]:
    """How many threads torch has here; they are given back."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_an_embedded_model_takes_one_thread_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    embedded = quick(tmp_path)
    other = replace(embedded, model=replace(embedded.model, embedded=False))
    monkeypatch.setattr(devices, "_threads_at_start", lambda: 2)
    set_threads(embedded)
    assert torch.get_num_threads() == threads  # OMP_NUM_THREADS is set here
    monkeypatch.delenv("OMP_NUM_THREADS")
    for config, expected in ((embedded, 1), (other, 2), (embedded, 1)):
        set_threads(config)
        assert torch.get_num_threads() == expected


@pytest.mark.parametrize("method", ["full_ft", "head", "lora", "sparta"])
def test_a_run_leaves_the_record_of_the_contract(tmp_path: Path, method: str) -> None:
    record, path, was_there = run(quick(tmp_path, f"method={method}"))
    assert not was_there
    on_disk = json.loads(path.read_text())
    assert on_disk == json.loads(json.dumps(record))
    assert set(on_disk) >= RECORD_KEYS
    assert (on_disk["status"], on_disk["error"]) == ("completed", None)
    relative = path.relative_to(tmp_path / "results")
    run_id = on_disk["run_id"]
    assert str(relative) == f"runs/tiny-sst2/tiny-gemma/{method}/{run_id}/result.json"
    assert on_disk["density"] == (0.05 if method == "sparta" else None)
    data = on_disk["data"]
    assert data["train"] + data["train_dropped"] == TRAIN
    assert (data["dev"], data["test"], data["max_train_tokens"]) == (DEV, TEST, 48)
    assert [entry["step"] for entry in on_disk["history"]] == [0, 2, 4]
    training = on_disk["training"]
    assert training["steps"] == 4 and training["best_step"] in (2, 4)
    assert training["peak_memory_bytes"] > 10**6
    assert training["deltas_lost_to_rounding"] == (0.0 if method == "sparta" else None)
    assert on_disk["environment"]["kernels"] is None  # on a CPU
    parameters = on_disk["parameters"]
    assert (parameters["total"], parameters["head"]) == (208_512, 128)
    assert (parameters["sampled"] is not None) == (method == "sparta")
    assert set(on_disk["dev"]) == set(on_disk["test"]) == {"loss", "accuracy", "mcc"}
    files = {str(file.relative_to(path.parent)) for file in path.parent.rglob("*.*")}
    small = {"adapter/adapter.safetensors", "adapter/adapter_config.json"}
    assert files == {"result.json"} | (set() if method == "full_ft" else small)
    assert str(tmp_path) not in path.read_text(), "a record names no path of the machine"


def test_the_adapter_holds_indices_and_deltas(tmp_path: Path) -> None:
    record, path, _ = run(quick(tmp_path))
    saved = load_file(path.parent / "adapter" / "adapter.safetensors")
    indices = {name: t for name, t in saved.items() if name.endswith(".indices")}
    assert {tensor.dtype for tensor in indices.values()} == {torch.int32}
    assert sum(len(tensor) for tensor in indices.values()) == record["parameters"]["sampled"]
    assert saved["head.weight"].shape == (2, 64)
    about = json.loads((path.parent / "adapter" / "adapter_config.json").read_text())
    assert (about["density"], about["seed"]) == (0.05, 0)
    assert about["labels"] == ["negative", "positive"]
    assert about["base_model"] == record["base_model"]


def test_the_whole_model_is_saved_when_asked_for(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    for method in ("full_ft", "lora", "sparta"):
        record, path, _ = run(quick(tmp_path, f"method={method}", "save=full"))
        folder = path.parent / "model"
        _, report = AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True
        )
        assert not any(report.values())
        assert load_file(folder / "model.safetensors")["score.weight"].shape == (2, 64)
        assert not (path.parent / "adapter").exists()
        assert record["status"] == "completed"


def test_a_completed_run_is_not_run_again_unless_forced(tmp_path: Path) -> None:
    first, path, _ = run(quick(tmp_path))
    stamp = path.stat().st_mtime_ns
    again, same, was_there = run(quick(tmp_path))
    assert was_there and same == path and path.stat().st_mtime_ns == stamp
    assert "there already" in summary_line(quick(tmp_path), again, same, was_there)
    forced, _, was_there = run(quick(tmp_path, "force=true"))
    assert not was_there and path.stat().st_mtime_ns > stamp
    for key in ("dev", "test", "history", "run_id"):
        assert forced[key] == first[key]


def test_a_forced_run_begins_at_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparta_bench.training.loop import Training

    original, steps = Training._step, []

    def counted(self: Any, rows: list[int], rate: float) -> Any:
        if len(steps) == 3:
            steps.clear()
            raise KeyboardInterrupt
        steps.append(self.progress.step)
        return original(self, rows, rate)

    monkeypatch.setattr(Training, "_step", counted)
    checkpoints = quick(tmp_path, "train.checkpoint_every=2", "method=head")
    with pytest.raises(KeyboardInterrupt):
        run(checkpoints)
    assert list(tmp_path.rglob(CHECKPOINT))
    monkeypatch.setattr(
        Training, "_step", lambda self, *rest: steps.append(1) or original(self, *rest)
    )
    run(replace(checkpoints, force=True))
    assert len(steps) == 4


def test_a_record_that_is_not_completed_does_not_count(tmp_path: Path) -> None:
    record, path, _ = run(quick(tmp_path))
    write_json(path, record | {"status": "failed"})
    assert not run(quick(tmp_path))[2]
    path.write_text(path.read_text()[:100])
    assert read_json(path.parent) is None
    assert not run(quick(tmp_path))[2]


DRAWS = ["method=full_ft", "train.dropout=0.1"]
DRAWS_NOT = ["method=full_ft", "train.dropout=0"]


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        (DRAWS, 3),
        (DRAWS_NOT, 1),
        (["method=lora", "train.dropout=0"], 3),  # its own dropout is 0.1
        (["method=lora", "train.dropout=0", "method.lora_dropout=0"], 1),
    ],
)
def test_the_run_id_is_of_the_number_of_processes_where_dropout_is_drawn(
    tmp_path: Path, settings: list[str], ids: int
) -> None:
    config, assets = quick(tmp_path, *settings), AssetCache()
    found = [identify(config, assets, "cpu", processes) for processes in (1, 2, 3)]
    assert len(set(found)) == ids
    # what stands in no run_id of one process changes none
    assert "processes" not in identity_of(config.as_dict(), 1)


def test_a_checkpoint_of_another_number_of_processes_is_told_and_not_gone_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*settings: str) -> list[str]:
        config = quick(tmp_path, *settings, "device=cpu", "save=none")
        folder = run_folder(config, identify(config, AssetCache(), "cpu", 2))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CHECKPOINT).write_text("of two processes")
        record, path, _ = run(config)
        assert record["environment"]["processes"] == 1
        assert [entry["step"] for entry in record["history"]] == [0, 2, 4]
        lines = capsys.readouterr().err.splitlines()
        assert (folder / CHECKPOINT).exists() == (path.parent != folder)
        return [line.replace(str(folder), "DIR") for line in lines if CHECKPOINT in line]

    assert told(*DRAWS) == [
        "sparta-bench: start 2 processes to go on from DIR/checkpoint.safetensors; random "
        "numbers are drawn by process (dropout, or sharded rows' rounding), so that with 1 this "
        "is another run, which begins anew"
    ]
    # without dropout it is the same run, and this file is no checkpoint
    (line,) = told(*DRAWS_NOT)
    assert line.endswith("cannot be read, or is not as it was written; the run begins anew")


def test_the_run_id_is_of_what_changes_the_outcome(tmp_path: Path) -> None:
    assets = AssetCache()

    def run_id(*overrides: str) -> str:
        return identify(quick(tmp_path, *overrides), assets, "cpu", 1)

    assert run(quick(tmp_path), assets)[0]["run_id"] == run_id()
    for harmless in ("train.checkpoint_every=100", "save=none", "device=cpu"):
        assert run_id(harmless) == run_id()
    for telling in ("seed=1", "train.dropout=0.1", "method.density=0.06"):
        assert run_id(telling) != run_id()


def test_a_run_that_fails_leaves_a_record_with_the_cause(tmp_path: Path) -> None:
    config = quick(tmp_path, "method=full_ft", "train.learning_rate=1e30")
    record, path, _ = run(config)
    on_disk = json.loads(path.read_text())
    assert on_disk["status"] == record["status"] == "failed"
    assert on_disk["error"]["type"] == "DivergedError"
    assert "the learning rate of" in on_disk["error"]["message"]
    assert "sparta_bench/training/loop.py:" in on_disk["error"]["traceback"]
    assert "/" not in {line[0] for line in on_disk["error"]["traceback"].splitlines()}
    assert on_disk["test"] is None
    assert summary_line(config, record, path, False).startswith("failed: ")


@pytest.mark.parametrize("setting", ["train.dropout=0.1", "model=tiny-gemma-it"])
def test_an_interrupted_run_leaves_what_it_had_found_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    config = quick(tmp_path, "train.checkpoint_every=2", setting)
    original = Training._step

    def interrupted(self: Any, rows: list[int], rate: float) -> Any:
        if self.progress.step == 3:
            raise KeyboardInterrupt
        return original(self, rows, rate)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "_step", interrupted)
        run(config)
    (path,) = tmp_path.rglob("result.json")
    cut_off = json.loads(path.read_text())
    assert (cut_off["status"], cut_off["error"], cut_off["test"]) == ("interrupted", None, None)
    assert [entry["step"] for entry in cut_off["history"]] == [0, 2]
    assert cut_off["training"]["steps"] == 3 and cut_off["parameters"]["trainable"] > 0
    assert "kernels" in cut_off["environment"] and cut_off["finished"] is not None
    resumed, _, was_there = run(config)
    assert not was_there and not (path.parent / CHECKPOINT).exists()
    whole, _, _ = run(replace(config, results_dir=str(tmp_path / "whole")))
    for key in ("dev", "test", "history", "run_id"):
        assert resumed[key] == whole[key]
    assert resumed.keys() == cut_off.keys() == json.loads(path.read_text()).keys()
    assert resumed == json.loads(path.read_text())


def test_what_was_trained_is_saved_before_test_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(tmp_path, "method=head")
    original = Training.evaluate

    def interrupted(self: Any, data: Any, *rest: Any) -> Any:
        if len(data) == TEST:
            raise KeyboardInterrupt
        return original(self, data, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "evaluate", interrupted)
        run(config)
    (path,) = tmp_path.rglob("result.json")
    cut_off, adapter = read_json(path.parent), path.parent / "adapter" / "adapter.safetensors"
    assert cut_off is not None and cut_off["test"] is None and cut_off["dev"]["loss"] > 0
    saved = adapter.read_bytes()
    completed, _, _ = run(config)
    assert (completed["dev"], adapter.read_bytes()) == (cut_off["dev"], saved)
    adapter.write_bytes(b"as it was")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "evaluate", interrupted)
        run(replace(config, force=True))
    # a result that is made again stays whole until there is another
    assert (read_json(path.parent), adapter.read_bytes()) == (completed, b"as it was")


def test_texts_that_the_model_was_not_made_for_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    for split in ("train", "validation"):
        rows = [{"sentence": f"whatever number {n}", "label": n % 2} for n in range(40)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = ["task=sst2", f"task.data_dir={folder}", "task.dev.examples=20"]
    steps = ["train.max_steps=1", "train.epochs=1", "method=head", f"results_dir={tmp_path}"]
    record, _, _ = run(compose([*own, *steps, f"cache_dir={tmp_path / 'cache'}"]))
    share = record["data"]["unknown_train_share"]
    assert share > 0.5
    assert (
        f"sparta-bench: {share:.0%} of the training tokens of sst2 are unknown to the tokenizer of "
        "tiny-gemma, which was made for other texts"
    ) in capsys.readouterr().err.splitlines()
    record, _, _ = run(quick(tmp_path))
    assert record["data"]["unknown_train_share"] == 0
    assert "unknown" not in capsys.readouterr().err


def test_a_lack_of_memory_is_told_with_what_to_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparta_bench.training import loop

    def too_much(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(loop.Training, "_step", too_much)
    record, _, _ = run(quick(tmp_path))
    message = record["error"]["message"]
    assert message.startswith("out of memory with train.batch_size=32 in 1 part(s); try a larger")


def test_a_folder_that_cannot_be_written_is_told_first(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(InputError, match="results_dir"):
        run(quick(tmp_path))


def test_instruction_twins_know_their_answers_before_training(tmp_path: Path) -> None:
    record, _, _ = run(quick(tmp_path, "model=tiny-gemma-it", "method=head"))
    assert record["history"][0]["dev_accuracy"] > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sparta", "lora", "full_ft", "head"])
def test_two_processes_give_the_losses_of_one(tmp_path: Path, method: str) -> None:
    settings = [*QUICK, f"method={method}", "train.dropout=0", "save=none", "model=tiny-gemma-it"]
    if method == "lora":
        settings.append("method.lora_dropout=0")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    histories, ids = [], set()
    for name, start in (("one", []), ("two", launch)):
        command = [sys.executable, *start, "-m", "sparta_bench.cli", *settings, "device=cpu"]
        command += [f"results_dir={tmp_path / name}", f"cache_dir={tmp_path / 'cache'}"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        (path,) = (tmp_path / name).rglob("result.json")
        record = json.loads(path.read_text())
        assert record["environment"]["processes"] == (1 if name == "one" else 2)
        assert record["environment"]["tokens_once"]["prefix_tokens"] == 19
        histories.append([entry["dev_loss"] for entry in record["history"]])
        ids.add(record["run_id"])
    assert histories[1] == pytest.approx(histories[0], rel=1e-5)
    assert len(ids) == 1  # nothing random is drawn


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    settings = ["train.checkpoint_every=5", "train.epochs=1", "train.dropout=0.1", "save=none"]
    command = [sys.executable, "-m", "sparta_bench.cli", *settings]
    command += [f"cache_dir={tmp_path / 'cache'}"]

    def start(name: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, f"results_dir={tmp_path / name}"], stderr=subprocess.PIPE, text=True
        )

    def record(name: str) -> dict[str, Any]:
        (path,) = (tmp_path / name).rglob("result.json")
        return dict(json.loads(path.read_text()))

    with start("whole") as whole:
        whole.communicate(timeout=300)
    assert whole.returncode == 0
    with start("cut") as cut:
        assert cut.stderr is not None
        for line in cut.stderr:
            if line.startswith("step 32/"):
                cut.kill()
                break
    assert list((tmp_path / "cut").rglob("checkpoint.safetensors"))
    assert not list((tmp_path / "cut").rglob("result.json"))
    with start("cut") as resumed:
        _, told = resumed.communicate(timeout=300)
    assert resumed.returncode == 0
    assert "step 0/" not in told and "step 48/" in told
    for key in ("dev", "test", "history", "run_id"):
        assert record("cut")[key] == record("whole")[key]


# --------------------------------------------------------------------------------- what to try
def losses(*values: Any) -> list[dict[str, Any]]:
    return [{"step": step, "dev_loss": value} for step, value in enumerate(values)]


def test_a_training_that_did_not_lower_the_dev_loss_says_what_to_try() -> None:
    assert advice(losses(0.7, 0.5, 0.6), 1e-4) == ()
    assert advice(losses(0.7, 0.7, 0.701), 1e-5) == (
        "dev loss has not fallen (from 0.7000 before training to 0.7010): try "
        "train.learning_rate=1.0e-04",
    )
    assert advice(losses(0.7, 0.8, 1.5), 1e-2) == (
        "dev loss has not fallen (from 0.7000 before training to 1.5000): try "
        "train.learning_rate=1.0e-03",
    )
    assert advice(losses(0.7, 0.5, 0.9), 3e-4) == (
        "dev loss ended above where it began (from 0.7000 before training to 0.9000; the scores "
        "are those of its lowest, 0.5000): try train.learning_rate=1.0e-04, or train.patience=3",
    )
    for unreadable in (None, [], losses(0.7), losses(0.7, None), [1, 2]):
        assert advice(unreadable, 1e-4) == ()


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (["method=sparta"], "sparta 5 %"),
        (["method=sparta", "method.pattern=rows"], "sparta by rows 5 %"),
        (["method=sparta_vo"], "sparta_vo 0.5 %"),
        (["method=lora", "method.r=4"], "lora r=4 on q_proj v_proj"),
    ],
)
def test_a_runs_line_names_the_method_as_its_record_does(
    method: list[str], name: str, tmp_path: Path
) -> None:
    config = quick(tmp_path, *method)
    assert name_of(config).startswith(f"{config.task.name} {config.model.name} {name}, rate ")


def test_a_guessed_rate_is_said_and_recorded(
    tmp_path: Path, word_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    word_tokenizer.save_pretrained(save_model(tmp_path / "mine"))
    config = quick(tmp_path, "model=local", f"model.path='{tmp_path / 'mine'}'")
    record, path, _ = run(config)
    assert record["guessed"] == {"train.learning_rate": config.train.learning_rate}
    said = f"train.learning_rate={config.train.learning_rate:g}: a guess from mine's size and"
    assert said in capsys.readouterr().err
    record["history"] = losses(0.7, 0.8)
    write_json(path, record)
    outcome, _ = attempt(config, AssetCache())
    assert outcome.advice == advice(losses(0.7, 0.8), config.train.learning_rate)
    assert outcome.line == summary_line(config, record, path, True)


# ------------------------------------------------------------------ evaluations, and a part of all
def test_without_the_first_evaluation_the_outcome_is_the_same(tmp_path: Path) -> None:
    with_it, _, _ = run(quick(tmp_path, "method=head"))
    without, _, was_there = run(quick(tmp_path / "other", "method=head", "train.eval_first=false"))
    assert not was_there
    for key in ("run_id", "dev", "test"):
        assert without[key] == with_it[key]
    assert without["history"] == with_it["history"][1:]
    assert advice(with_it["history"][:1] + losses(9.0), 1e-4) != ()
    assert advice(without["history"][:1] + losses(9.0), 1e-4) == ()


def test_runs_of_one_process_have_the_scores_before_training_in_common(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any method's are any other's, bit for bit; a head that is drawn has its seed's own."""
    original, evaluated = Training.evaluate, []

    def seen(training: Training, data: Any, watch: Any = iter) -> dict[str, float]:
        evaluated.append(training.progress.step)
        return original(training, data, watch)

    monkeypatch.setattr(Training, "evaluate", seen)
    assets, first, before = AssetCache(), [], []
    for method, seed in (("full_ft", 0), ("sparta", 0), ("lora", 0), ("lora", 1)):
        evaluated.clear()
        config = quick(tmp_path, f"method={method}", f"seed={seed}", "model.kind=base")
        history = run(config, assets)[0]["history"]
        first.append({key: value for key, value in history[0].items() if key.startswith("dev_")})
        before.append(evaluated.count(0))
        assert history[0]["step"] == 0
    assert before == [1, 0, 0, 1]
    assert first[0] == first[1] == first[2] != first[3]
    shutil.rmtree(tmp_path / "results")
    alone = run(quick(tmp_path, "method=lora", "model.kind=base"))[0]["history"][0]
    assert first[2].items() <= alone.items()


def test_fewer_tokens_at_once_give_the_same_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, sizes = evaluation.evaluation_batches, []

    def seen(lengths: list[int], *size: int) -> list[list[int]]:
        batches = original(lengths, *size)
        sizes.extend(len(rows) * lengths[rows[0]] for rows in batches)
        return batches

    monkeypatch.setattr(evaluation, "evaluation_batches", seen)
    record, _, _ = run(quick(tmp_path, "method=full_ft"))
    assert len(sizes) == 4 and max(sizes) > 200  # dev before training and twice within it, and test
    sizes.clear()
    same, _, _ = run(quick(tmp_path, "method=full_ft", "train.eval_tokens=200"))
    assert len(sizes) > 10 and max(sizes) <= 200 and same["run_id"] != record["run_id"]
    for split in ("dev", "test"):
        assert same[split]["loss"] == pytest.approx(record[split]["loss"], abs=1e-5)
        assert same[split]["accuracy"] == record[split]["accuracy"]


def test_a_limit_takes_some_of_each_set_and_is_recorded(tmp_path: Path) -> None:
    record, _, _ = run(quick(tmp_path, "method=head"))
    limited, path, _ = run(quick(tmp_path, "method=head", "limit=20"))
    data = limited["data"]
    assert [data["train"] + data["train_dropped"], data["dev"], data["test"]] == [20, 20, 20]
    assert limited["config"]["limit"] == 20 and limited["run_id"] != record["run_id"]
    assert all(min(counts.values()) >= 5 for counts in data["labels"].values())
    selection = select(read_records([tmp_path])[0])
    assert [run.path for run in selection.excluded] == [path]
    (chosen,) = selection.cells.values()
    assert [run.run_id for run in chosen.runs] == [record["run_id"]]
    assert identity_of(record["config"], 1).keys().isdisjoint({"limit"})
