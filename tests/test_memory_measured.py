"""What training takes, measured on this CPU, beside what was estimated."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sparta_bench.analysis.bench import setting as setting_module
from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.analysis.memory import estimate, findings
from sparta_bench.analysis.memory.estimate import METHODS, Activations, Estimate, Footprint, Parts
from sparta_bench.analysis.memory.findings import _nothing_else, measure
from sparta_bench.analysis.memory.memory_tables import tables_of
from sparta_bench.cli import memory_command
from sparta_bench.cli.bench_command import SMALL, SMALL_ROWS
from sparta_bench.models.tensor_memory import live_bytes, peak_of
from sparta_bench.text import as_bytes

TINY = [
    *SMALL,
    "model.shape.vocab_size=500",
    "model.shape.hidden_size=64",
    "model.shape.intermediate_size=512",
    "model.shape.num_hidden_layers=3",
    "model.shape.num_attention_heads=2",
    "model.shape.head_dim=32",
]
NEAR = 0.05


def slow(*values: Any) -> Any:
    """A case of the slow tier: another one of the same test stays in the fast one."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(autouse=True, scope="module")
def compose_once(composed_once: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "unfreeze", lambda: None)  # what the imports have made stays frozen
        for module in (memory_command, setting_module):
            patch.setattr(module, "compose", composed_once)
        yield


def estimated(name: str, shape: Any, *overrides: str, rows: int, tokens: int) -> Estimate:
    words = [*shape, "device=cpu", *overrides]
    return estimate.estimate(name, memory_command.settings_of(words, rows, tokens)[0])


def check_parts(found: Estimate, side: dict[str, Any], small: float = 0.0) -> None:
    """Every part, what is held, and the peak without a batch, within 5 %; parts below `small` of
    the whole are not looked at by themselves."""
    sizes = found.parts.as_dict()
    for part, size in side["parts_bytes"].items():
        assert sizes[part] == pytest.approx(size, rel=NEAR, abs=small * found.parts.total), part
    assert found.parts.held == pytest.approx(side["held_bytes"], rel=NEAR)
    assert found.peak_bytes(0, False) == pytest.approx(side["smallest_peak_bytes"], rel=NEAR)


@pytest.fixture
def no_dry_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "activations_of", lambda setting, way: Activations(0.0, 0.0))


@pytest.mark.slow
@pytest.mark.usefixtures("no_dry_runs")
@pytest.mark.parametrize("name", METHODS)
def test_small_shape_without_activations(name: str) -> None:
    """19 million parameters in float32."""
    found = estimated(name, SMALL, rows=1, tokens=1)
    check_parts(found, measure(found.setting).as_dict())


@pytest.mark.usefixtures("no_dry_runs")
@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("full_ft", "float32"),
        ("sparta-0.05", "float32"),
        *(slow(name, "float32") for name in METHODS if name not in ("full_ft", "sparta-0.05")),
        *((name, "bfloat16") for name in ("full_ft", "sparta-0.05")),
        slow("lora", "bfloat16"),
    ],
)
def test_bfloat16_weights(name: str, trained: str) -> None:
    """As on CUDA: copies for full fine-tuning, 22 or 14 bytes a chosen scalar."""
    dtypes = ("model.dtype=bfloat16", f"train.trained_dtype={trained}")
    found = estimated(name, TINY, *dtypes, rows=1, tokens=1)
    # at 0.05 % some 160 scalars are chosen, give or take a dozen
    check_parts(found, measure(found.setting).as_dict(), small=0.001)


@pytest.mark.parametrize("name", ["full_ft", slow("head"), slow("lora"), "sparta-0.05"])
@pytest.mark.slow
def test_peak_with_a_batch(name: str) -> None:
    found = estimated(name, TINY, rows=8, tokens=32)
    for way in (False, True):
        side = measure(found.setting.with_checkpointing(way)).as_dict()
        assert found.peak_bytes(8, way) == pytest.approx(side["peak_bytes"], rel=NEAR), way


@pytest.mark.parametrize("column", [slow("full_ft"), "sparta-50", slow("sparta-99")])
def test_table_1_at_a_small_size(column: str) -> None:
    """The paper's formula counts every byte that there is, but for the originals."""
    (setting,) = memory_command.settings_of([*TINY, "device=cpu"], 1, 1)
    found = findings._table1_column(setting, column, lambda line: None)
    parts = found["parts_bytes"]
    assert sum(parts.values()) - parts["originals"] == pytest.approx(
        found["formula_bytes"], rel=0.005
    )
    assert (parts["originals"] > 0) == (column != "full_ft")
    assert found["peak_bytes"] > sum(parts.values())


def test_table_1_where_the_embeddings_leave_too_little() -> None:
    (setting,) = memory_command.settings_of(
        [*TINY, "model.shape.vocab_size=9000", "device=cpu"], 1, 1
    )
    found = findings._table1_column(setting, "sparta-50", lambda line: None)
    assert found["parts_bytes"] is None
    assert found["status"].startswith("method.density=0.5: ")


@pytest.mark.slow
def test_small_shape_with_its_batch() -> None:
    """Activations included: within 5 % of the peak, for each method, both ways."""
    (setting,) = memory_command.settings_of([*SMALL, "device=cpu"], SMALL_ROWS, 64)
    found = findings.measured(findings.estimates_of(setting), lambda line: None)
    assert len(found["methods"]) == 12
    for row in found["methods"]:
        for name in ("held_bytes", "smallest_peak_bytes", "peak_bytes"):
            assert abs(row["off"][name]) < NEAR, (row["name"], row["gradient_checkpointing"], name)


# -------------------------------------------------------------------------- where it is measured
MADE_UP = Footprint(Parts(90, 5, 0, 0, 5, 10), held=105, smallest_peak=110, peak=200)


@pytest.mark.usefixtures("no_dry_runs")
def test_what_is_too_large_for_a_cpu_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the system would end the process, or another one."""

    class Little:
        available = 3_000_000

    monkeypatch.setattr(findings.psutil, "virtual_memory", lambda: Little)
    monkeypatch.setattr(findings, "measure", lambda setting: MADE_UP)
    (setting,) = memory_command.settings_of([*TINY, "device=cpu"], 1, 1)
    told: list[str] = []
    rows = findings.measured(findings.estimates_of(setting), told.append)["methods"]
    needed = as_bytes(rows[0]["estimated"]["peak_bytes"])
    assert rows[0]["status"] == f"not tried: needs {needed}, 3.0 MB are free"
    assert (rows[0]["measured"], rows[0]["off"]) == (None, None)
    assert [row["status"] for row in rows[2:4]] == ["measured", "measured"]
    assert rows[2]["measured"]["activation_bytes"] == 90
    assert rows[2]["off"]["peak_bytes"] == rows[2]["estimated"]["peak_bytes"] / 200 - 1
    assert len(told) == len(rows) + 6
    assert told[3] == "measuring head on small-gemma, checkpointing"


@pytest.mark.usefixtures("no_dry_runs")
def test_out_of_memory_is_noted_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(setting: Setting) -> Any:
        if setting.config.method.name == "full_ft":
            raise torch.OutOfMemoryError("no memory left")
        return MADE_UP

    monkeypatch.setattr(findings, "measure", scarce)
    (setting,) = memory_command.settings_of([*TINY, "device=cpu"], 1, 1)
    found = findings.measured(findings.estimates_of(setting), lambda line: None)
    states = [row["status"] for row in found["methods"]]
    assert states == ["out of memory"] * 2 + ["measured"] * 10
    everything = findings.paper_values() | {"settings": [], "measured": [found]}
    tables = {table.key: table for table in tables_of(everything)}
    assert tables["small-gemma-compared"].rows[0][1] == "out of memory"
    assert [column["status"] for column in found["table1"]] == ["out of memory"] + ["measured"] * 5


def test_live_bytes_of_a_cpu() -> None:
    device = torch.device("cpu")
    with _nothing_else():  # or each look is at the objects of all tests
        before = live_bytes(device)
        made = torch.zeros(1000)
        view = made[10:]
        assert live_bytes(device) - before == made.nbytes
        del made, view
        assert live_bytes(device) == before


def test_cuda_asks_its_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of the calls; no GPU is needed."""
    calls: list[str] = []

    def says(name: str, answer: int) -> Any:
        return lambda device: calls.append(name) or answer

    monkeypatch.setattr(torch.cuda, "memory_allocated", says("now", 7))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", says("most", 9))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", says("reset", 0))
    device = torch.device("cuda")
    assert live_bytes(device) == 7
    assert peak_of(lambda: calls.append("work"), device) == 9
    assert calls == ["now", "reset", "work", "most"]


def test_what_is_measured_goes_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured_of(*words: str) -> list[tuple[str, str, int, int]]:
        options = memory_command._parser().parse_args(["--measure", *words])
        settings = memory_command.settings_of(options.overrides, options.rows, options.tokens)
        found = memory_command._measurable(settings, options)
        return [(s.config.model.name, s.device.type, s.rows, s.tokens) for s in found]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measured_of() == [("small-gemma", "cpu", 16, 64)]
    assert measured_of("device=auto") == [("small-gemma", "cpu", 16, 64)]
    assert measured_of("model=tiny-mistral") == [("tiny-mistral", "cpu", 32, 384)]
    assert measured_of("--rows=2", "--tokens=9") == [("small-gemma", "cpu", 2, 9)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert measured_of() == [("gemma-2b", "cuda", 40, 384), ("mistral-7b", "cuda", 16, 384)]
    assert measured_of("device=cpu") == [("small-gemma", "cpu", 16, 64)]
