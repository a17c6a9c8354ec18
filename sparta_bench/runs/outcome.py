"""What came of a run, and how it is told; no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from sparta_bench.errors import log


@dataclass(frozen=True)
class Outcome:
    """What came of a run, and the line that tells it; `refused` where the input was at fault and
    nothing was tried."""

    kind: Literal["done", "failed", "refused"]
    line: str


def show(outcome: Outcome) -> None:
    """Tell an outcome: results on standard output, faults of input on standard error."""
    if outcome.kind == "refused":
        log(*outcome.line.splitlines())
    elif os.environ.get("RANK", "0") == "0":
        print(outcome.line, flush=True)
