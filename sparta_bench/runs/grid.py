"""Many runs, one after the other, beside other processes that work on the same grid."""

from __future__ import annotations

import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparta_bench.analysis.run_cost import estimated_seconds
from sparta_bench.config.schema import Config
from sparta_bench.devices import accelerator_of, device_kind, is_one_of_several
from sparta_bench.errors import (
    DivergedError,
    InputError,
    TrainingError,
    log,
    refusal_of,
    without_secrets,
)
from sparta_bench.records.read import read_json, record_of, seconds_of
from sparta_bench.records.record import LOCK, RESULT, RUNNING, Record
from sparta_bench.runs.assets import AssetCache
from sparta_bench.runs.cell_race import CellRace, races_of
from sparta_bench.runs.lock import BusyError, agreed, is_held, tidy
from sparta_bench.runs.outcome import Outcome, score_of
from sparta_bench.runs.race import share_done
from sparta_bench.runs.run import (
    advice,
    identify,
    name_of,
    run,
    run_folder,
    stamp_of,
    summary_line,
)
from sparta_bench.runs.time_estimates import Times, kinds_of
from sparta_bench.text import as_duration, counted
from sparta_bench.training.step_time import basis_of, device_named

SECONDS_BETWEEN_LOOKS = 1.0  # at runs that another process makes


def attempt(
    config: Config, assets: AssetCache, **how: Any
) -> tuple[Outcome, dict[str, Any] | None]:
    """Run an experiment and say how it ended, however that is; `how` is passed to `run`.

    BusyError and KeyboardInterrupt pass. SystemExit: this is one of several processes of a run, and
    it alone may have failed. The others wait for it, and whoever started them must end them.
    """
    try:
        record, path, was_there = run(config, assets, **how)
        return _outcome(config, record, path, was_there), record
    except InputError as error:
        return Outcome("refused", str(error)), None
    except BusyError:
        raise
    except OSError as error:
        reason = refusal_of(error)
    except TrainingError as error:
        reason = str(error)
    except Exception as error:  # a fault of the program
        print(without_secrets(traceback.format_exc()), end="", file=sys.stderr)
        reason = f"{type(error).__name__}: {error}"
    outcome = _failed(config, reason)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        print(f"sparta-bench: {outcome.line}", file=sys.stderr, flush=True)
        sys.exit(1)
    return outcome, None


def _outcome(config: Config, record: dict[str, Any], path: Path, was_there: bool) -> Outcome:
    line = summary_line(config, record, path, was_there)
    if record["status"] == "stopped":
        return Outcome("done", line, path, was_there=was_there)
    if record["status"] != "completed":
        return Outcome("failed", line)
    # a race says it of its best run alone
    races = config.search.name == "race"
    more = () if races else advice(record.get("history"), config.train.learning_rate)
    read = record_of(path, record)
    score = score_of(read) if isinstance(read, Record) else None
    return Outcome("done", line, path, score, was_there, more)


def _failed(config: Config, reason: str) -> Outcome:
    return Outcome("failed", f"failed: {name_of(config)}: {reason}")


class Grid:
    """The runs of a sweep, each once; looks at data and base models to know which are done, and
    needs no torch for that.

    `elsewhere`: the runs will be made by other machines, whose devices are not known here. `quiet`:
    another process has the same grid and says what all do (`at_once`).
    """

    def __init__(
        self,
        configs: Sequence[Config],
        assets: AssetCache,
        elsewhere: bool = False,
        quiet: bool = False,
    ) -> None:
        asked = {config.device for config in configs}
        if {"cpu", "cuda"} <= asked:
            raise InputError("device=cpu,cuda: the runs of one grid share a device")
        for key in ("search", "runs_at_once"):
            if len({getattr(config, key) for config in configs}) > 1:
                raise InputError(f"{key}: has several values, and the runs of one grid share one")
        self.assets, self._elsewhere, self._quiet = assets, elsewhere, quiet
        self.outcomes: list[Outcome] = []
        self.failed_before = 0
        self.times = Times()
        several = not elsewhere and is_one_of_several()  # a launcher's worker is one
        accelerator = accelerator_of(configs[0]) if several else None
        self._accelerator = accelerator
        processes = accelerator.num_processes if accelerator else 1
        # with model.dtype=auto the device decides the dtype, and so the run_id
        self._devices = [kind for kind in ("cuda", "cpu") if asked & {kind, "auto"}]
        if not elsewhere:
            self._devices = [device_kind(configs[0].device, f"device={configs[0].device}")]
        self._folders: dict[str, list[Path]] = {}  # by run_id: where the run's record may be
        self._before: dict[Path, tuple[int, ...]] = {}  # by folder: its record at the start
        identified: dict[str, Config] = {}
        for config in configs:
            try:
                ids = [identify(config, assets, kind, processes) for kind in self._devices]
            except InputError as error:
                self._refuse(error)
                continue
            identified.setdefault(ids[0], config)
            self._folders[ids[0]] = [run_folder(config, run_id) for run_id in ids]
            self._before |= {folder: stamp_of(folder) for folder in self._folders[ids[0]]}
        self.runs = len(identified) + len(self.outcomes)
        pending = []
        for run_id, config in list(identified.items()):
            if not self._is_done(run_id, config):
                try:
                    assets.architecture(config.model)
                    pending.append(run_id)
                except InputError as error:
                    self._refuse(error)
                    del identified[run_id]
        # a run that a process has died of, for lack of memory say, must not keep others from theirs
        pending.sort(key=self._was_killed)
        pending = agreed(accelerator, pending)  # another may have ended a run in between
        self.pending = {run_id: identified[run_id] for run_id in pending}  # two jobs may be one run
        self.refused = sum(outcome.kind == "refused" for outcome in self.outcomes)
        self.done = self.runs - self.refused - len(self.pending)
        self._force = any(config.force for config in configs)
        self._lost: set[str] = set()  # runs that this process has tried in vain
        self.races = races_of(identified) if configs[0].search.name == "race" else []
        self._undecided = list(self.races)

    @property
    def device(self) -> str:
        """`cpu` or `cuda`, where this machine makes the runs."""
        return self._devices[0]

    def _refuse(self, error: InputError) -> None:
        self.outcomes.append(Outcome("refused", str(error)))

    def _records(self, run_id: str) -> list[tuple[dict[str, Any], Path]]:
        """What there is of a run, a completed record first."""
        folders = self._folders[run_id]
        records = [(record, folder) for folder in folders if (record := read_json(folder))]
        return sorted(records, key=lambda pair: pair[0]["status"] != "completed")

    def _was_killed(self, run_id: str) -> bool:
        folders = self._folders[run_id]
        return any((path / RUNNING).exists() and not is_held(path / LOCK) for path in folders)

    def _is_done(self, run_id: str, config: Config) -> bool:
        for record, folder in self._records(run_id)[:1]:
            self.failed_before += record["status"] == "failed"
            if record["status"] == "completed":
                tidy(folder)
                self.times.add(kinds_of(config), seconds_of(record))
                if not config.force:
                    self.outcomes.append(_outcome(config, record, folder / RESULT, True))
                    return True
        return False

    def heading(self) -> str:
        """How many runs there are, how many are done, and how long the others will take."""
        if self.races:
            return self._heading_of_races()
        text = f"{counted(self.runs, 'run')}: {self.done:,} done, {len(self.pending):,} to go"
        if self.failed_before:
            text += f" ({self.failed_before:,} of them failed before)"
        if self.refused:
            text += f", {self.refused:,} cannot run"
        if not self.pending:
            return text
        seconds = self.times.left(map(kinds_of, self.pending.values()))
        if seconds is None:
            configs = list(self.pending.values())
            # where the runs are made elsewhere, their device is not known
            device = None if self._elsewhere else device_named(None, self._devices[0])
            about = estimated_seconds(configs, device)
            if about is None or device is None:
                return f"{text}; time left unknown: no run like some of these is done yet"
            low, high = map(as_duration, about)
            return f"{text}; {low} to {high} left for one process, an estimate {basis_of(device)}"
        return f"{text}; about {as_duration(seconds)} left for one process, by what such runs took"

    def _heading_of_races(self) -> str:
        """The runs of the whole grid, what was spent so far, and what races took elsewhere."""
        records = [record for race in self.races for record in map(self._record, race.runs)]
        spent = math.fsum(share_done(record) for record in records if record)
        all_runs = sum(len(race.runs) for race in self.races)
        need = math.fsum(race.share() * len(race.runs) for race in self.races)
        text = (
            f"{counted(all_runs, 'run')} in {counted(len(self.races), 'race')}, which will make "
            f"about {need:,.0f} of them; {spent:,.1f} made so far, in run-equivalents"
        )
        if self.refused:
            text += f"; {self.refused:,} cannot run"
        seconds = self.times.left(map(kinds_of, self.pending.values()))
        left = max(0.0, need - spent)
        if not self.pending or seconds is None or not left:
            return text
        seconds *= left / len(self.pending)
        return f"{text}; about {as_duration(seconds)} left for one process, by what such runs took"

    # ------------------------------------------------------------------------------- what is next
    def next_runs(self) -> dict[str, Config]:
        """What can run now, by `run_id`: all that is pending, or what each race needs next."""
        if not self.races:
            return dict(self.pending)
        runs: dict[str, Config] = {}
        for race in list(self._undecided):
            wanted = race.wanted(self._ended, self._is_running)
            if not wanted:
                self._decide(race)
            runs |= wanted
        return agreed(self._accelerator, runs)

    def _decide(self, race: CellRace) -> None:
        """Note that a race needs nothing more, and so none of its runs that are pending."""
        self._undecided.remove(race)
        self.pending = {key: one for key, one in self.pending.items() if key not in race.runs}
        if not self._quiet:
            log(f"race: {race.summary(self._record)}")
        if race.best(lambda run_id: self._ended(run_id, True)) is None:
            self.outcomes.append(_failed(race.config, "no setting of its race has completed"))
        elif self._accelerator is None or self._accelerator.is_main_process:
            race.write(self._record)

    def advice(self) -> list[str]:
        """What the best runs of races leave to try."""
        return [line for race in self.races for line in race.advice(self._record)]

    def _record(self, run_id: str) -> dict[str, Any] | None:
        return next((record for record, _ in self._records(run_id)), None)

    def _ended(self, run_id: str, may_be_stopped: bool) -> dict[str, Any] | None:
        """The record of a run that a race takes as it is; None if it is still to be made."""
        for record, folder in self._records(run_id)[:1]:
            is_new, status = stamp_of(folder) != self._before[folder], record["status"]
            if status == "completed" or (status == "stopped" and may_be_stopped):
                if is_new or not self._force:
                    return record
            elif status == "failed" and is_new:
                return record
        return {"status": "failed"} if run_id in self._lost else None

    def _is_running(self, run_id: str) -> bool:
        return any(is_held(folder / LOCK) for folder in self._folders[run_id])

    # --------------------------------------------------------------------------------------- runs
    def run_all(self, show: Callable[[Outcome], None], single: bool = False) -> list[Outcome]:
        """Run what is not done, and give `show` each outcome; a `single` run has no number.

        A run that another process makes is left to it, and looked at again when nothing else is to
        do. One that has failed in this or another process since the start is not tried again.
        """
        number = self.runs - len(self.pending)
        waited = self._quiet
        while runs := self.next_runs():
            count = len(self.pending)
            for run_id, config in runs.items():
                label = "" if self._quiet else f"[{number + 1}/{self.runs}] "
                before = self._before[self._folders[run_id][0]]
                try:
                    how = {} if single else {"wait": False, "before": before, "label": label}
                    outcome, _ = attempt(config, self.assets, **how)
                except BusyError:
                    continue
                number += 1
                show(self._note(run_id, outcome))
                if outcome.kind == "failed" and not _answers(self.device):
                    # each run would fail here, and other processes take a failure as it is
                    self.outcomes += [_failed(c, "not tried") for c in self.pending.values()]
                    log("the device does not answer any more, so that no other run is tried")
                    return self.outcomes
                if self.races:
                    break  # what is needed next depends on what came out
            if len(self.pending) == count:
                if not waited:
                    log(f"waiting for {counted(len(runs), 'run')} that other processes are at")
                waited = True
                time.sleep(SECONDS_BETWEEN_LOOKS)
        return self.outcomes

    def _note(self, run_id: str, outcome: Outcome) -> Outcome:
        outcome = replace(outcome, run_id=run_id)
        if outcome.kind == "failed" and self._lost_its_race(run_id):
            outcome = replace(outcome, kind="done")
        self.outcomes.append(outcome)
        self.pending.pop(run_id, None)
        if outcome.kind != "done":
            self._lost.add(run_id)
        return outcome

    def _lost_its_race(self, run_id: str) -> bool:
        """Whether a run that has failed told its race what it needs: its setting diverges."""
        error = (self._ended(run_id, True) or {}).get("error") or {}
        compared = {ids[0] for race in self.races for ids in race.settings.values()}
        lost = run_id in compared and error.get("type") == DivergedError.__name__
        return agreed(self._accelerator, lost)  # others may look before the record is written

    def take(self, ended: Outcome) -> Outcome | None:
        """Note how a run has ended in another process, and return that with what its record says;
        None if it was noted before."""
        run_id = ended.run_id
        config = self.pending.get(run_id)
        if config is None:
            return None
        if ended.kind == "done" and (records := self._records(run_id)):
            record, folder = records[0]
            ended = _outcome(config, record, folder / RESULT, False)
        return self._note(run_id, ended)

    def look_again(self, runs: Mapping[str, Config], wait: bool = True) -> None:
        """Take what others have made of runs that were to do; waits for those in progress."""
        for run_id, config in runs.items():
            for folder in self._folders[run_id]:
                while wait and is_held(folder / LOCK):
                    time.sleep(SECONDS_BETWEEN_LOOKS)
            for record, folder in self._records(run_id):
                is_new = stamp_of(folder) != self._before[folder]
                completed = record["status"] == "completed" and not config.force
                if record["status"] != "interrupted" and (is_new or completed):
                    self._note(run_id, _outcome(config, record, folder / RESULT, False))
                    break

    def give_up(self, runs: Mapping[str, Config]) -> None:
        """Count those of the runs as failed of which others have left no result."""
        for run_id, config in runs.items():
            if run_id in self.pending:
                self._note(run_id, _failed(config, "no result; give the same command again"))


def _answers(device: str) -> bool:
    """Whether the device still works; after some errors a CUDA context does nothing any more."""
    import torch

    try:
        return bool(torch.ones(1, device=device).sum().item() == 1)
    except RuntimeError:
        return False
