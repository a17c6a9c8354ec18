"""Commands of sparta-bench in children of a process that has imported everything already.

To import torch takes longer than a tiny run. So one process imports, and forks a child for each
command that is asked for: a real process, with files, locks and a death of its own. Run as a
script, this is that process. It reads one JSON object per line and answers each with one.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import signal
import sys
import time
import traceback
from typing import Any


def main() -> None:
    import sparta_bench

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what an import prints is no answer
    for module in pkgutil.walk_packages(sparta_bench.__path__, "sparta_bench."):
        importlib.import_module(module.name)
    _warm_up()
    answer: Any = "ready"
    while True:
        print(json.dumps(answer), file=answers, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        asked = json.loads(line)
        answer = _start(**asked["start"]) if "start" in asked else _wait(**asked["wait"])


def _warm_up() -> None:
    """Compose, and load a model: that fills caches and imports the rest. No gradients, since torch
    computes none in a child of a process that has."""
    import torch

    from sparta_bench.config.compose import compose
    from sparta_bench.models.dtypes import precision_of
    from sparta_bench.runs.assets import AssetCache

    for overrides in ([], ["method=lora"], ["method=head"]):
        config = compose(overrides)
    device = torch.device("cpu")
    AssetCache().take_classifier(config, precision_of(config, device), device)
    importlib.import_module("peft")


def _start(argv: list[str], out: str, prelude: str) -> int:
    """Fork a command whose output goes to the file `out`; returns its process's id."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = _run(argv, out, prelude)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    return pid


def _run(argv: list[str], out: str, prelude: str) -> int:
    from sparta_bench.cli.main import main as command

    os.setsid()
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    exec(prelude, {})
    try:
        return command(argv)
    except SystemExit as end:
        return int(end.code or 0)


def _wait(pid: int, seconds: float) -> int | None:
    """The exit code, negative for a signal; null for one that had to be killed for its time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


if __name__ == "__main__":
    main()
