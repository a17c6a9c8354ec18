"""What training takes, from formulas and shapes alone, and how the command shows it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparta_bench.analysis.bench import setting as setting_module
from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.analysis.memory import estimate, findings, formula
from sparta_bench.analysis.memory.estimate import (
    METHODS,
    STOCHASTIC_UPDATE,
    Activations,
    Estimate,
    Parts,
    Transient,
    activations_of,
    per_scalar,
    setting_of,
)
from sparta_bench.analysis.memory.memory_tables import PARTS, bars_of, peaks, tables_of
from sparta_bench.cli import memory_command
from sparta_bench.cli.main import main
from sparta_bench.errors import InputError
from sparta_bench.models.dtypes import Precision
from sparta_bench.paper import number_of, rows_of
from sparta_bench.report.plots import Frame
from sparta_bench.sparta.adamw import PIECE

HIDDEN, WIDE, LAYERS, HEADS, WORDS, ROWS, TOKENS, CLASSES = 16, 64, 3, 2, 50, 4, 8, 2
TINY = [
    "model=gemma-2b",
    f"model.shape.hidden_size={HIDDEN}",
    f"model.shape.intermediate_size={WIDE}",
    f"model.shape.num_hidden_layers={LAYERS}",
    f"model.shape.num_attention_heads={HEADS}",
    f"model.shape.head_dim={HIDDEN // HEADS}",
    f"model.shape.vocab_size={WORDS}",
]
SIZE = [f"--rows={ROWS}", f"--tokens={TOKENS}"]
HEAD = HIDDEN * CLASSES
ONE_LAYER = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * (HIDDEN // HEADS) + 3 * HIDDEN * WIDE
NORMS = (2 * LAYERS + 1) * HIDDEN
BACKBONE = WORDS * HIDDEN + LAYERS * ONE_LAYER + NORMS
LORA = LAYERS * 8 * (2 * HIDDEN + HIDDEN + HIDDEN // HEADS)  # q and v: in and out features
GIB = 1 << 30


def setting_for(*overrides: str, rows: int = ROWS, tokens: int = TOKENS) -> Setting:
    return memory_command.settings_of([*TINY, *overrides], rows, tokens)[0]


ROUND_SIZES = {False: Activations(1e6, 1e5), True: Activations(1e4, 2e5)}


@pytest.fixture(autouse=True, scope="module")
def compose_once(composed_once: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (memory_command, setting_module):
            patch.setattr(module, "compose", composed_once)
        yield


@pytest.fixture
def no_dry_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "activations_of", lambda setting, way: ROUND_SIZES[way])


# ------------------------------------------------------------------------------- the paper
def test_all_fourteen_values_of_table_1() -> None:
    found = {
        (row["model"], name): (value, row["printed_gb"][name])
        for row in findings.paper_values()["table1"]
        for name, value in row["formula_gb"].items()
    }
    assert len(found) == 14
    for value, printed in found.values():
        digits = len(printed.partition(".")[2])
        assert f"{value:.{digits}f}" == printed
    assert found["7B", "sparta-99"] == (pytest.approx(14.84), "14.8")
    assert found["2B", "full_ft"] == (16.0, "16")


def test_break_even_is_half_of_the_scalars() -> None:
    assert formula.PAPER.break_even == 0.5
    assert formula.PAPER.of_sparta(50) == formula.PAPER.full_ft == 8
    cases = findings.paper_values()["break_even"]
    assert [case["density"] for case in cases] == [0.5, 16 / 22, 6 / 14]
    assert [case["chosen_bytes"] for case in cases] == [12, 22, 14]


def test_savings_of_section_5() -> None:
    savings = findings.paper_values()["savings"]
    assert [row["sparsity"] for row in savings] == [80, 90, 95, 99]
    for row in savings:
        for name in ("more_storage", "less_memory"):
            printed = row["printed"][name]
            assert 100 * row["formula"][name] == pytest.approx(number_of(printed)), row
    assert [row["more_storage"] for row in rows_of("section5")] == ["60%", "30%", "15%", "3%"]
    assert [row["less_memory"] for row in rows_of("section5")] == ["45%", "60%", "67.5%", "73.5%"]


def test_break_even_in_the_dtypes_of_the_presets() -> None:
    wide, narrow = (
        Precision(torch.bfloat16, trained) for trained in (torch.float32, torch.bfloat16)
    )
    plain = Precision(torch.float32, torch.float32)
    assert per_scalar(wide, wide)._asdict() == {"full_ft": 18, "frozen": 2, "chosen": 22}
    assert per_scalar(narrow, narrow)._asdict() == {"full_ft": 8, "frozen": 2, "chosen": 14}
    assert per_scalar(narrow, wide).break_even == 6 / 22  # mistral-7b's presets
    assert per_scalar(plain, plain)._asdict() == {"full_ft": 16, "frozen": 4, "chosen": 24}


# ----------------------------------------------------------------------------------- parts
@pytest.mark.usefixtures("no_dry_runs")
def test_parts_of_every_method_by_hand() -> None:
    """As on CUDA: bfloat16 weights, float32 trained."""
    found = {name: estimate.estimate(name, setting_for()).parts for name in METHODS}
    assert list(found) == [
        "full_ft", "head", "lora", "sparta-0.05", "sparta-0.005", "sparta-0.0005"
    ]  # fmt: skip

    def without_choice(trained: int) -> Parts:
        return Parts(2 * BACKBONE, 4 * trained, 0, 0, 4 * trained, 8 * trained)

    assert found["full_ft"] == without_choice(BACKBONE + HEAD)
    assert found["head"] == without_choice(HEAD)
    assert found["lora"] == without_choice(LORA + HEAD)
    for density in (0.05, 0.005, 0.0005):
        chosen = round(density * (BACKBONE - WORDS * HIDDEN))
        trained = round(density * (BACKBONE - WORDS * HIDDEN) + HEAD)
        assert found[f"sparta-{density}"] == Parts(
            2 * BACKBONE, 4 * trained, 4 * chosen, 2 * chosen, 4 * trained, 8 * trained
        )


@pytest.mark.usefixtures("no_dry_runs")
def test_of_eight_gpus_each_holds_an_eighth_but_for_indices_and_what_is_small() -> None:
    def on_eight(name: str) -> Estimate:
        return estimate.estimate(name, setting_for(), 8)

    eighth = -(-BACKBONE // 8)
    trained = eighth + HEAD
    assert on_eight("full_ft").parts == Parts(
        2 * eighth, 4 * trained, 0, 0, 4 * trained, 8 * trained
    )
    small = LORA + HEAD
    assert on_eight("lora").parts == Parts(2 * eighth, 4 * small, 0, 0, 4 * small, 8 * small)
    chosen = round(0.05 * (BACKBONE - WORDS * HIDDEN))
    own = -(-chosen // 8)
    assert on_eight("sparta-0.05").parts == Parts(
        2 * eighth, 4 * (own + HEAD), 4 * chosen, 2 * own, 4 * (own + HEAD), 8 * (own + HEAD)
    )
    one, eight = estimate.estimate("head", setting_for()), on_eight("head")
    layer = ONE_LAYER + 2 * HIDDEN  # with its norms
    assert eight.gathered == estimate.GATHERED * 2 * layer
    assert eight.activation_bytes(64, False) == one.activation_bytes(8, False)


@pytest.mark.usefixtures("no_dry_runs")
def test_full_ft_trains_the_weights_themselves_where_dtypes_are_the_same() -> None:
    on_cpu = estimate.estimate("full_ft", setting_for("device=cpu")).parts
    assert on_cpu == Parts(
        4 * BACKBONE, 4 * HEAD, 0, 0, 4 * (BACKBONE + HEAD), 8 * (BACKBONE + HEAD)
    )
    narrow = estimate.estimate("full_ft", setting_for("train.trained_dtype=bfloat16")).parts
    assert narrow.total == 8 * (BACKBONE + HEAD)  # section 5


@pytest.mark.usefixtures("no_dry_runs")
def test_real_shapes_in_the_dtypes_of_their_presets() -> None:
    gemma, mistral = memory_command.settings_of([], None, None)
    assert [(s.config.model.name, s.rows, s.tokens) for s in (gemma, mistral)] == [
        ("gemma-2b", 40, 384), ("mistral-7b", 16, 384)
    ]  # fmt: skip
    whole = estimate.estimate("full_ft", gemma)
    assert whole.counts.total == 2_506_176_512
    assert whole.parts.total == 18 * whole.counts.total - 2 * whole.counts.head
    whole = estimate.estimate("full_ft", mistral)
    assert whole.setting.precision.as_dict() == {"model": "bfloat16", "trained": "bfloat16"}
    assert whole.parts.total == 8 * whole.counts.total
    sparse = estimate.estimate("sparta-0.05", mistral)
    assert sparse.setting.precision.as_dict() == {"model": "bfloat16", "trained": "float32"}
    chosen = sparse.counts.sampled
    assert chosen == pytest.approx(349e6, rel=1e-3)  # Table 3
    head = 16 * sparse.counts.head
    assert sparse.parts.total == pytest.approx(
        22 * chosen + 2 * (sparse.counts.total - sparse.counts.head) + head, abs=32
    )


# ------------------------------------------------------------------------ peaks, what fits
def made_up(transient: Transient) -> Estimate:
    """100 MB of weights, 40 MB of gradients, 2 layers that keep 1 MB a row, and work with 0.5."""
    plain = estimate.estimate("head", setting_for())
    parts = Parts(*(size * 10**6 for size in (100, 20, 3, 2, 40, 80)))
    sizes = {False: Activations(1e6, 5e5), True: Activations(0, 1e6)}
    return replace(plain, parts=parts, transient=transient, layers=2, activations=sizes)


@pytest.mark.usefixtures("no_dry_runs")
def test_three_moments_of_a_step() -> None:
    found = made_up(Transient(backward=7_000_000, update=9_000_000, last=10_000_000))
    held = 205_000_000
    assert found.parts.held == held
    # no batch: the optimizer's step
    assert found.peak_bytes(0, False) == held + 40_000_000 + 9_000_000
    # 30 rows: the beginning of the backward pass
    at = found.at_peak(30, False)
    assert (at["gradients"], at["activations"]) == (7_000_000, 75_000_000)
    # 16 rows: its end, where the last gradients are not there yet
    assert found.at_peak(16, True)["activations"] == 16_000_000
    assert found.peak_bytes(16, True) == held + 40_000_000 - 10_000_000 + 7_000_000 + 16_000_000
    assert found.activation_bytes(30, False) == 75_000_000


@pytest.mark.usefixtures("no_dry_runs")
@pytest.mark.parametrize("way", [False, True])
def test_largest_batch_is_the_largest(way: bool) -> None:
    found = made_up(Transient(0, 0, 0))
    for limit in (246_000_000, 300_000_000, GIB):
        rows = found.largest_rows(limit, way)
        assert rows >= 1
        assert found.peak_bytes(rows, way) <= limit < found.peak_bytes(rows + 1, way)
    assert found.largest_rows(found.peak_bytes(1, way) - 1, way) == 0
    assert found.largest_rows(-1, way) == 0


@pytest.mark.usefixtures("no_dry_runs")
def test_on_a_cpu_stochastic_rounding_needs_room_for_a_piece_of_the_largest_tensor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setting = setting_for("train.trained_dtype=bfloat16", "device=cpu")

    def update(name: str) -> int:
        return estimate.estimate(name, setting).transient.update

    assert update("full_ft") == STOCHASTIC_UPDATE * HIDDEN * WIDE
    assert update("lora") == STOCHASTIC_UPDATE * 8 * HIDDEN
    assert update("head") == STOCHASTIC_UPDATE * HEAD
    counts = estimate.estimate("sparta-0.05", setting).counts
    assert update("sparta-0.05") == STOCHASTIC_UPDATE * counts.sampled  # all deltas are one tensor
    float32 = setting_for("device=cpu")
    assert estimate.estimate("full_ft", float32).transient.update == 0
    monkeypatch.setitem(PIECE, "cpu", 100)
    assert update("full_ft") == STOCHASTIC_UPDATE * 100
    assert update("head") == STOCHASTIC_UPDATE * HEAD
    setting = setting_for("train.trained_dtype=bfloat16")  # on CUDA
    assert update("full_ft") == 0


# ------------------------------------------------------------------------------ activations
def dry(name: str, way: bool, *overrides: str, tokens: int = TOKENS) -> Activations:
    return activations_of(setting_of(name, setting_for(*overrides, tokens=tokens)), way)


@pytest.mark.slow
def test_checkpointing_keeps_the_input_of_each_layer() -> None:
    for name, dtype, size in (("head", "bfloat16", 2), ("full_ft", "float32", 4)):
        found = dry(name, True, f"model.dtype={dtype}")
        assert found.kept == pytest.approx(TOKENS * HIDDEN * size, rel=1e-3)
        assert found.at_work > 0
    assert dry("head", False).kept == 0  # nothing below the head has a gradient


@pytest.mark.slow
def test_what_all_rows_begin_with_is_kept_once_unless_dropout_is_drawn() -> None:
    def kept(name: str, shared: int) -> float:
        setting = setting_of(name, replace(setting_for(tokens=16), shared_tokens=shared))
        return activations_of(setting, False).kept

    # four own tokens of sixteen, and for each row the keys and values of the others
    assert 0.25 < kept("sparta-0.05", 12) / kept("sparta-0.05", 0) < 0.35
    assert kept("full_ft", 12) == kept("full_ft", 0)
    with pytest.raises(InputError) as caught:
        memory_command.settings_of(TINY, ROWS, TOKENS, TOKENS)
    assert caught.value.lines == (
        "memory: --shared-tokens 8: must be below the 8 tokens of each row",
    )


def test_the_last_layer_keeps_next_to_nothing() -> None:
    cut, whole = (
        dry("sparta-0.05", False, f"train.share_prefix={share}") for share in ("auto", "false")
    )
    assert cut.kept == cut.last == pytest.approx(whole.kept, rel=1e-3) and whole.last == 0
    assert cut.at_work < 0  # less than another layer would keep
    assert whole.at_work < cut.at_work + cut.last < whole.at_work + 0.1 * cut.kept


@pytest.mark.slow
def test_activations_grow_with_tokens_and_no_faster() -> None:
    """The mask's square would show: attention keeps no scores."""
    few, many = (dry("lora", False, tokens=tokens).kept for tokens in (64, 256))
    assert many == pytest.approx(4 * few, rel=1e-3)


@pytest.mark.slow
def test_few_chosen_places_keep_few_columns() -> None:
    # as on a CPU, where so small a layer takes the sampled way
    wide = ("device=cpu", "model.shape.hidden_size=512", "model.shape.intermediate_size=2048")
    few, many = (dry(f"sparta-{density}", False, *wide).kept for density in (0.0005, 0.05))
    assert few < 0.8 * many


def test_a_model_that_cannot_run_dry_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Setting) -> Any:
        raise ValueError("no such attention")

    monkeypatch.setattr(Setting, "classifier", broken)
    with pytest.raises(
        InputError, match=r"model=gemma-2b: its activations cannot be found .*: no such attention"
    ):
        activations_of(setting_for(), False)


# ------------------------------------------------------------------------------ the command
@pytest.fixture(scope="module")
def settings() -> list[dict[str, Any]]:
    """What the JSON says of a tiny shape on this CPU; no dry runs."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.setattr(estimate, "activations_of", lambda setting, way: ROUND_SIZES[way])
        assert main(["memory", "--json", "--gpu-gib=1,2", *SIZE, *TINY, "device=cpu"]) == 0
    found: list[dict[str, Any]] = json.loads(out.getvalue())["settings"]
    return found


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The JSON and the folder of a tiny shape, measured on this CPU; no dry runs."""
    folder = tmp_path_factory.mktemp("memory")
    arguments = ["--measure", "--out", str(folder), "--figure", str(folder / "bars.png")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "activations_of", lambda setting, way: ROUND_SIZES[way])
        assert main(["memory", *arguments, "--gpu-gib=1,2", *SIZE, *TINY, "device=cpu"]) == 0
    return json.loads((folder / "memory.json").read_text(encoding="utf-8")), folder


@pytest.mark.slow
def test_files(shown: tuple[dict[str, Any], Path]) -> None:
    found, folder = shown
    names = ["bars.png", "bars.svg", "memory.csv", "memory.json", "memory.md", "memory.tex"]
    assert sorted(path.name for path in folder.iterdir()) == names
    tables = tables_of(found)
    assert [table.key for table in tables] == [
        "table1",
        "parts",
        "fits",
        "gemma-2b-compared",
    ]
    text = (folder / "memory.md").read_text(encoding="utf-8")
    assert text.count("\n## ") == len(tables) - 1
    assert "14 of 14 values are the paper's" in text
    latex = (folder / "memory.tex").read_text(encoding="utf-8")
    assert latex.count(r"\begin{table}") == len(tables)
    assert (folder / "bars.png").stat().st_size > 10_000
    for path in folder.iterdir():
        assert str(folder).encode() not in path.read_bytes()


def test_json_says_it_part_by_part(settings: list[dict[str, Any]]) -> None:
    (setting,) = settings
    assert (setting["model"], setting["device"], setting["rows"], setting["tokens"]) == (
        "gemma-2b", "cpu", ROWS, TOKENS
    )  # fmt: skip
    assert [method["name"] for method in setting["methods"]] == list(METHODS)
    for method in setting["methods"]:
        assert method["dtypes"] == {"model": "float32", "trained": "float32"}
        assert method["total_bytes"] == sum(method["parts_bytes"].values())
        for way in ("plain", "checkpointing"):
            assert method[way]["peak_bytes"] == sum(method[way]["at_peak_bytes"].values())
            assert list(method[way]["largest_rows"]) == ["1", "2"]
    head = setting["methods"][1]
    assert head["paper_formula_bytes"] == 2 * (BACKBONE + HEAD) + 8 * HEAD


@pytest.mark.slow
def test_csv_has_the_tables(shown: tuple[dict[str, Any], Path]) -> None:
    blocks = (shown[1] / "memory.csv").read_text(encoding="utf-8").split("\n\n")
    tables = [list(csv.reader(io.StringIO(block))) for block in blocks]
    assert [rows[0][0] for rows in tables] == ["model", "model", "model", "method"]
    assert [len(rows) for rows in tables] == [5, 7, 7, 13]
    weights = {row[4] for row in tables[1][1:]}
    assert weights == {f"{4 * BACKBONE / 1e6:,.2f}"}


@pytest.mark.slow
def test_measured_rows_say_where(shown: tuple[dict[str, Any], Path]) -> None:
    (setting,) = shown[0]["measured"]
    assert setting["device"]["type"] == "cpu"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\+00:00", setting["date"])
    assert [(row["name"], row["gradient_checkpointing"]) for row in setting["methods"]] == [
        (name, way) for name in METHODS for way in (False, True)
    ]
    assert {row["status"] for row in setting["methods"]} == {"measured"}
    columns = ["full_ft", *(f"sparta-{sparsity}" for sparsity in (50, 80, 90, 95, 99))]
    assert [(row["column"], row["status"]) for row in setting["table1"]] == [
        (column, "measured") for column in columns
    ]


@pytest.mark.usefixtures("no_dry_runs")
def test_json_is_one_object_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "--json", *SIZE, *TINY]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert (list(found), found["measured"], told.err) == (
        ["table1", "savings", "break_even", "settings", "measured"], None, ""
    )  # fmt: skip
    assert found["settings"][0]["device"] == "cuda"
    assert found["settings"][0]["break_even"]["density"] == 16 / 22


@pytest.mark.usefixtures("no_dry_runs")
def test_what_does_not_fit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "model=mistral-7b", "--gpu-gib=24,80"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(n for n, line in enumerate(lines) if "the largest batch that fits" in line)
    rows = {
        cells[2].strip(): [cell.strip() for cell in cells[5:-1]]
        for cells in (line.split("|") for line in lines[start + 2 : start + 10])
        if len(cells) > 2
    }
    assert rows["method"] == ["24 GiB", "80 GiB", "24 GiB, checkpointing", "80 GiB, checkpointing"]
    assert rows["full_ft"][0] == rows["full_ft"][2] == "does not fit"
    assert int(rows["head"][0]) > int(rows["sparta 5 %"][0]) > 0


@pytest.mark.usefixtures("no_dry_runs")
def test_a_method_that_does_not_fit_the_model_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 50}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"n_positions": 128}))
    assert main(["memory", "model=local", f"model.path={tmp_path}"]) == 0
    text = capsys.readouterr().out
    assert ": lora is left out: method.targets=" in text
    assert ": no linear layer of the model is called so" in text
    assert "rows of 128 tokens" in text  # no more than the model reads
    assert text.count("| sparta 5 % ") == 2
    assert str(tmp_path) not in text


@pytest.mark.slow
def test_a_folder_is_estimated_as_it_is(tmp_path: Path) -> None:
    """gpt2 has other names for what its configuration says, such as the number of layers."""
    shape = {"model_type": "gpt2", "n_layer": 5, "n_embd": 16, "n_head": 2, "vocab_size": 50}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    words = ["model=local", f"model.path={tmp_path}", "device=cpu"]
    found = estimate.estimate("full_ft", memory_command.settings_of(words, 2, 16)[0])
    assert found.layers == 5
    assert found.activations[True].kept == pytest.approx(16 * 16 * 4, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["method=lora"], "method=lora: memory shows all methods"),
        (["method.r=4"], "method.r=4: memory shows all methods"),
        (["seed=1"], "seed=1: changes no memory"),
        (["+sweep=table3_head"], "+sweep=table3_head: changes no memory"),
        (["train.gradient_checkpointing=true"], "memory shows both"),
        (["--gpu-gib=24,x"], "x is no whole number"),
        (["--gpu-gib="], "is no whole number"),
        (["--gpu-gib", "-1,24"], "-1 is no whole number"),
        (["--rows", "-1"], "-1 is no whole number"),
        (["--rows=0"], "0 is no whole number"),
        (["--tokens=9000"], "--tokens 9000: gemma-2b reads 8,192 tokens at most"),
        (
            ["--tokens=400", "model=gemma-2b", "model.shape.max_position_embeddings=300"],
            "reads 300",
        ),
        (["--wrong"], "unrecognized arguments: --wrong"),
        (["model=gamma-2b"], "did you mean gemma-2b"),
        (["word"], "word: not of the form key=value"),
    ],
)
def test_bad_input_gives_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["memory", *arguments]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    (line,) = written.err.splitlines()
    assert line.startswith("sparta-bench: ")
    assert told in line


@pytest.mark.parametrize("option", ["--out", "--figure"])
def test_folders_are_checked_first(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["memory", option, str(tmp_path / "file" / "x.png")]) == 2
    assert f"memory: {option} " in capsys.readouterr().err


def test_cuda_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["memory", "--measure", "device=cuda"]) == 2
    assert "device=cuda: torch sees no CUDA device here" in capsys.readouterr().err


@pytest.mark.slow
def test_the_paper_s_models_in_seconds(tmp_path: Path) -> None:
    """Nothing named: both models with dry runs, as on CUDA."""
    assert main(["memory", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    peaks = {
        (setting["model"], method["name"]): method
        for setting in found["settings"]
        for method in setting["methods"]
    }
    assert len(peaks) == 12
    for name in METHODS[3:]:
        for model in ("gemma-2b", "mistral-7b"):
            for way in ("plain", "checkpointing"):
                sparse, whole = (peaks[model, one][way]["peak_bytes"] for one in (name, "full_ft"))
                assert sparse < whole
    gemma = peaks["gemma-2b", "sparta-0.05"]
    # 18 layers that keep their input, for 40 rows of 384 tokens
    kept = 18 * 40 * 384 * 2048 * 2
    assert kept < gemma["checkpointing"]["activation_bytes"] < 0.15 * gemma["plain"]["peak_bytes"]


# ------------------------------------------------------------------------------- the figure
def test_figure_shows_the_peaks(settings: list[dict[str, Any]]) -> None:
    figure = peaks("memory", settings)
    (panel,) = figure.panels
    methods = settings[0]["methods"]
    bars = bars_of(settings[0])
    assert len(bars) == 2 * len(methods)
    sizes = [method[way]["peak_bytes"] for method in methods for way in ("plain", "checkpointing")]
    assert [sum(bar.sizes) for bar in bars] == sizes
    assert [key.label for key in figure.legend] == list(PARTS)
    assert panel.alt.endswith(f"checkpointing {bars[-1].text}")


def test_pieces_of_a_bar_stand_one_after_the_other(settings: list[dict[str, Any]]) -> None:
    from matplotlib.figure import Figure as Drawing

    (panel,) = peaks("memory", settings).panels
    drawing = Drawing((panel.width / 72, panel.height / 72))
    panel.draw(Frame(drawing, 0.0, 0.0, panel.width, panel.height))
    (axes,) = drawing.axes
    first = bars_of(settings[0])[0].sizes
    rows = len(bars_of(settings[0]))
    drawn = [(patch.get_x(), patch.get_width()) for patch in axes.patches[::rows]]
    assert drawn == [(sum(first[:part]), size) for part, size in enumerate(first)]
