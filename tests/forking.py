"""Commands of sparta-bench in children of a process that has imported everything already.

To import torch takes longer than a tiny run. So one process imports, and forks a child for each
command that is asked for: a real process, with files, locks and a death of its own. That process is
a fork of the tests' own, or this script, whose arguments are packages that nobody may import, there
or in a child. It begins with an empty line, then reads one JSON object per line and answers each
with one.
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


def main(forbidden: list[str]) -> None:
    if not sys.stdin.readline():
        return  # nobody has needed it
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what an import prints is no answer
    sys.modules |= dict.fromkeys(forbidden)  # type: ignore[arg-type]  # importing it raises
    importlib.import_module("sparta_bench.cli.main")
    if not forbidden:
        import sparta_bench

        for module in pkgutil.walk_packages(sparta_bench.__path__, "sparta_bench."):
            importlib.import_module(module.name)
        _load_a_model()
    elif "torch" not in forbidden:
        importlib.import_module("torch")
    _compose()
    answer: Any = "ready"
    while True:
        print(json.dumps(answer), file=answers, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        asked = json.loads(line)
        answer = _start(**asked["start"]) if "start" in asked else _wait(**asked["wait"])


def _compose() -> None:
    """That fills caches and imports the rest of Hydra."""
    from sparta_bench.config.compose import compose

    for overrides in ([], ["method=lora"], ["method=head"]):
        compose(overrides)


def _load_a_model() -> None:
    """No gradients, since torch computes none in a child of a process that has."""
    import torch

    from sparta_bench.config.compose import compose
    from sparta_bench.models.dtypes import precision_of
    from sparta_bench.runs.assets import AssetCache

    config, device = compose([]), torch.device("cpu")
    AssetCache().take_classifier(config, precision_of(config, device), device)
    importlib.import_module("peft")


def _start(out: str, err: str, **command: Any) -> int:
    """Fork a command whose output goes to files; returns its process's id."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = _run(out, err, **command)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    return pid


def _run(
    out: str,
    err: str,
    argv: list[str],
    prelude: str,
    script: str,
    cwd: str | None,
    env: dict[str, str],
) -> int:
    from sparta_bench.cli.main import main as command

    os.setsid()
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.chdir(cwd or ".")
    os.environ |= env
    sys.argv = ["sparta-bench", *argv]
    exec(prelude, {})
    try:
        if script:
            exec(script, {"__name__": "__main__"})
            return 0
        return command(argv)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0


def _wait(pid: int, seconds: float) -> int | None:
    """The exit code, negative for a signal; None for one that had to be killed for its time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
