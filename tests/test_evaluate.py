"""Scores of what is saved are the run's own; what does not fit is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quick import FEW_ROWS, TEST
from test_cli import call

from sparta_bench.adapters.merging import Rule, multi_head_of

METHODS = ("sparta", "sparta_vo", "lora", "head", "full_ft")


def evaluated(capfd: pytest.CaptureFixture[str], folder: Path, *more: str) -> list[dict[str, Any]]:
    """What `evaluate --json` prints, on the rows that the run had."""
    code, out, error = call(capfd, "evaluate", str(folder), "--json", *more, *FEW_ROWS)
    assert code == 0, error
    found: list[dict[str, Any]] = json.loads(out)
    return found


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a refused command line says."""
    code, out, lines = call(capfd, "evaluate", *arguments)
    assert (code, out) == (2, "")
    return "\n".join(lines)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "more", [(), ("model=tiny-mistral-it", "task=tiny-mnli")], ids=["base", "instruct"]
)
def test_scores_are_those_of_the_run(
    trained: Callable[..., Any],
    capfd: pytest.CaptureFixture[str],
    method: str,
    more: tuple[str, ...],
) -> None:
    config, record, folder = trained(method, *more)
    (found,) = evaluated(capfd, folder)
    assert (found["dev"], found["test"]) == (record["dev"], record["test"])
    assert (
        found["data"]["fingerprint"].split("-")[1:]
        == (record["data"]["fingerprint"].split("-")[1:])
    )
    assert (found["task"], found["head"]) == (config.task.name,) * 2
    assert found["method"] == record["method"] and found["density"] == record["density"]
    assert found["data"]["dev"] == record["data"]["dev"]


def test_the_text_says_it_all_and_a_file_holds_the_json(
    trained: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, record, folder = trained("sparta")
    out = tmp_path / "there" / "scores.json"
    words = [str(folder), "task=tiny-sst2", *FEW_ROWS, "--out", str(out)]
    code, printed, _ = call(capfd, "evaluate", *words)
    test = record["test"]
    assert code == 0
    assert printed.splitlines()[1] == (
        f"tiny-sst2  tiny-sst2 test  loss {test['loss']:.4f}, accuracy {test['accuracy']:.2%}, "
        f"mcc {test['mcc']:.3f}  ({TEST} examples)"
    )
    (found,) = json.loads(out.read_text())
    assert found["test"] == test
    assert str(tmp_path) not in out.read_text() and str(folder) not in out.read_text()


def test_a_multi_head_model_is_scored_head_by_head(
    trained: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folders = [trained("sparta")[2], trained("sparta", "task=tiny-cola", "seed=1")[2]]
    multi_head_of(folders, tmp_path / "both", Rule())
    both = evaluated(capfd, tmp_path / "both")
    assert [(one["head"], one["task"]) for one in both] == [("tiny-sst2",) * 2, ("tiny-cola",) * 2]
    (cola,) = evaluated(capfd, tmp_path / "both", "task=tiny-cola")
    (again,) = evaluated(capfd, tmp_path / "both", "--head", "tiny-cola")
    for one in (cola, again):
        assert (one["dev"], one["test"]) == (both[1]["dev"], both[1]["test"])
    # the other model's changes count
    assert both[0]["test"]["loss"] != trained("sparta")[1]["test"]["loss"]


def test_one_model_under_its_head_scores_as_it_did(
    trained: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, record, folder = trained("sparta")
    multi_head_of([folder], tmp_path / "one", Rule())
    (found,) = evaluated(capfd, tmp_path / "one")
    assert found["test"] == record["test"]


def test_a_head_without_a_task_is_called_as_the_task_that_was_asked_for(
    trained: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained("sparta")[2], tmp_path / "own")
    about = json.loads((folder / "adapter_config.json").read_text()) | {"task": None}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    (found,) = evaluated(capfd, folder, "task=tiny-sst2")
    assert found["head"] == "tiny-sst2"
    assert "does not say on which task it was trained" in refused(capfd, str(folder))


def test_what_cannot_be_evaluated_is_told(
    trained: Callable[..., Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = str(trained("sparta")[2])
    assert "must be a setting of task, device" in refused(capfd, folder, "seed=1", "method=lora")
    assert "its labels are unacceptable, acceptable" in refused(capfd, folder, "task=tiny-cola")
    assert "its columns are text" in refused(capfd, folder, "task=tiny-sst2", "task.columns=[text]")
    assert "no such task" in refused(capfd, folder, "task=tiny-sst3")
    assert "--head x:" in refused(capfd, folder, "--head", "x")
    assert "there is no such folder" in refused(capfd, str(tmp_path / "nowhere"))
    assert "task.data_dir" in refused(capfd, folder, "task=sst2", f"task.data_dir={tmp_path}/no")
    blocked = tmp_path / "file"
    blocked.write_text("")
    places = {
        blocked / "scores.json": f"{blocked} is no folder",
        tmp_path / ("x" * 300) / "scores.json": "File name too long",
        tmp_path: "is a folder",
    }
    with monkeypatch.context() as patch:  # told before anything is computed
        patch.setattr("sparta_bench.inference.evaluate.evaluation_of", None)
        for place, why in places.items():
            told = refused(capfd, folder, "--out", str(place))
            assert told.startswith("sparta-bench: evaluate: --out ") and why in told
