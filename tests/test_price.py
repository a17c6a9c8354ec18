"""What runs will take: FLOPs as torch counts them, times as measured, sweeps as a table."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import backbone
from test_cli import call
from torch.utils.flop_counter import FlopCounterMode

from sparta_bench.analysis import price
from sparta_bench.analysis.bench.timing import ATTENTION
from sparta_bench.analysis.memory import estimate
from sparta_bench.analysis.memory.estimate import Activations
from sparta_bench.analysis.plan import as_text, plan
from sparta_bench.analysis.price import Priced, price_of, table_of_prices
from sparta_bench.analysis.run_cost import cost_of, estimated_seconds
from sparta_bench.config.compose import compose
from sparta_bench.config.presets import lengths_of
from sparta_bench.config.sweeps import sweep_jobs
from sparta_bench.errors import InputError
from sparta_bench.models.counts import (
    dense_share_of,
    empty_backbone,
    forward_flops,
    shape_of,
    shapes_for,
    shapes_of,
    step_flops,
    work_of,
)
from sparta_bench.models.source import load_architecture
from sparta_bench.models.tokens_once import TokensOnce
from sparta_bench.paper import number_of, rows_of
from sparta_bench.runs.time_estimates import recorded_seconds
from sparta_bench.tables.table import as_markdown
from sparta_bench.text import as_bytes
from sparta_bench.training.step_time import (
    DEVICES,
    Range,
    device_named,
    is_named,
    seconds_of,
    update_seconds,
)

ROOT = Path(__file__).parent.parent


# ---------------------------------------------------------------------------------- FLOPs
@pytest.mark.parametrize("way", [(0, False), (6, False), (0, True), (6, True)], ids=str)
@pytest.mark.parametrize("model_type", ["gemma", "llama"])
def test_the_flops_of_the_formula_are_those_counted(model_type: str, way: tuple[int, bool]) -> None:
    model = backbone(model_type).eval()
    ids = torch.randint(1, 60, (3, 12), generator=torch.Generator().manual_seed(0))
    ids[:, :6] = ids[0, :6].clone()
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        TokensOnce(*way).pooled(model, ids, torch.ones_like(ids))
    expected = forward_flops(shape_of(shapes_of(model)), work_of(3, 12, *way))
    # transformers 5.17 computes rotary angles by a product, which later versions do not
    assert counter.get_total_flops() == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    ("method", "dense"),
    [("head", None), ("lora", 0.0), ("full_ft", 1.0), ("sparta", 1.0)],
)
def test_a_steps_flops_by_what_trains(method: str, dense: float | None) -> None:
    config = compose([f"method={method}", "model=gemma-2b"])
    model = shapes_for(config.model)
    # on CUDA 5 % of every layer is worth a dense product
    assert dense_share_of(model, config.method, 10_800, "cuda") == dense
    shape, work = shape_of(model), work_of(40, 270)
    forward = forward_flops(shape, work)
    step = step_flops(shape, work, dense, recomputed=False)
    assert step / forward == pytest.approx(1 if dense is None else 2 + dense, rel=0.01)
    if dense is not None:
        assert step_flops(shape, work, dense, recomputed=True) == step + forward


def test_few_entries_of_large_layers_are_sampled() -> None:
    config = compose(["method.density=0.0005", "model=gemma-2b"])
    model = shapes_for(config.model)
    share = dense_share_of(model, config.method, 10_800, "cuda")
    assert share is not None and 0 < share < 0.2


# ----------------------------------------------------------------------------------- time
def measured() -> list[tuple[str, str, int, int, float]]:
    """Model, contender, rows, tokens and milliseconds of a step on an H200."""
    tables = json.loads((ROOT / "results/cuda/h200/steps.json").read_text())["tables"]
    return [
        (title.split(",")[0], row["contender"], row["rows"], row["tokens"], row["step_ms"])
        for title, rows in tables.items()
        for row in rows
        if row["status"] == "measured"
    ]


def test_steps_that_were_measured_lie_in_the_range() -> None:
    outside = []
    for name, contender, rows, tokens, milliseconds in measured():
        method, _, rest = contender.partition("-")
        if method not in ("full_ft", "lora", "sparta", "head"):
            continue
        words = [f"model={name}", f"method={method}"]
        words += [f"method.density={rest}"] if method == "sparta" else []
        config = compose(words)
        model = shapes_for(config.model)
        shape, work = shape_of(model), work_of(rows, tokens)
        dense = dense_share_of(model, config.method, rows * tokens, "cuda")
        flops = step_flops(shape, work, dense, recomputed=False)
        low, high = seconds_of("h200", flops, shape.layers, is_step=dense is not None)
        if rest == "bfloat16":
            scalars = sum(math.prod(size) for size in model.tensors.values())
            low, high = Range(low, high).plus(update_seconds("h200", scalars, rest))
        if not 0.97 * low <= milliseconds / 1e3 <= 1.03 * high:
            outside.append((name, contender, rows, tokens, milliseconds, low, high))
    assert len(measured()) >= 15 and outside == []


def test_devices_are_known_by_their_own_names() -> None:
    assert is_named("h100", "NVIDIA H100 80GB HBM3")
    assert is_named("4090", "NVIDIA GeForce RTX 4090")
    assert is_named("a100", "NVIDIA A100-SXM4-80GB")
    assert not is_named("h100", "NVIDIA H200")
    assert is_named("cpu", "AMD EPYC") and not is_named("cpu", "NVIDIA H200")
    assert device_named(None, "cpu") == "cpu" and device_named("a100", "cpu") == "a100"
    with pytest.raises(InputError) as caught:
        device_named("h10", "cpu")
    assert str(caught.value).startswith("plan: --gpu h10: must be one of h100, h200, a100, 4090")


# ----------------------------------------------------------------------------------- runs
def cost(*words: str, device: str | None = "h100") -> Any:
    config = compose(["train.patience=0", "train.epochs=2", *words])
    lengths = lengths_of(config.task.name, config.model.kind)
    assert lengths is not None
    model = shapes_for(config.model)
    return cost_of(config, model, lengths, device)


def test_what_is_shared_is_saved() -> None:
    words = ("task=sst2", "model=gemma-2b-it", "train.batch_size=32")
    shared, whole = (cost(*words, f"train.share_prefix={way}") for way in ("auto", "false"))
    assert whole.saved == 0 and shared.whole_step_flops == whole.step_flops
    tokens = 22 + 32 * (37.24 - 22)  # each token once, of 32 * 37.24; and less of the last layer
    assert shared.saved == pytest.approx(1 - tokens / (32 * 37.24), abs=0.04)
    assert shared.once._asdict() == {"prefix_tokens": 22, "last_layer": True, "in_training": True}
    # with dropout training computes the prefix for each input
    lora = cost(*words, "method=lora")
    assert 0 < lora.saved < 0.06 and not lora.once.in_training
    assert cost(*words, device=None).seconds is None


def test_a_head_whose_features_are_kept_takes_one_pass() -> None:
    words = ("task=sst2", "model=gemma-2b", "method=head", "train.batch_size=32")
    once, every_step = (cost(*words, f"train.dropout={dropout}") for dropout in (0, 0.1))
    assert 1.9 < every_step.seconds.low / once.seconds.low < 8


def test_lengths_have_the_counts_of_the_paper() -> None:
    printed = {row["task"]: row for row in rows_of("table9")}
    for task, row in printed.items():
        lengths = lengths_of(task, "instruct")
        assert lengths is not None and lengths.shared >= 22
        assert (lengths.dev, lengths.test) == (number_of(row["dev"]), number_of(row["test"]))
        if task != "imdb":
            assert lengths.train == number_of(row["train"])
    assert lengths_of("nope", "base") is None


# --------------------------------------------------------------------------------- sweeps
@pytest.fixture
def no_dry_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(price, "step_peak", lambda one, *_: 10**9 * one.train.batch_size)


def jobs_of(*words: str) -> list[Priced]:
    priced = []
    for job in sweep_jobs(list(words)):
        config = compose(job)
        lengths = lengths_of(config.task.name, config.model.kind)
        assert lengths is not None
        priced.append(Priced(config, lengths))
    return priced


@pytest.mark.usefixtures("no_dry_runs")
def test_a_sweep_takes_what_its_runs_take() -> None:
    words = ("+sweep=table4", "task=rte", "seed=0", "train.learning_rate=1e-4", "method=lora")
    jobs = jobs_of(*words)
    sweep = price_of(jobs, "h100")
    single = [price_of([job], "h100").seconds for job in jobs]
    assert sweep.runs == len(jobs) == 3
    assert sweep.seconds == pytest.approx(tuple(map(sum, zip(*single, strict=True))))
    assert estimated_seconds([job.config for job in jobs], "h100") == pytest.approx(sweep.seconds)
    assert (sweep.peak_bytes, sweep.peak_of) == (
        32 * 10**9, "lora on gemma-2b-it, 32 × 256 tokens"
    )  # fmt: skip
    scalars = 925_696
    backbone_scalars = 2_506_172_416
    assert sweep.disk_bytes == 2 * backbone_scalars + 4 * 4 * scalars + 3 * price.RECORD_BYTES
    text = as_markdown(table_of_prices({"table4": sweep}, "h100"))
    assert "assumed here" in text
    assert sweep.race_seconds == pytest.approx(sweep.seconds)  # of three settings all may be needed


@pytest.mark.usefixtures("no_dry_runs")
def test_adapters_that_are_kept_take_disk() -> None:
    jobs = jobs_of("+sweep=merging_table6", "task=sst2", "train.learning_rate=1e-4")
    (kept,) = {price_of(jobs[:1], None).disk_bytes - 2 * 2_506_172_416}
    sampled, head = 19_818_844, 4_096
    checkpoint = 4 * 4 * (sampled + head)
    assert kept == checkpoint + price.RECORD_BYTES + 8 * sampled + 4 * head
    assert price_of(jobs[:1], None).seconds is None


@pytest.mark.usefixtures("no_dry_runs")
def test_the_command_prints_a_row_for_each_sweep(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["+sweep=table4,table10_head", "task=rte", "seed=0", "--gpu", "4090"]
    code, out, _ = call(capfd, "plan", "-m", *words)
    rows = [line for line in out.splitlines() if line.startswith("| table")]
    assert code == 0 and len(rows) == 2
    assert rows[0].split("|")[2].strip() == str(6 * 21)
    assert rows[0].rstrip(" |").endswith("no")
    code, out, _ = call(capfd, "plan", "-m", "--json", *words)
    found = json.loads(out)
    assert code == 0 and found["device"] == "4090"
    assert found["sweeps"]["table10_head"]["runs"] == 21
    assert set(found["sweeps"]["table4"]["seconds"]) == {"low", "high"}


def test_the_peak_of_each_of_several_gpus_and_whether_it_fits(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Activations(0.0, 0.0)
    monkeypatch.setattr(estimate, "activations_of", lambda setting, way: nothing)
    words = ["method=full_ft", "model=mistral-7b", "task=sst2", "train.trained_dtype=float32"]
    cut = [*words, "train.sharding=fsdp", "--gpu", "4090", "--gpus"]
    made = empty_backbone(load_architecture(compose(words).model))  # once: it takes a second
    monkeypatch.setattr(estimate, "empty_backbone", lambda architecture: made)
    scalars = 7_113_814_016  # 18 bytes of each in all: bfloat16, and float32 for what trains
    for gpus, verdict in (("2", "no"), ("8", "yes")):
        code, out, _ = call(capfd, "plan", "-m", *cut, gpus)
        (row,) = (line for line in out.splitlines() if line.startswith("| -m"))
        assert code == 0 and row.rstrip(" |").endswith(f"| {verdict}")
        assert f"peak and fits are those of each of {gpus} GPUs" in out
    code, out, _ = call(capfd, "plan", "-m", "--json", *cut, "8")
    priced = json.loads(out)
    assert (code, priced["gpus"]) == (0, 8)
    peak = priced["sweeps"]["-m"]["peak_bytes"]
    assert 18 * scalars < 8 * peak < 1.5 * 18 * scalars
    planned = plan(compose(cut[:-3]), "4090", gpus=8)
    assert planned["per_gpu"] == {"gpus": 8, "peak_bytes": peak, "fits": True}
    section = "each of 8 GPUs, with train.sharding=fsdp\n  peak of a step  "
    assert f"{section}{as_bytes(peak)}, which fits\n" in as_text(planned)


def test_several_gpus_share_no_model_that_is_not_cut(capfd: pytest.CaptureFixture[str]) -> None:
    line = "plan: --gpus 8: give train.sharding=fsdp too, which cuts the model among GPUs"
    for words in (["plan"], ["plan", "-m", "seed=0,1"]):
        assert call(capfd, *words, "--gpus", "8") == (2, "", [f"sparta-bench: {line}"])


def test_sweeps_of_tasks_without_lengths_are_refused(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["task.name=mine", "seed=0,1"]
    code, out, lines = call(capfd, "plan", "-m", *words)
    assert (code, out) == (2, "")
    assert lines == [
        "sparta-bench: plan -m: conf/lengths.csv has no row for task=mine, and no time comes out "
        "without one"
    ]


# -------------------------------------------------------------------------------- records
def test_records_of_like_runs_go_before_the_estimate(
    trained: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    config, record, _ = trained("lora")
    training = record["training"]
    took = training["seconds"] + training["evaluation_seconds"]
    assert recorded_seconds(config, lambda name: is_named("cpu", name)) == pytest.approx(took)
    assert recorded_seconds(config, lambda name: is_named("h100", name)) is None
    other = compose(["method=lora", f"results_dir={config.results_dir}", "train.epochs=1"])
    assert recorded_seconds(other, lambda name: True) is None


def test_every_device_has_a_row_in_the_help(capfd: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capfd, "plan", "--help")
    assert all(name in out for name in DEVICES)
