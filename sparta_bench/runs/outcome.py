"""How a run ended, and how that is shown; no torch."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from sparta_bench.errors import fitted, log
from sparta_bench.records.record import Cell, Record


class Score(NamedTuple):
    """What the table at the end of a grid needs of a completed run."""

    cell: Cell
    setting: str
    dev_loss: float
    test_accuracy: float


def score_of(record: Record) -> Score:
    """Those of a completed record."""
    loss, accuracy = record.score("dev", "loss"), record.score("test", "accuracy")
    return Score(record.cell, record.setting, loss, accuracy)


@dataclass(frozen=True)
class Outcome:
    """How a run ended, in a line for people; `refused`: its input was at fault, nothing was run.

    `advice` has a line where the run is done, and its training did not do what it should.
    """

    kind: Literal["done", "failed", "refused"]
    line: str
    path: Path | None = field(default=None, compare=False)  # of its record, where it is done
    score: Score | None = field(default=None, compare=False)  # where it is completed
    was_there: bool = field(default=False, compare=False)
    advice: tuple[str, ...] = ()
    run_id: str = field(default="", compare=False)  # where it was tried


def show(outcome: Outcome) -> None:
    """Results go to standard output, faults of input to standard error."""
    if outcome.kind == "refused":
        log(*outcome.line.splitlines())
    else:
        show_result(fitted(outcome.line, sys.stdout), *outcome.advice)


def show_result(text: str, *advice: str) -> None:
    """Print to standard output, and advice as a warning; of several processes of a run only the
    main one does."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)
        log(*advice)
