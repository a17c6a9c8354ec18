"""A job of a launcher's worker, and what the runs of a process share; torch comes with the first
run."""

from __future__ import annotations

import os
import sys
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sparta_bench.errors import InputError, log
from sparta_bench.runs.outcome import Outcome, show

if TYPE_CHECKING:
    from sparta_bench.runs.assets import AssetCache

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130  # exit codes


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
