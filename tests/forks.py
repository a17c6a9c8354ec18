"""`sparta-bench` as processes that need not import anything: children of forking.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 120.0  # that no command here needs


class Done(NamedTuple):
    """What a command came to."""

    code: int | None
    out: str
    err: str


class Command:
    """A command that was started; its output is in files."""

    def __init__(self, forks: Forks, pid: int, out: Path, err: Path) -> None:
        self.forks, self.pid, self.out, self.err = forks, pid, out, err

    def ends(self) -> int | None:
        """The exit code, negative for a signal; None if it had to be killed for its time."""
        code = self.forks.ask(wait={"pid": self.pid, "seconds": SECONDS})
        return None if code is None else int(code)

    def done(self) -> Done:
        """Wait for its end."""
        code = self.ends()
        return Done(code, self.out.read_text("utf-8"), self.err.read_text("utf-8"))

    def kill_after(self, seconds: float) -> int | None:
        """Kill -9 after that time, unless it has ended by itself; the exit code."""
        time.sleep(seconds)
        os.kill(self.pid, 9)  # the forking process has not waited for it, so it is there
        return self.ends()

    def waits_for(self, text: str) -> None:
        """Return when it has told that; fail if it ends before or takes too long."""
        deadline = time.monotonic() + SECONDS
        while text not in self.told():
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.005)

    def told(self) -> str:
        """What it has printed so far, on standard error where that is apart."""
        return self.err.read_text(encoding="utf-8")


class Forks:
    """The process that forks (forking.py), and its commands."""

    def __init__(self, folder: Path, *forbidden: str) -> None:
        self.folder = folder
        self.count = 0
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forking.py")), *forbidden],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def ask(self, **what: Any) -> Any:
        """One question, one answer."""
        assert self.process.stdin is not None
        print(json.dumps(what), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def start(
        self,
        *argv: str,
        prelude: str = "",
        script: str = "",
        cwd: Path | None = None,
        apart: bool = False,
        **env: str,
    ) -> Command:
        """Start `sparta-bench argv`, or Python's `script` with these words.

        `prelude` is Python that the child runs before it; `apart` keeps standard error from
        standard output; `env` adds to the environment.
        """
        self.count += 1
        out = self.folder / f"{self.count}.txt"
        err = self.folder / f"{self.count}.err" if apart else out
        for path in (out, err):
            path.touch()
        command = {
            "out": str(out),
            "err": str(err),
            "argv": argv,
            "prelude": prelude,
            "script": script,
            "cwd": None if cwd is None else str(cwd),
            "env": env,
        }
        return Command(self, self.ask(start=command), out, err)

    def call(self, *argv: str, **how: Any) -> Done:
        """Start it (see `start`) and wait for its end, with its two outputs apart."""
        return self.start(*argv, apart=True, **how).done()

    def run(self, *argv: str, code: int | None = 0, prelude: str = "") -> str:
        """Run it to its end, which must be this exit code; what it told."""
        command = self.start(*argv, prelude=prelude)
        ended = command.ends()
        assert ended == code, command.told()
        return command.told()

    def close(self) -> None:
        """End the forking process, which has nothing to lose."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
