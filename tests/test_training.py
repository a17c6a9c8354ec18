"""The loop: its schedule, its scores, its stops, and that a resumed run ends the same."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.metrics import accuracy_score, log_loss, matthews_corrcoef
from test_methods import METHODS
from test_models import CPU, config_for, save_model

from sparta_bench.config.compose import compose
from sparta_bench.data.tokenize import Encoded
from sparta_bench.errors import TrainingError
from sparta_bench.methods import prepare
from sparta_bench.models.dtypes import DTYPES, Precision
from sparta_bench.models.load import load_classifier
from sparta_bench.training import loop
from sparta_bench.training import progress as progress_module
from sparta_bench.training.checkpoint import Checkpoint
from sparta_bench.training.evaluation import score
from sparta_bench.training.loop import Training, never_trained
from sparta_bench.training.optimizer import learning_rate_at
from sparta_bench.training.progress import ProgressReporter, watched
from sparta_bench.training.steps import plan_steps


class Silent:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.evaluations: list[int] = []
        self.warnings: list[str] = []

    def step(self, step: int, loss: float) -> None: ...

    def evaluated(self, step: int, scores: Any, best: bool) -> None:
        self.evaluations.append(step)

    def evaluating(self, what: str) -> Any:
        return iter

    def resumed(self, step: int) -> None:
        self.from_step = step

    def warn(self, line: str) -> None:
        self.warnings.append(line)


def examples(count: int, seed: int = 0) -> Encoded:
    """Random tokens whose label is whether token 5 is among them."""
    draw = np.random.default_rng(seed)
    ids = [draw.integers(6, 60, draw.integers(2, 9)).astype(np.int32) for _ in range(count)]
    labels = [int(row % 2) for row in range(count)]
    for row, label in zip(ids, labels, strict=True):
        row[-1] = 5 if label else 4
    return Encoded(ids, labels)


def training(
    tmp_path: Path,
    word_tokenizer: Any,
    *overrides: str,
    method: str = "sparta",
    checkpoint: Path | None = None,
    train: Encoded | None = None,
    dev: Encoded | None = None,
) -> Training:
    folder = tmp_path / "model"
    if not folder.exists():
        save_model(folder)
    settings = ["train.learning_rate=1e-2", "train.batch_size=8", "train.epochs=3"]
    config = config_for(folder, *METHODS[method], *settings, *overrides)
    precision = Precision(torch.float32, DTYPES[config.train.trained_dtype])
    classifier = load_classifier(config, word_tokenizer, precision, CPU)
    trained = prepare(classifier, config, precision)
    sets = (train or examples(40), dev or examples(16, seed=1))
    accelerator = Accelerator(cpu=True)
    kept = None if checkpoint is None else Checkpoint(checkpoint, {"run_id": "", "versions": {}})
    return Training(accelerator, classifier, trained, *sets, config.train, config.seed, kept)


def test_scores_equal_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(50, 3)).astype(np.float32)
    labels = draw.integers(0, 3, 50)
    got = score(logits, labels)
    wide = logits.astype(np.float64)
    shares = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
    assert got["loss"] == pytest.approx(log_loss(labels, shares), rel=1e-12)
    for classes, count in ((2, 300), (3, 50), (3, 19_647), (2, 1)):  # bit for bit
        logits, labels = draw.normal(size=(count, classes)), draw.integers(0, classes, count)
        predicted = logits.argmax(axis=1)
        got = score(logits, labels)
        assert got["accuracy"] == accuracy_score(labels, predicted)
        assert got["mcc"] == (count > 1 and matthews_corrcoef(labels, predicted))
    assert set(got) == {"loss", "accuracy", "mcc"}
    assert score(np.array([[3.0, 0.0]] * 4), np.array([0, 1, 0, 1]))["mcc"] == 0.0
    assert score(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 0]))["mcc"] == -1.0


def test_the_rate_rises_and_falls_to_the_floor() -> None:
    train = compose(
        ["train.learning_rate=1", "train.warmup_ratio=0.1", "train.floor_ratio=0.2"]
    ).train
    rates = [learning_rate_at(step, 100, train) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1.0
    assert rates[99] == pytest.approx(0.2)
    assert np.diff(rates[10:]) == pytest.approx([-0.8 / 89] * 89)
    constant = dataclasses.replace(train, schedule="constant")
    assert [learning_rate_at(step, 100, constant) for step in (10, 50, 99)] == [1.0, 1.0, 1.0]


def test_steps_are_counted_by_batches() -> None:
    train = compose(["train.batch_size=8", "train.epochs=2.5"]).train
    plan = plan_steps(41, train)
    assert (plan.steps_per_epoch, plan.steps, plan.eval_every) == (6, 15, 2)
    assert plan_steps(41, dataclasses.replace(train, max_steps=4)).steps == 4
    assert plan_steps(41, dataclasses.replace(train, eval_every=5)).eval_every == 5


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_ends_with_its_best_state(
    tmp_path: Path, word_tokenizer: Any, method: str
) -> None:
    run = training(
        tmp_path,
        word_tokenizer,
        "train.epochs=6",
        "train.eval_every=3",
        "train.patience=0",
        method=method,
    )
    reporter = Silent()
    progress = run.train(reporter)
    assert reporter.evaluations == [0, *range(3, 31, 3)]
    assert [entry["step"] for entry in progress.history] == reporter.evaluations
    assert progress.examples == 6 * 40
    losses = {entry["step"]: entry["dev_loss"] for entry in progress.history}
    assert progress.best_loss == min(loss for step, loss in losses.items() if step)
    assert losses[progress.best_step] == progress.best_loss < losses[0]
    # the state that is left is the best one, not the last one
    assert run.evaluate(run.dev_set)["loss"] == pytest.approx(progress.best_loss, rel=1e-6)


def test_the_train_loss_is_a_mean_over_examples(tmp_path: Path, word_tokenizer: Any) -> None:
    overrides = ["train.eval_every=6", "train.epochs=1", "train.learning_rate=1e-12"]
    run = training(tmp_path, word_tokenizer, *overrides, train=examples(41))
    expected = run.evaluate(run.train_set)["loss"]
    progress = run.train(Silent())
    # 41 examples in batches of 8: averaging over batches would weigh the last example eightfold
    assert progress.history[-1]["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_parts_of_a_batch_give_the_batchs_result(tmp_path: Path, word_tokenizer: Any) -> None:
    whole = training(tmp_path, word_tokenizer, train=examples(41)).train(Silent())
    parts = training(
        tmp_path, word_tokenizer, "train.accumulation_steps=3", train=examples(41)
    ).train(Silent())
    for one, other in zip(whole.history, parts.history, strict=True):
        assert one["dev_loss"] == pytest.approx(other["dev_loss"], rel=1e-4)


def test_it_stops_when_the_dev_loss_no_longer_falls(tmp_path: Path, word_tokenizer: Any) -> None:
    contrary = examples(16, seed=1)
    contrary.labels = [1 - label for label in contrary.labels]
    overrides = ["train.patience=3", "train.eval_every=2", "train.epochs=20"]
    run = training(tmp_path, word_tokenizer, *overrides, dev=contrary)
    progress = run.train(Silent())
    assert progress.stopped_early
    assert progress.step == progress.best_step + 6 < run.plan.steps
    assert run.evaluate(contrary)["loss"] == pytest.approx(progress.best_loss, rel=1e-6)


def test_a_gain_below_the_least_improvement_does_not_count(
    tmp_path: Path, word_tokenizer: Any
) -> None:
    overrides = ["train.patience=2", "train.eval_every=1", "train.min_improvement=100"]
    progress = training(tmp_path, word_tokenizer, *overrides).train(Silent())
    # the first evaluation after a step always counts; the next two gain less than 100 nats
    assert (progress.step, progress.stopped_early) == (3, True)


def test_clipping_bounds_the_gradient_of_all_values_together(
    tmp_path: Path, word_tokenizer: Any
) -> None:
    run = training(tmp_path, word_tokenizer, "train.max_grad_norm=1e-3", method="lora")
    seen = []
    step = run.optimizer.step

    def look(*args: Any) -> None:
        grads = [v.grad for v in run.trained.values.values() if v.grad is not None]
        seen.append(float(torch.stack([grad.norm() for grad in grads]).norm()))
        step(*args)

    run.optimizer.step = look  # type: ignore[method-assign]
    run.train(Silent())
    assert max(seen) <= 1e-3 * 1.001
    assert len(seen) == 15


def test_a_rate_that_is_too_high_ends_with_step_and_cause(
    tmp_path: Path, word_tokenizer: Any
) -> None:
    run = training(tmp_path, word_tokenizer, "train.learning_rate=1e30", method="full_ft")
    with pytest.raises(TrainingError, match=r"loss is (nan|inf) .*step \d+: the learning rate of"):
        run.train(Silent())


def test_a_broken_base_model_is_named(tmp_path: Path, word_tokenizer: Any) -> None:
    run = training(tmp_path, word_tokenizer)
    with torch.no_grad():
        run.classifier.backbone.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(TrainingError, match=r"dev loss is nan after step 0: .*layers\.1\.mlp\.up"):
        run.train(Silent())


@pytest.mark.parametrize("every", [None, 7, 1])
def test_checkpoints_do_not_change_what_a_step_is_said_to_take(
    tmp_path: Path, word_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, every: int | None
) -> None:
    """A clock that a step moves by 1 s, an evaluation by 100 and a checkpoint by 10,000."""
    clock = [0.0]

    def takes(seconds: float, work: Any) -> Any:
        def timed(*arguments: Any) -> Any:
            clock[0] += seconds
            return work(*arguments)

        return timed

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(Training, "_step", takes(1, Training._step))
    monkeypatch.setattr(loop, "evaluate", takes(100, loop.evaluate))
    monkeypatch.setattr(Checkpoint, "save", takes(10_000, Checkpoint.save))
    settings = ["train.eval_every=12", f"train.checkpoint_every={every or 'null'}"]
    path = tmp_path / "checkpoint.safetensors"
    run = training(tmp_path, word_tokenizer, *settings, checkpoint=path)
    progress = run.train(Silent())
    assert (progress.step, progress.examples) == (15, 120)
    assert progress.train_seconds == 15
    assert progress.evaluation_seconds == 300  # before, after step 12 and at the end
    assert clock[0] == 315 + 10_000 * (0 if every is None else 15 // every)
    if every == 7:  # what a resumed run goes on from
        found = Checkpoint(path, {"run_id": "", "versions": {}}).load()
        assert isinstance(found, tuple)
        assert (found[0]["step"], found[0]["train_seconds"]) == (14, 14)


@pytest.mark.parametrize("method", ["sparta", "full_ft"])
def test_a_value_without_gradient_is_refused_at_the_first_step(
    tmp_path: Path, word_tokenizer: Any, method: str
) -> None:
    run = training(tmp_path, word_tokenizer, method=method)
    run.trained.values["layers.1.dt_proj.weight"] = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(
        TrainingError, match=r"layers\.1\.dt_proj\.weight got no gradient"
    ) as caught:
        run.train(Silent())
    assert str(caught.value).count("\n") == 0
    assert (run.progress.step, run.progress.examples) == (0, 0)


def test_an_expert_that_no_token_chose_is_not_refused() -> None:
    name = "layers.{}.mlp.experts.{}.w1.weight"
    chosen = {name.format(0, 0): False, name.format(0, 1): True, "layers.0.mlp.gate.weight": True}
    assert never_trained(chosen) == []
    # nobody chooses from the experts of this layer, and this layer is no expert
    idle = {name.format(1, 0): False, name.format(1, 1): False, "layers.2.dt_proj.weight": False}
    assert never_trained(chosen | idle) == list(idle)


class CutError(Exception):
    """Stands for a power cut."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_ends_bit_for_bit_as_one_that_was_not_cut(
    tmp_path: Path,
    word_tokenizer: Any,
    method: str,
    dtype: str,
) -> None:
    overrides = [
        "train.dropout=0.2",
        "train.checkpoint_every=2",
        "train.eval_every=3",
        f"train.trained_dtype={dtype}",
    ]
    if method == "full_ft" and dtype == "bfloat16":
        overrides.append("train.learning_rate=1e-3")

    def start(checkpoint: Path) -> Training:
        return training(tmp_path, word_tokenizer, *overrides, method=method, checkpoint=checkpoint)

    whole = start(tmp_path / "whole.safetensors")
    expected = whole.train(Silent())

    def cut_at_seven(step: int) -> None:
        if step == 7:
            raise CutError

    path = tmp_path / "cut.safetensors"
    with pytest.raises(CutError):
        start(path).train(Silent(), after_step=cut_at_seven)
    resumed = start(path)
    reporter = Silent()
    progress = resumed.train(reporter)
    assert (reporter.from_step, reporter.evaluations) == (6, [9, 12, 15])
    assert progress.history == expected.history
    assert progress.best_step == expected.best_step
    for name, value in whole.trained.values.items():
        assert torch.equal(value, resumed.trained.values[name]), name
    assert resumed.evaluate(resumed.dev_set) == whole.evaluate(whole.dev_set)


def test_a_checkpoint_cut_short_is_no_checkpoint(tmp_path: Path, word_tokenizer: Any) -> None:
    path = tmp_path / "checkpoint.safetensors"
    training(tmp_path, word_tokenizer, "train.checkpoint_every=2", checkpoint=path).train(Silent())
    path.write_bytes(path.read_bytes()[:1000])
    reporter = Silent()
    training(tmp_path, word_tokenizer, checkpoint=path).train(reporter)
    assert reporter.evaluations[0] == 0
    (line,) = reporter.warnings
    assert line == f"{path}: cannot be read, or is not as it was written; the run begins anew"


def _two_train(rank: int, port: int, folder: str, tokenizer: Any) -> None:
    """One of two processes that train by every method: writes the hash of all trained values after
    each step, and the seed of the random numbers that each forward pass of a training draws."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    found = {}
    overrides = ["train.learning_rate=1e-3", "train.max_steps=3", "train.dropout=0.2"]
    for method in METHODS:
        run = training(
            Path(folder), tokenizer, *overrides, "train.trained_dtype=bfloat16", method=method
        )
        hashes: list[str] = []
        seeds: list[int] = []

        def keep_hash(step: int, run: Training = run, hashes: list[str] = hashes) -> None:
            state = sha256()
            for value in run.trained.values.values():
                state.update(value.detach().view(torch.int16).numpy().tobytes())
            hashes.append(state.hexdigest())

        def keep_seed(model: torch.nn.Module, *_: Any, seeds: list[int] = seeds) -> None:
            if model.training:
                seeds.append(torch.initial_seed())

        run.classifier.register_forward_hook(keep_seed)
        run.train(Silent(), after_step=keep_hash)
        found[method] = {"hashes": hashes, "seeds": seeds}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_that_round_stochastically_train_the_same_values(
    tmp_path: Path, word_tokenizer: Any
) -> None:
    save_model(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (port, str(tmp_path), word_tokenizer)
    torch.multiprocessing.spawn(_two_train, arguments, nprocs=2)
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one.keys() == METHODS.keys()
    for method in METHODS:
        assert one[method]["hashes"] == two[method]["hashes"], method
        assert len(set(one[method]["hashes"])) == 3
        # dropout is drawn by process: their examples are not the same
        assert len({*one[method]["seeds"], *two[method]["seeds"]}) == 6


def test_golden_losses(tmp_path: Path, word_tokenizer: Any) -> None:
    """Numbers of one seed, so that a change of the protocol is seen. They may only change
    together with `PROTOCOL` in records/record.py."""
    got = {}
    for method in METHODS:
        progress = training(tmp_path, word_tokenizer, method=method).train(Silent())
        got[method] = [entry["dev_loss"] for entry in progress.history[-2:]]
    # another processor's arithmetic may differ in the last digits
    assert got == {name: pytest.approx(two, abs=2e-4) for name, two in GOLDEN_LOSSES.items()}


GOLDEN_LOSSES = {
    "head": [0.2867, 0.2838],
    "full_ft": [0.0987, 0.0963],
    "lora": [0.2144, 0.2111],
    "sparta": [0.1171, 0.1141],
}


def test_without_a_terminal_no_empty_line_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    batches, heading = [[0, 1], [2]], ", once for all epochs"
    assert list(watched(batches, "features", speaks=True, heading=heading)) == batches
    assert list(watched(batches, "dev", speaks=True)) == batches  # which takes no time
    with ProgressReporter(steps=2) as reporter:
        reporter.step(1, loss=0.5)
        reporter.warn("a warning")
    lines = ["features: 3 examples, once for all epochs", "sparta-bench: a warning"]
    assert capsys.readouterr() == ("", "".join(f"{line}\n" for line in lines))


def test_without_a_terminal_a_line_comes_each_half_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    with ProgressReporter(steps=100) as reporter:
        reporter.resumed(20)
        for step in range(21, 26):
            clock[0] += 10
            reporter.step(step, loss=0.5)
        for _ in reporter.evaluating("dev")([[0, 1], [2], [3], [4]]):
            clock[0] += 8
    assert capsys.readouterr().err.splitlines() == [
        "sparta-bench: goes on from step 20 of 100, where its checkpoint is",
        "step 23/100  loss 0.500  30 s, at most 770 s left",
        "dev: 3/5 examples  16 s, about 11 s left",
    ]
