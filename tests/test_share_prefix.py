"""`train.share_prefix` in a run: the same outcome, and what the record says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quick import QUICK_RUN

from sparta_bench.adapters.load_adapter import load
from sparta_bench.adapters.merging import Rule, multi_head_of
from sparta_bench.adapters.multi_head import MultiHead
from sparta_bench.config.compose import compose
from sparta_bench.data.examples import render
from sparta_bench.errors import InputError
from sparta_bench.inference.evaluate import evaluation_of
from sparta_bench.inference.predict import predict, predict_heads, ready
from sparta_bench.models import tokens_once
from sparta_bench.records.record import identity_of
from sparta_bench.runs.run import run

INSTRUCT = ("task=tiny-sst2", "model=tiny-gemma-it")
PREFIX = 19  # tokens of the prompt before the sentence
ALL = {"prefix_tokens": PREFIX, "last_layer": True, "in_training": True}


def with_sharing(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    folders = [f"results_dir={tmp_path / 'results'}", f"cache_dir={tmp_path / 'cache'}"]
    record, _, _ = run(compose([*QUICK_RUN, *folders, *overrides]))
    assert record["status"] == "completed", record["error"]
    return record


@pytest.mark.parametrize(
    ("method", "extra"),
    [
        ("sparta", ("train.accumulation_steps=2", "train.gradient_checkpointing=true")),
        ("full_ft", ("train.dropout=0",)),
        ("lora", ("train.dropout=0", "method.lora_dropout=0")),
        ("head", ("train.dropout=0",)),
    ],
)
def test_a_run_ends_as_without_sharing(
    tmp_path: Path, trained: Callable[..., Any], method: str, extra: tuple[str, ...]
) -> None:
    settings = (*INSTRUCT, *extra)
    _, plain, _ = trained(method, "train.share_prefix=false", *settings)
    shared = with_sharing(tmp_path, f"method={method}", "train.share_prefix=auto", *settings)
    assert plain["environment"]["tokens_once"] is None
    assert shared["environment"]["tokens_once"] == ALL
    assert shared["run_id"] != plain["run_id"]
    assert shared["data"] == plain["data"] and shared["data"]["shared_prefix_tokens"] == PREFIX
    for split in ("dev", "test"):
        assert shared[split] == pytest.approx(plain[split], abs=1e-4)
    for mine, other in zip(shared["history"], plain["history"], strict=True):
        assert mine == pytest.approx(other, abs=1e-4)


def test_with_dropout_only_evaluation_shares_unless_asked_for(tmp_path: Path) -> None:
    settings = ("method=sparta", "train.dropout=0.1", *INSTRUCT)
    auto = with_sharing(tmp_path, "train.share_prefix=auto", *settings)
    assert auto["environment"]["tokens_once"] == ALL | {"in_training": False}
    asked = with_sharing(tmp_path, "train.share_prefix=true", *settings)
    assert asked["environment"]["tokens_once"] == ALL


def test_base_inputs_have_the_last_layer_alone(tmp_path: Path) -> None:
    record = with_sharing(tmp_path, "method=sparta", "train.share_prefix=auto", "task=tiny-sst2")
    assert record["data"]["shared_prefix_tokens"] < tokens_once.MIN_PREFIX_TOKENS
    assert record["environment"]["tokens_once"] == ALL | {"prefix_tokens": 0}


def test_a_run_that_computes_something_else_falls_back_and_says_so(
    tmp_path: Path,
    trained: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, plain, _ = trained("sparta", "train.share_prefix=false", *INSTRUCT)
    monkeypatch.setattr(tokens_once, "disagreement", lambda *_: "its features differ")
    record = with_sharing(tmp_path, "method=sparta", "train.share_prefix=auto", *INSTRUCT)
    assert record["environment"]["tokens_once"] is None
    assert (record["dev"], record["test"]) == (plain["dev"], plain["test"])
    assert capsys.readouterr().err.count("train.share_prefix=auto: ") == 1


def test_auto_is_the_default_and_part_of_the_run_id() -> None:
    ids = [
        identity_of(compose(words).as_dict(), 1)
        for words in ([], ["train.share_prefix=auto"], ["train.share_prefix=true"])
    ]
    assert [one["train"]["share_prefix"] for one in ids] == ["auto", "auto", True]


# --------------------------------------------------------------------------- what was trained
@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int | bool]]:
    """What was computed of each batch, in the order of the batches."""
    seen: list[dict[str, int | bool]] = []
    whole = tokens_once.TokensOnce.pooled

    def noted(self: tokens_once.TokensOnce, *args: Any, **named: Any) -> Any:
        seen.append(self.as_dict())
        return whole(self, *args, **named)

    monkeypatch.setattr(tokens_once.TokensOnce, "pooled", noted)
    return seen


def evaluated(folder: Path, config: Any) -> dict[str, Any]:
    return evaluation_of(load(folder, None, None), config, "it")


@pytest.mark.parametrize("share", ["auto", "false"])
def test_evaluate_computes_as_the_run_did_and_scores_the_same_bit_for_bit(
    trained: Callable[..., Any], ways: list[dict[str, int | bool]], share: str
) -> None:
    config, record, folder = trained("lora", f"train.share_prefix={share}", *INSTRUCT)
    ways.clear()
    scores = evaluated(folder, config)
    assert (scores["dev"], scores["test"]) == (record["dev"], record["test"])
    run = record["environment"]["tokens_once"]
    assert (run is None) == (share == "false")
    expected = {"prefix_tokens": PREFIX if run else 0, "last_layer": bool(run), "in_training": True}
    assert ways[-1] == expected


def test_evaluate_computes_all_of_it_where_the_check_finds_a_difference(
    trained: Callable[..., Any],
    ways: list[dict[str, int | bool]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, record, folder = trained("lora", "train.share_prefix=auto", *INSTRUCT)
    monkeypatch.setattr(tokens_once, "disagreement", lambda *_: "its features differ")
    scores = evaluated(folder, config)
    assert ways[-1]["prefix_tokens"] == 0 and not ways[-1]["last_layer"]
    assert scores["test"] == pytest.approx(record["test"], abs=1e-5)
    assert capsys.readouterr().err == (
        "sparta-bench: more of each input is computed than in the run: its features differ\n"
    )


def test_other_inputs_share_what_they_have_in_common(
    trained: Callable[..., Any], ways: list[dict[str, int | bool]], tmp_path: Path
) -> None:
    config, _, folder = trained("sparta", *INSTRUCT)
    about = folder / "adapter_config.json"
    copy = shutil.copytree(folder, tmp_path / "copy")
    values = json.loads(about.read_text())
    values["tokens_once"]["prefix_tokens"] = 10**6  # more than inputs have
    (copy / about.name).write_text(json.dumps(values))
    first, second = (evaluated(one, config)["test"] for one in (folder, copy))
    assert second == first
    values["tokens_once"]["prefix_tokens"] = "19"
    (copy / about.name).write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"tokens_once=.* must be null, or have prefix_tokens"):
        load(copy, None, None)


def test_predictions_are_the_same_with_a_shared_prefix(
    trained: Callable[..., Any],
    ways: list[dict[str, int | bool]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, _, folder = trained("sparta", *INSTRUCT)
    loaded = load(folder, None, None)
    ready(loaded, torch.device("cpu"), None)
    lines = [(f"line {n}", (text,)) for n, text in enumerate(("good", "a bad film", "the film or"))]

    def predicted() -> list[Any]:
        return [one for some in predict(loaded, lines, 8) for one in some]

    shared = predicted()
    assert ways[-1] == ALL
    ways.clear()
    (alone,) = (one for some in predict(loaded, lines[:1], 8) for one in some)
    assert ways == [ALL | {"prefix_tokens": 0, "last_layer": False}]  # nothing to share
    monkeypatch.setattr(tokens_once, "disagreement", lambda *_: "its features differ")
    whole = predicted()
    assert "than need be: its features differ" in capsys.readouterr().err
    for mine, other in zip([*shared, alone], [*whole, whole[0]], strict=True):
        assert mine.label == other.label
        assert mine.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_all_heads_of_a_model_read_a_shared_prefix_once(
    trained: Callable[..., Any], ways: list[dict[str, int | bool]], tmp_path: Path
) -> None:
    folders = [trained("sparta", *INSTRUCT)[2], trained("sparta", *INSTRUCT, "seed=1")[2]]
    multi_head_of(folders, tmp_path / "both", Rule(), names=["a", "b"])
    model = MultiHead.load(tmp_path / "both")
    lines = [(f"line {n}", (text,)) for n, text in enumerate(("good", "a bad film", "the film or"))]
    ways.clear()
    (predictions,) = predict_heads(model, lines, 8)
    assert len(ways) == 3  # two tries and one batch for both heads
    assert ways[-1]["prefix_tokens"] == PREFIX
    for one, name in ((predictions[1]["a"], "a"), (predictions[1]["b"], "b")):
        words = model.tokenizer(
            render(lines[1][1], model.about[name], "instruct"), return_tensors="pt"
        )
        expected = model(**words)[name].double().softmax(1)[0].tolist()
        assert list(one.probabilities.values()) == pytest.approx(expected, abs=1e-5)
