"""Which records count, and which of them stand in a cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from forged_records import METHODS, forge, scores, write

from sparta_bench.config.compose import compose
from sparta_bench.records.read import own_folders, read_records, record_of, saved_by
from sparta_bench.records.record import Cell, Record
from sparta_bench.tables.protocol import MODELS, is_of_paper
from sparta_bench.tables.select import Selection, select


def records(*raws: dict[str, Any]) -> list[Record]:
    found = [record_of(Path(f"{place}/result.json"), raw) for place, raw in enumerate(raws)]
    assert all(isinstance(record, Record) for record in found), found
    return [record for record in found if isinstance(record, Record)]


def selected(*raws: dict[str, Any]) -> Selection:
    return select(records(*raws))


def reasons(selection: Selection) -> list[str]:
    return [left.reason for left in selection.excluded]


CELL = Cell("some-model", "sst2", "sparta", 0.05)


# ---------------------------------------------------------------------------- the choice by dev
def test_the_setting_with_the_lower_dev_loss_is_chosen_whatever_its_test_scores_are() -> None:
    worse_dev = [
        forge(seed=seed, rate=1e-3, dev=0.31, test=scores(0.01, 0.999)) for seed in range(3)
    ]
    better_dev = [
        forge(seed=seed, rate=1e-4, dev=0.30, test=scores(0.90, 0.500)) for seed in range(3)
    ]
    selection = selected(*worse_dev, *better_dev)
    chosen = selection.cells[CELL]
    assert [run.train["learning_rate"] for run in chosen.runs] == [1e-4] * 3
    assert chosen.over_seeds("test", "accuracy").mean == 0.5
    assert chosen.settings_compared == 2
    assert [record.train["learning_rate"] for record in selection.not_selected] == [1e-3] * 3
    assert selection.excluded == []


def test_no_test_score_can_change_the_choice() -> None:
    def choice(loss: float, accuracy: float) -> list[str]:
        found = selected(
            forge(rate=1e-3, dev=0.2), forge(rate=1e-4, dev=0.3, test=scores(loss, accuracy))
        ).cells[CELL]
        return [str(run.train["learning_rate"]) for run in found.runs]

    assert choice(0.0, 1.0) == choice(9.0, 0.0) == ["0.001"]


def test_a_mean_over_seeds_is_compared_not_the_luckiest_seed() -> None:
    lucky = [forge(seed=seed, rate=1e-3, dev=dev) for seed, dev in enumerate((0.1, 0.6, 0.6))]
    even = [forge(seed=seed, rate=1e-4, dev=0.4) for seed in range(3)]
    runs = selected(*lucky, *even).cells[CELL].runs
    assert [(run.seed, run.train["learning_rate"]) for run in runs] == [
        (0, 1e-4), (1, 1e-4), (2, 1e-4)
    ]  # fmt: skip


def test_a_setting_with_fewer_seeds_does_not_compete() -> None:
    single = forge(rate=1e-3, dev=0.01)
    three = [forge(seed=seed, rate=1e-4, dev=0.4) for seed in (2, 0, 1)]
    selection = selected(single, *three)
    assert [run.seed for run in selection.cells[CELL].runs] == [0, 1, 2]
    assert selection.cells[CELL].settings_compared == 1
    assert reasons(selection) == ["a setting with fewer seeds than another of its cell"]
    assert selection.excluded[0].cell == CELL


def test_equal_dev_losses_are_decided_alike_in_any_order() -> None:
    pair = [forge(rate=1e-3), forge(rate=1e-4)]
    first = selected(*pair).cells[CELL].runs[0].train
    assert first == selected(*pair[::-1]).cells[CELL].runs[0].train


def test_mean_and_sample_deviation_over_seeds() -> None:
    runs = [forge(seed=seed, test=scores(0.2, 0.9 + seed / 100)) for seed in range(3)]
    spread = selected(*runs).cells[CELL].over_seeds("test", "accuracy")
    assert (spread.mean, spread.std, spread.n) == (pytest.approx(0.91), pytest.approx(0.01), 3)
    one = selected(runs[0]).cells[CELL].over_seeds("test", "accuracy")
    assert (one.mean, one.std, one.n) == (0.9, None, 1)


# ----------------------------------------------------------------------- failed, cut off, twice
def test_failed_runs_are_counted_and_cut_off_ones_left_out() -> None:
    selection = selected(
        forge(seed=0), forge(seed=1, status="failed"), forge(seed=2, status="interrupted")
    )
    assert (len(selection.cells[CELL].runs), selection.cells[CELL].failed) == (1, 1)
    assert reasons(selection) == ["interrupted"]


def test_a_run_that_failed_before_its_data_was_there_counts_as_failed() -> None:
    selection = selected(forge(seed=0), forge(seed=1, status="failed", data=None, parameters=None))
    assert selection.cells[CELL].failed == 1
    assert selection.excluded == []


def test_a_cell_whose_runs_all_failed_has_no_runs() -> None:
    chosen = selected(forge(status="failed"), forge(seed=1, status="failed")).cells[CELL]
    assert (chosen.runs, chosen.failed, chosen.settings_compared) == ((), 2, 0)


def test_the_same_seed_and_setting_twice_counts_once() -> None:
    twice = [forge(), forge(config__device="cuda")]
    selection = selected(*twice)
    assert len(selection.cells[CELL].runs) == 1
    assert reasons(selection) == ["the same setting and seed as another record"]


def test_runs_on_other_data_are_no_runs_of_the_same_experiment() -> None:
    full = [forge(seed=seed) for seed in range(2)]
    part = forge(seed=2, config__task__max_train_examples=500)
    other = forge(seed=3, base_model__fingerprint="another")
    selection = selected(*full, part, other)
    assert [run.seed for run in selection.cells[CELL].runs] == [0, 1]
    reason = "other data, base model or settings of the method than most of its cell"
    assert reasons(selection) == [reason] * 2


# ------------------------------------------------------------------------------ methods' settings
def test_another_choice_of_tensors_or_rank_is_another_cell() -> None:
    vo = {"config__method__targets": ["v_proj", "o_proj"]}
    cells = selected(
        forge(),
        forge(**vo, config__method__density_of="backbone"),
        forge(**vo),
        forge(method="lora"),
        forge(method="lora", config__method__r=16),
    ).cells
    assert [cell.method for cell in cells] == [
        "sparta", "sparta_vo", "sparta on v_proj o_proj", "lora", "lora r=16 on q_proj v_proj"
    ]  # fmt: skip


# ------------------------------------------------------------------------------------- reading
def test_reading_says_of_every_file_why_it_is_no_record(tmp_path: Path) -> None:
    good = forge()
    broken = {
        "a": "{",
        "b": "[1]",
        "c": json.dumps({**good, "schema": 2}),
        "d": json.dumps({**good, "status": "running"}),
        "e": json.dumps({key: value for key, value in good.items() if key != "config"}),
        "f": json.dumps({**good, "test": {"loss": "0.2", "accuracy": 0.9, "mcc": 0.5}}),
        "g": json.dumps({**good, "dev": {**good["dev"], "loss": float("nan")}}),
        "h": json.dumps({**good, "seed": "0"}),
        "i": json.dumps({**good, "parameters": None}),
        "j": json.dumps({**good, "test": {**good["test"], "loss": 10**400}}),
        "k": "[" * 100_000,
        "l": json.dumps({**good, "density": True}),
        "m": json.dumps({**good, "density": float("inf")}),
        "n": json.dumps({**good, "data": {**good["data"], "train": float("nan")}}),
    }
    for name, text in broken.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
    write(tmp_path / "z", good)
    found, excluded = read_records([tmp_path])
    assert [record.run_id for record in found] == [good["run_id"]]
    lacks = "lacks a key of a record, or has one of another type"
    assert {left.path.parent.name: left.reason for left in excluded} == {
        "a": "is no JSON",
        "b": "is no JSON object",
        "c": "schema 2; this version reads schema 1",
        "d": "status running",
        "e": lacks,
        "f": lacks,
        "g": "dev.loss is not finite",
        "h": "seed or run_id is of another type",
        "i": lacks,
        "j": lacks,
        "k": "is no JSON",
        "l": lacks,
        "m": lacks,
        "n": lacks,
    }


def test_a_copy_of_a_run_counts_once_and_the_completed_one_is_kept(tmp_path: Path) -> None:
    done = forge()
    failed = {**forge(status="failed"), "run_id": done["run_id"]}
    write(tmp_path / "a", failed)
    write(tmp_path / "b", done)
    write(tmp_path / "c", done)
    found, excluded = read_records([tmp_path, tmp_path / "b"])
    assert [record.status for record in found] == ["completed"]
    assert [left.reason for left in excluded] == ["a second copy of a run"] * 3


def test_of_two_copies_the_one_that_has_its_adapter_is_kept(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / name, forge())
    (kept,) = read_records([tmp_path])[0]
    assert kept.path.is_relative_to(tmp_path / "a")
    adapter = next((tmp_path / "b").rglob("result.json")).parent / "adapter"
    adapter.mkdir()
    (kept,) = read_records([tmp_path])[0]
    assert saved_by(kept) == adapter


def test_a_results_folder_has_its_own_runs_and_those_of_others(tmp_path: Path) -> None:
    assert own_folders(tmp_path) == [tmp_path]
    for name in ("tiny", "merges", "runs"):
        (tmp_path / name).mkdir()
    assert own_folders(tmp_path) == [tmp_path / "runs", tmp_path / "merges"]


@pytest.mark.parametrize(
    ("method", "changes", "settings"),
    [
        ("full_ft", {"config__train__dropout": 0.0}, 1),
        ("full_ft", {"config__train__dropout": 0.1}, 2),
        ("lora", {"config__train__dropout": 0.0, "config__method__lora_dropout": 0.1}, 2),
        ("lora", {"config__train__dropout": 0.0, "config__method__lora_dropout": 0.0}, 1),
    ],
)
def test_with_dropout_the_number_of_processes_is_a_setting(
    tmp_path: Path, method: str, changes: dict[str, Any], settings: int
) -> None:
    runs = [
        forge(method=method, seed=number, environment__processes=number, **changes)
        for number in (1, 2)
    ]
    write(tmp_path, *runs)
    found, excluded = read_records([tmp_path])
    assert (len(found), excluded) == (2, [])
    assert len({record.setting for record in found}) == settings


# ------------------------------------------------------------------- who may bear which names
def test_names_of_the_paper() -> None:
    assert is_of_paper("gemma-2b", "rte") and not is_of_paper("gemma-2b", "tiny-rte")


PAPER = {"model": "gemma-2b", "task": "rte"}
TWIN = {"model": "tiny-gemma", "task": "tiny-rte"}


@pytest.mark.parametrize(
    ("place", "changes", "reason"),
    [
        (PAPER, {}, None),
        (TWIN, {}, None),
        (
            PAPER,
            {"config__model__embedded": True, "config__task__generated": "rte"},
            "an embedded model under another name",
        ),
        (PAPER, {"config__model__embedded": True}, "an embedded model under another name"),
        (PAPER, {"config__task__generated": "rte"}, "generated data under another name"),
        (
            PAPER,
            {"parameters__total": 212_608},
            "another model under the name of one of the paper's (208,512 parameters)",
        ),
        (
            TWIN,
            {"config__model__embedded": False},
            "another model under the name of an embedded one",
        ),
        (
            TWIN,
            {"config__task__generated": None},
            "other data under the name of a generated task",
        ),
        (
            {"model": "gemma-2b", "task": "tiny-rte"},
            {},
            "a real model on generated data",
        ),
        ({"model": "tiny-gemma", "task": "rte"}, {}, "an embedded model on real data"),
        (
            {"model": "some-model", "task": "tiny-rte"},
            {"config__model__embedded": True},
            "an embedded model under another name",
        ),
        (
            PAPER,
            {"config__task__max_train_tokens": 128},
            "max_train_tokens is 128, in the paper 256",
        ),
        (
            {"model": "gemma-2b", "task": "imdb"},
            {"config__task__max_train_tokens": 256},
            "max_train_tokens is 256, in the paper 384",
        ),
        (
            PAPER,
            {"config__task__max_train_examples": 16_000},
            "trained on the first 16,000 examples only",
        ),
        (
            PAPER,
            {"config__task__max_train_examples": 16_000, "config__task__cap_takes": "random"},
            "trained on 16,000 examples only",
        ),
        (PAPER, {"config__task__max_train_examples": 100_000}, None),
        (
            {"model": "gemma-2b", "task": "mnli"},
            {
                "config__task__max_train_examples": 100_000,
                "config__task__cap_takes": "random",
                "data__train": 99_990,
                "data__train_dropped": 10,
            },
            "trained on 100,000 examples drawn at random, in the paper on the first",
        ),
        (
            {"model": "gemma-2b", "task": "mnli"},
            {"config__task__max_train_examples": 100_020, "data__train": 100_000},
            None,
        ),
        (PAPER, {"config__train__max_steps": 4}, "training was limited to 4 steps"),
        (PAPER, {"config__limit": 1_000}, "limited to 1,000 examples of each set (limit=1000)"),
        (PAPER, {"config__limit": None}, None),
        (PAPER, {"config__train__epochs": 5.0}, "5 epochs of training, in the paper 2"),
        (PAPER, {"config__train__epochs": 0.5}, "0.5 epochs of training, in the paper 2"),
        (
            PAPER,
            {"config__train__patience": 4},
            "early stopping (train.patience is 4), in the paper 2 epochs in full",
        ),
        (
            {"model": "gemma-2b", "task": "imdb", "method": "head"},
            {"config__train__epochs": 2.0},
            "2 epochs of training, in the paper 4",
        ),
        (
            {"model": "mistral-7b-it", "task": "imdb"},
            {"config__train__patience": 0},
            "no early stopping (train.patience is 0), in the paper there is",
        ),
        (
            {"model": "mistral-7b", "task": "imdb", "method": "full_ft"},
            {"config__train__epochs": 2.0},
            "limited to 2 epochs, with early stopping at least 10 (docs/fidelity.md)",
        ),
        (
            {"model": "mistral-7b", "task": "imdb"},
            {"config__train__epochs": 20.0, "config__train__patience": 2},
            None,
        ),
        ({"model": "tiny-gemma", "task": "tiny-rte"}, {"config__train__epochs": 4.0}, None),
        (PAPER, {"data__dev": 299}, "dev and test are 299 and 277, in the paper 300 and 277"),
        (
            {"model": "gemma-2b", "task": "qqp"},
            {"data__train": 358_846},
            "trained on 358,846 examples, in the paper at most 100,000",
        ),
        (
            {"model": "stories-3m", "task": "sst2"},
            {"config__task__max_train_examples": 16_000, "data__dev": 5},
            None,
        ),
        (
            PAPER,
            {"config__train": {"learning_rate": 1e-4, "batch_size": 32, "epochs": 2.0}},
            "lacks a key of a record, or has one of another type",
        ),
    ],
)
def test_what_does_not_follow_the_protocol_is_left_out_with_the_reason(
    place: dict[str, str], changes: dict[str, Any], reason: str | None
) -> None:
    selection = selected(forge(**place, **changes))
    assert reasons(selection) == ([] if reason is None else [reason])
    assert len(selection.cells) == (reason is None)


def test_a_minority_that_follows_the_protocol_is_not_outvoted() -> None:
    parts = [forge(**PAPER, seed=seed, config__task__max_train_examples=500) for seed in range(3)]
    selection = selected(*parts, forge(**PAPER))
    assert [run.seed for run in selection.cells[Cell("gemma-2b", "rte", "sparta", 0.05)].runs] == [
        0
    ]
    assert reasons(selection) == ["trained on the first 500 examples only"] * 3


def test_forged_records_are_as_the_runner_writes_them() -> None:
    """Else the tests of tables would test something else."""
    runs = Path(__file__).parent.parent / "results" / "tiny-sst2"
    path = min(path for path in runs.rglob("result.json") if "sparta" in path.parts)
    real = json.loads(path.read_text())
    forged = forge("tiny-gemma", "tiny-sst2", "sparta")
    assert forged.keys() <= real.keys() | {"protocol"}
    for group in ("model", "task", "method", "train"):
        assert forged["config"][group].keys() <= real["config"][group].keys()
    for part in ("data", "parameters", "dev", "test"):
        assert forged[part].keys() <= real[part].keys()
    assert METHODS.keys() == {"full_ft", "sparta", "lora", "head"}


@pytest.mark.parametrize("method", ["full_ft", "sparta", "lora", "head"])
@pytest.mark.parametrize("model", MODELS)
def test_runs_with_the_presets_enter_the_papers_tables(model: str, method: str) -> None:
    for task in ("imdb", "rte"):
        config = compose([f"model={model}", f"task={task}", f"method={method}"])
        record = forge(model, task, method, config__train=config.as_dict()["train"])
        assert reasons(selected(record)) == []
