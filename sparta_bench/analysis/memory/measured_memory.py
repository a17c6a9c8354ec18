"""What training takes, measured: CUDA's allocator, or every tensor of the process on a CPU."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparta_bench.analysis.bench.contenders import Ready, with_own_optimizer
from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.analysis.memory.parts import Parts
from sparta_bench.devices import live_bytes, peak_of


@dataclass(frozen=True)
class Measured:
    """Bytes of one method's training; `parts` are the sizes of the tensors themselves.

    `held` is there between two steps, `smallest_peak` is the peak of a step with one row of one
    token, hence almost without activations, `peak` that with the setting's batch.
    """

    parts: Parts
    held: int
    smallest_peak: int
    peak: int


def measure(setting: Setting) -> Measured:
    """Build the setting's method on random weights and make steps with it; what other tensors
    there are is not counted.

    Raises
    ------
    InputError
        If the method does not fit the model.
    torch.OutOfMemoryError
        If the device's memory does not suffice.
    """
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


def _measure(setting: Setting) -> Measured:
    before = live_bytes(setting.device)
    smallest, batch = replace(setting, rows=1, tokens=1).batch(), setting.batch()
    before += _bytes([*smallest.values(), *batch.values()])
    classifier = setting.classifier()
    weights = list(classifier.backbone.parameters())
    ready = with_own_optimizer(classifier, setting)
    ready.step(smallest)  # makes the optimizer's state
    held = live_bytes(setting.device)
    smallest_peak = peak_of(lambda: ready.step(smallest), setting.device)
    peak = peak_of(lambda: ready.step(batch), setting.device)
    parts = _parts(ready, weights, smallest)
    return Measured(parts, held - before, smallest_peak - before, peak - before)


def _parts(ready: Ready, weights: list[nn.Parameter], batch: dict[str, Tensor]) -> Parts:
    """Of a method on a backbone of these weights, which may train themselves."""
    ready.forward(batch).backward()  # type: ignore[no-untyped-call]
    states: Iterable[dict[str, Any]] = ready.optimizer.state.values()
    backbone, adapter = set(weights), ready.adapter
    return Parts(
        weights=_bytes(weights),
        trained=_bytes(value for value in ready.values if value not in backbone),
        indices=0 if adapter is None else _bytes(adapter.indices.values()),
        originals=0 if adapter is None else _bytes(adapter.originals.values()),
        gradients=_bytes(value.grad for value in ready.values if value.grad is not None),
        moments=_bytes(tensor for state in states for tensor in state.values()),
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
