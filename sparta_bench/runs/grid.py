"""Many runs, one after the other, beside other processes that are at the same grid."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from sparta_bench.config.schema import Config
from sparta_bench.devices import accelerator_of
from sparta_bench.errors import InputError, TrainingError, log, refusal_of, without_secrets
from sparta_bench.records.read import read_json, seconds_of
from sparta_bench.records.record import LOCK, RESULT, RUNNING
from sparta_bench.records.write import run_folder
from sparta_bench.runs.assets import AssetCache
from sparta_bench.runs.lock import BusyError, agreed, is_held, tidy
from sparta_bench.runs.outcome import Outcome
from sparta_bench.runs.run import identify, name_of, run, stamp_of, summary_line
from sparta_bench.runs.time_estimates import Times, kinds_of
from sparta_bench.text import as_duration

SECONDS_BETWEEN_LOOKS = 1.0  # at runs that another process is at


def attempt(
    config: Config, assets: AssetCache, **how: Any
) -> tuple[Outcome, dict[str, Any] | None]:
    """Run an experiment and say what came of it, whatever that is; `how` is passed to `run`.

    Raises
    ------
    BusyError
        If another process is at this run, and `wait` is false.
    KeyboardInterrupt
        If interrupted.
    SystemExit
        If this is one of several processes of a run, and it alone may have failed: the others
        wait for it, and must be ended by whoever started them.
    """
    try:
        record, path, was_there = run(config, assets, **how)
    except InputError as error:
        return Outcome("refused", "\n".join(error.lines)), None
    except BusyError:
        raise
    except Exception as error:
        if isinstance(error, OSError):
            why = refusal_of(error)
        elif isinstance(error, TrainingError):
            why = str(error)
        else:  # a fault of the program
            print(without_secrets(traceback.format_exc()), end="", file=sys.stderr)
            why = f"{type(error).__name__}: {error}"
        outcome = _failed(config, why)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            print(f"sparta-bench: {outcome.line}", file=sys.stderr, flush=True)
            sys.exit(1)
        return outcome, None
    return _outcome(record, path, was_there), record


def _outcome(record: dict[str, Any], path: Path, was_there: bool) -> Outcome:
    kind: Literal["done", "failed"] = "done" if record["status"] == "completed" else "failed"
    return Outcome(kind, summary_line(record, path, was_there))


def _failed(config: Config, why: str) -> Outcome:
    return Outcome("failed", f"failed: {name_of(config)}: {why}")


class Grid:
    """The runs of a sweep, each once; looks at data and base models to know which are done.

    `elsewhere`: the runs will be made by other machines, whose devices are not known here.
    """

    def __init__(
        self, configs: Sequence[Config], assets: AssetCache, elsewhere: bool = False
    ) -> None:
        asked = {config.device for config in configs}
        if {"cpu", "cuda"} <= asked:
            raise InputError("device=cpu,cuda: the runs of one grid share a device")
        self.assets = assets
        self.outcomes: list[Outcome] = []
        self.pending: dict[str, Config] = {}  # by run_id: two jobs may be one run
        self.failed_before = 0
        accelerator = None if elsewhere else accelerator_of(configs[0])
        # a launcher's worker is one process
        processes = 1 if accelerator is None else accelerator.num_processes
        self._devices = [accelerator.device] if accelerator else _devices(asked)
        self._folders: dict[str, list[Path]] = {}  # by run_id: where the run's record may be
        self._before: dict[Path, tuple[int, ...]] = {}  # by folder: its record at the start
        self.times = Times()
        identified: dict[str, Config] = {}
        for config in configs:
            try:
                ids = [identify(config, assets, device, processes) for device in self._devices]
            except InputError as error:
                self.outcomes.append(Outcome("refused", "\n".join(error.lines)))
                continue
            identified.setdefault(ids[0], config)
            self._folders[ids[0]] = [run_folder(config, run_id) for run_id in ids]
            self._before |= {folder: stamp_of(folder) for folder in self._folders[ids[0]]}
        self.refused = len(self.outcomes)
        self.runs = len(identified) + self.refused
        for run_id, config in identified.items():
            self._look_up(run_id, config)
        # a run that a process has died of, for lack of memory say, must not keep others from theirs
        pending = sorted(self.pending, key=self._was_killed)
        if accelerator is not None:  # another process may have ended a run in between
            pending = agreed(accelerator, pending)
        self.pending = {run_id: identified[run_id] for run_id in pending}
        self.done = len(identified) - len(self.pending)

    def _records(self, run_id: str) -> list[tuple[dict[str, Any], Path]]:
        """What there is of a run, a completed record first."""
        folders = self._folders[run_id]
        found = [(record, folder) for folder in folders if (record := read_json(folder))]
        return sorted(found, key=lambda one: one[0]["status"] != "completed")

    def _was_killed(self, run_id: str) -> bool:
        folders = self._folders[run_id]
        return any((at / RUNNING).exists() and not is_held(at / LOCK) for at in folders)

    def _is_new(self, folder: Path) -> bool:
        return stamp_of(folder) != self._before[folder]

    def _look_up(self, run_id: str, config: Config) -> None:
        for found, folder in self._records(run_id)[:1]:
            if found["status"] == "completed":
                tidy(folder)
                self.times.add(kinds_of(config), seconds_of(found))
                if not config.force:
                    self.outcomes.append(_outcome(found, folder / RESULT, was_there=True))
                    return
            self.failed_before += found["status"] == "failed"
        self.pending[run_id] = config

    def heading(self) -> str:
        """How many runs there are, how many are done, and how long the others will take."""
        text = f"{_runs(self.runs)}: {self.done:,} done, {len(self.pending):,} to go"
        if self.failed_before:
            text += f" ({self.failed_before:,} of them failed before)"
        if self.refused:
            text += f", {self.refused:,} cannot run"
        return f"{text}; {self._time_left()}" if self.pending else text

    def _time_left(self) -> str:
        seconds = self.times.left(map(kinds_of, self.pending.values()))
        if seconds is None:
            return "time left unknown, since not every kind of run has been made"
        return f"about {as_duration(seconds)} left for one process, by what such runs took"

    def run_all(self, show: Callable[[Outcome], None], single: bool = False) -> list[Outcome]:
        """Run what is not done, and give `show` each outcome; a `single` run has no number.

        A run that another process is at is left to it, and looked at again when nothing else is
        to do. One that has failed in this or another process since the start is not tried again.

        Raises
        ------
        KeyboardInterrupt
            If interrupted; what is done stays done.
        """
        for outcome in dict.fromkeys(self.outcomes):  # a fault of all runs of a model once
            show(outcome)
        number = self.runs - len(self.pending)
        told = False
        while self.pending:
            count = len(self.pending)
            for run_id, config in list(self.pending.items()):
                label = f"[{number + 1}/{self.runs}] "
                try:
                    before = self._before[self._folders[run_id][0]]
                    how = {} if single else {"wait": False, "before": before, "label": label}
                    outcome, _ = attempt(config, self.assets, **how)
                except BusyError:
                    continue
                number += 1
                del self.pending[run_id]
                self.outcomes.append(outcome)
                show(outcome)
                if outcome.kind == "failed" and not _answers(self._devices[0]):
                    # each run would fail here, and other processes take a failure as it is
                    self.outcomes += [_failed(c, "not tried") for c in self.pending.values()]
                    log("the device does not answer any more, so that no other run is tried")
                    return self.outcomes
            if len(self.pending) == count:
                if not told:
                    log(f"waiting for {_runs(count)} that other processes are at")
                told = True
                time.sleep(SECONDS_BETWEEN_LOOKS)
        return self.outcomes

    def look_again(self, wait: bool = True) -> list[Outcome]:
        """Take what others have made of the runs that were to do; waits for those in progress."""
        for run_id, config in self.pending.items():
            for folder in self._folders[run_id]:
                while wait and is_held(folder / LOCK):
                    time.sleep(SECONDS_BETWEEN_LOOKS)
            made = [
                (found, folder)
                for found, folder in self._records(run_id)
                if found["status"] != "interrupted"
                and (self._is_new(folder) or (found["status"] == "completed" and not config.force))
            ]
            if not made:
                self.outcomes.append(_failed(config, "no result; give the same command again"))
            for found, folder in made[:1]:
                self.outcomes.append(_outcome(found, folder / RESULT, was_there=False))
        return self.outcomes


def _runs(count: int) -> str:
    return f"{count:,} {'run' if count == 1 else 'runs'}"


def _devices(asked: set[str]) -> list[torch.device]:
    """What another machine may run on. With model.dtype=auto that decides the dtype, and so the
    run_id."""
    return [torch.device(kind) for kind in ("cuda", "cpu") if asked & {kind, "auto"}]


def _answers(device: torch.device) -> bool:
    """Whether the device still works; after some errors a CUDA context does nothing any more."""
    try:
        return bool(torch.ones(1, device=device).sum().item() == 1)
    except RuntimeError:
        return False
