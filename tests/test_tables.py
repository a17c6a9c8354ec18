"""Tables from forged records: layouts, rounding, marks, notes, files."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forged_records import forge, many, scores, write

from sparta_bench.cli.tables_command import main
from sparta_bench.config.sweeps import sweeps_of
from sparta_bench.errors import InputError
from sparta_bench.paper import number_of, results_of
from sparta_bench.records.read import record_of
from sparta_bench.records.record import Record
from sparta_bench.tables.build import TINY_NOTE, build_tables
from sparta_bench.tables.paper_tables import LAYOUTS, Layout, rate_text, score_of
from sparta_bench.tables.select import Spread, select
from sparta_bench.tables.setup_tables import (
    count_tables,
    is_the_papers,
    read_plans,
    settings_tables,
)
from sparta_bench.tables.table import (
    LIST,
    Heading,
    Table,
    as_csv,
    as_latex,
    as_markdown,
    flat_headings,
)
from sparta_bench.tables.views import holm, paired_test, ranks_of
from sparta_bench.text import as_bytes, as_duration, counted, padded, signed, spread_text

SEEDS = range(3)


def tables_of(*raws: dict[str, Any]) -> dict[str, Table]:
    found = [record_of(Path(f"{place}/result.json"), raw) for place, raw in enumerate(raws)]
    records = [record for record in found if isinstance(record, Record)]
    assert len(records) == len(raws), found
    tables = build_tables(select(records))
    for table in tables:
        widths = [sum(heading.span for heading in row) for row in table.headings]
        assert set(widths) == {len(flat_headings(table))}
        assert all(len(row) == widths[0] for row in table.rows), table.key
        assert all(
            cell.strip() or place < 2 for row in table.rows for place, cell in enumerate(row)
        )
    keys = [table.key for table in tables]
    assert len(set(keys)) == len(keys)
    return {table.key: table for table in tables}


def row_of(table: Table, *names: str) -> tuple[str, ...]:
    """The cells after the names that a row begins with."""
    found = [row for row in table.rows if row[: len(names)] == names]
    assert len(found) == 1, (names, table.rows)
    return found[0][len(names) :]


# ------------------------------------------------------------------------------ as the paper prints
def papers_own_values(number: int) -> list[dict[str, Any]]:
    """One record for each cell of a table, whose test scores are what the paper prints."""
    layout = next(one for one in LAYOUTS if one.number == number and not one.tiny)
    records = []
    for column in layout.columns:
        for row in layout.rows:
            metric = score_of(column.task)
            loss = number_of(layout.paper(row, column, "loss"))
            score = number_of(layout.paper(row, column, metric)) / 100
            test = {"loss": loss, "accuracy": 0.123, "mcc": 0.321, metric: score}
            records.append(forge(column.model, column.task, row.method, row.density, test=test))
    return records


@pytest.mark.parametrize("number", [4, 5, 10, 11])
def test_the_papers_values_as_records_print_the_papers_glue_tables(number: int) -> None:
    table = tables_of(*papers_own_values(number))[f"table{number}"]
    printed = [
        tuple(text for column, text in row.items() if column != "row")
        for row in results_of(number).values()
    ]
    assert list(table.rows) == printed
    assert table.headings == (
        (Heading(""), *(Heading(task, 2) for task in
                        ("QNLI", "RTE", "SST2", "QQP", "MNLI", "MRPC", "COLA"))),
        (Heading(""), *[Heading("loss"), Heading("acc.")] * 6, Heading("loss"), Heading("mcc")),
    )  # fmt: skip


def test_the_papers_values_as_records_print_table_3() -> None:
    table = tables_of(*papers_own_values(3))["table3"]
    printed = [
        tuple(text for column, text in row.items() if column != "row")
        for row in results_of(3).values()
    ]
    assert list(table.rows) == printed
    assert flat_headings(table)[:4] == [
        "Adaptation", "density (%)", "gemma-2b loss", "gemma-2b acc."
    ]  # fmt: skip


@pytest.mark.parametrize("number", [3, 4, 5, 10, 11])
def test_beside_the_papers_own_values_no_value_differs(number: int) -> None:
    table = tables_of(*papers_own_values(number))[f"table{number}-beside"]
    for *_, ours, paper, off, within, ours2, paper2, off2, within2 in table.rows:
        assert number_of(ours.removesuffix(" (1)")) == number_of(paper)
        assert number_of(ours2.removesuffix(" (1)")) == number_of(paper2)
        assert float(off) == float(off2) == 0
        assert within == within2 == "–"  # one seed has no spread
    assert len(table.rows) == (24 if number == 3 else 42)


def test_means_are_rounded_as_the_paper_rounds_and_the_densities_are_exact() -> None:
    runs = [
        forge("gemma-2b-it", "cola", "sparta", 0.000465, seed=seed, test=scores(loss, 0.8, mcc))
        for seed, loss, mcc in zip(
            SEEDS, (0.4449, 0.446, 0.4551), (0.55, 0.56, 0.5749), strict=True
        )
    ]
    tables = tables_of(*runs)
    assert row_of(tables["table4"], "SpaRTA (0.037%)")[-2:] == ("0.45", "56.2")
    row = row_of(tables["table4-beside"], "COLA", "SpaRTA (0.0465%)")
    assert row == (
        "0.449 ± 0.006 (3)", "0.45", "-0.001", "yes", "56.16 ± 1.25 (3)", "56.5", "-0.34", "yes"
    )  # fmt: skip
    assert "ran with a density of 0.0465%" in tables["table4"].notes[0]
    assert "gemma-2-2b-it" in tables["table4"].notes[1]


@pytest.mark.parametrize(
    ("accuracies", "within"),
    [
        ((0.926, 0.926, 0.926), "yes"),  # the paper's 92.6
        ((0.9265, 0.9265, 0.9265), "yes"),  # half a unit off: what rounding can hide
        ((0.9266, 0.9266, 0.9266), "no"),
        ((0.936, 0.926, 0.916), "yes"),
        ((0.946, 0.936, 0.926), "yes"),  # one deviation off
        ((0.9471, 0.9371, 0.9271), "no"),  # a little more
    ],
)
def test_whether_the_papers_value_lies_within_our_spread(
    accuracies: tuple[float, ...], within: str
) -> None:
    runs = [
        forge("gemma-2b", "qnli", "full_ft", seed=seed, test=scores(0.2, accuracy))
        for seed, accuracy in enumerate(accuracies)
    ]
    assert row_of(tables_of(*runs)["table10-beside"], "QNLI", "Full FT")[-1] == within


# ----------------------------------------------------------------------- missing, failed, unequal
def test_missing_and_failed_cells_are_marked_and_told() -> None:
    tables = tables_of(
        forge("gemma-2b", "rte", "lora", test=scores(0.5, 0.7)),
        forge("gemma-2b", "rte", "lora", seed=1, status="failed"),
        forge("gemma-2b", "rte", "head", status="failed"),
    )
    table = tables["table10"]
    assert row_of(table, "LoRA (0.037%)") == (*["–"] * 2, "0.50", "70.0", *["–"] * 10)
    assert row_of(table, "Head (1.63e-4%)") == (*["–"] * 2, "failed", "failed", *["–"] * 10)
    assert row_of(tables["table10-beside"], "RTE", "Head") == (
        "failed", "0.68", "–", "–", "failed", "60.3", "–", "–"
    )  # fmt: skip
    assert "1 record used; 2 failed." in table.notes
    assert [row[:2] for row in tables["settings-table10"].rows] == [("RTE", "LoRA")]
    assert "table4" not in tables


def test_notes_say_how_many_records_were_used_and_why_others_were_not() -> None:
    runs = [forge("gemma-2b", "rte", "lora", seed=seed) for seed in SEEDS]
    runs += [forge("gemma-2b", "rte", "lora", seed=seed, rate=1e-3, dev=0.4) for seed in SEEDS]
    runs += [forge("gemma-2b", "rte", "lora", seed=0, rate=1e-2)]
    runs += [forge("gemma-2b", "sst2", "lora", seed=0)]
    cap = {"config__task__max_train_examples": 50}
    runs += [forge("gemma-2b", "rte", "head", seed=seed, **cap) for seed in SEEDS]
    runs += [forge("mistral-7b", "rte", "head", **cap)]  # another table's
    table = tables_of(*runs)["table10"]
    assert table.notes[-3:] == (
        "Seeds: 3; 1 for LoRA on SST2.",
        "4 records used; 3 of settings with a higher dev loss.",
        "4 records left out: 3: trained on the first 50 examples only; "
        "1: a setting with fewer seeds than another of its cell.",
    )


def test_the_chosen_setting_of_each_cell_is_told() -> None:
    runs = [
        forge("mistral-7b-it", "sst2", "sparta", 0.05, seed=seed, rate=rate, dev=dev,
              trainable=348_995_789)
        for seed in SEEDS
        for rate, dev in ((5e-6, 0.2), (1e-5, 0.3))
    ]  # fmt: skip
    assert tables_of(*runs)["settings-table5"].rows == (
        ("SST2", "SpaRTA (5%)", "5e-6", "32", "2", "348,995,789", "2", "0.2000 ± 0.0000 (3)"),
    )


# -------------------------------------------------------------------------------------- the twins
def twin(task: str = "tiny-rte", model: str = "tiny-gemma", **more: Any) -> dict[str, Any]:
    return forge(model, task, "full_ft", test=scores(0.4, 0.81), **more)


def test_twins_have_tables_of_their_own_that_say_what_they_are() -> None:
    tables = tables_of(*(twin(seed=seed) for seed in SEEDS), forge("gemma-2b", "rte", "full_ft"))
    real = [key for key in tables if "gemma-2b" in key or key.startswith(("table10", "settings-"))]
    for key, table in tables.items():
        if key.endswith(("-twins", "-twins-spread", "-tiny-gemma")):
            assert table.notes[0] == TINY_NOTE
            assert "generated text" in table.title
            real = [name for name in real if name != key]
        else:
            assert "tiny" not in as_markdown(table) and TINY_NOTE not in table.notes
    assert sorted(real) == ["settings-table10", "table10", "table10-beside"]
    assert row_of(tables["table10-twins"], "Full FT")[2:4] == ("0.40", "81.0")
    assert row_of(tables["table10"], "Full FT")[2:4] == ("0.25", "90.0")
    assert row_of(tables["table10-twins-spread"], "RTE", "Full FT") == (
        "0.400 ± 0.000 (3)", "81.00 ± 0.00 (3)"
    )  # fmt: skip
    assert "table10-twins-beside" not in tables  # nothing of the paper's beside them


@pytest.mark.parametrize(
    "names",
    [
        {"model": "gemma-2b", "task": "rte"},
        {"model": "gemma-2b"},
        {"task": "rte"},
        {"config__model__embedded": False},
        {"config__task__generated": None},
    ],
)
def test_a_twin_under_other_names_stands_in_no_table(names: dict[str, Any]) -> None:
    settings = {key: value for key, value in names.items() if key.startswith("config")}
    renamed = {key: value for key, value in names.items() if not key.startswith("config")}
    assert tables_of({**twin(**settings), **renamed}) == {}


def test_table_3_of_the_twins_has_their_densities() -> None:
    table = tables_of(forge("tiny-mistral", "tiny-imdb", "sparta", 0.036))["table3-twins"]
    assert [row[:2] for row in table.rows] == [
        ("Full FT", "–"), ("SpaRTA", "5%"), ("SpaRTA", "0.5%"), ("SpaRTA", "3.6%"),
        ("LoRA", "–"), ("Head", "–"),
    ]  # fmt: skip
    assert row_of(table, "SpaRTA", "3.6%")[4:6] == ("0.250", "90.0%")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.key)
def test_densities_are_those_of_the_sweeps(layout: Layout) -> None:
    (sparta,) = [sweep for sweep in sweeps_of(layout.key) if sweep.method == "sparta"]
    densities = [row.density for row in layout.rows if row.method == "sparta"]
    assert sparta.axes["method.density"] == densities
    assert {column.model for column in layout.columns} == set(sparta.axes["model"])


def test_a_density_of_a_rows_band_stands_in_the_row_and_the_nearest_one_first() -> None:
    """The paper prints 0.05 %; 0.0465 % gives LoRA's count."""
    printed = forge("gemma-2b", "rte", "sparta", 0.0005, test=scores(0.5, 0.7))
    tables = tables_of(printed)
    assert row_of(tables["table10"], "SpaRTA (0.037%)")[2:4] == ("0.50", "70.0")
    assert "ran with a density of 0.05%" in tables["table10"].notes[0]
    assert row_of(tables["table10-beside"], "RTE", "SpaRTA (0.05%)")[0] == "0.500 (1)"
    assert "model-gemma-2b" not in tables
    nearer = forge("gemma-2b", "rte", "sparta", 0.000465, test=scores(0.4, 0.8))
    tables = tables_of(printed, nearer)
    assert row_of(tables["table10"], "SpaRTA (0.037%)")[2:4] == ("0.40", "80.0")
    assert [row[0] for row in tables["model-gemma-2b"].rows] == ["SpaRTA (0.05%)"]
    assert [row[0] for row in tables["ranks-gemma-2b"].rows] == [
        "SpaRTA (0.05%)", "SpaRTA (LoRA's count)"
    ]  # fmt: skip
    rows = {row.id: row for row in LAYOUTS[0].rows}
    assert [rows["sparta-5"].has(density) for density in (0.046, 0.054, 0.044, 0.01, None)] == [
        True, True, False, False, False
    ]  # fmt: skip
    assert rows["lora"].has(None) and not rows["lora"].has(0.05)


# ----------------------------------------------------------------------------------- other models
def test_another_model_has_a_table_in_the_same_layout() -> None:
    cap = {"config__task__max_train_examples": 2010}  # as many as were there: 2,000 and 10 dropped
    runs = [
        forge("stories", task, method, density, seed=seed, test=scores(0.5, 0.7 + seed / 100, 0.1))
        for task in ("own", "cola", "rte")
        for method, density in (
            ("head", None), ("sparta", 0.005), ("sparta", 0.05), ("lora", None), ("full_ft", None)
        )
        for seed in SEEDS
    ]  # fmt: skip
    runs += [forge("stories", "sst2", "lora", seed=seed, **cap) for seed in SEEDS]
    tables = tables_of(*runs)
    table = tables["model-stories"]
    assert flat_headings(table) == [
        "", "RTE loss", "RTE acc.", "SST2 (first 2,010) loss", "SST2 (first 2,010) acc.",
        "COLA loss", "COLA mcc", "own loss", "own acc.",
    ]  # fmt: skip
    assert [row[0] for row in table.rows] == [
        "Full FT", "SpaRTA (5%)", "SpaRTA (0.5%)", "LoRA", "Head"
    ]  # fmt: skip
    assert row_of(table, "SpaRTA (0.5%)") == (
        "0.500 ± 0.000", "71.0 ± 1.0", "–", "–", "0.500 ± 0.000", "10.0 ± 0.0",
        "0.500 ± 0.000", "71.0 ± 1.0",
    )  # fmt: skip
    assert "Seeds: 3." in table.notes
    assert len(tables["settings-model-stories"].rows) == 16


def test_a_density_that_the_paper_lacks_stands_beside_its_tables() -> None:
    tables = tables_of(
        forge("gemma-2b", "rte", "sparta", 0.05), forge("gemma-2b", "rte", "sparta", 0.01)
    )
    assert row_of(tables["table10"], "SpaRTA (5%)")[3] == "90.0"
    assert [row[0] for row in tables["model-gemma-2b"].rows] == ["SpaRTA (1%)"]
    assert tables["density-gemma-2b"].rows == (("5%", "90.0 (1)"), ("1%", "90.0 (1)"))


def test_names_of_models_can_name_no_file_elsewhere_and_no_file_twice() -> None:
    names = ["A b", "a-B", "../x", "ö", "x" * 300]
    tables = tables_of(*(forge(name) for name in names))
    assert all(re.fullmatch(r"[\w.+-]{1,110}", key, re.ASCII) for key in tables)
    assert len({key.lower() for key in tables}) == len(tables)


# ----------------------------------------------------------------------------------------- views
def test_ranks_have_ties_within_the_larger_spread() -> None:
    def spread(mean: float, std: float | None) -> Spread:
        return Spread(mean, std, 1 if std is None else 3)

    means = [spread(0.90, 0.01), spread(0.895, 0.001), spread(0.88, 0.015), spread(0.87, 0.01),
             spread(0.5, 0.01)]  # fmt: skip
    assert list(ranks_of(dict(zip("abcde", means, strict=True))).values()) == [1, 1, 3, 3, 5]
    single = [spread(0.90, None), spread(0.89, None), spread(0.89, None)]
    assert list(ranks_of(dict(zip("abc", single, strict=True))).values()) == [1, 2, 2]


def test_the_rank_table_has_means_where_every_task_has_a_rank() -> None:
    runs = [
        forge("m", task, method, test=scores(0.3, accuracy, accuracy))
        for task, method, accuracy in (
            ("rte", "lora", 0.7), ("rte", "head", 0.6), ("rte", "full_ft", 0.8),
            ("cola", "lora", 0.5), ("cola", "head", 0.6),
        )
    ]  # fmt: skip
    table = tables_of(*runs)["ranks-m"]
    assert table.rows == (
        ("Full FT", "1", "–", "–"), ("LoRA", "2", "2", "2.0"), ("Head", "3", "1", "2.0")
    )  # fmt: skip
    assert "no tie can be told" in table.notes[-1]


def test_the_density_at_loras_count_is_one_line_of_ranks_on_imdb_and_glue() -> None:
    runs = [forge("gemma-2b", task, "sparta", density) for task, density in
            (("imdb", 0.0005), ("rte", 0.000465), ("rte", 0.05), ("imdb", 0.05))]  # fmt: skip
    assert tables_of(*runs)["ranks-gemma-2b"].rows == (
        ("SpaRTA (5%)", "1", "1", "1.0"), ("SpaRTA (LoRA's count)", "1", "1", "1.0")
    )  # fmt: skip


def test_sparta_is_tested_against_lora_at_equal_parameter_count_by_common_seeds() -> None:
    lora = [0.80, 0.82, 0.81, 0.5]
    sparta = [0.83, 0.84, 0.86]
    runs = [
        forge("m", "rte", "lora", seed=seed, trainable=1000, test=scores(0.5, accuracy))
        for seed, accuracy in enumerate(lora)
    ]
    runs += [
        forge("m", "rte", "sparta", density, seed=seed, trainable=trainable,
              test=scores(0.5, accuracy))
        for density, trainable in ((0.01, 1090), (0.05, 1101), (0.009, 980), (0.001, 890))
        for seed, accuracy in enumerate(sparta)
    ]  # fmt: skip
    loss, accuracy = tables_of(*runs)["lora-m"].rows
    assert loss == ("RTE", "loss", "0.9%", "3", "0.0000", "–", "–", "–", "–")
    differences = [3.0, 2.0, 5.0]
    error = statistics.stdev(differences) / 3**0.5
    t = statistics.fmean(differences) / error
    low, high = (statistics.fmean(differences) + side * 4.302653 * error for side in (-1, 1))
    assert accuracy == (
        "RTE", "accuracy", "0.9%", "3", "+3.33", f"{low:+.2f} to {high:+.2f}", f"{t:+.2f}",
        "0.063", "0.063",
    )  # fmt: skip


def test_without_equal_counts_there_is_nothing_to_test() -> None:
    runs = [forge("m", "rte", "lora", trainable=1000), forge("m", "rte", trainable=1200)]
    assert "lora-m" not in tables_of(*runs)


@pytest.mark.parametrize(
    ("differences", "t", "p", "half_interval"),
    [  # scipy.stats.ttest_1samp of scipy 1.17
        ([1.0, 2.0], 3.0, 0.20483276469913345, 6.353102368087347),
        ([1.0, 2.0, 4.0, 3.5], 3.812933455813455, 0.031724839128026046, 2.190943442412503),
        ([-3.0, 1.0, 2.0, 5.0, 1.0, 1.0], 1.1151927287850, 0.31547876930109, 2.68923215168647),
    ],
)
def test_the_paired_test_is_students(
    differences: list[float], t: float, p: float, half_interval: float
) -> None:
    found = paired_test(differences)
    assert (found.n, found.mean) == (len(differences), statistics.fmean(differences))
    assert found.t == pytest.approx(t, rel=1e-12)
    assert found.p == pytest.approx(p, rel=1e-9)
    assert found.half_interval == pytest.approx(half_interval, rel=1e-9)


def test_one_difference_and_equal_differences_tell_nothing() -> None:
    assert paired_test([0.5]).p is None
    assert paired_test([0.1, 0.1, 0.1]).p is None
    assert paired_test([0.0, 0.0]).half_interval is None
    third = paired_test([0.3 - 0.2, 0.2 - 0.1, 0.1])  # equal but for the last bits
    assert third.t is None


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


# ------------------------------------------------------------------------ Tables 2, 9, 12 and 13
def plan(model: str, task: str, **data: int | None) -> str:
    return json.dumps({"model": model, "task": task, "data": data})


def test_tables_2_and_9_have_what_plan_prints_beside_the_paper(tmp_path: Path) -> None:
    folder = tmp_path / "plans"
    folder.mkdir()
    plans = {
        "a": plan("mistral-7b-it", "rte", train=2165, train_dropped=25, dev=300, test=277),
        "b": plan("mistral-7b-it", "cola", train=7550, train_dropped=1, dev=1000, test=1043),
        "c": plan("mistral-7b-it", "imdb", train=17672, train_dropped=7328, dev=5000, test=20000),
        "d": plan("mistral-7b-it", "sst2", train=66349, train_dropped=None, dev=1000, test=872),
        "e": json.dumps({"model": "mistral-7b-it", "task": "qqp", "data": None}),
        "f": "no",
        "g": plan("mistral-7b-it", "rte", train=2165, train_dropped=25, dev=300, test=277),
        "h": plan("mistral-7b-it", "rte", train=900, train_dropped=25, dev=300, test=277),
    }
    for name, text in plans.items():
        (folder / f"{name}.json").write_text(text)
    sizes, faults = read_plans([tmp_path])
    assert faults == [
        "e.json is no plan with counts",
        "f.json is no plan with counts",
        "h.json has other counts than the plans of mistral-7b-it on rte before it; not used",
    ]
    (table,) = count_tables(sizes)
    assert table.key == "table9"
    assert row_of(table, "RTE", "2") == ("2,165", "2,165", "300", "300", "277", "277")
    assert row_of(table, "COLA", "2") == ("7,550 ≠", "7,551", "1,000", "1,000", "1,043", "1,043")
    assert row_of(table, "IMDB", "2")[:2] == ("25,000", "25,000")
    assert row_of(table, "SST-2", "2")[:3] == ("–", "66,349", "1,000")
    assert row_of(table, "QQP", "2")[:2] == ("–", "100,000")
    assert table.notes[-1] == "After that 17,672 are left; in the paper (appendix E.1) 17,672."


def test_tables_12_and_13_say_that_the_configuration_is_the_papers() -> None:
    table12, table13 = settings_tables()
    assert len(table12.rows) == 21 and len(table13.rows) == 17
    for table in (table12, table13):
        assert not any("≠" in cell for row in table.rows for cell in row)
    assert row_of(table12, "SpaRTA d = 5%", "learning rate")[:4] == (
        "1.5e-5", "1.5e-5", "8e-6", "8e-6"
    )  # fmt: skip
    assert row_of(table12, "Full FT", "num epochs") == ("2", "2", "2", "2", "*", "*", "*", "*")
    assert table13.notes[-1] == "Epochs: 2, in full; in the paper 2."
    rates = "[1e-3, 5e-4, 2e-4, 1e-4, 5e-5, 1e-5, 5e-6]"
    assert row_of(table13, "LoRA", "learning rate") == (rates,) * 5


@pytest.mark.parametrize(
    ("ours", "printed", "same"),
    [
        ("1e-5", "1e-5", True), ("0", "-", True), ("*", "*", True), ("15", "-", False),
        ("2", "*", False), ("*", "2", False), ("1e-5", "1e-4", False),
    ],
)  # fmt: skip
def test_a_setting_is_the_papers_or_marked(ours: str, printed: str, same: bool) -> None:
    assert is_the_papers(ours, printed) == same


# -------------------------------------------------------------------------------------- renderers
ODD = Table(
    "odd",
    r"a & b_c 100 % #1 $x$ {y} ~ ^ \z | <t> * `q` [l] – ± × ≈ ≠ α é ∞",
    ((Heading(""), Heading("over two", 2)), (Heading("first"), Heading("a|b"), Heading("c"))),
    (("line\nbreak", "-0.5", "–"), ('quote"s, comma', "0.1 ± 0.2", "a\tb\x00c"), ("x", "", "y")),
    ("A note: 5 % < 10 % & more_of it.",),
)


def test_markdown_is_one_table_with_joined_headings() -> None:
    lines = as_markdown(ODD).splitlines()
    assert lines[2] == "| first          | over two a\\|b | over two c |"
    assert lines[3] == "| -------------- | ------------- | ---------- |"
    assert lines[4] == "| line break     | -0.5          | –          |"
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in lines[2:7])
    assert lines[-1] == "- A note: 5 % &lt; 10 % &amp; more_of it."


def test_csv_parses_back() -> None:
    rows = list(csv.reader(io.StringIO(as_csv(ODD))))
    assert rows == [
        ["first", "over two a|b", "over two c"],
        ["line break", "-0.5", "–"],
        ['quote"s, comma', "0.1 ± 0.2", "a b c"],
        ["x", "", "y"],
    ]
    table = tables_of(*papers_own_values(4))["table4-beside"]
    parsed = list(csv.reader(io.StringIO(as_csv(table))))
    assert parsed[0] == flat_headings(table)
    assert [tuple(row) for row in parsed[1:]] == list(table.rows)


def test_latex_has_rules_merged_headings_and_no_special_character_left() -> None:
    text = as_latex(ODD)
    assert r"& \multicolumn{2}{c}{over two} \\" in text
    assert r"\cmidrule(lr){2-3}" in text
    assert r"line break & $-$0.5 & -- \\" in text
    assert r"A note: 5 \% $<$ 10 \% \& more\_of it." in text
    assert text.isascii()
    assert r"\textbackslash{}z" in text and r"\{y\}" in text and "[U+221E]" in text


LATEX_BEGIN = r"""\documentclass{article}
\usepackage{booktabs,graphicx}
\usepackage[margin=1cm]{geometry}
\begin{document}
"""


def test_latex_compiles(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        if os.environ.get("SPARTA_BENCH_ALL_TOOLS") == "1":
            pytest.fail("pdflatex is missing")
        pytest.skip("pdflatex is missing")
    runs = [*papers_own_values(3), *papers_own_values(4), twin(), forge("a_b & c%", "own")]
    tables = [ODD, *tables_of(*runs).values()]
    body = "\\clearpage\n".join(map(as_latex, tables))
    (tmp_path / "all.tex").write_text(f"{LATEX_BEGIN}{body}\\end{{document}}\n", encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert f"({len(tables)} pages" in done.stdout


def test_numbers_as_the_paper_writes_them() -> None:
    rates = (1e-3, 5e-4, 1.5e-5, 8e-6, 0.02, 0.1, 3.0)
    assert [rate_text(rate) for rate in rates] == [
        "1e-3", "5e-4", "1.5e-5", "8e-6", "2e-2", "0.1", "3"
    ]  # fmt: skip
    assert [signed(value, 2) for value in (0.1, -0.1, -0.001, 0.001)] == [
        "+0.10", "-0.10", "0.00", "0.00"
    ]  # fmt: skip


def test_texts_of_counts_times_and_bytes() -> None:
    assert [counted(1, "run"), counted(2000, "run"), counted(0, "match", "matches")] == [
        "1 run", "2,000 runs", "0 matches"
    ]  # fmt: skip
    assert [as_bytes(count) for count in (1e5, 9.94e6, 867_831_808, 2.51e10)] == [
        "0.1 MB", "9.9 MB", "868 MB", "25.1 GB"
    ]  # fmt: skip
    assert [as_duration(seconds, 1) for seconds in (7.58, 119.0, 120.0)] == [
        "7.6 s", "119.0 s", "2 min"
    ]  # fmt: skip
    assert [spread_text(1.234, None, 1), spread_text(-1.234, 0.05, 2)] == ["1.2", "-1.23 ± 0.05"]
    assert padded([("a", "b"), ("long", "12")]) == [["a   ", " b"], ["long", "12"]]


# ------------------------------------------------------------------------------------ the command
def test_the_command_writes_every_table_and_prints_them_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        tmp_path, *papers_own_values(4), forge("gemma-2b-it", "rte", "lora", status="interrupted")
    )
    main([str(tmp_path)])
    printed = capsys.readouterr().out
    out = tmp_path / "tables"
    assert (out / "tables.md").read_text() == printed
    assert printed.startswith(
        "# Tables\n\n43 records found: 42 used, 0 of settings with a higher dev loss, 0 failed, "
        "1 left out.\n- left out, 1: interrupted\n"
        "- no records for the paper's tables: 3, 5, 10, 11\n"
        "- no plans for the paper's tables: 2, 9\n\n## Our Table 4: "
    )
    assert "| Full FT (100%)  | 0.46      | 81.2      |" in printed
    keys = ["table4", "table4-beside", "settings-table4", "ranks-gemma-2b-it",
            "lora-gemma-2b-it", "density-gemma-2b-it"]  # fmt: skip
    names = {f"{key}.{end}" for key in keys for end in ("md", "csv", "tex")}
    assert {path.name for path in out.iterdir()} == names | {"tables.md", LIST}


def test_without_a_folder_the_runs_of_results_count_and_no_others_beside_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("results/tiny/runs"), forge("model-b", seed=1), forge("model-b", seed=2))
    main([])
    assert "2 records found: 2 used" in capsys.readouterr().out
    write(Path("results/runs"), forge("model-a"))
    note = "- of results/runs alone; given a folder, such as results, all records below it count\n"
    main([])
    told = capsys.readouterr().out
    assert "1 record found: 1 used" in told and note in told
    assert Path("results/tables/tables.md").read_text() == told
    main(["results"])
    told = capsys.readouterr().out
    assert "3 records found: 3 used" in told and note not in told


def test_files_of_an_earlier_call_go_and_others_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "runs", tmp_path / "out"
    write(folder, forge("gemma-2b-it", "rte"), forge("b"))
    main([str(folder), "--out", str(out)])
    (out / "mine.md").write_text("mine")
    (out / LIST).write_text((out / LIST).read_text() + "../kept.md\nno.txt\n")
    (tmp_path / "kept.md").write_text("kept")
    shutil.rmtree(folder / "runs" / "rte")
    main([str(folder), "--out", str(out), "--format", "csv"])
    assert {path.name for path in out.iterdir()} == {
        "mine.md", "tables.md", LIST, "model-b.csv", "settings-model-b.csv"
    }  # fmt: skip
    assert (tmp_path / "kept.md").exists()
    capsys.readouterr()


def test_json_says_the_same_to_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, *papers_own_values(10))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text("{")
    main([str(tmp_path), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["records"] == {
        "found": 43,
        "used": 42,
        "outdone": 0,
        "failed": 0,
        "stopped": 0,
        "left_out": [
            {"path": str(tmp_path / "broken" / "result.json"), "reason": "is no JSON"},
        ],
    }
    table = told["tables"][0]
    assert (table["key"], table["rows"][0][1]) == ("table10", "0.20")
    assert len(table["headings"]) == len(table["rows"][0]) == 15


def test_two_calls_write_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "in", *many(60))
    texts = []
    for name in ("a", "b"):
        main([str(tmp_path / "in"), "--out", str(tmp_path / name)])
        texts.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert texts[0] == texts[1]
    capsys.readouterr()


def test_no_records_give_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path)])
    assert capsys.readouterr().out.startswith("# Tables\n\n0 records found: 0 used")


def test_wrong_input_is_told_in_one_line_each(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        main([str(tmp_path / "a"), str(tmp_path), str(tmp_path / "b")])
    assert error.value.lines == tuple(
        f"tables: {tmp_path / name}: there is no such folder" for name in "ab"
    )
    with pytest.raises(InputError, match=r"tables: argument --format: invalid choice: 'html'"):
        main([str(tmp_path), "--format", "html"])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"tables: --out .*file: "):
        main([str(tmp_path), "--out", str(tmp_path / "file")])


def test_a_thousand_records_take_no_torch_and_little_time(tmp_path: Path) -> None:
    """0.25 s of processor time on 2026-11-24, start included; 10,000 records took 1.4 s."""
    write(tmp_path, *many(1000))
    code = (
        "import sys; from sparta_bench.cli.tables_command import main; main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'hydra', 'numpy', 'scipy'} & set(sys.modules); "
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "1,000 records found" in done.stdout
    # not by the clock: other tests run beside this one
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5
