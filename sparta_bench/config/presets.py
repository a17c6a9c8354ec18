"""The tables of `conf`: settings of `train` that nobody gives (`presets.csv`; a guess of the rate
by a model's size where no row names it), and lengths of the paper's tasks (`lengths.csv`)."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sparta_bench.config.conf_folder import config_dir
from sparta_bench.config.rules import is_hub_name
from sparta_bench.config.schema import Config, SpartaConfig, plain
from sparta_bench.errors import InputError
from sparta_bench.files import json_of

OTHER = "other"
RULE = re.compile(r"(\S+) \* \(1e9/size\)\*\*(\S+)(?: \* \((\S+)/density\)\*\*(\S+))?")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTHS = ("hidden_size", "n_embd", "d_model")


class RateRule(NamedTuple):
    """A rate that falls with powers of the model's size and of SpaRTA's density, as a cell of the
    presets writes it."""

    at_1e9: float
    power: float
    at_density: float = 1.0
    density_power: float = 0.0

    def rate(self, size: float, density: float | None) -> float:
        """Return the rate, to two digits."""
        rate = self.at_1e9 * (1e9 / size) ** self.power
        if density is not None:
            rate *= (self.at_density / density) ** self.density_power
        return float(f"{rate:.1e}")


class Preset(NamedTuple):
    """A row: for which runs it is, and its values for `train`."""

    text: str  # the row's line and keys, and where its values are from
    method: str
    models: list[str]
    tasks: list[str]
    densities: tuple[float, float]  # from, and up to but not including
    values: dict[str, Any]


class Lengths(NamedTuple):
    """Of a task as a kind of model reads it. `train` is after the length filter; `train_tokens` and
    `eval_tokens` are means; all inputs begin with the same `shared` tokens. `source` says where
    the numbers are from."""

    train: int
    dev: int
    test: int
    train_tokens: float
    eval_tokens: float
    shared: int
    source: str


def _table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file that begins with comments, each with its line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    names, *rows = ([cell.strip() for cell in row] for row in csv.reader(lines[first:]))
    for line, row in enumerate(rows, first + 2):
        yield line, dict(zip(names, row, strict=True))


@cache
def _presets(path: Path) -> tuple[Preset, ...]:
    presets = []
    for line, row in _table(path):
        keys = [row.pop(key) for key in ("method", "model", "task", "density")]
        text = f"presets.csv line {line} ({', '.join(filter(None, keys))}): {row.pop('source')}"
        method, model, task, density = keys
        low, high = map(float, density.split(" to ")) if density else (0.0, 1.0)
        values = {key: _value(cell) for key, cell in row.items() if cell}
        presets.append(Preset(text, method, model.split(), task.split(), (low, high), values))
    return tuple(presets)


def _value(cell: str) -> float | str | RateRule:
    try:
        return float(cell)
    except ValueError:
        match = RULE.fullmatch(cell)
        return RateRule(*(float(part) for part in match.groups() if part)) if match else cell


def preset_of(method: str, model: Any, task: Any, density: float | None) -> Preset | None:
    """Return the row for a run; a row that names model and task goes before one for `other`.
    Raises InputError if two rows fit."""
    rows = [row for row in _presets(config_dir() / "presets.csv") if row.method == method]
    for name, column in ((model, "models"), (task, "tasks")):
        named = [row for row in rows if name in getattr(row, column)]
        rows = named or [row for row in rows if OTHER in getattr(row, column)]
    if density is not None:
        rows = [row for row in rows if row.densities[0] <= density < row.densities[1]]
    if len(rows) > 1:
        raise InputError(f"{rows[0].text} and {rows[1].text}: both fit, and only one row may")
    return rows[0] if rows else None


def preset_rows(config: Config) -> dict[str, str]:
    """Return the row that each setting of `train` has its value from, where it is from a row."""
    row = _row_of(config)
    guess = guessed_rate(config)
    return {
        key: row.text
        for key, value in (row.values if row else {}).items()
        if row and getattr(config.train, key) == (guess if isinstance(value, RateRule) else value)
    }


def guessed_rate(config: Config) -> float | None:
    """Return the learning rate if it is the one that a row guesses, from `guessed_from`."""
    row = _row_of(config)
    rule = row.values.get("learning_rate") if row else None
    if not isinstance(rule, RateRule):
        return None
    rate = config.train.learning_rate
    try:
        size = size_of(plain(config.model))
    except InputError:  # then it was given
        return None
    guess = None if size is None else rule.rate(size, _density_of(config))
    return rate if guess == rate else None


def guessed_from(config: Config) -> str:
    """What a guess of the rate takes into account, in words."""
    size = f"{config.model.name}'s size"
    return size if _density_of(config) is None else f"{size} and the density"


def _row_of(config: Config) -> Preset | None:
    model, task = config.model.name, config.task.name
    return preset_of(config.method.name, model, task, _density_of(config))


def _density_of(config: Config) -> float | None:
    return config.method.density if isinstance(config.method, SpartaConfig) else None


def size_of(model: Mapping[str, Any]) -> int | None:
    """Return about how many scalars the layers of a model hold: 12 · layers · hidden size².

    None where nothing says it, or where the model cannot be read, which its loading explains.
    Raises InputError if its configuration names no layers and no width, or the hub does not give
    it: the rate must then be given.
    """
    shape: Any = model.get("shape")
    if model.get("path") is not None:
        try:
            shape = json_of(Path(str(model["path"])) / "config.json")
        except (OSError, ValueError):
            return None
    elif shape is None and is_hub_name(model.get("hub_id")):
        from sparta_bench import hub  # its client takes long to import

        repository = str(model["hub_id"])
        try:
            shape = json_of(hub.snapshot(repository, str(model.get("revision"))) / "config.json")
        except Exception as error:  # the client raises many kinds
            raise _no_rate(
                f"{repository} cannot be had from the hub: {hub.why(error)[0]}"
            ) from None
    if not isinstance(shape, dict) or not shape.get("model_type"):
        return None
    inner = shape.get("text_config")
    shape = {**shape, **inner} if isinstance(inner, dict) else shape
    layers, width = (
        next((shape[key] for key in keys if isinstance(shape.get(key), int)), 0)
        for keys in (LAYERS, WIDTHS)
    )
    if layers < 1 or width < 1:
        raise _no_rate("its configuration names no number of layers or no hidden size")
    return 12 * layers * width**2


def _no_rate(why: str) -> InputError:
    return InputError(
        f"train.learning_rate=null: give a rate; none can be guessed for this model: {why}"
    )


def lengths_for(config: Config) -> Lengths | None:
    """Those of a run's task in `conf/lengths.csv`, None for one that is not there; a run may use a
    part of them alone."""
    lengths = lengths_of(config.task.name, config.model.kind)
    if lengths is None:
        return None
    limit = config.limit or sys.maxsize
    return lengths._replace(
        train=min(lengths.train, config.task.max_train_examples or limit, limit),
        dev=min(lengths.dev, limit),
        test=min(lengths.test, limit),
    )


def lengths_of(task: str, kind: str) -> Lengths | None:
    """The same of a task as a kind of model reads it, whole."""
    return _lengths(config_dir() / "lengths.csv").get((task, kind))


@cache
def _lengths(path: Path) -> dict[tuple[str, str], Lengths]:
    return {
        (row["task"], row["kind"]): Lengths(
            int(row["train"]),
            int(row["dev"]),
            int(row["test"]),
            float(row["train_tokens"]),
            float(row["eval_tokens"]),
            int(row["shared"]),
            row["source"],
        )
        for _, row in _table(path)
    }
