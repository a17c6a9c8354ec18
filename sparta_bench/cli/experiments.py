"""Experiments and grids, and what Hydra itself answers: command lines without a subcommand."""

from __future__ import annotations

import os
import re
import sys
from argparse import ArgumentError, Namespace
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.utils import get_args_parser

from sparta_bench.config.compose import HYDRA_ERRORS, compose, compose_all
from sparta_bench.config.conf_folder import config_dir, own_folders, search_path
from sparta_bench.config.rate_search import searched
from sparta_bench.config.schema import Config
from sparta_bench.config.sweeps import sweep_jobs
from sparta_bench.devices import worker_threads
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

if TYPE_CHECKING:
    from sparta_bench.runs.grid import Grid

ONE_OF = ("run", "multirun", "cfg", "info", "shell_completion")  # options of Hydra's, at a time
NOT_SUPPORTED = ("config_path", "config_name", "experimental_rerun")


def experiments(arguments: list[str]) -> int:
    """One run, or with `-m` one after the other; the worst outcome is the code."""
    options, overrides = _options(arguments)
    if options.hydra_help or options.info or options.cfg or options.shell_completion:
        return _hydras_own(arguments, overrides)
    jobs = sweep_jobs(overrides) if options.multirun else searched([overrides])
    return _grid(compose_all(jobs), jobs, overrides, options.multirun)


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


def _grid(
    configs: list[Config], jobs: list[list[str]], overrides: list[str], is_multirun: bool
) -> int:
    """All runs of a command line, here or through a launcher. Without `-m` there is one, or those
    of a search of the rate, of which the best is the result."""
    quiet_libraries()
    from sparta_bench.data.splits import complete
    from sparta_bench.runs import at_once
    from sparta_bench.runs.grid import Grid
    from sparta_bench.runs.launch import launcher_of

    configs = [complete(config) for config in configs]
    is_one_run = not is_multirun and len(jobs) == 1
    launcher = None if is_one_run else launcher_of(jobs[0])
    at_once.check_alone(configs[0], launcher)
    is_worker = worker_threads() is not None
    grid = Grid(configs, assets(), elsewhere=launcher is not None, quiet=is_worker)
    if is_worker:
        return at_once.work(grid)
    show_one = partial(_show_single, overrides) if is_one_run else show
    if not is_one_run:
        log(grid.heading())
    for outcome in dict.fromkeys(grid.outcomes):  # a fault of all runs of a model once
        show_one(outcome)
    if is_one_run:
        return _close(grid.run_all(show_one, single=True))
    processes = 1
    try:
        if launcher is not None:
            job_of = {id(config): job for config, job in zip(configs, jobs, strict=True)}
            _launch_all(grid, job_of)
        elif (processes := at_once.processes_for(grid, configs[0].runs_at_once)) > 1:
            at_once.share(grid, _worker_words(overrides), processes, show_one)
        else:
            grid.run_all(show_one)
    except KeyboardInterrupt:
        if launcher is not None or processes > 1:
            grid.look_again(grid.pending.copy(), wait=False)
        done = sum(outcome.kind == "done" for outcome in grid.outcomes)
        log(f"interrupted: {done:,} of {grid.runs:,} runs are done; the same command goes on")
        return INTERRUPTED
    scored = [(outcome.score, outcome) for outcome in grid.outcomes if outcome.score is not None]
    if scored and not is_multirun:
        _, best = min(scored, key=lambda pair: pair[0].dev_loss)
        was_there = all(outcome.was_there for outcome in grid.outcomes)
        _show_single(overrides, replace(best, was_there=was_there, advice=tuple(grid.advice())))
    elif len(scored) > 1:
        show_result(grid_text(score for score, _ in scored), *grid.advice())
    return _close(grid.outcomes)


def _launch_all(grid: Grid, job_of: Mapping[int, list[str]]) -> None:
    """Give the launcher what can run, a configuration's job by its `id`."""
    from sparta_bench.runs.launch import launch

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
        grid.give_up(left)


def _worker_words(overrides: list[str]) -> list[str]:
    """The arguments of a process that makes this grid's runs beside others."""
    own = [word for word in overrides if not word.lstrip("+").startswith("runs_at_once=")]
    folders = [f"--config-dir={folder}" for folder in own_folders()]
    return [*folders, "-m", *own, "runs_at_once=1"]


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
