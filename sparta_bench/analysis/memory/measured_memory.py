"""What training takes, measured: CUDA's allocator, or every tensor of the process on a CPU."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from sparta_bench.analysis.bench.contenders import Ready, with_own_optimizer
from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.analysis.memory.parts import Footprint, Parts
from sparta_bench.models.tensor_memory import live_bytes, peak_of


def measure(setting: Setting) -> Footprint:
    """Build the setting's method on random weights and make steps with it; other tensors of the
    process are not counted. Raises InputError if the method does not fit the model, and
    OutOfMemoryError where the device's memory does not suffice."""
    with _nothing_else():
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
        return _measure(setting)


@contextmanager
def _nothing_else() -> Iterator[None]:
    """Free what has no owner, and keep the collector, and so `live_bytes` on a CPU, from looking
    at all else again: hundreds of thousands of objects, several times."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _measure(setting: Setting) -> Footprint:
    before = live_bytes(setting.device)
    one = replace(setting, rows=1, tokens=1, shared_tokens=0)
    smallest, batch = one.batch(), setting.batch()
    before += _bytes([*smallest.values(), *batch.values()])
    classifier = setting.as_in_a_run()
    weights = list(classifier.backbone.parameters())
    ready = with_own_optimizer(classifier, setting)
    ready.step(smallest)  # makes the optimizer's state
    held = live_bytes(setting.device)
    smallest_peak = peak_of(lambda: ready.step(smallest), setting.device)
    peak = peak_of(lambda: ready.step(batch), setting.device)
    parts = _parts(ready, weights, smallest)
    return Footprint(parts, held - before, smallest_peak - before, peak - before)


def _parts(ready: Ready, weights: list[nn.Parameter], batch: dict[str, Tensor]) -> Parts:
    """The sizes of the tensors of a method on a backbone of these weights."""
    ready.forward(batch).backward()  # type: ignore[no-untyped-call]
    states = ready.optimizer.state.values()
    backbone, adapter = set(weights), ready.adapter  # weights may train themselves
    return Parts(
        weights=_bytes(weights),
        trained=_bytes(value for value in ready.values if value not in backbone),
        indices=_bytes(adapter.indices.values()) if adapter else 0,
        originals=_bytes(adapter.originals.values()) if adapter else 0,
        gradients=_bytes(value.grad for value in ready.values if value.grad is not None),
        moments=_bytes(tensor for state in states for tensor in state.values()),
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
