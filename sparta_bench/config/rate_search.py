"""`train.learning_rate=search`: the rates that it stands for, which race."""

from __future__ import annotations

from sparta_bench.config.compose import compose_all, parse_all
from sparta_bench.config.presets import guessed_from, guessed_rate
from sparta_bench.config.schema import Config
from sparta_bench.errors import log

KEY = "train.learning_rate"
FACTORS = (1 / 9, 1 / 3, 1, 3, 9)  # of the rate without a search


def searched(jobs: list[list[str]]) -> list[list[str]]:
    """Return the jobs with each that searches its rate replaced: one for every rate, in a race.

    Where one job searches, all race, unless `search=` is given. A line says which rates there are.
    """
    asked = [_searches(job) for job in jobs]
    if not any(asked):
        return jobs
    bare = [
        [text for text in job if not _sets(KEY, text)] if searches else job
        for job, searches in zip(jobs, asked, strict=True)
    ]
    configs = compose_all(bare)
    log(_announced([one for one, searches in zip(configs, asked, strict=True) if searches]))
    race = [] if any(_sets("search", text) for job in jobs for text in job) else ["search=race"]
    expanded = []
    for job, config, searches in zip(bare, configs, asked, strict=True):
        rates = rates_around(config.train.learning_rate)
        own = [[f"{KEY}={rate!r}"] for rate in rates] if searches else [[]]
        expanded += [[*job, *rate, *race] for rate in own]
    return expanded


def rates_around(rate: float) -> tuple[float, ...]:
    """Return the rates of a search: the given one in the middle, the others to two digits."""
    return tuple(rate if by == 1 else float(f"{rate * by:.1e}") for by in FACTORS)


def _announced(configs: list[Config]) -> str:
    own = {(config.train.learning_rate, _origin(config)) for config in configs}
    if len(own) > 1:
        return (
            f"{KEY}=search: races {len(FACTORS)} rates in each cell, from a ninth of its own to "
            "nine times it; the lowest dev loss wins"
        )
    rate, origin = own.pop()
    listed = ", ".join(f"{one:g}" for one in rates_around(rate))
    return f"{KEY}=search: races {listed} ({rate:g} is {origin}); the lowest dev loss wins"


def _origin(config: Config) -> str:
    is_guess = guessed_rate(config) is not None
    return f"a guess from {guessed_from(config)}" if is_guess else "the rate without a search"


def _searches(job: list[str]) -> bool:
    """Whether the last value that a job gives for the rate is `search`."""
    given = [override for override in parse_all(job) if override.key_or_group == KEY]
    return bool(given) and not given[-1].is_delete() and str(given[-1].value()) == "search"


def _sets(key: str, text: str) -> bool:
    return text.lstrip("+~").partition("=")[0] == key
