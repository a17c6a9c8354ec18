"""What settings of `train` are where nobody gives them: the rows of `conf/presets.csv`."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sparta_bench.config.conf_folder import config_dir
from sparta_bench.config.rates import RateRule, rule_of, size_of
from sparta_bench.config.schema import Config, SpartaConfig, plain
from sparta_bench.errors import InputError

OTHER = "other"


class Preset(NamedTuple):
    """A row: for which runs it is, and its values for `train`."""

    text: str  # the row's line and keys, and where its values are from
    method: str
    models: list[str]
    tasks: list[str]
    densities: tuple[float, float]  # from, and up to but not including
    values: dict[str, Any]


@cache
def _presets(path: Path) -> tuple[Preset, ...]:
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    names, *rows = ([cell.strip() for cell in row] for row in csv.reader(lines[first:]))
    return tuple(
        _preset(dict(zip(names, row, strict=True)), first + number)
        for number, row in enumerate(rows, 2)
    )


def _preset(row: dict[str, str], line: int) -> Preset:
    method, model, task, density = (row.pop(key) for key in ("method", "model", "task", "density"))
    keys = ", ".join(filter(None, (method, model, task, density)))
    text = f"presets.csv line {line} ({keys}): {row.pop('source')}"
    low, high = map(float, density.split(" to ")) if density else (0.0, 1.0)
    values = {key: _value(cell) for key, cell in row.items() if cell}
    return Preset(text, method, model.split(), task.split(), (low, high), values)


def _value(cell: str) -> float | str | RateRule:
    try:
        return float(cell)
    except ValueError:
        return rule_of(cell) or cell


def preset_of(method: str, model: Any, task: Any, density: float | None) -> Preset | None:
    """Return the row for a run; a row that names model and task goes before one for `other`.

    Raises
    ------
    InputError
        If two rows fit.
    """
    rows = [row for row in _presets(config_dir() / "presets.csv") if row.method == method]
    rows = [row for row in rows if model in row.models] or [
        row for row in rows if OTHER in row.models
    ]
    rows = [row for row in rows if task in row.tasks] or [row for row in rows if OTHER in row.tasks]
    if density is not None:
        rows = [row for row in rows if row.densities[0] <= density < row.densities[1]]
    if len(rows) > 1:
        raise InputError(f"{rows[0].text} and {rows[1].text}: both fit, and only one row may")
    return rows[0] if rows else None


def preset_rows(config: Config) -> dict[str, str]:
    """Return the row that each setting of `train` has its value from, where it is from a row."""
    row = _row_of(config)
    if row is None:
        return {}
    guess = guessed_rate(config)
    return {
        key: row.text
        for key, value in row.values.items()
        if getattr(config.train, key) == (guess if isinstance(value, RateRule) else value)
    }


def guessed_rate(config: Config) -> float | None:
    """Return the learning rate if it is the one that a row guesses from the model's size."""
    row = _row_of(config)
    rule = row.values.get("learning_rate") if row else None
    if not isinstance(rule, RateRule):
        return None
    rate = config.train.learning_rate
    try:
        size = size_of(plain(config.model))
    except InputError:  # then it was given
        return None
    return rate if size is not None and rule.rate(size) == rate else None


def _row_of(config: Config) -> Preset | None:
    density = config.method.density if isinstance(config.method, SpartaConfig) else None
    return preset_of(config.method.name, config.model.name, config.task.name, density)
