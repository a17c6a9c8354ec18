"""How a run ended, and how that is shown; no torch."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sparta_bench.errors import fitted, log


@dataclass(frozen=True)
class Outcome:
    """How a run ended, in a line for people; `refused`: its input was at fault, nothing was run.

    `advice` has a line where the run is done, and its training did not do what it should.
    """

    kind: Literal["done", "failed", "refused"]
    line: str
    path: Path | None = field(default=None, compare=False)  # of its record, where it is done
    was_there: bool = field(default=False, compare=False)
    advice: tuple[str, ...] = ()


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
