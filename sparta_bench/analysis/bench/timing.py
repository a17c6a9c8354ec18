"""Turns, figures and ratios."""

from __future__ import annotations

import gc
import statistics
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sparta_bench.analysis.bench.clock import kernel_launches, product_flops_per_second, seconds_of
from sparta_bench.analysis.bench.contenders import DENSITIES, Ready, build, missing
from sparta_bench.analysis.bench.flops import flops_of
from sparta_bench.analysis.bench.sampled_gradient import shares_of
from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.devices import peak_of
from sparta_bench.models.counts import empty_backbone
from sparta_bench.models.source import load_architecture

WARM_UP = 2  # steps before the clock runs; the first one makes the optimizer's state


def measure(setting: Setting, contenders: Iterable[str], rounds: int, steps: int) -> dict[str, Any]:
    """All figures of one setting, as they stand in the JSON: seconds, bytes, FLOPs, ratios."""
    rows: dict[str, dict[str, Any]] = {}
    seconds: dict[str, list[list[float]]] = {}  # per turn and step
    merges: dict[str, list[float]] = {}
    for name in contenders:
        why_not = missing(name, setting.device)
        rows[name] = {"name": name, "status": why_not or "measured"}
        if why_not is None:
            seconds[name], merges[name] = [], []
    _take_turns(setting, rounds, steps, rows, seconds, merges)
    peak = product_flops_per_second(setting.precision.model_dtype, setting.device)
    tokens = setting.rows * setting.tokens
    for name, turns in seconds.items():
        rows[name] |= _summary([second for turn in turns for second in turn])
        rate = rows[name]["total_flops"] / rows[name]["step_seconds"]
        rows[name]["tokens_per_second"] = tokens / rows[name]["step_seconds"]
        rows[name]["share_of_peak"] = rate / peak
        if merges[name]:
            merge = statistics.median(merges[name])
            density = float(name.rpartition("-")[2])
            rows[name] |= shares_of(rows[name]["step_seconds"], merge, setting, density, rounds)
    parameters = _parameters(setting)
    weights_bytes = parameters * setting.precision.model_dtype.itemsize
    return {
        "model": setting.config.model.name,
        "shape": _shape(setting),
        "parameters": parameters,
        "weights_bytes": weights_bytes,
        "rows": setting.rows,
        "tokens": setting.tokens,
        "product_flops_per_second": peak,
        "contenders": list(rows.values()),
        "ratios": _ratios(rows, seconds, weights_bytes),
    }


def _take_turns(
    setting: Setting,
    rounds: int,
    steps: int,
    rows: dict[str, dict[str, Any]],
    seconds: dict[str, list[list[float]]],
    merges: dict[str, list[float]],
) -> None:
    """Count each contender in a first round and time it in the others; who lacks memory is out."""
    batch = setting.batch()
    alive: dict[str, Ready] = {}
    for name, turn in _order(list(seconds), rounds, setting.device):
        if name not in seconds:
            continue
        try:
            if turn < 0:
                rows[name] |= _counted(name, setting, batch, alive)
            else:
                timed = _timed(name, setting, batch, steps, alive)
                seconds[name].append(timed[0])
                merges[name].extend(timed[1])
        except (torch.OutOfMemoryError, MemoryError):
            rows[name]["status"] = "out of memory"
            del seconds[name]
            alive.pop(name, None)
        if name not in alive or (setting.device.type == "cuda" and turn == rounds - 1):
            alive.pop(name, None)
            _forget(setting.device)


def _order(names: list[str], rounds: int, device: torch.device) -> list[tuple[str, int]]:
    """Whose turn it is, round by round; round -1 counts.

    On a CPU all take turns, because its speed drifts. A GPU's memory holds one contender, and
    building it takes longer than its steps: each has all its rounds at once there.
    """
    turns = range(-1, rounds)
    if device.type == "cuda":
        return [(name, turn) for name in names for turn in turns]
    return [(name, turn) for turn in turns for name in names]


def _parameters(setting: Setting) -> int:
    """Scalars of the model, the task's head among them."""
    backbone = empty_backbone(load_architecture(setting.config.model))
    hidden: int = backbone.config.hidden_size  # type: ignore[union-attr, assignment]
    head = len(setting.config.task.labels) * hidden
    return head + sum(tensor.numel() for tensor in backbone.parameters())


def _shape(setting: Setting) -> dict[str, Any]:
    architecture = load_architecture(setting.config.model).to_dict()
    keys = (
        "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim",
    )  # fmt: skip
    return {key: architecture[key] for key in keys if key in architecture}


def _warm(name: str, setting: Setting, batch: dict[str, Tensor]) -> Ready:
    ready = build(name, setting)
    for _ in range(WARM_UP):
        ready.step(batch)
    return ready


def _counted(
    name: str, setting: Setting, batch: dict[str, Tensor], alive: dict[str, Ready]
) -> dict[str, Any]:
    """Scalars, FLOPs, kernel launches and peak memory of a contender that is alone in memory. On
    CUDA it stays there for its rounds."""
    ready = _warm(name, setting, batch)
    if setting.device.type == "cuda":
        alive[name] = ready
    counts = {
        "trainable": sum(value.numel() for value in ready.values),
        "chosen": ready.chosen,
        "note": ready.note,
        **flops_of(ready, batch),
        "kernel_launches": kernel_launches(lambda: ready.step(batch), setting.device),
    }
    return counts | {"peak_memory_bytes": peak_of(lambda: ready.step(batch), setting.device)}


def _timed(
    name: str, setting: Setting, batch: dict[str, Tensor], steps: int, alive: dict[str, Ready]
) -> tuple[list[float], list[float]]:
    """Seconds of a contender's steps, and of its merging alone. It stays in memory."""
    if name not in alive:
        alive[name] = _warm(name, setting, batch)
    ready = alive[name]
    seconds = [seconds_of(lambda: ready.step(batch), setting.device) for _ in range(steps)]
    merge = None if ready.adapter is None else ready.adapter.merge
    merges = [seconds_of(merge, setting.device) for _ in range(steps)] if merge is not None else []
    return seconds, merges


def _forget(device: torch.device) -> None:
    """Free the last contender."""
    if "peft.tuners.shira.layer" in sys.modules:
        # peft remembers for ever which SHiRA layers it has warned about, and their weights with it
        sys.modules["peft.tuners.shira.layer"]._warn_once_about_module_hooks.cache_clear()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _summary(seconds: list[float]) -> dict[str, Any]:
    low, middle, high = (
        statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    )
    return {
        "step_seconds": middle,
        "step_seconds_quartiles": [low, high],
        "fastest_step_seconds": min(seconds),
    }


def _comparisons() -> list[tuple[str, str]]:
    """Whose step is compared with whose."""
    ours = [f"sparta-{density}" for density in DENSITIES]
    return [
        *((name, f"peft-{name}") for name in ours),
        *((name, "full_ft") for name in ours),
        (ours[-1], "lora"),
    ]


def _ratios(
    rows: dict[str, dict[str, Any]], seconds: dict[str, list[list[float]]], weights_bytes: int
) -> list[dict[str, Any]]:
    """Every comparison whose two sides were measured."""
    ratios: list[dict[str, Any]] = []
    for mine, other in _comparisons():
        if mine in seconds and other in seconds:
            within = [
                statistics.median(a) / statistics.median(b)
                for a, b in zip(seconds[mine], seconds[other], strict=True)
            ]
            fastest = rows[mine]["fastest_step_seconds"] / rows[other]["fastest_step_seconds"]
            ratios.append(
                {
                    "what": f"step of {mine} / {other}",
                    "value": statistics.median(within),
                    "lowest_and_highest_round": [min(within), max(within)],
                    "of_fastest_steps": fastest,
                }
            )
    for density in DENSITIES:
        mine, other = f"sparta-{density}", f"peft-sparta-{density}"
        if mine in seconds and other in seconds:
            less = rows[other]["peak_memory_bytes"] - rows[mine]["peak_memory_bytes"]
            what = f"peak memory of {mine} below {other}, in sizes of the weights"
            ratios.append({"what": what, "value": less / weights_bytes})
        if mine in seconds:
            share = rows[mine]["merge_share"] + rows[mine]["gather_share"]
            ratios.append({"what": f"merging and gathering / step of {mine}", "value": share})
    return ratios
