"""What `sparta-bench bench` counts and shows, on a model of a few thousand parameters."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from sparta_bench.analysis.bench import contenders, timing
from sparta_bench.analysis.bench.contenders import build
from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.analysis.bench.timing import CROSSOVER_DENSITIES, flops_of
from sparta_bench.cli import bench_command
from sparta_bench.cli.main import main
from sparta_bench.errors import InputError
from sparta_bench.models.tensor_memory import TensorMemory
from sparta_bench.paper import PAPER_DENSITIES
from sparta_bench.sparta.gradient import weight_gradient_at

HIDDEN, WIDE, LAYERS, HEADS, WORDS, ROWS, TOKENS, CLASSES = 16, 64, 2, 2, 50, 3, 5, 2
TINY = [
    "model=gemma-2b",
    f"model.shape.hidden_size={HIDDEN}",
    f"model.shape.intermediate_size={WIDE}",
    f"model.shape.num_hidden_layers={LAYERS}",
    f"model.shape.num_attention_heads={HEADS}",
    f"model.shape.head_dim={HIDDEN // HEADS}",
    f"model.shape.vocab_size={WORDS}",
    "device=cpu",
]
SIZE = [f"--rows={ROWS}", f"--tokens={TOKENS}", "--rounds=2", "--steps=1"]
# q, k, v, o, gate, up, down: scalars of a layer's weights
ONE_LAYER = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * (HIDDEN // HEADS) + 3 * HIDDEN * WIDE
HEAD = HIDDEN * CLASSES

needs_peft_sparta = pytest.mark.skipif(
    find_spec("peft_sparta") is None, reason="peft-sparta is not installed"
)


@pytest.fixture
def setting() -> Setting:
    return bench_command.settings_of(bench_command.read_options([*SIZE, *TINY]))[0]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("bench")
    assert main(["bench", "--out", str(folder), *SIZE, *TINY]) == 0
    return json.loads((folder / "bench.json").read_text(encoding="utf-8")), folder


def rows_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in report["settings"][0]["contenders"]}


def numbers(tree: Any) -> list[float]:
    if isinstance(tree, dict):
        return [number for part in tree.values() for number in numbers(part)]
    if isinstance(tree, list):
        return [number for part in tree for number in numbers(part)]
    return [tree] if isinstance(tree, int | float) else []


# ------------------------------------------------------------------------------- the report
@pytest.mark.slow
def test_every_contender_has_a_row(report: tuple[dict[str, Any], Path]) -> None:
    assert list(rows_of(report[0])) == contenders.names()
    assert len(contenders.names()) == 13


@pytest.mark.slow
def test_figures_are_finite_and_name_where_they_come_from(
    report: tuple[dict[str, Any], Path],
) -> None:
    found = report[0]
    assert all(math.isfinite(number) for number in numbers(found))
    assert found["device"]["type"] == "cpu"
    assert found["device"]["threads"] == torch.get_num_threads()
    assert found["dtypes"] == {"model": "float32", "trained": "float32"}
    setting = found["settings"][0]
    assert (setting["rows"], setting["tokens"]) == (ROWS, TOKENS)
    assert setting["shape"]["intermediate_size"] == WIDE
    norms = (2 * LAYERS + 1) * HIDDEN
    assert setting["parameters"] == LAYERS * ONE_LAYER + WORDS * HIDDEN + norms + HEAD
    assert str(report[1]) not in json.dumps(found)


@pytest.mark.slow
def test_ratios_of_steps_have_a_spread_and_no_target(report: tuple[dict[str, Any], Path]) -> None:
    steps = [
        ratio
        for ratio in report[0]["settings"][0]["ratios"]
        if ratio["what"].startswith("step of ")
    ]
    assert "step of sparta-0.0005 / lora" in [ratio["what"] for ratio in steps]
    for ratio in steps:
        assert ratio.keys() == {"what", "value", "lowest_and_highest_round", "of_fastest_steps"}
        low, high = ratio["lowest_and_highest_round"]
        assert low <= ratio["value"] <= high
    text = (report[1] / "bench.md").read_text(encoding="utf-8")
    row = next(ratio for ratio in steps if ratio["what"] == "step of sparta-0.05 / full_ft")
    low, high = row["lowest_and_highest_round"]
    cells = [row["what"], f"{row['value']:.3f}", f"{low:.3f} – {high:.3f}"]
    fastest = f"{row['of_fastest_steps']:.3f}"
    lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    assert ["", *cells, fastest, ""] in lines


def test_json_is_one_object_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--json", "--only=head,lora", *SIZE, *TINY]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["settings"][0]["contenders"]] == ["head", "lora"]
    assert found["settings"][0]["ratios"] == []


def test_sparta_at_a_density_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    only = "--only=sparta-0.2,full_ft,sparta-0.5,sparta-0.2"
    assert main(["bench", "--json", only, *SIZE, *TINY]) == 0
    measured = json.loads(capsys.readouterr().out)["settings"][0]
    shares = {
        row["name"]: (row["trainable"] - HEAD) / (LAYERS * ONE_LAYER)
        for row in measured["contenders"]
    }
    assert list(shares) == ["full_ft", "sparta-0.2", "sparta-0.5"]
    assert shares["sparta-0.2"] == pytest.approx(0.2, abs=0.03)  # 6 standard deviations
    assert shares["sparta-0.5"] == pytest.approx(0.5, abs=0.03)
    assert [ratio["what"] for ratio in measured["ratios"]][:2] == [
        "step of sparta-0.2 / full_ft",
        "step of sparta-0.5 / full_ft",
    ]


def test_peft_sparta_is_named_where_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: None)
    assert main(["bench", "--only=peft-sparta-0.05", *SIZE, *TINY]) == 0
    assert "peft-sparta is not installed" in capsys.readouterr().out


def test_out_of_memory_is_noted_and_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, setting: Setting
) -> None:
    def scarce(name: str, setting: Setting) -> contenders.Ready:
        if name == "full_ft":
            raise torch.OutOfMemoryError("no memory left")
        return build(name, setting)

    monkeypatch.setattr(timing, "build", scarce)
    rows = timing.measure(setting, ["full_ft", "head"], 1, 1)["contenders"]
    assert [row["status"] for row in rows] == ["out of memory", "measured"]
    assert "step_seconds" not in rows[0]


def test_crossover_times_every_shape_and_density(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--crossover", "--json", *SIZE, *TINY]) == 0
    layers = json.loads(capsys.readouterr().out)["crossover"][0]["layers"]
    shapes = {(layer["out_features"], layer["in_features"]) for layer in layers}
    assert shapes == {
        (HIDDEN, HIDDEN), (HIDDEN // HEADS, HIDDEN), (WIDE, HIDDEN), (HIDDEN, WIDE)
    }  # fmt: skip
    assert all(len(layer["seconds"]) == len(CROSSOVER_DENSITIES) for layer in layers)


# ------------------------------------------------------------------------------ what it counts
@pytest.mark.slow
def test_trainable_scalars(report: tuple[dict[str, Any], Path]) -> None:
    rows = rows_of(report[0])
    assert rows["full_ft"]["trainable"] == report[0]["settings"][0]["parameters"]
    assert rows["head"]["trainable"] == HEAD
    query, value = 2 * HIDDEN, HIDDEN + HIDDEN // HEADS
    assert rows["lora"]["trainable"] == LAYERS * 8 * (query + value) + HEAD
    for density in PAPER_DENSITIES:
        ours = rows[f"sparta-{density}"]
        assert ours["trainable"] == ours["chosen"] + HEAD


@needs_peft_sparta
@pytest.mark.slow
def test_peft_sparta_trains_the_same_scalars(report: tuple[dict[str, Any], Path]) -> None:
    rows = rows_of(report[0])
    for density in PAPER_DENSITIES:
        ours, theirs = rows[f"sparta-{density}"], rows[f"peft-sparta-{density}"]
        assert (ours["trainable"], ours["chosen"]) == (theirs["trainable"], theirs["chosen"])


@needs_peft_sparta
def test_peft_sparta_has_the_same_losses(setting: Setting) -> None:
    ours, theirs = build("sparta-0.05", setting), build("peft-sparta-0.05", setting)
    for contender in (ours, theirs):
        for group in contender.optimizer.param_groups:
            group["lr"] = 1e-2  # so that the losses move
    batch = setting.batch()
    losses = [[float(contender.step(batch)) for _ in range(5)] for contender in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0][0] - losses[0][-1] > 0.01


@pytest.mark.slow
def test_flops_of_the_linear_layers(report: tuple[dict[str, Any], Path]) -> None:
    rows = rows_of(report[0])
    tokens = ROWS * TOKENS
    layers = 2 * tokens * LAYERS * ONE_LAYER
    head = 2 * ROWS * HEAD
    full = rows["full_ft"]
    attention = full["forward_flops"] - layers - head
    pairs = 2 * 2 * ROWS * TOKENS * TOKENS * HIDDEN * LAYERS  # scores, and their weighted values
    # transformers 5.17 forms the rotary angles by a matrix product, once for the whole batch
    angles = 2 * (HIDDEN // HEADS // 2) * TOKENS
    assert attention in (pairs, pairs + angles)
    assert full["backward_flops"] - 2 * (layers + head) == 2.5 * pairs  # the scores twice
    assert rows["head"]["forward_flops"] == full["forward_flops"]
    assert rows["head"]["backward_flops"] == head  # the head's weight alone has a gradient
    for row in rows.values():
        if row["status"] != "measured":
            continue
        assert row["total_flops"] == row["forward_flops"] + row["backward_flops"]
        assert row["backward_to_forward"] == row["backward_flops"] / row["forward_flops"]


def test_flops_of_sampled_gradients(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """SpaRTA's backward pass is full fine-tuning's with fewer products for weights."""
    # layers as small as these would take the dense way
    monkeypatch.setattr("sparta_bench.sparta.layer.is_sampled", lambda *_: True)
    batch = setting.batch()
    full = flops_of(build("full_ft", setting), batch)
    ready = build("sparta-0.05", setting)
    ours = flops_of(ready, batch)
    assert ready.adapter is not None
    names = [name for name in ready.adapter.indices if "norm" not in name]
    chosen = sum(len(ready.adapter.indices[name]) for name in names)
    products = LAYERS * ONE_LAYER - chosen
    if "layers.0.input_layernorm.weight" not in ready.adapter.indices:
        products += HIDDEN * HIDDEN + 2 * HIDDEN * (HIDDEN // HEADS)  # nothing trains below q, k, v
    saved = 2 * ROWS * TOKENS * products
    assert ours["forward_flops"] == full["forward_flops"]
    assert full["backward_flops"] - ours["backward_flops"] == saved


def test_same_weights_and_batch_for_everybody(setting: Setting) -> None:
    first, second = setting.classifier(), setting.classifier()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(setting.batch()["input_ids"], setting.batch()["input_ids"])
    adapter = build("sparta-0.05", setting).adapter
    assert adapter is not None
    for name, places in contenders._indices(setting, 0.05).items():
        assert torch.equal(places, adapter.indices.get(name, places[:0]))


# ------------------------------------------------------------------------------- wrong input
@pytest.mark.parametrize(
    "arguments",
    [
        ["--rounds=0"],
        ["--steps", "many"],
        ["--tokens"],
        ["--only=sparta"],
        ["--only=sparta-1.5"],
        ["--only=sparta-0.0"],
        ["--wrong"],
        ["method=lora"],
        ["train.trained_dtype=bfloat16"],
        ["model=gamma-2b"],
    ],
)
def test_bad_options_give_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert told.err.startswith("sparta-bench: ")


def test_out_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"bench: --out .*file: .*file is no folder"):
        bench_command.main(["--out", str(tmp_path / "file"), *TINY])


def test_help_names_the_contenders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    assert "peft-sparta-0.0005" in capsys.readouterr().out


# ----------------------------------------------------------------------------- tensor memory
def test_tensor_memory_counts_each_storage_once() -> None:
    before = torch.zeros(1000)
    with TensorMemory() as memory:
        start = memory.live
        assert start >= before.nbytes
        whole = torch.ones(16, 16)
        part, turned = whole[3], whole.t()
        assert memory.live - start == 1024
        double = whole * 2
        assert memory.live - start == 2048
        del double, whole
        assert memory.live - start == 1024  # its views still hold it
        del part, turned
        assert memory.live == start
    assert memory.peak - start == 2048


def test_tensor_memory_of_a_backward_pass() -> None:
    weight = torch.ones(8, 4, requires_grad=True)
    with TensorMemory() as memory:
        start = memory.live
        loss = (torch.ones(2, 4) @ weight.t()).sum()
        assert memory.live - start == 2 * 4 * 4 + 4  # the product's input is kept, its output not
        loss.backward()
        del loss
        assert memory.live - start == weight.nbytes  # the gradient


def test_tensor_memory_sees_inside_our_operator() -> None:
    grad, x = torch.randn(64, 8), torch.randn(64, 8)
    places = torch.tensor([0, 9, 30], dtype=torch.int32)
    with TensorMemory() as memory:
        start = memory.live
        result = weight_gradient_at(grad, x, places, sampled=True)
        assert memory.live - start == result.nbytes == 12
    assert memory.peak - start >= 2 * 64 * 3 * 4  # the chosen columns of both operands


def test_tensor_memory_of_sparse_tensors() -> None:
    with TensorMemory() as memory:
        start = memory.live
        sparse = torch.sparse_coo_tensor(
            torch.zeros(2, 3, dtype=torch.int64), torch.ones(3), (5, 5), check_invariants=False
        )
        assert memory.live - start == 2 * 3 * 8 + 3 * 4
        del sparse
        assert memory.live == start
