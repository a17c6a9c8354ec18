"""What must hold on a CUDA GPU. `pytest -m cuda`; skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quick import QUICK_RUN
from small_models import batch, classifier, same_values, values_of
from test_adamw import bfloat16_values
from test_launches import Launches

from sparta_bench.runs.run import run
from sparta_bench.sparta import SpartaAdapter
from sparta_bench.sparta.merge import rounded_sum
from sparta_bench.training import loop
from sparta_bench.training.optimizer import StochasticAdamW

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

METHODS = ("sparta", "full_ft", "lora", "head")
# Of a dev loss after four steps in float32: both devices sum in another order.
TOLERANCE = 1e-3
MakeConfig = Callable[..., Any]


def record_of(tiny_config: MakeConfig, *overrides: str) -> dict[str, Any]:
    record, _, _ = run(tiny_config(*QUICK_RUN, "save=none", "force=true", *overrides))
    assert record["status"] == "completed", record["error"]
    return record


def outcome_of(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["history"], record["dev"], record["test"]


def trained(model: Any, adapter: SpartaAdapter, steps: int = 3) -> list[float]:
    """Losses of a few steps on `model`, which the adapter trains."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    inputs = {name: tensor.to(model.device) for name, tensor in batch().items()}
    losses = []
    for _ in range(steps):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("gradient", ["dense", "sampled"])
def test_sparta_trains_on_cuda_as_on_a_cpu(gradient: str) -> None:
    here, there = classifier(), classifier().cuda()
    on_cpu = SpartaAdapter(here, 0.2, 0, gradient=gradient)
    on_cuda = SpartaAdapter(there, 0.2, 0, gradient=gradient)
    assert on_cuda.indices.keys() == on_cpu.indices.keys()
    for name, indices in on_cpu.indices.items():
        assert torch.equal(on_cuda.indices[name].cpu(), indices), name
    assert trained(there, on_cuda) == pytest.approx(trained(here, on_cpu), rel=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_hold_the_rounded_sum_and_detach_gives_every_bit_back(dtype: torch.dtype) -> None:
    model = classifier(dtype=dtype).cuda()
    before = values_of(model.model)
    adapter = SpartaAdapter(model, 0.2, 0)
    trained(model, adapter)
    weights = dict(model.model.named_parameters())
    for name, indices in adapter.indices.items():
        expected = rounded_sum(adapter.originals[name].cpu(), adapter.deltas[name].detach().cpu())
        assert torch.equal(weights[name].detach().view(-1).cpu()[indices.cpu().long()], expected)
    adapter.detach()
    assert same_values(model.model, before)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_has_the_dev_loss_of_a_cpu(tiny_config: MakeConfig, method: str) -> None:
    common = (f"method={method}", "train.dropout=0", "model.dtype=float32")
    if method == "lora":
        common += ("method.lora_dropout=0",)  # dropout draws other numbers on another device
    losses = [
        [
            entry["dev_loss"]
            for entry in record_of(tiny_config, *common, f"device={device}")["history"]
        ]
        for device in ("cuda", "cpu")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=TOLERANCE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_two_runs_of_one_seed_are_equal(tiny_config: MakeConfig, method: str, dtype: str) -> None:
    settings = (f"method={method}", "device=cuda", f"model.dtype={dtype}")
    first, second = (record_of(tiny_config, *settings) for _ in range(2))
    assert outcome_of(first) == outcome_of(second)


@pytest.mark.parametrize("method", ["sparta", "full_ft", "lora"])
def test_a_resumed_run_is_equal_bit_for_bit(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str
) -> None:
    settings = [*QUICK_RUN, f"method={method}", "device=cuda", "train.checkpoint_every=1"]
    settings += ["save=none", "train.dropout=0.1"]
    whole, _, _ = run(tiny_config(*settings, f"results_dir='{tmp_path}/whole'"))
    step = loop.Training._step

    def cut(self: Any, *arguments: Any) -> Any:
        if self.progress.step == 3:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_step", cut)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_config(*settings))
    resumed, _, _ = run(tiny_config(*settings))
    assert outcome_of(resumed) == outcome_of(whole)


def test_bfloat16_values_are_trained_with_stochastic_rounding(tiny_config: MakeConfig) -> None:
    settings = ("method=full_ft", "device=cuda", "train.trained_dtype=bfloat16")
    record = record_of(tiny_config, *settings, "train.max_steps=20", "train.learning_rate=1e-3")
    assert record["environment"]["dtypes"] == {"model": "bfloat16", "trained": "bfloat16"}
    assert record["dev"]["loss"] < record["history"][0]["dev_loss"]


@pytest.mark.parametrize("method", ["sparta", "lora"])
def test_gradient_checkpointing_changes_no_loss(tiny_config: MakeConfig, method: str) -> None:
    settings = (f"method={method}", "device=cuda", "model.dtype=float32", "train.dropout=0")
    plain, saving = (
        [
            entry["dev_loss"]
            for entry in record_of(tiny_config, *settings, f"train.gradient_checkpointing={on}")[
                "history"
            ]
        ]
        for on in ("false", "true")
    )
    assert saving == pytest.approx(plain, rel=1e-5)


def test_a_lack_of_memory_is_a_failed_run_with_advice(tiny_config: MakeConfig) -> None:
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    limit_bytes = torch.cuda.memory_reserved() + (64 << 20)
    torch.cuda.set_per_process_memory_fraction(limit_bytes / whole)
    try:
        settings = ("device=cuda", "train.batch_size=2000", "train.max_steps=1", "save=none")
        record, _, _ = run(tiny_config(*settings, "method=full_ft", "model.dtype=float32"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert record["status"] == "failed"
    assert record["error"]["message"].startswith("out of memory with train.batch_size=2000 in 1 ")
    assert "train.accumulation_steps" in record["error"]["message"]


def test_stochastic_adamw_is_one_kernel_a_tensor_and_gives_the_values_of_a_cpu() -> None:
    """Bit for bit; of torch it calls what counts steps, on the CPU, and nothing else."""
    shapes = ((3, 1000), (7,), (1 << 20,))
    values = {"cpu": bfloat16_values(*shapes), "cuda": bfloat16_values(*shapes)}
    for value in values["cuda"]:
        grad = value.grad
        value.data = value.data.cuda()
        value.grad = None if grad is None else grad.cuda()
    found = {}
    for device, own in values.items():
        optimizer = StochasticAdamW([{"params": own, "weight_decay": 0.1}], 1e-2, (0.9, 0.99), 1e-8)
        torch.manual_seed(0)
        for _ in range(3):
            with Launches() as launches:
                optimizer.step()
        if device == "cuda":
            assert launches.counts == {"add_": len(shapes), "_local_scalar_dense": len(shapes)}
        states = [optimizer.state[value] for value in own]
        moments = [state[name] for name in ("exp_avg", "exp_avg_sq") for state in states]
        found[device] = [tensor.detach().cpu() for tensor in (*own, *moments)]
    for one, other in zip(found["cpu"], found["cuda"], strict=True):
        assert torch.equal(one, other)
