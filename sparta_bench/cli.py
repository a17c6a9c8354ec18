"""The command. Everything heavy is imported only when a run or a plan begins, so that help and
shell completion answer at once."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
import warnings
from argparse import ArgumentError, Namespace
from collections.abc import Callable
from types import FrameType
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser

from sparta_bench import __version__, subcommands
from sparta_bench.compose import (
    HYDRA_ERRORS,
    compose,
    compose_all,
    config_dir,
    sweep_jobs,
    to_plain,
)
from sparta_bench.config import from_dict
from sparta_bench.errors import InputError, did_you_mean, reason_of

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Entry point of `sparta-bench`; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        if arguments[:1] == ["--version"]:
            print(f"sparta-bench {__version__}")
            return DONE
        if arguments and not arguments[0].startswith("-") and "=" not in arguments[0]:
            return _subcommand(arguments[0], arguments[1:])
        return _experiments(arguments)
    except InputError as error:
        _tell(*error.lines)
        return WRONG_INPUT
    except KeyboardInterrupt:
        _tell("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _tell(*lines: str) -> None:
    for line in lines:
        print(f"sparta-bench: {line}", file=sys.stderr)


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _quiet_libraries() -> None:
    # Their progress bars and notices would drown ours, or end up in the JSON.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", category=FutureWarning)


# ---------------------------------------------------------------------------- subcommands
def _subcommand(name: str, arguments: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "plan": _plan,
        "bench": _bench,
        "predict": _predict,
        "merge": _merge,
    }
    if name not in commands:
        near = did_you_mean(name, commands)
        raise InputError(f"{name}: neither a subcommand{near} nor of the form key=value")
    return commands[name](arguments)


def _plan(arguments: list[str]) -> int:
    overrides = [argument for argument in arguments if argument != "--json"]
    wrong = [override for override in overrides if override.startswith("-")]
    if wrong in (["--help"], ["-h"]):
        print("usage: sparta-bench plan [--json] [key=value ...]\n\n"
              "Parameter counts, data counts, lengths, steps and memory of an experiment,\n"
              "without weights. --json prints one JSON object and nothing else.")  # fmt: skip
        return DONE
    if wrong:
        raise InputError(*(f"{option}: plan knows no option but --json" for option in wrong))
    config = compose(overrides)
    _quiet_libraries()
    from sparta_bench.plan import as_json, as_text, plan

    planned = plan(config)
    print(as_json(planned) if "--json" in arguments else as_text(planned))
    return DONE


def _bench(arguments: list[str]) -> int:
    _quiet_libraries()
    from sparta_bench.bench.command import main

    main(arguments)
    return DONE


def _predict(arguments: list[str]) -> int:
    return _parsed(subcommands.predict, arguments)


def _merge(arguments: list[str]) -> int:
    return _parsed(subcommands.merge, arguments)


def _parsed(command: Callable[[list[str]], None], arguments: list[str]) -> int:
    _quiet_libraries()
    try:
        command(arguments)
    except SystemExit as end:  # argparse, after --help
        return int(end.code or DONE)
    return DONE


# ---------------------------------------------------------------------------- experiments
def _experiments(arguments: list[str]) -> int:
    """One run, or with `-m` one after the other, through Hydra; the worst outcome is the code."""
    options, overrides = _options(arguments)
    only_shows = options.help or options.hydra_help or options.info or options.cfg
    if not (only_shows or options.shell_completion):
        # Hydra would stop at its first error, and in a sweep only after earlier runs
        compose_all(sweep_jobs(overrides) if options.multirun else [overrides])
    outcomes: list[tuple[int, str]] = []

    @hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")
    def experiment(composed: Any) -> None:
        outcomes.append(_one(composed))

    before, sys.argv = sys.argv, [sys.argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise faults, so that they are told here, in one line
    try:
        experiment()
    except HYDRA_ERRORS as error:
        compose(overrides)  # which says it better, if it is the overrides' fault
        raise InputError(reason_of(error)) from None
    except OSError as error:  # Hydra's own folders; those of a run are told by `_one`
        raise InputError(f"hydra.run.dir or hydra.sweep.dir: {error}") from None
    finally:
        sys.argv = before
    return _close(outcomes)


def _options(arguments: list[str]) -> tuple[Namespace, list[str]]:
    """Hydra's options and the overrides, checked as far as Hydra would answer with a traceback."""
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        options, unknown = parser.parse_known_args(arguments)
    except ArgumentError as error:
        raise InputError(str(error)) from None
    lines = [f"{word}: no such option (see --help)" for word in unknown if word.startswith("-")]
    for name in ("config_path", "config_name", "config_dir", "experimental_rerun"):
        if getattr(options, name) is not None:
            lines.append(f"--{name.replace('_', '-')}: this option of Hydra's is not supported")
    overrides = [*options.overrides, *(word for word in unknown if not word.startswith("-"))]
    if options.shell_completion and not re.fullmatch(
        r"(install|uninstall|query)=(bash|zsh|fish)", " ".join(overrides)
    ):
        lines.append("--shell-completion: needs install=, uninstall= or query= and a shell's name")
    if lines:
        raise InputError(*lines)
    return options, overrides


def _one(composed: Any) -> tuple[int, str]:
    """Run one experiment; whatever happens to it does not keep a sweep's others from running."""
    _quiet_libraries()
    try:
        config = from_dict(to_plain(composed))
        from sparta_bench.run import run, summary_line

        record, path, was_there = run(config)
    except InputError as error:
        _tell(*error.lines)
        return WRONG_INPUT, error.lines[0]
    except KeyboardInterrupt:
        # Hydra turns it into an error of its own; the exit code is ours to give
        _tell("interrupted")
        sys.exit(INTERRUPTED)
    except OSError as error:
        _tell(str(error))
        return FAILED, str(error)
    except Exception as error:  # a fault of the program
        traceback.print_exc()
        return FAILED, f"{type(error).__name__}: {error}"
    line = summary_line(record, path, was_there)
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)
    return (DONE if record["status"] == "completed" else FAILED), line


def _close(outcomes: list[tuple[int, str]]) -> int:
    bad = [line for code, line in outcomes if code != DONE]
    if bad and len(outcomes) > 1:
        _tell(f"{len(bad)} of {len(outcomes)} runs did not complete:", *bad)
    codes = {code for code, _ in outcomes}
    return FAILED if FAILED in codes else max(codes, default=DONE)


if __name__ == "__main__":
    sys.exit(main())
