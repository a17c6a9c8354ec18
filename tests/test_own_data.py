"""Data of the user's own: what is found in it, what is split off, and each fault in one line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from test_cli import call

from sparta_bench.config.compose import compose
from sparta_bench.config.schema import Dev, TaskConfig
from sparta_bench.data.splits import complete, load_splits
from sparta_bench.errors import InputError

WORDS = {"sport": "goal", "world": "vote", "science and tech": "chip"}


def rows_of(count: int, columns: tuple[str, ...] = ("headline",)) -> list[dict[str, str]]:
    """Rows sorted by label, the third of them science."""
    labels = sorted(list(WORDS)[row % 3] for row in range(count))
    return [
        dict.fromkeys(columns, f"{WORDS[label]} {row}") | {"category": label}
        for row, label in enumerate(labels)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        between = "," if path.suffix == ".csv" else "\t"
        lines = [between.join(names), *(between.join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def task_of(*overrides: str) -> TaskConfig:
    return complete(compose(["task=own", *overrides])).task


def line_of(*overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_splits(task_of(*overrides))
    (line,) = caught.value.lines
    return line


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_one_file_is_all_that_is_needed(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / f"news{suffix}", rows_of(90))
    task = task_of(f"task.data='{file}'", "task.label_column=category")
    assert (task.name, task.columns) == ("news", ("headline",))
    assert task.labels == ("science and tech", "sport", "world")
    assert (task.dev, task.test_splits) == (Dev("train", "stratified", 9), ())
    assert task.test_examples == 9
    assert task.prompt.answers == task.labels
    assert task.prompt.answers_text == "science and tech, sport or world"
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"sparta-bench: task=news: the data has no {name} set, so that 9 of the 90 training rows "
        "are it (each label in its share, drawn by task.draw_seed=0)"
        for name in ("dev", "test")
    ]
    splits = load_splits(task)
    assert [len(part) for part in (splits.train, splits.dev, splits.test)] == [72, 9, 9]
    assert Counter(splits.dev.labels) == Counter(splits.test.labels) == {0: 3, 1: 3, 2: 3}
    texts = [*splits.train.texts, *splits.dev.texts, *splits.test.texts]
    assert sorted(texts) == sorted((row["headline"],) for row in rows_of(90))
    # the same content in another file, and another seed of the run, are the same data
    assert load_splits(task).fingerprint() == splits.fingerprint()


@pytest.mark.parametrize("dev", ["validation", "dev", "valid", "val"])
def test_a_folder_has_its_own_sets(dev: str, tmp_path: Path) -> None:
    for name, rows in (("train", 6), (dev, 3), ("test", 3)):
        write(tmp_path / f"{name}.csv", rows_of(rows, ("premise", "claim")))
    pair = ["task.columns=[premise,claim]", "task.label_column=category", "task.name=claims"]
    task = task_of(f"task.data_dir='{tmp_path}'", *pair)
    assert (task.name, task.dev) == ("claims", Dev(dev, "all", None))
    assert (task.test_splits, task.test_examples) == (("test",), None)
    assert task.prompt.fields == ("Text 1", "Text 2")
    splits = load_splits(task)
    assert [len(part) for part in (splits.train, splits.dev, splits.test)] == [6, 3, 3]


def test_labels_that_are_numbers_are_names(tmp_path: Path) -> None:
    stars = [{"text": f"t {row}", "label": row % 5 + 1} for row in range(100)]
    for suffix in (".csv", ".jsonl", ".parquet"):
        task = task_of(f"task.data='{write(tmp_path / f'stars{suffix}', stars)}'")
        assert task.labels == ("1", "2", "3", "4", "5")
        labels = {text[0]: label for text, label in zip(*vars_of(task), strict=True)}
        assert labels["t 0"] == 0 and labels["t 1"] == 1 and labels["t 4"] == 4
    ten = [{"text": f"t {row}", "label": row % 11} for row in range(110)]
    assert task_of(f"task.data='{write(tmp_path / 'ten.csv', ten)}'").labels[-2:] == ("9", "10")
    truth = [{"text": f"t {row}", "label": row % 2 == 0} for row in range(40)]
    task = task_of(f"task.data='{write(tmp_path / 'truth.jsonl', truth)}'")
    assert task.labels == ("false", "true")
    assert len(load_splits(task).train) == 32


def vars_of(task: TaskConfig) -> tuple[list[tuple[str, ...]], list[int]]:
    splits = load_splits(task)
    parts = (splits.train, splits.dev, splits.test)
    return [t for part in parts for t in part.texts], [n for part in parts for n in part.labels]


FAULTS: dict[str, Callable[[Path], tuple[list[str], str]]] = {
    "nothing": lambda _: (
        [],
        "task.data_dir=null: give a folder, a file (task.data=FILE) or a data set of the hub "
        "(task.hub=NAME): this task has no data elsewhere",
    ),
    "no file": lambda at: (
        [f"task.data='{at}/x.csv'"], f"task.data={at}/x.csv: there is no such file"
    ),
    "a workbook": lambda at: (
        [f"task.data='{written(at / 'a.xlsx', 'x')}'"],
        f"task.data={at}/a.xlsx: must be a file ending in .parquet, .jsonl, .csv or .tsv",
    ),
    "no label column": lambda at: (
        [f"task.data='{write(at / 'a.csv', rows_of(30))}'", "task.columns=[headline]"],
        f"{at}/a.csv, row 2: no column label; name the one with the labels with "
        "task.label_column=NAME (there are: headline, category)",
    ),
    "no text column": lambda at: (
        own(at, rows_of(30), "task.columns=[title]"),
        f"{at}/a.csv, row 2: column title is missing (there are: headline, category) "
        "(task.on_bad_row=skip leaves such rows out and counts them)",
    ),
    "several columns": lambda at: (
        own(at, rows_of(30, ("a", "b"))),
        f"{at}/a.csv: name the column to read, or the two of a pair, with task.columns=[NAME] "
        "(there are: a, b, category)",
    ),
    "an empty label": lambda at: (
        own(at, [*rows_of(30), {"headline": "x", "category": ""}]),
        f"{at}/a.csv, row 32: the label is empty "
        "(task.on_bad_row=skip leaves such rows out and counts them)",
    ),
    "one label": lambda at: (
        own(at, rows_of(90)[:30]),
        "task.label_column=category: must hold two labels or more; the 30 rows have one label "
        "(science and tech)",
    ),
    "texts as labels": lambda at: (
        [*own(at, rows_of(30))[:1], "task.columns=[category]", "task.label_column=headline"],
        "task.label_column=headline: must be the column of the labels; it has 30 different values "
        "in 30 rows",
    ),
    "too few rows": lambda at: (
        own(at, rows_of(12)),
        "task=a: give a file for dev, or at least 20 rows of training from which it is split off; "
        "there are 12",
    ),
    "ids twice": lambda at: (
        own(at, [{"id": min(row, 28)} | of for row, of in enumerate(rows_of(30))]),
        f"{at}/a.csv, row 31: the id 28 stands in row 30 as well; take one away, or call the "
        "column otherwise",
    ),
    "a label of test alone": lambda at: (
        folder(at, rows_of(30), [{"headline": "x", "category": "art"}]),
        f"{at}/test.csv, row 2: label 'art' is none of 0 (science and tech), 1 (sport), 2 (world) "
        "(task.on_bad_row=skip leaves such rows out and counts them)",
    ),
    "test without labels": lambda at: (
        folder(at, rows_of(30), [{"headline": "x"}]),
        f"{at}/test.csv, row 2: column category is missing (there are: headline) "
        "(task.on_bad_row=skip leaves such rows out and counts them)",
    ),
    "another prompt": lambda at: (
        own(
            at, rows_of(30),
            "task.prompt={instruction: a, answers: [b, c], answers_text: d, fields: [e]}",
        ),
        "task.prompt.answers=[b, c]: must hold one for each of science and tech, sport, world",
    ),
    "both": lambda at: (
        [*own(at, rows_of(30)), f"task.data_dir='{at}'"],
        f"task.data={at}/a.csv: give either a file or a folder (task.data_dir)",
    ),
}  # fmt: skip


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def own(at: Path, rows: list[dict[str, Any]], *more: str) -> list[str]:
    return [f"task.data='{write(at / 'a.csv', rows)}'", "task.label_column=category", *more]


def folder(at: Path, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> list[str]:
    write(at / "train.csv", train)
    write(at / "test.csv", test)
    return [f"task.data_dir='{at}'", "task.label_column=category", "task.name=a"]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_gives_one_line(fault: str, tmp_path: Path) -> None:
    overrides, line = FAULTS[fault](tmp_path)
    assert line_of(*overrides) == line


def test_bad_rows_are_left_out_and_counted_where_that_is_asked_for(tmp_path: Path) -> None:
    rows = [*rows_of(30), {"headline": "x", "category": ""}]
    splits = load_splits(task_of(*own(tmp_path, rows), "task.on_bad_row=skip"))
    assert splits.bad_rows == 1
    assert len(splits.train) + len(splits.dev) + len(splits.test) == 30


def test_a_task_that_says_everything_stays_as_it_is() -> None:
    config = compose(["task=tiny-mrpc"])
    assert complete(config) is config


def test_a_run_on_a_file_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "news.csv", rows_of(90))
    words = ["task=own", "task.data=news.csv", "task.label_column=category", "train.max_steps=2"]
    for model in ("tiny-gemma", "tiny-gemma-it"):
        answers = (
            "task.prompt={instruction: Sort., answers: [No, Yes, Entail], answers_text: those, "
            "fields: [T]}"
        )
        labels = "task.labels=[science and tech,sport,world]"
        more = [answers, labels] if model == "tiny-gemma-it" else []
        code, _, err = call(capsys, *words, *more, f"model={model}", "method=head")
        assert code == 0, err
    first, _ = sorted(tmp_path.glob("results/runs/news/*/head/*/result.json"))
    record = json.loads(first.read_text())
    assert record["data"]["labels"]["dev"] == {"science and tech": 3, "sport": 3, "world": 3}
    assert record["config"]["task"]["data"] == "news.csv"
    assert record["config"]["task"]["labels"] == ["science and tech", "sport", "world"]
