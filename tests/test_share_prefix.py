"""`train.share_prefix` in a run: the same outcome, and what the record says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quick import QUICK_RUN

from sparta_bench.config.compose import compose
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
        ("sparta", ()),
        ("full_ft", ("train.dropout=0",)),
        ("lora", ("train.dropout=0", "method.lora_dropout=0")),
        ("head", ("train.dropout=0",)),
    ],
)
def test_a_run_ends_as_without_sharing(
    tmp_path: Path, trained: Callable[..., Any], method: str, extra: tuple[str, ...]
) -> None:
    settings = (*INSTRUCT, *extra)
    _, plain, _ = trained(method, *settings)
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
    _, plain, _ = trained("sparta", *INSTRUCT)
    monkeypatch.setattr(tokens_once, "disagreement", lambda *_: "its features differ")
    record = with_sharing(tmp_path, "method=sparta", "train.share_prefix=auto", *INSTRUCT)
    assert record["environment"]["tokens_once"] is None
    assert (record["dev"], record["test"]) == (plain["dev"], plain["test"])
    assert capsys.readouterr().err.count("train.share_prefix=auto: ") == 1


def test_false_is_what_a_run_without_the_setting_was() -> None:
    config = compose(["train.share_prefix=false"]).as_dict()
    older = {**config, "train": {k: v for k, v in config["train"].items() if k != "share_prefix"}}
    assert identity_of(config, 1) == identity_of(older, 1)
