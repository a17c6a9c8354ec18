"""What each of several processes holds of a model under `train.sharding=fsdp`, beside the estimate
of `sparta-bench memory --gpus N`."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_sharding import free_port
from torch import Tensor

from sparta_bench.analysis.bench.contenders import with_own_optimizer
from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.analysis.memory import estimate
from sparta_bench.analysis.memory.estimate import Activations
from sparta_bench.cli import memory_command
from sparta_bench.cli.bench_command import SMALL
from sparta_bench.models.load import load_classifier, load_sharded
from sparta_bench.models.tensor_memory import TensorMemory
from sparta_bench.models.write_sharded import whole_tensors, write_weights
from sparta_bench.sparta.sharded import local

NEAR = 0.05
WORLD = 2


class ShardedMemory(TensorMemory):
    """FSDP frees what it has gathered, and makes room for it again, by resizing storages: what
    they have is asked after each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.before = self.most = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.most = max(self.most, self.now)
        return result

    @property
    def now(self) -> int:
        storages = [held() for held in list(self._held.values())]
        return sum(storage.nbytes() for storage in storages if storage is not None)

    @property
    def added(self) -> dict[str, int]:
        return {"now": self.now - self.before, "peak": self.most - self.before}


def setting_of(method: str, *words: str) -> Setting:
    """The benchmark's small Gemma, 19 million parameters in float32; one row of one token."""
    (setting,) = memory_command.settings_of([*SMALL, "device=cpu", *words], 1, 1)
    return estimate.setting_of(method, setting)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def measured(rank: int, port: int, folder: str, method: str) -> None:
    """One of the processes: loads the model of the folder, and makes steps."""
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", address, world_size=WORLD, rank=rank)
    setting = setting_of(method, "train.sharding=fsdp")
    model = replace(setting.config.model, path=folder, shape=None)
    config, batch = replace(setting.config, model=model), setting.batch()
    with ShardedMemory() as loading:
        backbone = load_sharded(model, setting.precision.model_dtype, setting.device)
    # of a tokenizer its length alone is asked
    classifier = load_classifier(config, range(1), setting.precision, setting.device, backbone)
    found: dict[str, Any] = {"loading": loading.added}
    weights = list(backbone.parameters())
    ready = with_own_optimizer(classifier.train(), setting)
    ready.step(batch)  # makes the optimizer's state
    with ShardedMemory() as stepping:
        ready.step(batch)
    of_batch = bytes_of(batch.values())
    found["held"], found["peak"] = stepping.before - of_batch, stepping.most - of_batch
    ready.forward(batch).backward()  # type: ignore[no-untyped-call]
    states = ready.optimizer.state.values()
    entries = [
        one
        for module in (ready.adapter._patched if ready.adapter else ())
        for one in module.sparta_entries.values()
    ]
    own_rows = {local(weight).data_ptr() for weight in weights}
    found["parts"] = {
        "weights": bytes_of(map(local, weights)),
        "trained": bytes_of(value for value in ready.values if value.data_ptr() not in own_rows),
        "indices": bytes_of(one.indices for one in entries),
        "originals": bytes_of(one.originals for one in entries),
        "gradients": bytes_of(value.grad for value in ready.values if value.grad is not None),
        "moments": bytes_of(tensor for state in states for tensor in state.values()),
    }
    if ready.adapter:
        ready.adapter.bake()
    ready.optimizer.zero_grad()
    with ShardedMemory() as writing:
        values = whole_tensors(backbone)
        if rank == 0:
            write_weights(backbone, values, Path(folder))
        deque(values, maxlen=0)
    found["writing"], found["largest"] = writing.added, max(4 * w.numel() for w in weights)
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "too_much"), [("sparta-0.05", NEAR), ("full_ft", 0.2)])
def test_each_of_two_processes_holds_half(
    tmp_path: Path, method: str, too_much: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`too_much`: of the estimate of the peak, which has room for gradients that FSDP reduces
    while it gathers weights, as on CUDA."""
    monkeypatch.setattr(estimate, "activations_of", lambda setting, way: Activations(0.0, 0.0))
    setting = setting_of(method)
    backbone = setting.classifier().backbone
    backbone.save_pretrained(tmp_path)
    whole = bytes_of(backbone.parameters())
    assert whole == pytest.approx(4 * 19e6, rel=NEAR)
    expected = estimate.estimate_of(method, setting, gpus=WORLD)
    ranks = (free_port(), str(tmp_path), method)
    torch.multiprocessing.spawn(measured, ranks, nprocs=WORLD)  # type: ignore[no-untyped-call]
    for rank in range(WORLD):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert found["loading"]["now"] == pytest.approx(whole / WORLD, rel=NEAR)
        assert whole / WORLD < found["loading"]["peak"] < whole
        for part, size in expected.parts.as_dict().items():
            assert size == pytest.approx(found["parts"][part], rel=NEAR), (rank, part)
        assert expected.parts.held == pytest.approx(found["held"], rel=NEAR)
        assert 1 - NEAR < expected.peak_bytes(0, False) / found["peak"] < 1 + too_much
        # one tensor is whole at a time
        assert found["writing"] == {"now": 0, "peak": pytest.approx(found["largest"], rel=0.01)}
