"""How long a training is; no torch, so that `plan` can say it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from sparta_bench.config.schema import TrainConfig

EVAL_TOKENS = {"cpu": 8192, "cuda": 32768}  # `train.eval_tokens`; measured: docs/benchmark.md


@dataclass
class Plan:
    """How long the training is, in optimizer steps."""

    steps_per_epoch: int
    steps: int
    eval_every: int


def plan_steps(train_examples: int, train: TrainConfig) -> Plan:
    """Steps of an epoch (its last, smaller batch counts), of all, and between evaluations."""
    per_epoch = math.ceil(train_examples / train.batch_size)
    steps = math.ceil(per_epoch * train.epochs)
    if train.max_steps is not None:
        steps = min(steps, train.max_steps)
    return Plan(per_epoch, steps, train.eval_every or math.ceil(per_epoch / 4))


class EvaluationSize(NamedTuple):
    """The most that goes through the model at once where no gradient is kept; padding counts."""

    examples: int
    tokens: int


def evaluation_size(train: TrainConfig, device_kind: str) -> EvaluationSize:
    """What the settings give on `cpu` or `cuda`."""
    examples = 2 * math.ceil(train.batch_size / train.accumulation_steps)
    return EvaluationSize(
        train.eval_batch_size or examples, train.eval_tokens or EVAL_TOKENS[device_kind]
    )
