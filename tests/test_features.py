"""Head-only runs read the backbone's features once: the same numbers, from a cache or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from quick import FEW_ROWS
from safetensors.torch import load_file, save_file
from small_models import SMALL
from test_models import CPU, FLOAT32, config_for, save_model
from test_training import Silent, examples
from transformers import AutoConfig, AutoModel

import sparta_bench.runs.experiment as experiment
from sparta_bench.config.compose import compose
from sparta_bench.data.tokenize import Encoded, evaluation_batches
from sparta_bench.methods import prepare
from sparta_bench.models import features
from sparta_bench.models.classifier import Classifier, random_head
from sparta_bench.models.dtypes import Precision
from sparta_bench.models.features import FeatureClassifier, cached_features, features_key
from sparta_bench.models.load import load_classifier
from sparta_bench.runs.run import run
from sparta_bench.training.loop import Training

BFLOAT16 = Precision(torch.bfloat16, torch.bfloat16)


@pytest.fixture
def classifier(tmp_path: Path, word_tokenizer: Any) -> Classifier:
    return load_classifier(config_for(save_model(tmp_path / "m")), word_tokenizer, FLOAT32, CPU)


def feature_set(classifier: Classifier, data: Encoded, path: Path) -> features.FeatureSet:
    batches = evaluation_batches(data.lengths(), 16)
    return cached_features(Accelerator(cpu=True), classifier, data, batches, path)


def assert_near(history: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """All figures of all evaluations, to rounding."""
    assert history[0].pop("train_loss") is expected[0].pop("train_loss") is None
    for one, other in zip(history, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


# ---------------------------------------------------------------------------------- the numbers
@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16, Precision(torch.bfloat16, torch.float32)])
def test_features_are_what_the_head_reads(
    tmp_path: Path, word_tokenizer: Any, precision: Precision
) -> None:
    config = config_for(save_model(tmp_path / "model"))
    classifier = load_classifier(config, word_tokenizer, precision, CPU)
    data = examples(40)
    found = feature_set(classifier, data, tmp_path / "features.safetensors")
    assert (found.features.shape, found.features.dtype) == ((40, 16), torch.float32)
    assert (len(found), found.lengths(), found.labels) == (40, data.lengths(), data.labels)
    on_features = FeatureClassifier(classifier.head)
    for rows in evaluation_batches(data.lengths(), 16):
        ours, plain = found.collate(rows), data.collate(rows)
        assert torch.equal(ours.pop("labels"), plain.pop("labels"))
        assert torch.equal(on_features(**ours), classifier.eval()(**plain))


@pytest.mark.parametrize("extra", [[], ["train.accumulation_steps=3"], ["train.bucket_batches=0"]])
def test_the_history_is_the_ordinary_paths(
    tmp_path: Path, word_tokenizer: Any, extra: list[str]
) -> None:
    settings = ["train.learning_rate=1e-2", "train.batch_size=8", "train.epochs=4", *extra]
    settings += ["method=head", "train.dropout=0"]
    config = config_for(save_model(tmp_path / "model"), *settings)

    def trained_on(use: bool) -> tuple[Training, dict[str, float]]:
        classifier = load_classifier(config, word_tokenizer, FLOAT32, CPU)
        sets: list[Any] = [examples(60), examples(20, seed=1), examples(20, seed=2)]
        model: Any = classifier
        trained = prepare(classifier, config, FLOAT32)
        if use:
            model = FeatureClassifier(classifier.head)
            paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
            sets = [feature_set(classifier, *pair) for pair in zip(sets, paths, strict=True)]
        loop = Training(Accelerator(cpu=True), model, trained, *sets[:2], config.train, config.seed)
        loop.train(Silent())
        return loop, loop.evaluate(sets[2])

    (ours, our_scores), (plain, plain_scores) = trained_on(True), trained_on(False)
    assert len(ours.progress.history) == 17
    assert_near(ours.progress.history, plain.progress.history)
    assert ours.progress.best_step == plain.progress.best_step
    assert (ours.progress.tokens, ours.progress.examples) == (plain.progress.tokens, 240)
    assert our_scores == pytest.approx(plain_scores, rel=1e-5)
    for name, value in plain.trained.values.items():
        torch.testing.assert_close(ours.trained.values[name], value, rtol=1e-5, atol=1e-7)


def test_the_processes_shares_add_up(tmp_path: Path, classifier: Classifier) -> None:
    data = examples(50)
    batches = evaluation_batches(data.lengths(), 8)

    def share(rank: int, world: int) -> torch.Tensor:
        place = {"process_index": rank, "num_processes": world, "device": CPU}
        alone: Any = SimpleNamespace(**place, reduce=lambda tensor, _: tensor)
        return features._compute(alone, classifier, data, batches)

    shares = [share(rank, 3) for rank in range(3)]
    assert torch.equal(sum(shares, torch.zeros(())), share(0, 1))
    assert all((part == 0).all(dim=1).any() for part in shares)


def test_all_processes_compute_where_one_lacks_the_file(
    tmp_path: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "features.safetensors"
    expected = feature_set(classifier, examples(20), path).features
    calls = count_computing(monkeypatch)
    place = {"process_index": 0, "num_processes": 2, "device": CPU, "is_main_process": True}
    for here, calls_then in ((True, [20]), (False, [20, 20])):
        if not here:
            path.unlink()
        asked: list[float] = []

        def lacks_it(tensor: torch.Tensor, _: str, asked: list[float] = asked) -> torch.Tensor:
            asked.append(tensor.numel())
            return tensor  # as if the other process had added nothing

        two: Any = SimpleNamespace(**place, reduce=lacks_it)
        batches = evaluation_batches(examples(20).lengths(), 16)
        found = cached_features(two, classifier, examples(20), batches, path).features
        assert asked == [1, expected.numel()]  # the same questions, whoever has the file
        assert calls == calls_then
        assert torch.equal(found[batches[0]], expected[batches[0]])


# --------------------------------------------------------------------------- random backbones
@pytest.mark.parametrize(
    ("model_type", "extra", "expected"),
    [
        ("mistral", {}, True),
        ("gemma", {}, True),
        ("mistral", {"attention_dropout": 0.1}, False),
        ("gpt2", {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}, True),
        ("gpt2", {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.1}, False),
    ],
)
def test_a_backbone_that_draws_random_numbers_is_found(
    model_type: str, extra: dict[str, Any], expected: bool
) -> None:
    torch.manual_seed(0)
    backbone = AutoModel.from_config(AutoConfig.for_model(model_type, **SMALL, **extra))
    hidden = backbone.config.hidden_size
    assert features.is_deterministic(Classifier(backbone, random_head(2, hidden, 0))) is expected


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_draws_nothing(tmp_path: Path, word_tokenizer: Any) -> None:
    config = config_for(save_model(tmp_path / "model"), "train.gradient_checkpointing=true")
    assert features.is_deterministic(load_classifier(config, word_tokenizer, FLOAT32, CPU))


# ------------------------------------------------------------------------------------ the file
def count_computing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the sets whose features are computed from now on."""
    calls: list[int] = []
    original = features._compute

    def counted(accelerator: Any, classifier: Any, data: Encoded, batches: Any) -> Any:
        calls.append(len(data))
        return original(accelerator, classifier, data, batches)

    monkeypatch.setattr(features, "_compute", counted)
    return calls


@pytest.mark.parametrize(
    "damage", ["none", "cut", "byte", "empty", "rows", "dtype", "name", "folder"]
)
def test_a_file_is_read_unless_it_is_damaged(
    tmp_path: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    path = tmp_path / "cache" / "features.safetensors"
    fresh = feature_set(classifier, examples(20), path).features
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "byte":  # a number, but another one
        raw = bytearray(path.read_bytes())
        raw[-10] ^= 1
        path.write_bytes(bytes(raw))
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "rows":
        save_file({"features": fresh[:19].clone()}, path)
    elif damage == "dtype":
        save_file({"features": fresh.double()}, path)
    elif damage == "name":
        save_file({"other": fresh}, path)
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    calls = count_computing(monkeypatch)
    assert torch.equal(feature_set(classifier, examples(20), path).features, fresh)
    assert calls == ([] if damage == "none" else [20])
    if damage != "folder":
        assert torch.equal(load_file(path)["features"], fresh)


def test_a_cache_that_cannot_be_written_does_no_harm(
    tmp_path: Path, classifier: Classifier
) -> None:
    expected = feature_set(classifier, examples(20), tmp_path / "features.safetensors").features
    file = tmp_path / "file"
    file.touch()
    found = feature_set(classifier, examples(20), file / "features.safetensors")
    assert torch.equal(found.features, expected)


def test_the_key_is_of_the_tokens_their_order_and_the_identity() -> None:
    data = examples(9)
    key = features_key({"base": "a"}, data)
    assert key == features_key({"base": "a"}, examples(9))
    assert key == features_key({"base": "a"}, Encoded(data.ids, [1] * 9))  # labels do not count
    one_other = [*data.ids[:-1], data.ids[-1] + 1]
    cut_elsewhere = np.split(np.concatenate(data.ids), [1, 2, 3, 4, 5, 6, 7, 8])
    for ids in (one_other, data.ids[::-1], data.ids[:-1], cut_elsewhere):
        assert features_key({"base": "a"}, Encoded(ids, [0] * len(ids))) != key
    assert features_key({"base": "b"}, data) != key


# ------------------------------------------------------------------------------------ whole runs
QUICK = ["method=head", *FEW_ROWS, "train.epochs=2", "train.batch_size=32"]
OUTCOME = ("dev", "test", "history")


@pytest.fixture
def quick(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`quick("seed=1", …)`: the record of a short head-only run below `tmp_path`."""

    def make(*overrides: str, cache: str = "cache") -> dict[str, Any]:
        places = [f"results_dir={tmp_path / 'results'}", f"cache_dir={tmp_path / cache}"]
        record, _, was_there = run(compose([*QUICK, *places, *overrides]))
        assert not was_there
        return record

    return make


def kept(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").glob("features-*.safetensors")}


def test_a_run_from_the_cache_is_the_run_without(
    quick: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_computing(monkeypatch)
    cold = quick()
    assert len(calls) == len(kept(tmp_path)) == 3
    warm = quick("force=true")
    assert len(calls) == 3
    assert [warm[key] for key in OUTCOME] == [cold[key] for key in OUTCOME]
    assert warm["training"]["features_seconds"] >= 0 < cold["training"]["features_seconds"]
    # another seed and rate from the first one's cache, and from none
    other = quick("seed=1", "train.learning_rate=1e-3")
    assert len(calls) == len(kept(tmp_path)) == 3
    alone = quick("seed=1", "train.learning_rate=1e-3", "force=true", cache="empty")
    assert len(calls) == 6
    assert [other[key] for key in OUTCOME] == [alone[key] for key in OUTCOME]
    assert other["history"] != cold["history"]


def test_a_run_ends_as_on_the_ordinary_path(
    quick: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = quick()
    monkeypatch.setattr(experiment, "is_deterministic", lambda _: False)
    plain = quick("force=true")
    assert plain["training"]["features_seconds"] is None
    assert_near(ours["history"], plain["history"])
    for key in ("dev", "test"):
        assert ours[key] == pytest.approx(plain[key], rel=1e-5)


@pytest.mark.parametrize("overrides", [["train.dropout=0.1"], ["method=lora", "train.dropout=0"]])
def test_where_features_would_not_do_they_are_not_used(
    quick: Callable[..., dict[str, Any]], tmp_path: Path, overrides: list[str]
) -> None:
    record = quick("train.max_steps=1", *overrides)
    assert record["status"] == "completed"
    assert record["training"]["features_seconds"] is None
    assert kept(tmp_path) == set()


def test_what_changes_the_features_changes_their_files(
    quick: Callable[..., dict[str, Any]], tmp_path: Path, word_tokenizer: Any
) -> None:
    folder = save_model(tmp_path / "model")
    word_tokenizer.save_pretrained(folder)
    local = ("model=local", f"model.path={folder}", "train.max_steps=1", "train.dropout=0")
    for harmless in ("seed=0", "seed=1", "train.learning_rate=1e-3", "device=cpu"):
        quick(*local, harmless, "force=true")
        assert len(kept(tmp_path)) == 3
    for telling, files in (
        ("task.max_train_examples=150", 1),  # dev and test are as they were
        ("model.kind=instruct", 3),  # asks with a prompt
        ("model.dtype=bfloat16", 3),
        ("train.trained_dtype=bfloat16", 3),
        ("train.eval_batch_size=7", 3),
        ("train.eval_tokens=100", 3),
        ("task.separator=sep_token", 3),
    ):
        before = kept(tmp_path)
        quick(*local, telling)
        assert len(kept(tmp_path) - before) == files, telling
    before = kept(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    quick(*local)
    assert len(kept(tmp_path) - before) == 3


def test_a_random_separator_is_not_shared_between_seeds(
    quick: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    settings = ("task=tiny-rte", "task.separator=sep_token", "train.max_steps=1")
    for seed in (0, 1):
        quick(*settings, f"seed={seed}")
        assert len(kept(tmp_path)) == 3 * (seed + 1)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("layers.1.mlp.up_proj.weight", 0, "the dev loss is nan after step 0"),
        ("embed_tokens.weight", 21, "the features are not finite"),  # of a token that is read
    ],
)
def test_a_broken_base_model_is_named_and_not_kept(
    quick: Callable[..., dict[str, Any]],
    tmp_path: Path,
    word_tokenizer: Any,
    name: str,
    row: int,
    message: str,
) -> None:
    folder = save_model(tmp_path / "model")
    word_tokenizer.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[f"model.{name}"][row, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    record = quick("model=local", f"model.path={folder}", "train.dropout=0")
    assert record["status"] == "failed"
    told = f"{message}: the base model holds values that are no numbers, in backbone.{name}"
    assert record["error"]["message"] == told
    assert kept(tmp_path) == set()


@pytest.mark.slow
def test_two_processes_compute_the_features_of_one(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    histories, found = [], []
    for name, start in (("one", []), ("two", launch), ("two", launch)):
        command = [sys.executable, *start, "-m", "sparta_bench.cli", *QUICK, "device=cpu"]
        command += [f"results_dir={tmp_path / name}", f"cache_dir={tmp_path / name}-cache"]
        done = subprocess.run(
            [*command, "force=true"], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        (path,) = (tmp_path / name).rglob("result.json")
        histories.append(json.loads(path.read_text())["history"])
        files = sorted((tmp_path / f"{name}-cache").glob("features-*.safetensors"))
        found.append({file.name: file.read_bytes() for file in files})
    assert len(found[0]) == 3 and found[1] == found[0]
    assert histories[2] == histories[1]  # from the cache
    assert_near(histories[1], histories[0])
