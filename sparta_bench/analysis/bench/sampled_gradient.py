"""The chosen entries of weight gradients: dense and sampled, by themselves."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparta_bench.analysis.bench.clock import seconds_of
from sparta_bench.analysis.bench.contenders import linear_layers
from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.models.counts import empty_backbone
from sparta_bench.models.source import load_architecture
from sparta_bench.sparta.gradient import is_sampled, weight_gradient_at
from sparta_bench.sparta.sample import sample_indices

CROSSOVER_DENSITIES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)


def shares_of(
    step: float, merge: float, setting: Setting, density: float, repeats: int
) -> dict[str, Any]:
    """What merging, and the gradient at the chosen places, take of a step.

    Gathering is what the gradient at the chosen places takes beyond the plain product that is a
    dense gradient; where sampling them is quicker than that product, it is nothing.
    """
    gradient = gather = 0.0
    for (outs, ins), count in _layer_shapes(setting).items():
        times = gradient_seconds(setting, outs, ins, density, repeats)
        shape = torch.Size((outs, ins))
        chosen = round(density * shape.numel())
        tokens = setting.rows * setting.tokens
        sampled = is_sampled("auto", shape, chosen, tokens, setting.device)
        way = "sampled" if sampled else "dense"
        gradient += count * times[way]
        gather += count * max(times[way] - times["product"], 0.0)
    return {
        "merge_seconds": merge,
        "gather_seconds": gather,
        "gradient_seconds": gradient,
        "merge_share": merge / step,
        "gather_share": gather / step,
        "gradient_share": gradient / step,
    }


def _layer_shapes(setting: Setting) -> dict[tuple[int, int], int]:
    """How many linear layers there are of each shape (out_features, in_features)."""
    backbone = empty_backbone(load_architecture(setting.config.model))
    shapes: dict[tuple[int, int], int] = {}
    for layer in linear_layers(backbone).values():
        shape = (layer.out_features, layer.in_features)
        shapes[shape] = shapes.get(shape, 0) + 1
    return shapes


def gradient_seconds(
    setting: Setting, outs: int, ins: int, density: float, repeats: int
) -> dict[str, float]:
    """Median seconds, on random operands: the product alone, the dense and the sampled way."""
    draw = torch.Generator(setting.device).manual_seed(0)
    options: Any = {"generator": draw, "device": setting.device}
    count = setting.rows * setting.tokens
    dtype = setting.precision.model_dtype
    grad = torch.randn(count, outs, **options).to(dtype)
    x = torch.randn(count, ins, **options).to(dtype)
    places = sample_indices(outs * ins, density, 0, "bench").to(setting.device)
    ways: dict[str, Callable[[], Tensor]] = {
        "product": lambda: grad.t() @ x,
        "dense": lambda: weight_gradient_at(grad, x, places, sampled=False),
        "sampled": lambda: weight_gradient_at(grad, x, places, sampled=True),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, work in ways.items():
            spent = seconds_of(work, setting.device)
            if turn:  # the first is to warm up
                seconds[way].append(spent)
    return {way: statistics.median(spent) for way, spent in seconds.items()}


def crossover(setting: Setting, repeats: int) -> dict[str, Any]:
    """Dense against sampled gradient, for each shape of linear layer and each density."""
    layers = []
    for outs, ins in _layer_shapes(setting):
        times = {
            str(density): gradient_seconds(setting, outs, ins, density, repeats)
            for density in CROSSOVER_DENSITIES
        }
        faster = [d for d in CROSSOVER_DENSITIES if _sampled_wins(times[str(d)])]
        layers.append(
            {
                "out_features": outs,
                "in_features": ins,
                "seconds": times,
                "sampled_is_faster_up_to": max(faster, default=None),
            }
        )
    tokens = setting.rows * setting.tokens
    return {"model": setting.config.model.name, "tokens": tokens, "layers": layers}


def _sampled_wins(seconds: dict[str, float]) -> bool:
    return seconds["sampled"] <= seconds["dense"]
