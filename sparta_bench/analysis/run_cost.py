"""What a run will take: FLOPs and time, from shapes, lengths and a device's speed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from sparta_bench.config.presets import Lengths, lengths_for
from sparta_bench.config.schema import Config
from sparta_bench.devices import threads_for
from sparta_bench.models.counts import (
    Once,
    Shapes,
    Work,
    count_parameters,
    dense_share_of,
    draws_dropout,
    forward_flops,
    planned,
    shape_of,
    shapes_for,
    step_flops,
    work_of,
)
from sparta_bench.training.step_time import Range, seconds_of, update_seconds
from sparta_bench.training.steps import evaluation_size, plan_steps

# Of a cell's settings: what a race ran on the first seed, in whole runs (results/race).
FIRST_SEED_SHARE = 0.3


class Cost(NamedTuple):
    """Of one run. FLOPs are of products and attention in one training step; `whole_step_flops`
    would be there if every input were computed in full. `seconds` is for training and evaluation,
    None where the device is not known."""

    step_flops: float
    whole_step_flops: float
    once: Once
    seconds: Range | None

    @property
    def saved(self) -> float:
        """The share of a step's FLOPs that need not be computed."""
        return 1 - self.step_flops / self.whole_step_flops


def cost_of(config: Config, shapes: Shapes, data: Lengths, device: str | None) -> Cost:
    """Of a run on a device of `step_time.DEVICES`. Where training may stop early, it is taken to
    go on to the end."""
    train, method = config.train, config.method
    shape, once = shape_of(shapes), planned(shapes, train, method, data.shared)
    kind, threads = "cpu" if device == "cpu" else "cuda", threads_for(config)
    rows, parts = rows_at_once(config), train.accumulation_steps

    def flops_of(work: Work) -> float:
        dense = dense_share_of(shapes, method, work.tokens, kind, threads)
        return parts * step_flops(shape, work, dense, train.gradient_checkpointing)

    shared = once.prefix_tokens if once.in_training else 0
    step = flops_of(work_of(rows, data.train_tokens, shared, once.last_layer))
    whole = flops_of(work_of(rows, data.train_tokens))
    if device is None:
        return Cost(step, whole, once, None)

    size = evaluation_size(train, kind)
    at_once = max(1, min(size.examples, int(size.tokens / data.eval_tokens)))
    work = work_of(at_once, data.eval_tokens, once.prefix_tokens, once.last_layer)
    flops = forward_flops(shape, work)
    forward = seconds_of(device, flops, shape.layers, is_step=False, threads=threads)

    def evaluation(examples: int) -> Range:
        return forward.times(math.ceil(examples / at_once))

    plan = plan_steps(data.train, train)
    trains = method.name != "head"
    if not trains and not draws_dropout(train, method):  # features once, then next to nothing
        return Cost(step, whole, once, evaluation(data.train + data.dev + data.test))
    counts = count_parameters(shapes, len(config.task.labels), method)
    layers = shape.layers * parts
    one = seconds_of(device, step, layers, is_step=trains, threads=threads)
    dtype = config.dtypes(kind)["trained"]
    one = one.plus(update_seconds(device, counts.trainable, dtype))
    evaluations = math.ceil(plan.steps / plan.eval_every) + train.eval_first
    evaluated = evaluation(data.test).plus(evaluation(data.dev).times(evaluations))
    return Cost(step, whole, once, evaluated.plus(one.times(plan.steps)))


def time_key(config: Config) -> str:
    """What decides how long a run takes."""
    alike = replace(config.train, learning_rate=0.0)
    return repr((config.model.name, config.task.name, config.method, alike))


def estimated_seconds(configs: Iterable[Config], device: str | None) -> Range | None:
    """What the runs take on a device of `step_time.DEVICES`, from FLOPs; None where the device or
    a task's length (`conf/lengths.csv`) is not known."""
    shapes: dict[str, Shapes] = {}
    costs: dict[str, Range | None] = {}
    total = Range(0.0, 0.0)
    for config in configs:
        lengths = lengths_for(config)
        if lengths is None or device is None:
            return None
        if config.model.name not in shapes:
            shapes[config.model.name] = shapes_for(config.model)
        key = time_key(config)
        if key not in costs:
            costs[key] = cost_of(config, shapes[config.model.name], lengths, device).seconds
        seconds = costs[key]
        assert seconds is not None
        total = total.plus(seconds)
    return total


def rows_at_once(config: Config) -> int:
    """Examples that go through the model together in training."""
    return math.ceil(config.train.batch_size / config.train.accumulation_steps)


def race_share(settings: int, seeds: float, confirm: int) -> float:
    """About which share of a cell's runs a race makes, by what was measured; of few settings the
    best and one on either side."""
    first = max(min(3.0, settings), FIRST_SEED_SHARE * settings)
    return min(1.0, (first + min(confirm, settings) * (seeds - 1)) / (settings * seeds))
