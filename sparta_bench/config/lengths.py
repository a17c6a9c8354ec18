"""How many examples and tokens the paper's tasks have, where the data itself is not there."""

from __future__ import annotations

import csv
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

from sparta_bench.config.conf_folder import config_dir
from sparta_bench.config.schema import Config


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


def lengths_of(task: str, kind: str) -> Lengths | None:
    """Those in `conf/lengths.csv`; None for a task that is not there."""
    return _rows(config_dir() / "lengths.csv").get((task, kind))


def lengths_for(config: Config) -> Lengths | None:
    """The same for a run, which may use a part of them alone."""
    lengths = lengths_of(config.task.name, config.model.kind)
    if lengths is None:
        return None
    limit = config.limit or sys.maxsize
    return lengths._replace(
        train=min(lengths.train, config.task.max_train_examples or limit, limit),
        dev=min(lengths.dev, limit),
        test=min(lengths.test, limit),
    )


@cache
def _rows(path: Path) -> dict[tuple[str, str], Lengths]:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return {
        (row["task"], row["kind"]): Lengths(
            train=int(row["train"]),
            dev=int(row["dev"]),
            test=int(row["test"]),
            train_tokens=float(row["train_tokens"]),
            eval_tokens=float(row["eval_tokens"]),
            shared=int(row["shared"]),
            source=row["source"],
        )
        for row in rows
    }
