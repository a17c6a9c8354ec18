"""Whether all that is to train has a gradient."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from sparta_bench.errors import TrainingError

# `layers.0.mlp.experts.3.w1.weight`: the list of experts, and one of them
EXPERT = re.compile(r"(.*experts)\.[^.]*\d\.")


def refuse_untrained(accelerator: Accelerator, values: Mapping[str, Tensor]) -> None:
    """To be called after the first backward pass, in all processes.

    Raises
    ------
    TrainingError
        If a value has no gradient in any process, so that it would never change.
    """
    found = [float(value.grad is not None) for value in values.values()]
    sums = accelerator.reduce(torch.tensor(found, device=accelerator.device), "sum")
    names = never_trained(dict(zip(values, (sums > 0).tolist(), strict=True)))
    if names:
        others = f" and {len(names) - 1} others" if len(names) > 1 else ""
        raise TrainingError(
            "choose other tensors to train (method.targets), or another model: "
            f"{names[0]}{others} got no gradient in the first step, and would never change"
        )


def never_trained(has_gradient: Mapping[str, bool]) -> list[str]:
    """The names without gradient, but for experts beside which others of the same layer have one:
    no token of the batch chose them, and one of a later batch may."""
    lists = {_experts_of(name) for name, found in has_gradient.items() if found}
    return [
        name
        for name, found in has_gradient.items()
        if not found and (_experts_of(name) is None or _experts_of(name) not in lists)
    ]


def _experts_of(name: str) -> str | None:
    match = EXPERT.match(name)
    return match[1] if match else None
