"""The chosen entries of weight gradients: dense and sampled, by themselves."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparta_bench.analysis.bench.contenders import linear_layers
from sparta_bench.analysis.bench.counters import seconds_of
from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.models.counts import empty_backbone
from sparta_bench.models.source import load_architecture
from sparta_bench.sparta.gradient import is_sampled, weight_gradient_at
from sparta_bench.sparta.sample import sample_indices

CROSSOVER_DENSITIES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)


def shares_of(
    step: float, merge: float, setting: Setting, density: float, repeats: int
) -> dict[str, Any]:
    """Return what merging, and the gradient of the chosen entries, take of a step of so many
    seconds.

    Gathering is what that gradient takes beyond the plain product that is a dense gradient; where
    sampling is quicker than the product, it is nothing.
    """
    gradient = gather = 0.0
    tokens = setting.rows * setting.tokens
    for shape, count in _layer_shapes(setting).items():
        times = gradient_seconds(setting, shape[0], shape[1], density, repeats)
        chosen = round(density * shape.numel())
        sampled = is_sampled("auto", shape, chosen, tokens, setting.device, torch.get_num_threads())
        seconds = times["sampled" if sampled else "dense"]
        gradient += count * seconds
        gather += count * max(seconds - times["product"], 0.0)
    parts = {"merge": merge, "gather": gather, "gradient": gradient}
    return {f"{name}_seconds": seconds for name, seconds in parts.items()} | {
        f"{name}_share": seconds / step for name, seconds in parts.items()
    }


def _layer_shapes(setting: Setting) -> Counter[torch.Size]:
    """How many linear layers there are of each shape (out_features, in_features)."""
    backbone = empty_backbone(load_architecture(setting.config.model))
    return Counter(layer.weight.shape for layer in linear_layers(backbone).values())


def gradient_seconds(
    setting: Setting, outs: int, ins: int, density: float, repeats: int
) -> dict[str, float]:
    """Median seconds, on random operands: the product alone, the dense and the sampled gradient."""
    draw = torch.Generator(setting.device).manual_seed(0)
    options: Any = {"generator": draw, "device": setting.device}
    count = setting.rows * setting.tokens
    dtype = setting.precision.model_dtype
    grad = torch.randn(count, outs, **options).to(dtype)
    x = torch.randn(count, ins, **options).to(dtype)
    indices = sample_indices(outs * ins, density, 0, "bench").to(setting.device)
    ways: dict[str, Callable[[], Tensor]] = {
        "product": lambda: grad.t() @ x,
        "dense": lambda: weight_gradient_at(grad, x, indices, sampled=False),
        "sampled": lambda: weight_gradient_at(grad, x, indices, sampled=True),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats + 1):
        for way, work in ways.items():
            seconds[way].append(seconds_of(work, setting.device))
    return {way: statistics.median(spent[1:]) for way, spent in seconds.items()}  # warm


def crossover(setting: Setting, repeats: int) -> dict[str, Any]:
    """Dense against sampled gradient, for each shape of linear layer and each density."""
    layers = []
    for outs, ins in _layer_shapes(setting):
        times = {d: gradient_seconds(setting, outs, ins, d, repeats) for d in CROSSOVER_DENSITIES}
        faster = [d for d, seconds in times.items() if seconds["sampled"] <= seconds["dense"]]
        layers.append(
            {
                "out_features": outs,
                "in_features": ins,
                "seconds": {str(density): seconds for density, seconds in times.items()},
                "sampled_is_faster_up_to": max(faster, default=None),
            }
        )
    tokens = setting.rows * setting.tokens
    return {"model": setting.config.model.name, "tokens": tokens, "layers": layers}
