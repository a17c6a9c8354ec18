"""The command. What is heavy is imported where it is needed, so that help answers at once."""

from __future__ import annotations

import errno
import os
import signal
import sys
from importlib import import_module
from threading import Thread
from types import FrameType

from sparta_bench import __version__
from sparta_bench.cli import usage
from sparta_bench.config.conf_folder import GROUPS, choices, use_folders
from sparta_bench.devices import worker_threads
from sparta_bench.errors import InputError, did_you_mean, log, meant, refusal_of
from sparta_bench.runs.job import (
    DONE,
    FAILED,
    INTERRUPTED,
    WRONG_INPUT,
    obey_starter,
    quiet_libraries,
)

NO_SUCH_NAMES = (errno.ENAMETOOLONG, errno.ELOOP)  # that no file can have: the command line's fault
COMMANDS = tuple(usage.COMMANDS)  # each has a module `NAME_command` beside this one


def main(argv: list[str] | None = None) -> int:
    """Entry point of `sparta-bench`; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, _as_interrupt)
    if worker_threads() is not None:
        Thread(target=obey_starter, daemon=True).start()
    # before torch is loaded: its idle threads wait for some 20 µs, the time between two operators,
    # then sleep and leave the core to others; sleeping at once makes two threads slower than one
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        use_folders(_take_config_dirs(arguments))
        code = _command(arguments)
        sys.stdout.flush()
        return code
    except InputError as error:
        log(*error.lines)
        return WRONG_INPUT
    except KeyboardInterrupt:
        log("interrupted")
        return INTERRUPTED
    except OSError as error:  # a disk is full, a folder has gone
        _discard_what_is_left_to_print()
        if not isinstance(error, BrokenPipeError):  # of which the reader of our output knows
            log(refusal_of(error))
        return WRONG_INPUT if error.errno in NO_SUCH_NAMES else FAILED


def _take_config_dirs(arguments: list[str]) -> list[str]:
    """Remove `--config-dir DIR` from the arguments, of whatever command, and return the folders."""
    folders: list[str] = []
    for place, word in reversed(list(enumerate(arguments))):
        option, equals, folder = word.partition("=")
        if option not in ("--config-dir", "-cd"):
            continue
        if not equals:
            folder = "".join(arguments[place + 1 : place + 2])
        if not folder:
            raise InputError("--config-dir: needs a folder")
        del arguments[place : place + (1 if equals else 2)]
        folders.insert(0, folder)
    return folders


def _discard_what_is_left_to_print() -> None:
    """Or Python would try again at its end, and report the same in words of its own."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # no file
        pass


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _command(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-") and "=" not in arguments[0]:
        return _subcommand(arguments[0], arguments[1:])
    if "--version" in arguments:
        print(f"sparta-bench {__version__}")
        return DONE
    if {"--help", "-h"} & set(arguments):
        print(usage.text())
        return DONE
    from sparta_bench.cli.experiments import experiments  # Hydra takes a third of a second

    return experiments(arguments)


def _subcommand(name: str, arguments: list[str]) -> int:
    if name not in COMMANDS:
        settings = [f"{group}={name}" for group in GROUPS if name in choices(group)]
        settings += [f"{group}=NAME" for group in GROUPS if name == group]
        near = meant(settings) or did_you_mean(name, COMMANDS)
        raise InputError(f"{name}: neither a subcommand{near} nor of the form key=value")
    quiet_libraries()
    try:
        # a code, where a part of the work may fail alone
        return import_module(f"sparta_bench.cli.{name}_command").main(arguments) or DONE
    except SystemExit as end:  # argparse, after --help
        return int(end.code or DONE)
