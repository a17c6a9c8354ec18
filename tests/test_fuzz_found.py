"""What the fuzz has found, each as small as it can be said: a file, a command, and its line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forged_records import forge
from fuzzing import TINY, assert_told_well, command
from test_fuzz import (
    adapter,
    base_model,
    cached_sweeps,
    list_of_tables,
    pair_adapter,
    peft_sparta,
    pickles,
    plans,
    settings,
    sharded,
)

from sparta_bench.config.sweeps import sweeps_of
from sparta_bench.errors import InputError
from sparta_bench.records.read import read_json
from sparta_bench.tables.paper_tables import LAYOUTS

DEEP = b"[" * 100_000
PREDICT = ("predict", "{}", "a film")
BASE = ("--base", TINY)
LOCAL = ("plan", "model=local", "model.path='{}'")
Change = bytes | Callable[[Any], Any]  # a file's new content, or what is done to its JSON


def put(*keys: Any, value: Any) -> Callable[[Any], Any]:
    """Set the value at these keys."""

    def change(whole: Any) -> Any:
        part = whole
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value
        return whole

    return change


@pytest.mark.parametrize(
    ("make", "name", "change", "words", "line"),
    [
        (adapter("head"), "adapter_config.json", DEEP, PREDICT, "is not JSON, or cut short"),
        (adapter("full_ft"), "classifier_config.json", DEEP, PREDICT, "is not JSON, or cut short"),
        (sharded, "model.safetensors.index.json", DEEP, ("ranks", "{}", TINY), "no index of sha"),
        (
            pair_adapter, "adapter_config.json", put("prompt", "fields", value=["Text"]), PREDICT,
            "prompt.fields=[Text]: must name each of columns=[sentence1, sentence2]",
        ),
        (
            pair_adapter, "adapter_config.json", put("prompt", "fields", value=5), PREDICT,
            "prompt.fields=5: must be a list of names",
        ),
        (
            adapter("lora"), "adapter_config.json", put("method", "r", value=8.5), PREDICT,
            "method.r=8.5: must be a whole number of at least 1",
        ),
        (
            adapter("lora"), "adapter_config.json", put("method", "x", value=5), PREDICT,
            "method.x=5: no such key",
        ),
        (
            adapter("full_ft"), "tokenizer_config.json", put("model_max_length", value={}), PREDICT,
            "the tokenizer cannot be loaded: ",
        ),
        (
            peft_sparta, "config.json", put("id2label", value={}), (*PREDICT, *BASE),
            "id2label={}: must be two or more different names",
        ),
        (
            peft_sparta, "config.json", put("id2label", "0", value=[1]), (*PREDICT, *BASE),
            "id2label={0: [1], 1: positive}: must be two or more different names",
        ),
        (
            pickles, "sparse_deltas.pt", b"\x80\x02}.(.", (*PREDICT, *BASE, "--allow-pickle"),
            "sparse_deltas.pt: cannot be read: ",
        ),
        (base_model, "config.json", put("hidden_act", value={}), LOCAL, "cannot be loaded: "),
        (
            base_model, "config.json", put("hidden_act", value="1"), LOCAL,
            "no model can be made of its config.json (KeyError: '1')",
        ),
        (base_model, "config.json", DEEP, LOCAL, "cannot be loaded: "),
    ],
)  # fmt: skip
def test_a_fault_of_a_file_gives_one_line(
    tmp_path: Path,
    trained: Callable[..., Any],
    make: Any,
    name: str,
    change: Change,
    words: tuple[str, ...],
    line: str,
) -> None:
    make(tmp_path, trained)
    path = tmp_path / name
    content = change if isinstance(change, bytes) else None
    path.write_bytes(content or json.dumps(change(json.loads(path.read_text()))).encode())  # type: ignore[operator]
    told = command([word.format(tmp_path) for word in words])
    assert (told.code, told.out, told.err.count("\n")) == (2, "", 1)
    assert line in told.err


@pytest.mark.parametrize(
    "change",
    [
        put("training", value=None),
        put("training", value=[5]),
        put("training", "seconds", value=1e308),
        put("config", "model", value={"kind": "base"}),
        put("config", "task", "generated", value=5),
        put("config", "train", value={"learning_rate": 1, "batch_size": 1, "epochs": 1}),
        put("config", "train", "learning_rate", value={}),
        put("data", value={}),
        put("error", value="x"),
        put("environment", value=[1]),
    ],
)
@pytest.mark.parametrize("status", ["completed", "failed"])
def test_a_record_with_something_wrong_in_it_is_left_out_or_shown(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Any], Any],
    status: str,
) -> None:
    monkeypatch.setattr("sparta_bench.runs.status.LAYOUTS", LAYOUTS[1:2])
    monkeypatch.setattr("sparta_bench.runs.status.sweeps_of", cached_sweeps)
    training = {"seconds": 1.0, "evaluation_seconds": 1.0, "best_step": 4}
    history = [{"step": 4, "train_loss": 1.0, "dev_loss": 1.0}]
    error = {"type": "X", "message": "x", "traceback": ""}
    record = forge(
        "gemma-2b", "rte", status=status, training=training, history=history, error=error
    )
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "result.json"
    path.write_text(json.dumps(change(record)))
    for words in (["tables"], ["report", "--page-only"], ["status"]):
        assert_told_well(command([*words, str(tmp_path / "in")]), 0)
    read_json(tmp_path / "in")


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        b'{"data": {"train": 1, "train_dropped": 0, "dev": 1, "test": 1}}',
        b'{"model": "m", "task": "t", "data": {"train_dropped": 0, "dev": 1e999, "test": 1}}',
    ],
)
def test_a_plan_with_something_wrong_in_it_is_told_of(
    tmp_path: Path, trained: Any, content: bytes
) -> None:
    plans(tmp_path, trained)
    (tmp_path / "plans" / "rte.json").write_bytes(content)
    told = command(["tables", str(tmp_path)])
    assert told.code == 0 and "- plans: rte.json is no plan with counts" in told.out


def test_a_list_of_tables_may_hold_any_name(tmp_path: Path, trained: Any) -> None:
    list_of_tables(tmp_path, trained)
    (tmp_path / "tables" / ".sparta-bench-tables").write_text(
        "a\0.md\n\udcff.md\n", errors="replace"
    )
    assert command(["tables", str(tmp_path)]).code == 0


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: [\n", "sweep/tiny_table3.yaml, line "),
        ("seed: \0\n", "sweep/tiny_table3.yaml: cannot be read: unacceptable character"),
        ("defaults: 5\n", "conf/sweep/tiny_table3: defaults=5: no such key"),
        ("[" * 500, "cannot be read: "),
        ("5", "cannot be read: Invalid loaded object type: int"),
        ("methods: [head]\n", "tiny_table3.yaml: methods=[head]: must have a key for each method"),
        ("like: 5\n", "tiny_table3.yaml: like=5: must be another sweep"),
        ("seed: x\n", "seed=x: must be a whole number"),
    ],
)
def test_a_sweep_that_cannot_be_read_gives_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: str
) -> None:
    settings(tmp_path, None)
    (tmp_path / "sweep" / "tiny_table3.yaml").write_text(text)
    of_sweep = lambda group, name: tmp_path / group / f"{name}.yaml"  # noqa: E731
    monkeypatch.setattr("sparta_bench.config.sweeps.file_of", of_sweep)
    monkeypatch.setattr("sparta_bench.cli.experiments._grid", lambda *_: 0)
    told = command(["-m", "+sweep=tiny_table3"])
    assert (told.code, told.out, told.err.count("\n")) == (2, "", 1)
    assert line in told.err
    with pytest.raises(InputError) as caught:  # as `status` reads it
        sweeps_of("table3-twins")
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--help"], 0, ""),
        (["seed=1", "--cfg", "job", "task=tiny-rte"], 0, ""),
        (["seed=1", "--package", "task", "--cfg", "job", "save=none"], 0, ""),
        (["seed=a\nb"], 2, r"seed=a\nb: the value has characters that need quotes"),
        (["plan", "model.hub_id=" + "x/" * 200], 2, "must be a name on the hub"),
        (["predict", "{}", "--base", "x" * 5000, "a"], 2, "there is no such folder"),
        (["--cfg", "job", "--version"], 0, ""),
        (["--cfg", "job", "-m"], 2, "--multirun and --cfg: only one of them at a time"),
        *(([verb, "9" * 5000], 2, "name too long") for verb in ("tables", "report", "status")),
        (["predict", "9" * 300, "a"], 2, "name too long"),
        (["ranks", TINY, "9" * 5000], 2, ""),
        (["evaluate", "{}", "--base", TINY, "--out", "9" * 5000], 2, "name too long"),
        (["x\x1b[2J"], 2, r"x\x1b[2J: neither a subcommand nor of the form key=value"),
    ],
)
def test_a_command_line_ends_in_its_code_and_line(
    trained: Any, words: list[str], code: int, line: str
) -> None:
    told = command([word.format(trained("head")[2]) if word == "{}" else word for word in words])
    assert told.code == code
    assert (
        told.err == ""
        if code == 0
        else told.err.count("\n") == 1 and line.lower() in told.err.lower()
    )


def test_overrides_count_wherever_they_stand() -> None:
    told = command(["seed=7", "--cfg", "job", "save=none"])
    assert "\nseed: 7\n" in told.out and "\nsave: none\n" in told.out


def test_a_baked_adapter_of_the_authors_can_be_read(tmp_path: Path, trained: Any) -> None:
    """Its base was in a folder, and had no name."""
    peft_sparta(tmp_path / "theirs", trained)
    shutil.copytree(TINY, tmp_path / "base")
    bake = ["merge", "bake", str(tmp_path / "theirs"), "--base", str(tmp_path / "base")]
    assert command([*bake, "--out", str(tmp_path / "whole")]).code == 0
    assert command(["predict", str(tmp_path / "whole"), "a film"]).code == 0
