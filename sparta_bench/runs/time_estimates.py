"""How long runs will take: by runs like them, or before there are any, by their FLOPs."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import Any

import torch

from sparta_bench.config.schema import Config, FullFtConfig, HeadConfig, SpartaConfig
from sparta_bench.models.counts import count_parameters, empty_backbone
from sparta_bench.models.dtypes import precision_of
from sparta_bench.models.source import load_architecture
from sparta_bench.records.read import seconds_of
from sparta_bench.runs.assets import AssetCache
from sparta_bench.training.loop import plan_steps

CHARACTERS_PER_TOKEN = 4.0  # of English, for texts whose tokens nobody has counted yet
PROMPT_TOKENS = 25  # that an instruction adds
UNSEEN_GPU_FLOPS_PER_SECOND = 3e14  # of another machine: about an A100's in bfloat16
SECONDS_OF_A_STEP = 0.02  # that it takes beside its products, which is most of a tiny model's
SHARE_OF_PEAK = 0.4  # of a large product's rate, that a training step reaches


class Times:
    """Seconds of training, evaluation and features that runs have taken."""

    def __init__(self, assets: AssetCache, device: torch.device) -> None:
        self._assets = assets
        self._device = device
        self._seconds: dict[Hashable, list[float]] = defaultdict(list)
        self._weights: dict[str, int] = {}
        self._rates: dict[torch.dtype, float] = {}

    def add(self, config: Config, record: dict[str, Any]) -> None:
        """Take a completed run into account."""
        took = seconds_of(record)
        if took is not None:
            for key in _alike(config):
                self._seconds[key].append(took)

    def left(self, configs: Iterable[Config]) -> tuple[float, bool]:
        """Seconds for all of these, and whether every one is like a run that was measured."""
        total, measured = 0.0, True
        for config in configs:
            known = next((self._seconds[k] for k in _alike(config) if k in self._seconds), None)
            if known is None:
                measured = False
                total += self._by_flops(config)
            else:
                total += statistics.median(known)
        return total, measured

    def _by_flops(self, config: Config) -> float:
        """Two FLOPs per weight and token forward; as many again backward for the inputs'
        gradients, and for the weights' where all of them train."""
        sizes = self._assets.sizes(config.task)
        prompt = PROMPT_TOKENS if config.model.kind == "instruct" else 0
        tokens = sizes.characters / CHARACTERS_PER_TOKEN + prompt
        plan = plan_steps(sizes.train, config.train)
        match config.method:
            case HeadConfig():  # the features once, and no evaluation beyond them
                passes = float(sizes.train + sizes.dev + sizes.test)
            case _:
                step = 3 if isinstance(config.method, FullFtConfig) else 2
                looks = (plan.steps // plan.eval_every + 2) * sizes.dev + sizes.test
                passes = float(step * plan.steps * config.train.batch_size + looks)
        dtype = precision_of(config, self._device).model_dtype
        if dtype not in self._rates:
            self._rates[dtype] = _flops_per_second(self._device, dtype)
        products = 2 * self._weights_of(config) * tokens * passes / self._rates[dtype]
        return products / SHARE_OF_PEAK + SECONDS_OF_A_STEP * plan.steps

    def _weights_of(self, config: Config) -> int:
        """How many scalars every token goes through: all but the embeddings."""
        name = f"{config.model.name} {config.model.path}"
        if name not in self._weights:
            backbone = empty_backbone(load_architecture(config.model))
            counts = count_parameters(backbone, len(config.task.labels), HeadConfig("head"))
            self._weights[name] = counts.sparsifiable
        return self._weights[name]


def _alike(config: Config) -> list[Hashable]:
    """Kinds of runs that take about as long, the nearest first."""
    model, task, method = config.model.name, config.task.name, config.method.name
    train = config.train
    amount = (train.epochs, train.max_steps, config.task.max_train_examples, train.patience)
    density = config.method.density if isinstance(config.method, SpartaConfig) else None
    return [
        (model, task, amount, method, density, train.batch_size),
        (model, task, amount, method),
    ]


def _flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """What a large matrix product reaches here."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return UNSEEN_GPU_FLOPS_PER_SECOND
    side = 4096 if device.type == "cuda" else 1024
    factor = torch.ones(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        float((factor @ factor)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * float(side) ** 3 / min(seconds)
