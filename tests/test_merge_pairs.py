"""What merging costs: which pairs there are, their records, Table 6 and the tables of losses."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forged_records import forge, scores
from quick import FEW_ROWS
from test_cli import call

from sparta_bench.adapters.merging import Rule
from sparta_bench.analysis.measure_pairs import Pair, _path_of, groups_of, measure_pairs
from sparta_bench.errors import InputError
from sparta_bench.paper import rows_of
from sparta_bench.records.read import read_merge, record_of
from sparta_bench.records.record import MERGE_SCHEMA, PROTOCOL, Record
from sparta_bench.tables.merge_tables import Merge, merging_tables, read_merges
from sparta_bench.tables.select import select

TASKS = ("task=tiny-sst2", "task=tiny-cola")


@pytest.fixture
def runs(trained: Callable[..., Any], tmp_path: Path) -> Path:
    """Two tasks and two seeds, trained with SpaRTA."""
    for task in TASKS:
        for seed in ("seed=0", "seed=1"):
            folder = trained("sparta", task, seed)[2].parent
            shutil.copytree(folder, tmp_path / "runs" / folder.name)
    return tmp_path


def lines_of(error: list[str]) -> str:
    return "\n".join(error)


def forged(tmp_path: Path, saved: bool, **values: Any) -> Record:
    raw = forge(**values)
    folder = tmp_path / raw["run_id"]
    (folder / "adapter" if saved else folder).mkdir(parents=True, exist_ok=True)
    record = record_of(folder / "result.json", raw)
    assert isinstance(record, Record)
    return record


# ------------------------------------------------------------------------------------ pairs
def test_each_two_tasks_have_as_many_pairs_as_seeds(tmp_path: Path) -> None:
    made = [
        forged(tmp_path, True, model="tiny-gemma", task=task, seed=seed, density=0.01)
        for task in ("tiny-cola", "tiny-sst2", "tiny-rte")
        for seed in (0, 1, 2)
    ]
    made.append(forged(tmp_path, False, model="tiny-gemma", task="tiny-mnli", density=0.01))
    made.append(forged(tmp_path, True, model="tiny-mistral", task="tiny-sst2", density=0.01))
    (pairs,) = groups_of(made, same_seeds=False)
    found = {(p.one.cell.task, p.other.cell.task, p.one.seed, p.other.seed) for p in pairs}
    tasks = (("tiny-rte", "tiny-sst2"), ("tiny-rte", "tiny-cola"), ("tiny-sst2", "tiny-cola"))
    assert found == {(*two, seed, (seed + 1) % 3) for two in tasks for seed in (0, 1, 2)}
    (pairs,) = groups_of(made, same_seeds=True)
    assert {(p.one.seed, p.other.seed) for p in pairs} == {(0, 0), (1, 1), (2, 2)}
    assert len(pairs) == 9
    assert groups_of(made, same_seeds=False, method="lora") == []
    assert len(groups_of(made, same_seeds=False, method="sparta")) == 1


def test_the_best_setting_is_one_whose_adapters_are_there(tmp_path: Path) -> None:
    made = [
        forged(tmp_path, saved, model="m", task=task, seed=seed, rate=rate, dev=dev)
        for task in ("sst2", "cola")
        for seed in (0, 1)
        for rate, dev, saved in ((1e-4, 0.5, True), (1e-5, 0.2, False))
    ]
    (pairs,) = groups_of(made, same_seeds=False)
    assert {run.train["learning_rate"] for p in pairs for run in (p.one, p.other)} == {1e-4}


def test_only_the_best_setting_of_a_task_is_merged(tmp_path: Path) -> None:
    made = [
        forged(tmp_path, True, model="m", task=task, seed=seed, rate=rate, dev=dev)
        for task in ("sst2", "cola")
        for seed in (0, 1)
        for rate, dev in ((1e-4, 0.5), (1e-5, 0.2))
    ]
    (pairs,) = groups_of(made, same_seeds=False)
    assert {run.train["learning_rate"] for p in pairs for run in (p.one, p.other)} == {1e-5}


def test_merges_of_lora_that_peft_made_by_other_rules_have_other_ids(tmp_path: Path) -> None:
    made = [
        forged(tmp_path, True, model="tiny-gemma", task=task, seed=seed, method="lora")
        for task, seed in (("tiny-sst2", 0), ("tiny-cola", 1))
    ]
    pair = Pair(made[0], made[1])
    for rule, same in ((Rule(), True), (Rule("ties"), False), (Rule(keep=0.5), False)):
        parts = [made[0].run_id, made[1].run_id, rule.as_dict(), PROTOCOL, MERGE_SCHEMA]
        before = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
        assert (pair.merge_id(rule) == before) is same


# ---------------------------------------------------------------------------------- records
def test_records_hold_scores_alone_and_merged(
    runs: Path, trained: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, error = call(capfd, "merge", "pairs", str(runs), *FEW_ROWS, "--json")
    records = json.loads(out)
    assert code == 0 and len(records) == 2
    assert "1/2 tiny-gemma sparta 5 %: tiny-sst2 (seed 0) and tiny-cola (seed 1), sum" in error[0]
    by_id = {}
    for task in TASKS:
        for seed in ("seed=0", "seed=1"):
            record = trained("sparta", task, seed)[1]
            by_id[record["run_id"]] = record
    for record in records:
        seeds = [run["seed"] for run in record["runs"]]
        assert sorted(seeds) == [0, 1]
        for run, alone in zip(record["runs"], record["alone"], strict=True):
            assert alone["test"] == by_id[run["run_id"]]["test"]  # bit for bit
            assert alone["dev"] == by_id[run["run_id"]]["dev"]
        assert record["merged"] != record["alone"] and record["thinned"] is None
        path = runs / "merges" / "tiny-gemma" / "sparta" / record["merge_id"] / "merge.json"
        assert read_merge(path) == record == json.loads(path.read_text())
        assert str(runs) not in path.read_text()
    # a seed of a draw that there is not makes no other merge
    code, out, _ = call(
        capfd, "merge", "pairs", str(runs), *FEW_ROWS, "--seed", "5", "--model", "tiny-gemma"
    )
    assert out.startswith("2 pairs, 2 of them there already")
    words = ("merge", "pairs", str(runs), *FEW_ROWS)
    code, _, error = call(capfd, *words, "--model", "tiny-mistral")
    assert code == 2 and "no two tasks with completed runs" in lines_of(error)


def test_a_pair_scores_as_evaluate_scores_the_merged_folder(
    runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = call(capfd, "merge", "pairs", str(runs), *FEW_ROWS, "--how", "ties", "--json")
    record = json.loads(out)[0]
    folders = [str(runs / "runs" / run["run_id"] / "adapter") for run in record["runs"]]
    both = str(tmp_path / "both")
    call(capfd, "merge", "combine", *folders, "--how", "ties", "--out", both)
    _, out, _ = call(capfd, "evaluate", both, "--json", *FEW_ROWS)
    for one, other in zip(json.loads(out), record["merged"], strict=True):
        assert (one["dev"], one["test"]) == (other["dev"], other["test"])


def test_dare_is_scored_alone_too(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capfd, "merge", "pairs", str(runs), *FEW_ROWS, "--dare", "0.5", "--json")
    for record in json.loads(out):
        assert record["thinned"] != record["alone"] and record["rule"]["keep"] == 0.5


def test_a_record_that_cannot_be_written_is_told(
    runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (runs / "merges").write_text("")
    code, _, error = call(capfd, "merge", "pairs", str(runs), *FEW_ROWS)
    assert code == 2 and "merge.json: cannot be written: " in lines_of(error)


# --------------------------------------------------------------------------------- refusals
def change(runs: Path, task: str, seed: int, values: dict[str, Any]) -> Path:
    """Change what a run's adapter says of itself; its folder."""
    for path in runs.glob("runs/*/result.json"):
        record = json.loads(path.read_text())
        if (record["config"]["task"]["name"], record["seed"]) == (task, seed):
            config = path.parent / "adapter" / "adapter_config.json"
            config.write_text(json.dumps(json.loads(config.read_text()) | values))
            return config.parent
    raise AssertionError


OTHER = {"name": "tiny-gemma", "fingerprint": "0" * 16}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"base_model": OTHER}, "only changes of one and the same base can be added up"),
        ({"base_fingerprint": "0" * 16}, "another set of base weights than"),
        ({"labels": ["x", "y"]}, "/adapter was trained for x, y"),
        ({"labels": 5, "seed": "x"}, "; "),
    ],
    ids=["base", "weights", "labels", "two faults"],
)
@pytest.mark.parametrize("task", ["tiny-sst2", "tiny-cola"])
def test_a_pair_that_is_refused_keeps_no_other_from_being_merged(
    runs: Path, capfd: pytest.CaptureFixture[str], task: str, values: dict[str, Any], told: str
) -> None:
    change(runs, task, 0, values)  # of sst2 it is the first run of all
    code, out, error = call(capfd, "merge", "pairs", str(runs), *FEW_ROWS)
    assert code == 1 and out.startswith("1 pairs, 0 of them there already → ")
    assert len(list(runs.rglob("merge.json"))) == 1
    assert len(error) == 4, error
    (refused,) = (line for line in error[:2] if ": refused: " in line)
    assert told in refused and f"{task} (seed 0)" in refused
    assert error[2] == "sparta-bench: 1 of 2 pairs were refused:"
    assert error[3] == "sparta-bench: " + refused.partition(": refused: ")[2]


def test_a_pair_that_was_refused_is_merged_when_it_can_be(
    runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = change(runs, "tiny-cola", 1, {})
    whole = (folder / "adapter.safetensors").read_bytes()
    (folder / "adapter.safetensors").write_bytes(whole[:-8])
    code, out, error = call(capfd, "merge", "pairs", str(runs), *FEW_ROWS, "--json")
    (first,) = json.loads(out)
    assert code == 1 and [run["seed"] for run in first["runs"]] == [1, 0]
    assert error[-2] == "sparta-bench: 1 of 2 pairs were refused:"
    (folder / "adapter.safetensors").write_bytes(whole)
    code, out, error = call(capfd, "merge", "pairs", str(runs), *FEW_ROWS)
    assert code == 0 and out.startswith("2 pairs, 1 of them there already → ")
    assert len(error) == 2


def test_where_all_pairs_are_refused_the_input_is_at_fault(
    runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, error = call(
        capfd, "merge", "pairs", str(runs), *FEW_ROWS, "--base", "nowhere", "--json"
    )
    assert (code, out) == (2, "")
    refused = [line for line in error if ": refused: " in line]
    assert len(refused) == 2 and refused[0].startswith("1/2 tiny-gemma sparta 5 %: ")
    reason = refused[0].partition(": refused: ")[2]
    assert error[2:] == [
        "sparta-bench: 2 of 2 pairs were refused:",
        f"sparta-bench: {reason} (2 pairs)",
    ]
    # a wrong setting is told once, before anything is read
    code, _, error = call(capfd, "merge", "pairs", str(runs), *FEW_ROWS, "task.data=5")
    assert code == 2 and all("task.data" in line for line in error)


def test_an_added_token_makes_a_base_of_each_seed(
    trained: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its embedding is drawn from the seed: runs of one seed share it, others cannot be merged."""
    for task in ("task=tiny-rte", "task=tiny-qqp"):
        for seed in (0, 1):
            folder = trained("head", task, "task.separator=sep_token", f"seed={seed}")[2].parent
            shutil.copytree(folder, tmp_path / "runs" / folder.name)
    code, out, error = call(capfd, "merge", "pairs", str(tmp_path), *FEW_ROWS, "--seeds", "same")
    assert code == 0 and out.startswith("2 pairs, "), error
    code, out, error = call(capfd, "merge", "pairs", str(tmp_path), *FEW_ROWS)
    assert code == 2
    assert all("whose embedding is drawn from the seed" in line for line in error[:2])


def test_a_task_of_a_record_that_is_unknown_here_is_refused(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    made = [
        forged(tmp_path, True, model="gemma-2b", task=task, seed=seed)
        for task, seed in (("sst2", 0), ("cool", 1))
    ]
    for record in made:
        adapter = trained("sparta", *TASKS[:1], "seed=0")[2]
        shutil.copytree(adapter, record.path.parent / "adapter", dirs_exist_ok=True)
        record.path.write_text(json.dumps(record.raw))
    found = measure_pairs(tmp_path, Rule())
    assert (found.records, found.refused) == (
        [],
        [f"{made[1].path}: task=cool: is none of conf/task"],
    )


def test_a_models_name_leads_nowhere_else(tmp_path: Path) -> None:
    made = [
        forged(tmp_path, True, model="../../x", task=task, seed=seed)
        for task, seed in (("sst2", 0), ("cola", 1))
    ]
    with pytest.raises(InputError, match="cannot name a folder for what is merged"):
        _path_of(tmp_path, Pair(*made), Rule())


def test_runs_that_may_stand_in_no_table_are_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = forge(model="tiny-gemma", task="sst2")
    folder = tmp_path / raw["run_id"]
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(raw))
    code, _, error = call(capfd, "merge", "pairs", str(tmp_path), *FEW_ROWS)
    assert code == 2 and "; 1 left out, " in lines_of(error)


def test_other_data_than_the_runs_is_noticed(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    of_cola = (f"{FEW_ROWS[0]}/tiny-cola", FEW_ROWS[1])
    code, _, error = call(capfd, "merge", "pairs", str(runs), *of_cola)
    assert code == 2 and "is task.data_dir the data that it was trained on?" in lines_of(error)
    assert not list(runs.rglob("merge.json"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "there is no such folder"),
        (["."], "no two tasks with completed runs of different seeds"),
        ([".", "--seeds", "same"], "no two tasks with completed runs of one seed"),
        ([".", "--method", "sparto"], "invalid choice: 'sparto'"),
        ([".", "seed=1"], "must be a setting of device"),
        ([".", "task=sst2"], "must be a setting of device"),
    ],
)
def test_what_cannot_be_merged_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    first = str(tmp_path / words[0])
    code, _, error = call(capfd, "merge", "pairs", first, *words[1:])
    assert code == 2 and told in lines_of(error)


# ----------------------------------------------------------------------------------- tables
def pair_of(one: Record, other: Record, **changes: Any) -> dict[str, Any]:
    """A forged record of a merge: accuracy falls by 1 and 3 points."""

    def sets(*accuracies: float) -> list[dict[str, Any]]:
        return [{"dev": scores(0.3, a), "test": scores(0.3, a, a / 2)} for a in accuracies]

    return {
        "schema": 1,
        "merge_id": f"{one.run_id}{other.run_id}{len(changes)}",
        "rule": {"how": "sum", "weights": None, "keep": None, "seed": 0},
        "runs": [
            {"run_id": run.run_id, "task": run.cell.task, "seed": run.seed} for run in (one, other)
        ],
        "overlap": {
            "names": ["a", "b"], "changed": [100, 200], "shared": 10, "shared_by_chance": 8.0,
            "conflicts": 4, "conflicts_by_chance": 5.0,
        },
        "alone": sets(0.96 + one.seed / 100, 0.8),
        "thinned": None,
        "merged": sets(0.95 + one.seed / 100, 0.77),
    } | changes  # fmt: skip


def test_table_6_and_the_costs(tmp_path: Path) -> None:
    made = [
        forged(tmp_path, True, model="gemma-2b", task=task, seed=seed, density=0.01)
        for task in ("sst2", "cola")
        for seed in (0, 1)
    ]
    sst2, cola = made[:2], made[2:]
    merges = [
        Merge(pair_of(sst2[0], cola[1]), (sst2[0], cola[1])),
        Merge(pair_of(sst2[1], cola[0]), (sst2[1], cola[0])),
    ]
    table, costs, by_tasks = merging_tables({"gemma-2b": merges})
    assert [row[0] for row in table.rows] == [
        "SST2", "COLA", "Merged", "SST2, paper", "COLA, paper", "Merged, paper",
    ]  # fmt: skip
    assert table.rows[0] == ("SST2", "0.300 ± 0.000", "96.5 ± 0.7", "48.2 ± 0.4", "–", "–", "–")
    assert table.rows[2][1:3] == ("0.300 ± 0.000", "95.5 ± 0.7")
    assert table.rows[2][5] == "77.0 ± 0.0"
    for row, paper in zip(table.rows[3:], rows_of("table6"), strict=True):
        assert row[1:3] == tuple(
            "–" if paper[key] == "-" else paper[key].removesuffix("%")
            for key in ("sst2.loss", "sst2.accuracy")
        )
    assert costs.rows == (
        ("SpaRTA (1%)", "sum", f"{1000 - made[0].raw['parameters']['head']:,}", "2",
         "88.2 ± 0.4", "–", "86.2 ± 0.4", "2.0 ± 0.0", "0.000", "10.0%", "8.0%", "40%"),
    )  # fmt: skip
    assert by_tasks.rows == (("SST2 and COLA", "2.0 ± 0.0"),)


def test_records_of_merges_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    made = [
        forged(tmp_path, True, model="m", task=task, seed=seed)
        for task, seed in (("sst2", 0), ("cola", 1))
    ]
    stranger = forged(tmp_path, True, model="m", task="rte")
    unlike = forged(tmp_path, True, model="m", task="rte", method="lora")
    good, bad = pair_of(*made), pair_of(made[0], stranger)
    texts = {
        "good": json.dumps(good),
        "stranger": json.dumps(bad),
        "unlike": json.dumps(pair_of(made[0], unlike)),
        "weighted": json.dumps(good | {"rule": good["rule"] | {"weights": [0.5, 0.5]}}),
        "cut": json.dumps(good)[:50],
        "schema": json.dumps(good | {"schema": 2}),
        "lacks": json.dumps({key: good[key] for key in good if key != "merged"}),
        "nan": json.dumps(
            good | {"merged": [dict.fromkeys(("dev", "test"), scores(float("nan"), 1.0))] * 2}
        ),
        "types": json.dumps(good | {"runs": [1, 2]}),
        **{
            f"overlap {n}": json.dumps(good | {"overlap": good["overlap"] | bad})
            for n, bad in enumerate(
                (
                    {"changed": 5},
                    {"changed": ["a", "b"]},
                    {"changed": [1]},
                    {"shared_by_chance": None},
                )
            )
        },
    }
    for name, text in texts.items():
        (tmp_path / "merges" / name).mkdir(parents=True)
        (tmp_path / "merges" / name / "merge.json").write_text(text)
    wrong = "lacks a key of a merge's record, or has one of another type"
    found, excluded = read_merges([tmp_path], select([*made, unlike]))
    assert [len(merges) for merges in found.values()] == [1]
    assert {left.path.parent.name: left.reason for left in excluded} == {
        "stranger": "a merge of runs that stand in no table",
        "unlike": "a merge of runs of two models, methods or densities",
        "weighted": "a merge with weights, which no table has",
        "cut": "is no JSON",
        "schema": "is of another schema than 1",
        "lacks": wrong,
        "nan": "merged holds scores that are not finite",
        "types": wrong,
        **{f"overlap {number}": wrong for number in range(4)},
    }


def test_tables_shows_what_was_merged(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    call(capfd, "merge", "pairs", str(runs), *FEW_ROWS)
    call(capfd, "merge", "pairs", str(runs), *FEW_ROWS, "--seeds", "same")
    code, out, _ = call(capfd, "tables", str(runs))
    assert code == 0 and "- 4 pairs of merged runs" in out
    assert "## tiny-gemma: what merging two models costs (tiny model, generated text)" in out
    assert "| sum, one seed |" in out
    for end in ("md", "csv", "tex"):
        assert (runs / "tables" / f"merging-tiny-gemma.{end}").is_file()
