"""The paper's own values: how many, within their ranges, and what must add up."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from sparta_bench.paper import half_unit, number_of, results_of, rows_of
from sparta_bench.tables.protocol import BACKBONE, GLUE, MODELS, TASKS

ROOT = Path(__file__).resolve().parent.parent
ROWS = ["full_ft", "sparta-5", "sparta-0.5", "sparta-lora", "lora", "head"]
NAMES_OF_COLUMNS = {
    "1": ["model"],
    "2": ["task", "dataset"],
    "3": ["row", "label", "density"],
    "4": ["row", "label"],
    "5": ["row", "label"],
    "6": ["model"],
    "7": ["matrix", "layers"],
    "8": ["matrix", "layers"],
    "9": ["task", "dataset"],
    "10": ["row", "label"],
    "11": ["row", "label"],
    "12": ["method", "row", "parameter"],
    "13": ["method", "row", "parameter"],
}


def test_every_table_with_numbers_is_there_and_has_as_many_values_as_printed() -> None:
    values = {}
    for number in map(str, range(1, 14)):
        rows = rows_of(f"table{number}")
        assert all(None not in row and None not in row.values() for row in rows)  # ragged lines
        values[number] = [
            text
            for row in rows
            for column, text in row.items()
            if column not in NAMES_OF_COLUMNS[number]
        ]
        assert all(text == text.strip() != "" for text in values[number])
    assert {number: len(found) for number, found in values.items()} == {
        "1": 2 * 7,
        "2": 8 * 4,
        "3": 6 * 8,
        "4": 6 * 14,
        "5": 6 * 14,
        "6": 3 * 4,
        "7": 18 * 4,
        "8": 43 * 4,
        "9": 8 * 4,
        "10": 6 * 14,
        "11": 6 * 14,
        "12": 21 * 4,
        "13": 17,
    }


@pytest.mark.parametrize("number", [3, 4, 5, 10, 11])
def test_results_have_a_value_for_every_row_and_column_in_its_range(number: int) -> None:
    found = results_of(number)
    assert list(found) == ROWS
    if number == 3:
        columns = [f"{model}.{metric}" for model in MODELS for metric in ("loss", "accuracy")]
    else:
        scores = {task: "mcc" if task == "cola" else "accuracy" for task in GLUE}
        columns = [f"{task}.{metric}" for task in GLUE for metric in ("loss", scores[task])]
    for row in found.values():
        assert [column for column in row if "." in column] == columns
        for column in columns:
            if column.endswith(".loss"):
                assert re.fullmatch(r"\d\.\d{3}" if number == 3 else r"\d\.\d\d", row[column])
                assert 0 < number_of(row[column]) < 3
            else:
                assert re.fullmatch(r"\d\d\.\d%" if number == 3 else r"\d\d\.\d", row[column])
                assert 15 < number_of(row[column]) < 100


def test_values_here_and_there() -> None:
    assert results_of(3)["full_ft"]["gemma-2b.accuracy"] == "96.9%"
    assert results_of(3)["sparta-lora"]["mistral-7b-it.loss"] == "0.076"
    assert results_of(3)["head"]["density"] == "≈ 2e-4%"
    assert results_of(4)["head"]["qnli.loss"] == "2.60"
    assert results_of(4)["head"]["label"] == "Head (1.63e-4%)"
    assert results_of(4)["sparta-lora"]["label"] == "SpaRTA (0.037%)"
    assert results_of(5)["sparta-5"]["cola.mcc"] == "72.1"
    assert results_of(5)["lora"]["label"] == "LoRA (0.048%)"
    assert results_of(10)["sparta-lora"]["rte.accuracy"] == "57.8"
    assert results_of(10)["full_ft"]["label"] == "Full FT"
    assert results_of(11)["sparta-0.5"]["mrpc.accuracy"] == "88.8"
    assert results_of(11)["head"]["cola.mcc"] == "45.5"
    assert rows_of("table6")[2]["cola.accuracy"] == "84.4%"
    assert rows_of("table8")[1]["deficiency"] == "1788"
    assert rows_of("table12")[8]["gemma-2b"] == "1.5e-5"
    assert "5e-4" in rows_of("table13")[1]["values"]


def test_sums_of_the_columns_are_those_of_the_printed_tables() -> None:
    """A digit mistyped anywhere changes a sum; the sums were taken from the paper's text."""
    sums = {}
    for number in (3, 4, 5, 10, 11):
        rows = results_of(number).values()
        cells = [text for row in rows for column, text in row.items() if "." in column]
        sums[number] = round(sum(map(number_of, cells)), 3)
    assert sums == SUMS


def test_table_1_is_the_formula_of_section_5() -> None:
    """2 bytes a parameter; full fine-tuning 4 n, SpaRTA n + 6 k n of them, k the density."""
    for row, billions in zip(rows_of("table1"), (2, 7), strict=True):
        assert row["storage"] == f"{2 * billions}"
        assert row["full_ft"] == f"{4 * 2 * billions}"
        for sparsity in (50, 80, 90, 95, 99):
            size = 2 * billions * (1 + 6 * (100 - sparsity) / 100)
            printed = row[f"sparta-{sparsity}"]
            assert abs(size - number_of(printed)) <= half_unit(printed) + 1e-9


def test_tables_2_and_9_differ_in_the_training_sets_of_qnli_and_rte_alone() -> None:
    """Appendix B names MRPC too, whose numbers are the same but for a comma in print."""
    different = [
        (row["task"], column, row[column], other[column])
        for row, other in zip(rows_of("table2"), rows_of("table9"), strict=True)
        for column in row
        if row[column] != other[column]
    ]
    assert different == [
        ("mrpc", "test", "1725", "1,725"),
        ("qnli", "train", "99,725", "99,701"),
        ("rte", "train", "2,182", "2,165"),
    ]
    assert {row["task"] for row in rows_of("table2")} == set(TASKS)


def test_shares_of_imdbs_training_set_are_of_25_000() -> None:
    assert [row["model"] for row in rows_of("imdb_train")] == list(MODELS)
    for row in rows_of("imdb_train"):
        assert row["share"] == f"{number_of(row['train']) / 25_000:.0%}"


@pytest.mark.parametrize(("number", "layers"), [("7", 18), ("8", 32)])
def test_ranks_add_up_and_every_layer_stands_once(number: str, layers: int) -> None:
    seen: dict[str, list[int]] = {}
    for row in rows_of(f"table{number}"):
        deficiency = number_of(row["deficiency"].removesuffix(" (full rank)"))
        smaller = min(number_of(row["rows"]), number_of(row["columns"]))
        assert number_of(row["rank"]) + deficiency == smaller
        assert row["deficiency"].endswith("(full rank)") == (deficiency == 0)
        if row["layers"] == "-":
            continue
        for part in row["layers"].split(","):
            first, _, last = part.partition("-")
            seen.setdefault(row["matrix"], []).extend(range(int(first), int(last or first) + 1))
    assert len(seen) == 7
    assert all(sorted(found) == list(range(layers)) for found in seen.values())


def test_matrices_of_tables_7_and_8_are_those_of_the_models() -> None:
    for number, layers, width, model in (
        ("7", 18, 2048, "gemma-2b"),
        ("8", 32, 4096, "mistral-7b"),
    ):
        sizes = {
            row["matrix"]: int(row["rows"]) * int(row["columns"])
            * (1 if row["layers"] == "-" else layers)
            for row in rows_of(f"table{number}")
            if row["matrix"] != "untied lm head"
        }  # fmt: skip
        norms = (2 * layers + 1) * width
        assert sum(sizes.values()) + norms == BACKBONE[model]


def test_table_12_has_each_method_with_its_parameters() -> None:
    rows = [(row["row"], row["parameter"]) for row in rows_of("table12")]
    assert len(set(rows)) == 21
    assert [row for row, _ in rows] == (
        ["full_ft"] * 6 + ["sparta"] * 2 + ["sparta-5", "sparta-0.5", "sparta-lora"]
        + ["lora"] * 7 + ["head"] * 3
    )  # fmt: skip
    for row in rows_of("table12"):
        for model in MODELS:
            assert row[model] in ("*", "-") or number_of(row[model]) > 0


def test_headings_that_name_another_model_are_kept_as_printed() -> None:
    printed = {row["table"]: (row["model"], row["printed"]) for row in rows_of("printed_models")}
    assert printed == {
        "4": ("gemma-2b-it", "gemma-2-2b-it"),
        "5": ("mistral-7b-it", "Mistral-7B-Instruct-v0.3"),
        "10": ("gemma-2b", "google/gemma-2-2b"),
        "11": ("mistral-7b", "mistralai/Mistral-7B-v0.3"),
    }


def test_numbers_are_read_as_printed() -> None:
    assert [number_of(text) for text in ("96.9%", "1,725", "5e-4", "2.60")] == [
        96.9, 1725, 0.0005, 2.6
    ]  # fmt: skip
    assert [half_unit(text) for text in ("96.9%", "0.080", "25", "0.46")] == [
        pytest.approx(0.05), pytest.approx(0.0005), 0.5, pytest.approx(0.005)
    ]  # fmt: skip


def test_the_values_travel_with_the_package() -> None:
    """Hatch takes every file inside a package that git does not ignore."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["packages"] == ["sparta_bench"]
    ignored = (ROOT / ".gitignore").read_text()
    assert "csv" not in ignored and "paper" not in ignored


SUMS = {3: 2316.17, 4: 3334.65, 5: 3709.66, 10: 3357.06, 11: 3612.42}
