"""Many runs, one after the other, beside other processes that are at the same grid."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Literal

from sparta_bench.config import Config
from sparta_bench.durations import as_duration
from sparta_bench.errors import InputError
from sparta_bench.grid_time import Times
from sparta_bench.job import Outcome
from sparta_bench.records import read_json
from sparta_bench.results import run_folder
from sparta_bench.run import BusyError, accelerator_of, identify, name_of, run, summary_line
from sparta_bench.shared import Shared

SECONDS_BETWEEN_LOOKS = 1.0  # at runs that another process is at


def attempt(config: Config, shared: Shared, **how: Any) -> tuple[Outcome, dict[str, Any] | None]:
    """Run an experiment and say what came of it, whatever that is; `how` is passed to `run`.

    Raises
    ------
    BusyError
        If another process is at this run, and `wait` is false.
    KeyboardInterrupt
        If interrupted.
    """
    try:
        record, path, was_there = run(config, shared, **how)
    except InputError as error:
        return Outcome("refused", "\n".join(error.lines)), None
    except BusyError:
        raise
    except OSError as error:
        return Outcome("failed", f"failed: {name_of(config)}: {error}"), None
    except Exception as error:  # a fault of the program
        traceback.print_exc()
        return Outcome(
            "failed", f"failed: {name_of(config)}: {type(error).__name__}: {error}"
        ), None
    kind: Literal["done", "failed"] = "done" if record["status"] == "completed" else "failed"
    return Outcome(kind, summary_line(record, path, was_there)), record


def _failed(config: Config, why: str) -> Outcome:
    return Outcome("failed", f"failed: {name_of(config)}: {why}")


class Grid:
    """The runs of a sweep, each once; looks at data and base models to know which are done."""

    def __init__(self, configs: Sequence[Config], shared: Shared) -> None:
        self.shared = shared
        self.accelerator = accelerator_of(configs[0])
        self.started = time.time()
        self.times = Times(shared, self.accelerator.device)
        self.outcomes: list[Outcome] = []
        self.pending: dict[str, Config] = {}  # by run_id: two jobs may be one run
        self.failed_before = 0
        identified = set()
        for config in configs:
            try:
                run_id = identify(config, shared, self.accelerator.device)
            except InputError as error:
                self.outcomes.append(Outcome("refused", "\n".join(error.lines)))
                continue
            if run_id not in identified:
                identified.add(run_id)
                self._look_up(run_id, config)
        self.done = len(identified) - len(self.pending)
        self.refused = len(self.outcomes) - self.done
        self.runs = len(identified) + self.refused

    def _look_up(self, run_id: str, config: Config) -> None:
        folder = run_folder(config, run_id)
        found = read_json(folder)
        if found is not None and found["status"] == "completed":
            self.times.add(config, found)
            if not config.force:
                line = summary_line(found, folder / "result.json", was_there=True)
                self.outcomes.append(Outcome("done", line))
                return
        self.failed_before += found is not None and found["status"] == "failed"
        self.pending[run_id] = config

    def heading(self) -> str:
        """How many runs there are, how many are done, and how long the others will take."""
        text = f"{self.runs:,} runs: {self.done:,} done, {len(self.pending):,} to go"
        if self.failed_before:
            text += f" ({self.failed_before:,} of them failed before)"
        if self.refused:
            text += f", {self.refused:,} cannot run"
        return f"{text}; {self._time_left()}" if self.pending else text

    def _time_left(self) -> str:
        seconds, measured = self.times.left(self.pending.values())
        basis = "by what runs of this kind took" if measured else "roughly, by its FLOPs"
        return f"about {as_duration(seconds)} left for one process, {basis}"

    def run_all(self, show: Callable[[Outcome], None]) -> list[Outcome]:
        """Run what is not done, and give `show` each outcome.

        A run that another process is at is left to it, and looked at again when nothing else is
        to do. One that has failed in this or another process since the start is not tried again.

        Raises
        ------
        KeyboardInterrupt
            If interrupted; what is done stays done.
        """
        for outcome in self.outcomes:
            show(outcome)
        number = self.runs - len(self.pending)
        while self.pending:
            before = len(self.pending)
            for run_id, config in list(self.pending.items()):
                label = f"[{number + 1}/{self.runs}] "
                try:
                    outcome, record = attempt(
                        config,
                        self.shared,
                        wait=False,
                        since=self.started,
                        label=label,
                    )
                except BusyError:
                    continue
                number += 1
                del self.pending[run_id]
                self.outcomes.append(outcome)
                show(outcome)
                if record is not None and outcome.kind == "done":
                    self.times.add(config, record)
            if len(self.pending) == before:
                time.sleep(SECONDS_BETWEEN_LOOKS)
        return self.outcomes

    def look_again(self) -> None:
        """Take what other processes have made of the runs that were to do."""
        for run_id, config in self.pending.items():
            folder = run_folder(config, run_id)
            found = read_json(folder)
            if found is None or found["status"] == "interrupted":
                self.outcomes.append(_failed(config, "no result"))
                continue
            kind: Literal["done", "failed"] = "done" if found["status"] == "completed" else "failed"
            line = summary_line(found, folder / "result.json", was_there=False)
            self.outcomes.append(Outcome(kind, line))
