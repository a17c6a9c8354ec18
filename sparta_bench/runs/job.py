"""A job of a launcher's worker, and what the runs of a process share; torch comes with the first
run."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from functools import lru_cache
from threading import Event
from typing import TYPE_CHECKING, Any

from sparta_bench.errors import InputError, log
from sparta_bench.runs.outcome import Outcome, show

if TYPE_CHECKING:
    from sparta_bench.runs.assets import AssetCache

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130  # exit codes
SECONDS_BETWEEN_SIGNALS = 60.0
may_begin = Event()  # a process of `runs_at_once`: all of them are ready


def run_composed(composed: Any) -> Outcome:
    """Run what Hydra composed and show what came of it, whatever that is."""
    from sparta_bench.config.check import from_dict
    from sparta_bench.config.compose import to_plain

    quiet_libraries()
    try:
        config = from_dict(to_plain(composed))
        from sparta_bench.data.splits import complete
        from sparta_bench.runs.grid import attempt

        outcome, _ = attempt(complete(config), assets())
    except InputError as error:
        outcome = Outcome("refused", "\n".join(error.lines))
    except KeyboardInterrupt:
        # Hydra turns it into an error of its own; the exit code is ours to give
        log("interrupted")
        sys.exit(INTERRUPTED)
    show(outcome)
    return outcome


def obey_starter() -> None:
    """In a process of `runs_at_once`: watch standard input, a thread's work from the first moment.
    A byte lets the process begin; the end of the input, however its starter ended, ends it."""
    if not os.read(0, 1):
        os._exit(INTERRUPTED)  # at once, from the middle of imports: nothing has begun
    may_begin.set()
    while os.read(0, 1):
        pass
    while True:  # an interruption that is raised inside a callback of Python's is lost
        os.kill(os.getpid(), signal.SIGTERM)  # which the command takes as an interruption
        time.sleep(SECONDS_BETWEEN_SIGNALS)


@lru_cache(maxsize=1)
def assets() -> AssetCache:
    """What this process's runs share; a launcher's worker runs many jobs."""
    from sparta_bench.runs.assets import AssetCache

    return AssetCache()


def quiet_libraries() -> None:
    """Their progress bars and notices would drown ours, or end up in the JSON."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", category=FutureWarning)
