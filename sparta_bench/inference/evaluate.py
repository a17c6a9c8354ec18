"""Scores of whatever this project saves, on a task's dev and test sets."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparta_bench.adapters.load_adapter import Loaded
from sparta_bench.adapters.manifest import Manifest
from sparta_bench.config.conf_folder import choices
from sparta_bench.config.schema import Config, TaskConfig
from sparta_bench.data.splits import Splits, load_splits
from sparta_bench.data.tokenize import (
    Encoded,
    cache_folder,
    encode,
    fit_context,
    shared_prefix_length,
    shortest_and_longest,
)
from sparta_bench.devices import accelerator_of
from sparta_bench.errors import InputError, log
from sparta_bench.inference.predict import ready
from sparta_bench.models.classifier import Classifier, pooled, why_not_finite
from sparta_bench.models.dtypes import DTYPES, Precision
from sparta_bench.models.source import context_of
from sparta_bench.models.tokens_once import TokensOnce, that_agrees, tokens_once
from sparta_bench.records.write import environment, now
from sparta_bench.training.evaluation import evaluate
from sparta_bench.training.progress import watched
from sparta_bench.training.steps import evaluation_size

SCHEMA = 1  # of what `evaluation_of` returns


@dataclass
class Sets:
    """A task's dev and test sets as a classifier reads them, and the hash of the task's data."""

    dev: Encoded
    test: Encoded
    fingerprint: str


def check_fits(about: Manifest, task: TaskConfig, what: str) -> None:
    """Raise InputError unless a classifier's labels and columns are the task's; `what` names it."""
    for name in ("labels", "columns"):
        mine, theirs = getattr(about, name), getattr(task, name)
        if list(mine) != list(theirs):
            raise InputError(
                f"task={task.name}: its {name} are {', '.join(theirs)}; {what} was trained for "
                f"{', '.join(mine)}"
            )


def sets_of(
    about: Manifest,
    tokenizer: Any,
    config: Config,
    backbone: nn.Module,
    splits: Splits | None = None,
) -> Sets:
    """The sets of `config.task`, read as the classifier was trained to. Raises InputError if the
    data cannot be had, or an input has no token or more than the backbone reads."""
    raw = splits or load_splits(config.task, config.limit)
    folder = cache_folder(config)
    dev, test = (
        encode(examples, about, about.model.kind, tokenizer, folder, name)
        for examples, name in ((raw.dev, "dev"), (raw.test, "test"))
    )
    context, cut = context_of(backbone.config), config.task.truncate_eval
    dev, test, _ = fit_context(dev, test, about, about.model.kind, tokenizer, context, cut)
    return Sets(dev, test, raw.fingerprint())


def scores_of(
    classifier: Classifier, sets: Sets, config: Config, about: Manifest
) -> dict[str, dict[str, float]]:
    """Loss (nats per example), accuracy and mcc on dev and test, on `config.device`, computed as
    the run did (`about.tokens_once`). Raises InputError if a loss is not finite."""
    accelerator = accelerator_of(config)
    classifier.to(accelerator.device)
    size = evaluation_size(config.train, accelerator.device.type)
    once = _as_in_the_run(classifier, sets, about)
    classifier.pool = once.pooled
    try:
        scores = {
            name: evaluate(accelerator, classifier, data, size, partial(watched, what=name))
            for name, data in (("dev", sets.dev), ("test", sets.test))
        }
    finally:
        classifier.pool = pooled  # other inputs may begin with other tokens
    if not all(math.isfinite(split["loss"]) for split in scores.values()):
        raise InputError(f"no scores come out: {why_not_finite(classifier)}")
    return scores


@torch.no_grad()
def _as_in_the_run(classifier: Classifier, sets: Sets, about: Manifest) -> TokensOnce:
    """What the run computed of a batch, as far as these inputs allow it and it proves right."""
    run = about.tokens_once
    if run is None:
        return TokensOnce()
    common = shared_prefix_length(sets.dev.ids, sets.test.ids)
    share = run["prefix_tokens"] > 0
    once, why_not = tokens_once(classifier.backbone, share, min(common, run["prefix_tokens"]))
    once.last_layer &= run["last_layer"]
    device = classifier.head_weight.device
    batch = {name: t.to(device) for name, t in shortest_and_longest(sets.dev).items()}
    way, difference = that_agrees(classifier, once, batch)
    if why_not := difference or why_not:
        log(f"more of each input is computed than in the run: {why_not}")
    return way or TokensOnce()


def settings_for(about: Manifest, settings: Sequence[str], what: Path) -> list[str]:
    """The overrides to compose: the given ones, and the classifier's own task where none is named.
    Raises InputError if its own is not one of `conf/task`."""
    if any(text.startswith("task=") for text in settings):
        return list(settings)
    if about.task is None or about.task not in choices("task"):
        raise InputError(
            f"{what}: does not say on which task it was trained, or it is none of conf/task; "
            "name one with task=NAME"
        )
    return [f"task={about.task}", *settings]


def as_text(evaluations: Sequence[dict[str, Any]]) -> str:
    """A line for each set of each evaluation."""
    width = max(len(one["head"]) for one in evaluations)
    return "\n".join(
        f"{one['head']:<{width}}  {one['task']} {split:<4}  loss {one[split]['loss']:.4f}, "
        f"accuracy {one[split]['accuracy']:.2%}, mcc {one[split]['mcc']:.3f}  "
        f"({one['data'][split]:,} examples)"
        for one in evaluations
        for split in ("dev", "test")
    )


def evaluation_of(
    loaded: Loaded, config: Config, what: str, dtype: str | None = None
) -> dict[str, Any]:
    """The scores of a classifier from disk, with what they are scores of; for JSON. `what` is the
    user's name for the classifier, `dtype` that of `ready`. Raises InputError if the classifier
    does not fit the task, or the data cannot be had."""
    about, task = loaded.about, config.task
    check_fits(about, task, what)
    sets = sets_of(about, loaded.tokenizer, config, loaded.classifier.backbone)
    accelerator = accelerator_of(config)
    computes_in = ready(loaded, accelerator.device, dtype)
    precision = Precision(DTYPES[computes_in], DTYPES[about.dtypes["trained"]])
    started = time.perf_counter()
    scores = scores_of(loaded.classifier, sets, config, about)
    return {
        "schema": SCHEMA,
        "task": task.name,
        "model": about.model.name,
        "method": about.method["name"],
        "density": about.density,
        "seed": about.seed,
        "base_model": about.base_model,
        "data": {"dev": len(sets.dev), "test": len(sets.test), "fingerprint": sets.fingerprint},
        **scores,
        "seconds": round(time.perf_counter() - started, 3),
        "finished": now(),
        "environment": environment(accelerator.device, precision, 1),
    }
