"""Experiments and grids, and what Hydra itself answers: command lines without a subcommand."""

from __future__ import annotations

import os
import re
import sys
from argparse import ArgumentError, Namespace
from collections import Counter
from functools import partial
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser

from sparta_bench.config.compose import HYDRA_ERRORS, compose, compose_all
from sparta_bench.config.conf_folder import config_dir, search_path
from sparta_bench.config.schema import Config
from sparta_bench.config.sweeps import sweep_jobs
from sparta_bench.errors import InputError, log, reason_of
from sparta_bench.records.read import read_record
from sparta_bench.records.record import Record
from sparta_bench.runs.job import (
    DONE,
    FAILED,
    INTERRUPTED,
    WRONG_INPUT,
    assets,
    quiet_libraries,
    run_composed,
)
from sparta_bench.runs.outcome import Outcome, show, show_result
from sparta_bench.runs.summary import grid_text, run_text

ONE_OF = ("run", "multirun", "cfg", "info", "shell_completion")  # options of Hydra's, at a time
NOT_SUPPORTED = ("config_path", "config_name", "experimental_rerun")


def experiments(arguments: list[str]) -> int:
    """One run, or with `-m` one after the other; the worst outcome is the code."""
    options, overrides = _options(arguments)
    if options.hydra_help or options.info or options.cfg or options.shell_completion:
        return _hydras_own(arguments, overrides)
    if options.multirun:
        jobs = sweep_jobs(overrides)
        return _grid(compose_all(jobs), jobs, overrides)
    return _grid([compose(overrides)], [], overrides)


def _hydras_own(arguments: list[str], overrides: list[str]) -> int:
    """What Hydra prints for its own options; no run."""
    if sweeps := [text for text in overrides if text.lstrip("+").startswith("sweep=")]:
        raise InputError(*(f"{text}: a sweep is a grid, and needs -m" for text in sweeps))

    @hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")
    def no_run(composed: Any) -> None:
        pass

    others = list(arguments)  # Hydra wants all overrides in one place
    for word in overrides:
        others.remove(word)
    before, sys.argv = sys.argv, [sys.argv[0], *search_path(), *overrides, *others]
    # raise faults, so that they are reported here, in one line
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        no_run()
    except HYDRA_ERRORS as error:
        compose(overrides)  # which says it better, if it is the overrides' fault
        raise InputError(reason_of(error)) from None
    except SystemExit as end:
        return int(end.code or DONE)
    finally:
        sys.argv = before
    return DONE


def _options(arguments: list[str]) -> tuple[Namespace, list[str]]:
    """Hydra's options and the overrides, checked as far as Hydra would answer with a traceback."""
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        options, unknown = parser.parse_known_args(arguments)
    except ArgumentError as error:
        raise InputError(str(error)) from None
    lines = [
        f"{word.partition('=')[0]}: no such option; settings are written key=value (see --help)"
        for word in unknown
        if word.startswith("-")
    ]
    for name in NOT_SUPPORTED:
        if getattr(options, name) is not None:
            lines.append(f"--{name.replace('_', '-')}: this option of Hydra's is not supported")
    overrides = [*options.overrides, *(word for word in unknown if not word.startswith("-"))]
    if options.shell_completion and not re.fullmatch(
        r"(install|uninstall|query)=(bash|zsh|fish)", " ".join(overrides)
    ):
        lines.append("--shell-completion: needs install=, uninstall= or query= and a shell's name")
    asked = [f"--{name.replace('_', '-')}" for name in ONE_OF if getattr(options, name)]
    if len(asked) > 1:
        lines.append(f"{' and '.join(asked)}: only one of them at a time")
    if lines:
        raise InputError(*lines)
    return options, overrides


def _grid(configs: list[Config], jobs: list[list[str]], overrides: list[str]) -> int:
    """All runs of a `-m` command line, here or through a launcher; a single run has no `jobs`."""
    quiet_libraries()
    from sparta_bench.data.splits import complete
    from sparta_bench.runs.launch import launch, launcher_of

    configs = [complete(config) for config in configs]
    elsewhere = bool(jobs) and launcher_of(jobs[0]) is not None
    from sparta_bench.runs.grid import Grid

    grid = Grid(configs, assets(), elsewhere)
    if not jobs:
        return _close(grid.run_all(partial(_show_single, overrides), single=True))
    log(grid.heading())
    try:
        if not elsewhere:
            grid.run_all(show)
        else:
            for outcome in dict.fromkeys(grid.outcomes):
                show(outcome)
            job_of = {id(config): job for config, job in zip(configs, jobs, strict=True)}
            # a race has several rounds: what is needed next depends on what came out
            while left := grid.next_runs():
                round_jobs = [_job(job_of[id(grid.pending[key])], left[key]) for key in left]
                try:
                    launch(round_jobs, run_composed)
                except InputError:  # nothing was started
                    raise
                except Exception as error:  # a worker died, or its machines refused
                    log(f"hydra/launcher: {type(error).__name__}: {reason_of(error)}")
                grid.look_again(left)
    except KeyboardInterrupt:
        if elsewhere:
            grid.look_again(grid.pending.copy(), wait=False)
        done = sum(outcome.kind == "done" for outcome in grid.outcomes)
        log(f"interrupted: {done:,} of {grid.runs:,} runs are done; the same command goes on")
        return INTERRUPTED
    paths = [outcome.path for outcome in grid.outcomes if outcome.path is not None]
    records = [record for record in map(read_record, paths) if isinstance(record, Record)]
    completed = [record for record in records if record.status == "completed"]
    if len(completed) > 1:
        show_result(grid_text(completed))
    return _close(grid.outcomes)


def _job(job: list[str], config: Config) -> list[str]:
    """The overrides of a run, with the rival that a race has given it."""
    rival = config.search.rival
    return job if rival is None else [*job, f"search.rival='{rival}'"]  # it may look like a number


def _show_single(overrides: list[str], outcome: Outcome) -> None:
    """A single run's result has room for more than a line."""
    # another process of the run may not have written the record yet, and this one shows nothing
    record = read_record(outcome.path) if outcome.path else None
    if isinstance(record, Record) and record.status == "completed":
        show_result(run_text(record, overrides, outcome.was_there), *outcome.advice)
    else:
        show(outcome)


def _close(outcomes: list[Outcome]) -> int:
    bad = [outcome for outcome in outcomes if outcome.kind != "done"]
    if bad and len(outcomes) > 1:
        counts = Counter(outcome.line.splitlines()[0] for outcome in bad)
        lines = [f"{line} ({n:,} runs)" if n > 1 else line for line, n in counts.items()]
        log(f"{len(bad):,} of {len(outcomes):,} runs did not complete:", *lines)
    if all(outcome.kind == "refused" for outcome in bad):
        return WRONG_INPUT if bad else DONE
    return FAILED
