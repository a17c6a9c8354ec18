"""How long runs will take: the median of completed runs like them."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparta_bench.config.schema import Config, SpartaConfig
from sparta_bench.records.read import MISSHAPEN, read_records, seconds_of


class Times:
    """Seconds that completed runs took, by kind of run."""

    def __init__(self) -> None:
        self._seconds: dict[Hashable, list[float]] = defaultdict(list)

    def add(self, kinds: Iterable[Hashable], seconds: float | None) -> None:
        """Take a completed run into account; None: its record does not say."""
        if seconds is not None:
            for kind in kinds:
                self._seconds[kind].append(seconds)

    def left(self, runs: Iterable[Sequence[Hashable]]) -> float | None:
        """Seconds for all runs, each given as its kinds, the nearest first.

        None if there is no completed run like one of them.
        """
        known = [next((k for k in kinds if k in self._seconds), None) for kinds in runs]
        if None in known:
            return None
        return sum((statistics.median(self._seconds[kind]) for kind in known), start=0.0)


def kinds_of(config: Config) -> list[Hashable]:
    """Kinds of runs that take about as long, the nearest first."""
    train = config.train
    amount = (train.epochs, train.max_steps, config.task.max_train_examples, train.patience)
    kind = (config.model.name, config.task.name, config.method.name, amount)
    density = config.method.density if isinstance(config.method, SpartaConfig) else None
    return [(*kind, density, train.batch_size), kind]


def _kinds_in(config: Mapping[str, Any]) -> list[Hashable]:
    """The same of a record's configuration."""
    train, task, method = config["train"], config["task"], config["method"]
    amount = tuple(train[key] for key in ("epochs", "max_steps"))
    amount += (task["max_train_examples"], train["patience"])
    kind = (config["model"]["name"], task["name"], method["name"], amount)
    return [(*kind, method.get("density"), train["batch_size"]), kind]


def recorded_seconds(config: Config, is_device: Callable[[str], bool]) -> float | None:
    """The median of completed runs like this one in its results folder, of those on a device whose
    name `is_device` takes; None if there is none."""
    times = Times()
    task, model, method = config.task.name, config.model.name, config.method.name
    for record in read_records([Path(config.results_dir, "runs", task, model, method)])[0]:
        try:
            name = record.raw["environment"]["device"]["name"]
            if record.status == "completed" and is_device(name):
                times.add(_kinds_in(record.raw["config"]), seconds_of(record.raw))
        except MISSHAPEN:
            continue
    return times.left([kinds_of(config)])
