"""What a person reads when a run or a grid is done."""

from __future__ import annotations

import os
import pty
import termios
from pathlib import Path
from typing import Any

import pytest
from forged_records import forge, scores

from sparta_bench.errors import fitted
from sparta_bench.records.read import record_of
from sparta_bench.records.record import Record
from sparta_bench.runs.outcome import score_of
from sparta_bench.runs.summary import grid_text, run_text

PATH = Path("results/runs/sst2/some-model/sparta/0123456789ab/result.json")


def record(path: Path = PATH, **settings: Any) -> Record:
    read = record_of(path, forge(**settings))
    assert isinstance(read, Record)
    return read


def test_a_run_is_told_in_lines_and_with_what_may_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (PATH.parent / "adapter").mkdir(parents=True)
    settings: dict[str, Any] = {
        "parameters__trainable": 9_613, "parameters__total": 208_512,
        "training": {"seconds": 24.21, "evaluation_seconds": 5.5},
        "config__task__columns": ["sentence"],
    }  # fmt: skip
    run = record(test=scores(0.1337, 0.987, 0.974), dev=0.1409, **settings)
    words = ["task=sst2", "method=sparta", "++method.density=0.05", "train.learning_rate=search",
             "search=race"]  # fmt: skip
    dev = run.raw["dev"]
    assert run_text(run, [*words, "cache_dir=my folder"], was_there=False).splitlines() == [
        "",
        "sst2 with some-model, seed 0",
        "  method   sparta 5 %",
        "  trained  9,613 of 208,512 scalars (4.610%)",
        f"  dev      loss 0.1409  accuracy {dev['accuracy']:7.2%}  mcc {dev['mcc']:6.3f}",
        "  test     loss 0.1337  accuracy  98.70%  mcc  0.974",
        "  time     24.2 s of training, 5.5 s of evaluation",
        f"  record   {PATH}",
        "",
        "Next:",
        "  sparta-bench predict \\",
        '    results/runs/sst2/some-model/sparta/0123456789ab/adapter "your text"',
        "  sparta-bench tables",
        "  sparta-bench task=sst2 'cache_dir=my folder' method=lora",
    ]
    settings["config__task__columns"] = ["one", "other"]
    elsewhere = Path("mine/runs/sst2/some-model/lora/0123456789ab/result.json")
    lora = record(elsewhere, method="lora", **settings)
    assert run_text(lora, [], was_there=True).splitlines()[1:2] == [
        "sst2 with some-model, seed 0 (there already)"
    ]
    assert run_text(lora, [], was_there=True).splitlines()[-2:] == [  # there is no adapter
        "  sparta-bench tables mine",
        "  sparta-bench method=sparta",
    ]


def test_a_grid_is_told_by_cells() -> None:
    runs = [
        record(method=method, seed=seed, rate=rate, dev=rate * (1 + seed), test=scores(0.1, right))
        for method, rate, right in (("head", 0.1, 0.75), ("sparta", 0.1, 0.5), ("sparta", 0.2, 1))
        for seed in (0, 1)
    ]
    runs += [record(method="sparta", rate=0.01, dev=0.001)]  # a seed alone, however good
    assert grid_text(map(score_of, runs)).splitlines() == [
        "",
        "task  model       method      settings  seeds  dev loss  test accuracy, %",
        "sst2  some-model  head               1      2    0.1500        75.0 ± 0.0",
        "sst2  some-model  sparta 5 %         3      2    0.1500        50.0 ± 0.0",
        "Of each cell the setting with the lowest mean dev loss is shown.",
    ]


def test_lines_are_broken_between_words_where_a_terminal_is_narrow() -> None:
    line = "sparta-bench: " + "a-hyphened-word " * 20 + "/a/path/" + "x" * 90
    with Path(os.devnull).open("w") as nowhere:
        assert fitted(line, nowhere) == line
    main, other = pty.openpty()
    try:
        for columns in (80, 120):
            termios.tcsetwinsize(other, (24, columns))
            with os.fdopen(os.dup(other), "w") as stream:
                lines = fitted(line, stream).splitlines()
            assert " ".join(part.strip() for part in lines) == line
            assert all(len(part) <= columns or " " not in part.strip() for part in lines)
            assert max(len(part) for part in lines[:-1]) > columns - 16
    finally:
        os.close(main)
        os.close(other)
