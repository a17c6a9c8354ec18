"""How a run ended, and how that is shown; no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from sparta_bench.errors import log


@dataclass(frozen=True)
class Outcome:
    """How a run ended, in a line for people; `refused`: its input was at fault, nothing was run.

    `advice` has a line where the run is done, and its training did not do what it should.
    """

    kind: Literal["done", "failed", "refused"]
    line: str
    advice: tuple[str, ...] = ()


def show(outcome: Outcome) -> None:
    """Results go to standard output, faults of input to standard error."""
    if outcome.kind == "refused":
        log(*outcome.line.splitlines())
    elif os.environ.get("RANK", "0") == "0":
        print(outcome.line, flush=True)
        log(*outcome.advice)
