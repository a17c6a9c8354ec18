"""Local data files as they are found: every trap is a file written here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from sparta_bench.config.compose import compose
from sparta_bench.config.schema import TaskConfig
from sparta_bench.data.examples import BadRowError, Examples, parse_label, parse_row
from sparta_bench.data.splits import read_split
from sparta_bench.errors import InputError

SKIP_HINT = " (task.on_bad_row=skip leaves such rows out and counts them)"


@pytest.fixture(scope="module")
def tasks() -> dict[str, TaskConfig]:
    return {
        name: compose([f"task={name}"]).task for name in ("sst2", "cola", "mrpc", "qqp", "imdb")
    }


@pytest.fixture
def sst2(tasks: dict[str, TaskConfig], tmp_path: Path) -> TaskConfig:
    return replace(tasks["sst2"], data_dir=str(tmp_path))


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(examples: Examples) -> list[str]:
    return [text for (text,) in examples.texts]


def fault(task: TaskConfig, split: str = "train") -> str:
    with pytest.raises(InputError) as caught:
        read_split(task, split)
    (line,) = caught.value.lines
    return line


def skip(task: TaskConfig) -> TaskConfig:
    return replace(task, on_bad_row="skip")


# ------------------------------------------------------------------------------------- TSV
def test_tsv_has_no_quoting(sst2: TaskConfig, tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", 'sentence\tlabel\na " alone\t1\n"a\t0\nb"\t1\n""\t0\n')
    examples = read_split(sst2, "train")
    assert texts(examples) == ['a " alone', '"a', 'b"', '""']
    assert examples.labels == [1, 0, 1, 0]


def test_a_tab_inside_quotes_is_still_a_tab(sst2: TaskConfig, tmp_path: Path) -> None:
    path = write(tmp_path / "train.tsv", 'sentence\tlabel\n"a\tb"\t1\n')
    assert fault(sst2) == f"{path}, row 2: 3 tab-separated fields, where 2 belong{SKIP_HINT}"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_and_byte_order_marks(
    sst2: TaskConfig, tmp_path: Path, end: str, bom: str, last: bool
) -> None:
    content = bom + end.join(["sentence\tlabel", "good film \t1", "\u2028bad\x85x\x0bfilm\t0"])
    write(tmp_path / "SST-2" / "train.tsv", content + (end if last else ""))
    examples = read_split(sst2, "train")
    assert texts(examples) == ["good film ", "\u2028bad\x85x\x0bfilm"]
    assert examples.labels == [1, 0]


def test_the_tasks_folder_comes_first(sst2: TaskConfig, tmp_path: Path) -> None:
    write(tmp_path / "SST-2" / "train.tsv", "sentence\tlabel\ninner\t1\n")
    write(tmp_path / "train.tsv", "sentence\tlabel\nouter\t1\n")
    assert texts(read_split(sst2, "train")) == ["inner"]


def test_validation_is_called_dev(sst2: TaskConfig, tmp_path: Path) -> None:
    write(tmp_path / "dev.tsv", "sentence\tlabel\na\t1\n")
    assert len(read_split(sst2, "validation")) == 1


def test_columns_are_found_by_name(sst2: TaskConfig, tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", "label\tx\tsentence\n1\tno\tyes\n")
    assert texts(read_split(sst2, "train")) == ["yes"]


def test_cola_has_no_header(tasks: dict[str, TaskConfig], tmp_path: Path) -> None:
    cola = replace(tasks["cola"], data_dir=str(tmp_path))
    write(tmp_path / "CoLA" / "train.tsv", "gj04\t1\t\tOne fits.\ngj04\t0\t*\tTwo fit not.\n")
    examples = read_split(cola, "train")
    assert (texts(examples), examples.labels) == (["One fits.", "Two fit not."], [1, 0])
    path = write(tmp_path / "CoLA" / "dev.tsv", "gj04\t1\tOne fits.\n")
    assert fault(cola, "validation") == (
        f"{path}, row 1: 3 tab-separated fields, where 4 belong{SKIP_HINT}"
    )


def test_cola_may_have_a_header(tasks: dict[str, TaskConfig], tmp_path: Path) -> None:
    cola = replace(tasks["cola"], data_dir=str(tmp_path))
    write(tmp_path / "train.tsv", "sentence\tlabel\nOne fits.\t1\n")
    assert texts(read_split(cola, "train")) == ["One fits."]


def test_mrpc_with_its_odd_header(tasks: dict[str, TaskConfig], tmp_path: Path) -> None:
    mrpc = replace(tasks["mrpc"], data_dir=str(tmp_path))
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    write(tmp_path / "MRPC" / "msr_paraphrase_test.txt", header + "1\t7\t8\tHe said.\tSaid he.\n")
    examples = read_split(mrpc, "test")
    assert (examples.texts, examples.labels) == ([("He said.", "Said he.")], [1])


def test_a_header_without_the_columns(sst2: TaskConfig, tmp_path: Path) -> None:
    path = write(tmp_path / "train.tsv", "text\tlabel\na\t1\n")
    line = f"{path}, row 1: the header lacks sentence (it has: text, label)"
    assert fault(sst2) == line
    assert fault(skip(sst2)) == line  # no row of such a file can be right


@pytest.mark.parametrize("split", ["/train", "a**b", "tr[a]in", "train*"])
def test_a_splits_name_is_no_pattern(sst2: TaskConfig, tmp_path: Path, split: str) -> None:
    (tmp_path / "train.jsonl").write_text('{"sentence": "Good.", "label": 1}\n')
    assert fault(sst2, split) == (
        f"task.data_dir={tmp_path}: no file for split {split}; "
        f"looked for {split}.parquet, {split}.jsonl, {split}.csv"
    )


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a\t2", "label '2' is none of 0 (negative), 1 (positive)"),
        ("a\t-1", "label '-1' is none of 0 (negative), 1 (positive)"),
        ("a\t", "label '' is none of 0 (negative), 1 (positive)"),
        ("a\tmaybe", "label 'maybe' is none of 0 (negative), 1 (positive)"),
        ("a\t1.0", "label '1.0' is none of 0 (negative), 1 (positive)"),
        ("a\t²", "label '²' is none of 0 (negative), 1 (positive)"),
        ("a", "1 tab-separated fields, where 2 belong"),
        ("a\t1\t", "3 tab-separated fields, where 2 belong"),
        ("", "1 tab-separated fields, where 2 belong"),
    ],
)
def test_a_bad_row_is_told_or_counted(
    sst2: TaskConfig, tmp_path: Path, row: str, problem: str
) -> None:
    path = write(tmp_path / "train.tsv", f"sentence\tlabel\ngood\t1\n{row}\nbad\t0\n")
    assert fault(sst2) == f"{path}, row 3: {problem}{SKIP_HINT}"
    examples = read_split(skip(sst2), "train")
    assert (texts(examples), examples.labels) == (["good", "bad"], [1, 0])
    assert examples.bad_rows == 1


def test_undecodable_bytes(sst2: TaskConfig, tmp_path: Path) -> None:
    path = write(tmp_path / "train.tsv", b"sentence\tlabel\nok\t1\ncaf\xe9 x\t1\n")
    line = f"{path}, row 3: byte 4 of the line (0xe9) is no UTF-8{SKIP_HINT}"
    assert fault(sst2) == line
    assert read_split(skip(sst2), "train").bad_rows == 1


def test_utf16_is_refused(sst2: TaskConfig, tmp_path: Path) -> None:
    path = write(tmp_path / "train.tsv", "sentence\tlabel\nok\t1\n".encode("utf-16"))
    assert fault(sst2).startswith(f"{path}, row 1: byte 1 of the line (0xff) is no UTF-8")


@pytest.mark.parametrize("content", ["", "sentence\tlabel\n", "\ufeff"])
def test_files_without_rows(sst2: TaskConfig, tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "train.tsv", content)
    assert fault(sst2).startswith(f"{path}")


def test_no_usable_row_is_left(sst2: TaskConfig, tmp_path: Path) -> None:
    path = write(tmp_path / "train.tsv", "sentence\tlabel\na\t7\n")
    assert fault(skip(sst2)) == f"{path}: split train has no usable rows (1 bad)"
    path = write(tmp_path / "train.tsv", "sentence\tlabel\n")
    assert fault(sst2) == f"{path}: split train has no usable rows"


def test_odd_texts_are_kept(sst2: TaskConfig, tmp_path: Path) -> None:
    long = "x" * 5_000_000
    write(tmp_path / "train.tsv", f"sentence\tlabel\na\0b\t1\n\t0\n  \t0\n{long}\t1\n")
    examples = read_split(sst2, "train")
    assert texts(examples) == ["a\0b", "", "  ", long]
    assert examples.empty_texts() == 2


def test_label_words_and_spaces_around_digits(sst2: TaskConfig, tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", "sentence\tlabel\na\tpositive\nb\tnegative\nc\t1 \n")
    assert read_split(sst2, "train").labels == [1, 0, 1]


LONG = 5_000_000  # characters
CUT = f"{'x' * 120}… (5,000,000 characters)"


@pytest.mark.parametrize(
    ("name", "content", "said"),  # {x} stands for a long text
    [
        ("train.tsv", "sentence\tlabel\na\t{x}\n", f"row 2: label '{'x' * 119}… (5,000,002 char"),
        ("train.tsv", "{x}\n", f"row 1: the header lacks sentence, label (it has: {CUT})"),
        ("train.tsv", "{x}\nsentence\tlabel\n", "row 1: the header lacks sentence, label"),
        ("train.tsv", "sentence\tlabel\n{x}\n", "row 2: 1 tab-separated fields, where 2 belong"),
        ("train.jsonl", '{"sentence": ["{x}"]', "row 1: not JSON: Expecting ',' delimiter"),
        (
            "train.jsonl",
            '{"sentence": ["{x}"], "label": 1}\n',
            f"row 1: sentence is ['{'x' * 118}… (5,000,004 characters), not a text",
        ),
        (
            "train.jsonl",
            '{"{x}": 1}\n',
            f"row 1: column sentence is missing (there are: {CUT})",
        ),
        ("train.csv", "sentence,label\na,{x}\n", f"row 2: label '{'x' * 119}… (5,000,002 char"),
        (
            "train.tsv",
            "\x1b]0;owned\x07\0\n",
            r"row 1: the header lacks sentence, label (it has: \x1b]0;owned\x07\x00)",
        ),
    ],
)
def test_a_message_is_short_and_harmless_whatever_the_file_holds(
    sst2: TaskConfig, tmp_path: Path, name: str, content: str, said: str
) -> None:
    path = write(tmp_path / name, content.replace("{x}", "x" * LONG))
    line = fault(sst2)
    assert line.startswith(f"{path}, {said}")
    assert len(line) < 500 and line.isprintable()


def test_a_row_of_5_mb_is_read(sst2: TaskConfig, tmp_path: Path) -> None:
    for name, head in (("train.tsv", "sentence\tlabel\n{}\t1\nb\t0\n"),
                       ("train.csv", "sentence,label\n{},1\nb,0\n")):  # fmt: skip
        path = write(tmp_path / name, head.format("x" * LONG))
        examples = read_split(sst2, "train")
        assert [len(text) for text in texts(examples)] == [LONG, 1]
        path.unlink()


# ------------------------------------------------------------- tables with the hub's names
ROWS: list[dict[str, Any]] = [
    {"idx": 0, "sentence": 'a "quoted", \t text', "label": 1},
    {"idx": 1, "sentence": "two\nlines", "label": 0},
]


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        lines = ["idx,sentence,label"]
        quoted = [str(row["sentence"]).replace('"', '""') for row in rows]
        lines += [f'{row["idx"]},"{q}",{row["label"]}' for row, q in zip(rows, quoted, strict=True)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
@pytest.mark.parametrize("name", ["train", "sst2/train", "train-00000-of-00001"])
def test_tables_with_the_hubs_column_names(
    sst2: TaskConfig, tmp_path: Path, suffix: str, name: str
) -> None:
    write_table(tmp_path / f"{name}{suffix}", ROWS)
    examples = read_split(sst2, "train")
    assert texts(examples) == [row["sentence"] for row in ROWS]
    assert examples.labels == [1, 0]


def test_shards_are_read_in_order(sst2: TaskConfig, tmp_path: Path) -> None:
    for shard in (1, 0):
        write_table(tmp_path / f"train-0000{shard}-of-00002.parquet", [ROWS[shard]])
    assert read_split(sst2, "train").labels == [1, 0]


def test_imdb_has_no_tsv_layout(tasks: dict[str, TaskConfig], tmp_path: Path) -> None:
    imdb = replace(tasks["imdb"], data_dir=str(tmp_path))
    write(tmp_path / "train.jsonl", '{"text": "Good.", "label": 1}\n\n{"text": "", "label": 0}\n')
    examples = read_split(imdb, "train")
    assert (texts(examples), examples.labels) == (["Good.", ""], [1, 0])
    assert fault(imdb, "test") == (
        f"task.data_dir={tmp_path}: no file for split test; "
        "looked for test.parquet, test.jsonl, test.csv, test.tsv"
    )


def test_no_file_at_all(sst2: TaskConfig, tmp_path: Path) -> None:
    (tmp_path / "train.tsv").mkdir()  # a directory is no file
    (tmp_path / "train.jsonl").mkdir()
    assert fault(sst2) == (
        f"task.data_dir={tmp_path}: no file for split train; "
        "looked for SST-2/train.tsv, train.parquet, train.jsonl, train.csv"
    )
    assert "looked for test.parquet" in fault(sst2, "test")  # its TSV has no labels


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"sentence": "a"}', "column label is missing (there are: sentence)"),
        ('{"label": 1}', "column sentence is missing (there are: label)"),
        ('{"sentence": null, "label": 1}', "sentence is None, not a text"),
        ('{"sentence": 5, "label": 1}', "sentence is 5, not a text"),
        ('{"sentence": "a", "label": true}', "label True is none of 0 (negative), 1 (positive)"),
        ('{"sentence": "a", "label": null}', "label None is none of 0 (negative), 1 (positive)"),
        ('{"sentence": "a", "label": -1}', "label -1 is none of 0 (negative), 1 (positive)"),
        ('{"sentence": "a", "label": 0.5}', "label 0.5 is none of 0 (negative), 1 (positive)"),
        ('{"sentence": "a", "label": NaN}', "label nan is none of 0 (negative), 1 (positive)"),
        ('{"sentence": "a", "label": [1]}', "label [1] is none of 0 (negative), 1 (positive)"),
        ("[1]", "not a JSON object"),
        ('"', "not JSON: Unterminated string starting at: line 1 column 1 (char 0)"),
        ("[" * 100_000, "not JSON: nested too deeply"),
        ('{"sentence": "\\ud800", "label": 1}', "sentence holds half a surrogate pair"),
    ],
)  # fmt: skip
def test_a_bad_json_row(sst2: TaskConfig, tmp_path: Path, row: str, problem: str) -> None:
    path = write(tmp_path / "train.jsonl", '{"sentence": "a", "label": 1.0}\n' + row + "\n")
    assert fault(sst2) == f"{path}, row 2: {problem}{SKIP_HINT}"
    examples = read_split(skip(sst2), "train")
    assert (examples.labels, examples.bad_rows) == ([1], 1)


def test_a_bad_csv_row_is_named_by_its_line(sst2: TaskConfig, tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", '\ufeffsentence,label\n"a\nb",1\nc\nd,1,2\ne,0\n')
    assert fault(sst2) == f"{path}, row 4: not the header's number of fields (2){SKIP_HINT}"
    examples = read_split(skip(sst2), "train")
    assert (texts(examples), examples.bad_rows) == (["a\nb", "e"], 2)


def test_a_csv_that_cannot_be_read(sst2: TaskConfig, tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", 'sentence,label\na,1\n"open,1\nb,0\n')
    line = f"{path}, after row 2: not readable as csv: unexpected end of data"
    assert fault(sst2) == line
    assert fault(skip(sst2)) == line  # where the row ends is not known


def test_bytes_in_a_csv_that_are_no_utf8(sst2: TaskConfig, tmp_path: Path) -> None:
    content = b"sentence,label\n" + b"good,1\n" * 5000 + b"caf\xe9,1\nbad,0\n"
    path = write(tmp_path / "train.csv", content)
    assert fault(sst2) == f"{path}, row 5002: holds bytes that are no UTF-8{SKIP_HINT}"
    examples = read_split(skip(sst2), "train")
    assert (len(examples), examples.bad_rows) == (5001, 1)
    path = write(tmp_path / "train.csv", b"sentence,label,caf\xe9\na,1,x\nb,7,x\n")
    assert fault(sst2).startswith(f"{path}, row 3: label '7' is none of")


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_column_that_is_there_twice(sst2: TaskConfig, tmp_path: Path, suffix: str) -> None:
    mark = "," if suffix == ".csv" else "\t"
    content = f"sentence{mark}label{mark}sentence\na{mark}1{mark}b\n"
    path = write(tmp_path / f"train{suffix}", content)
    assert fault(sst2) == f"{path}, row 1: the header has sentence twice"


def test_a_parquet_file_that_is_none(sst2: TaskConfig, tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", b"PAR1 no")
    assert fault(sst2).startswith(f"{path}: not readable as parquet: ")
    write_table(path, [{"text": "a", "label": 1}])
    assert fault(sst2) == (
        f"{path}, row 1: column sentence is missing (there are: text, label){SKIP_HINT}"
    )


def test_parquet_is_read_in_parts(
    sst2: TaskConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparta_bench.data import local_files

    monkeypatch.setattr(local_files, "ROWS_AT_ONCE", 3)
    rows = [{"sentence": f"text {row}", "label": row % 2} for row in range(10)]
    write_table(tmp_path / "train.parquet", rows)
    assert texts(read_split(sst2, "train")) == [row["sentence"] for row in rows]
    write_table(tmp_path / "train.parquet", [*rows, {"sentence": "x", "label": 2}])
    assert ", row 11: label 2 is none of" in fault(sst2)


def test_text_in_parquet_that_is_no_utf8(sst2: TaskConfig, tmp_path: Path) -> None:
    raw = pyarrow.array([b"caf\xe9"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"sentence": raw, "label": [1]}), tmp_path / "train.parquet")
    assert fault(sst2).startswith(f"{tmp_path}/train.parquet: not readable as parquet: ")


def test_a_file_that_may_not_be_read(
    sst2: TaskConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "train.tsv", "sentence\tlabel\na\t1\n")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    assert fault(sst2) == f"{path}: cannot be read: Permission denied"


# ------------------------------------------------------------------------------------- rows
@pytest.mark.parametrize(
    ("value", "number"), [(1, 1), (0, 0), (1.0, 1), ("1", 1), ("1 ", 1), ("positive", 1)]
)
def test_labels(value: Any, number: int) -> None:
    assert parse_label(value, ["negative", "positive"]) == number


@pytest.mark.parametrize(
    "value", [True, None, 2, -1, 0.5, "١", "--1", "-", "", "1e0", b"1", "1" * 5000]
)
def test_what_is_no_label(value: Any) -> None:
    with pytest.raises(BadRowError):
        parse_label(value, ["negative", "positive"])


def test_a_row_gives_its_texts_in_reading_order(tasks: dict[str, TaskConfig]) -> None:
    row = {"label": 0, "question2": "b", "question1": "a"}
    assert parse_row(row, tasks["qqp"]) == (("a", "b"), 0)


def test_the_fingerprint_sees_texts_labels_and_order() -> None:
    one = Examples([("a",), ("b",)], [0, 1])
    assert one.fingerprint() == Examples([("a",), ("b",)], [0, 1]).fingerprint()
    others = [
        Examples([("b",), ("a",)], [1, 0]),
        Examples([("a",), ("b",)], [0, 0]),
        Examples([("a", "b")], [0]),
    ]
    assert len({examples.fingerprint() for examples in [one, *others]}) == 4
