"""What a step of each contender costs, and ratios of these costs."""

from __future__ import annotations

import gc
import statistics
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from sparta_bench.analysis.bench.contenders import Ready, build, missing
from sparta_bench.analysis.bench.counters import flops_of, kernel_launches, seconds_of
from sparta_bench.analysis.bench.counters import product_flops_per_second as speed_of_product
from sparta_bench.analysis.bench.sampled_gradient import shares_of
from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.models.counts import empty_backbone
from sparta_bench.models.source import load_architecture
from sparta_bench.models.tensor_memory import peak_of
from sparta_bench.paper import PAPER_DENSITIES

WARM_UP = 2  # steps before the clock runs; the first one makes the optimizer's state
SHAPE_KEYS = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim",
)  # fmt: skip
_SPARTA = [f"sparta-{density}" for density in PAPER_DENSITIES]
# whose step is compared with whose
COMPARISONS = (
    *((name, f"peft-{name}") for name in _SPARTA),
    *((name, "full_ft") for name in _SPARTA),
    (_SPARTA[-1], "lora"),
)


class Timed:
    """A contender, in memory from its first step until `free`, and its row of the JSON."""

    def __init__(self, name: str, setting: Setting, batch: dict[str, Tensor]) -> None:
        self.name, self.setting, self.batch = name, setting, batch
        status = missing(name, setting.device) or "measured"
        self.row: dict[str, Any] = {"name": name, "status": status}
        self.rounds: list[list[float]] = []  # seconds of each step
        self.merge_seconds: list[float] = []
        self._ready: Ready | None = None

    @property
    def measured(self) -> bool:
        """Whether nothing has kept it from its steps."""
        return bool(self.row["status"] == "measured")

    def count(self) -> None:
        """Count scalars, FLOPs, kernel launches and peak memory, alone in memory."""
        ready, batch, device = self._warm(), self.batch, self.setting.device
        self.row |= {
            "trainable": sum(value.numel() for value in ready.values),
            "chosen": ready.chosen,
            "note": ready.note,
            **flops_of(ready, batch),
            "kernel_launches": kernel_launches(lambda: ready.step(batch), device),
            "peak_memory_bytes": peak_of(lambda: ready.step(batch), device),
        }

    def time(self, steps: int) -> None:
        """Measure the seconds of some steps, and of merging alone."""
        ready, batch, device = self._warm(), self.batch, self.setting.device
        self.rounds.append([seconds_of(lambda: ready.step(batch), device) for _ in range(steps)])
        if ready.adapter is not None:
            merge = ready.adapter.merge
            self.merge_seconds += [seconds_of(merge, device) for _ in range(steps)]

    def _warm(self) -> Ready:
        if self._ready is None:
            self._ready = build(self.name, self.setting)
            for _ in range(WARM_UP):
                self._ready.step(self.batch)
        return self._ready

    def free(self) -> None:
        """Free its memory."""
        self._ready = None
        if "peft.tuners.shira.layer" in sys.modules:
            # peft keeps the SHiRA layers that it has warned about, and their weights with them
            sys.modules["peft.tuners.shira.layer"]._warn_once_about_module_hooks.cache_clear()
        gc.collect()
        if self.setting.device.type == "cuda":
            torch.cuda.empty_cache()

    def summarize(self, product_speed: float, repeats: int) -> None:
        """Add to the row what follows from the seconds."""
        seconds = [second for one in self.rounds for second in one]
        several = len(seconds) > 1
        quartiles = statistics.quantiles(seconds, method="inclusive") if several else seconds * 3
        low, step, high = quartiles
        self.row |= {
            "step_seconds": step,
            "step_seconds_quartiles": [low, high],
            "fastest_step_seconds": min(seconds),
            "tokens_per_second": self.setting.rows * self.setting.tokens / step,
            "share_of_peak": self.row["total_flops"] / step / product_speed,
        }
        if self.merge_seconds:
            merge = statistics.median(self.merge_seconds)
            density = float(self.name.rpartition("-")[2])
            self.row |= shares_of(step, merge, self.setting, density, repeats)


def measure(setting: Setting, contenders: Iterable[str], rounds: int, steps: int) -> dict[str, Any]:
    """Measure one setting; returns its part of the JSON: seconds, bytes, FLOPs, ratios."""
    batch = setting.batch()
    every = [Timed(name, setting, batch) for name in contenders]
    # a GPU holds one, and building it takes longer than its steps; a CPU's speed drifts, so that
    # all take turns there
    for group in [[one] for one in every] if setting.device.type == "cuda" else [every]:
        _take_turns(group, rounds, steps)
        for one in group:
            one.free()
    speed = speed_of_product(setting.precision.model_dtype, setting.device)
    timed = {one.name: one for one in every if one.measured}
    for one in timed.values():
        one.summarize(speed, rounds)
    architecture = load_architecture(setting.config.model)
    shape, backbone = architecture.to_dict(), empty_backbone(architecture)
    head = len(setting.config.task.labels) * architecture.hidden_size
    parameters = head + sum(tensor.numel() for tensor in backbone.parameters())
    weights_bytes = parameters * setting.precision.model_dtype.itemsize
    return {
        "model": setting.config.model.name,
        "shape": {key: shape[key] for key in SHAPE_KEYS if key in shape},
        "parameters": parameters,
        "weights_bytes": weights_bytes,
        "rows": setting.rows,
        "tokens": setting.tokens,
        "product_flops_per_second": speed,
        "contenders": [one.row for one in every],
        "ratios": list(_ratios(timed, weights_bytes)),
    }


def _take_turns(group: list[Timed], rounds: int, steps: int) -> None:
    """Count each, then time all, round by round; whoever lacks memory is out."""
    for turn in range(-1, rounds):
        for one in group:
            if not one.measured:
                continue
            try:
                one.count() if turn < 0 else one.time(steps)
            except (torch.OutOfMemoryError, MemoryError):
                one.row["status"] = "out of memory"
            if not one.measured or (turn < 0 and len(group) > 1):  # the next is counted alone
                one.free()


def _ratios(timed: dict[str, Timed], weights_bytes: int) -> Iterator[dict[str, Any]]:
    """Every comparison whose two sides were measured."""
    for mine, other in COMPARISONS:
        if mine in timed and other in timed:
            within = [
                statistics.median(a) / statistics.median(b)
                for a, b in zip(timed[mine].rounds, timed[other].rounds, strict=True)
            ]
            ours, theirs = (timed[name].row["fastest_step_seconds"] for name in (mine, other))
            yield {
                "what": f"step of {mine} / {other}",
                "value": statistics.median(within),
                "lowest_and_highest_round": [min(within), max(within)],
                "of_fastest_steps": ours / theirs,
            }
    for mine in [name for name in _SPARTA if name in timed]:
        row, other = timed[mine].row, f"peft-{mine}"
        if other in timed:
            less = timed[other].row["peak_memory_bytes"] - row["peak_memory_bytes"]
            what = f"peak memory of {mine} below {other}, in sizes of the weights"
            yield {"what": what, "value": less / weights_bytes}
        share = row["merge_share"] + row["gather_share"]
        yield {"what": f"merging and gathering / step of {mine}", "value": share}
