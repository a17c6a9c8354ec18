"""How long runs will take: the median of completed runs like them."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

from sparta_bench.config.schema import Config, SpartaConfig


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
