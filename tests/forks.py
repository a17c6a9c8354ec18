"""`sparta-bench` as processes that need not import anything: children of forking.py."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import IO, Any, NamedTuple

import forking

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


class Server(NamedTuple):
    """A process that forks commands (forking.py), and its pipes."""

    pid: int
    questions: IO[str]
    answers: IO[str]


def start_server(*forbidden: str) -> Server:
    """A new process in which nobody can import these packages; without any, a fork of this one,
    which has imported nearly all and must not have computed a gradient yet."""
    asked, questions = os.pipe()
    answers, answered = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(asked, 0)
            os.dup2(answered, 1)
            os.closerange(3, 4096)
            if forbidden:
                words = [sys.executable, str(Path(__file__).with_name("forking.py")), *forbidden]
                os.execv(sys.executable, words)
            _serve()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(asked)
    os.close(answered)
    return Server(pid, os.fdopen(questions, "w"), os.fdopen(answers))


def _serve() -> None:
    """Undo what pytest has done to this process, and answer."""
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
    forking.main([])


class Forks:
    """Commands of a server."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        self.count = 0
        print(file=server.questions, flush=True)
        assert self._answer() == "ready"

    def ask(self, **what: Any) -> Any:
        """One question, one answer."""
        print(json.dumps(what), file=self.server.questions, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        return json.loads(self.server.answers.readline())

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
        os.kill(self.server.pid, signal.SIGKILL)
        os.waitpid(self.server.pid, 0)
        self.server.questions.close()
        self.server.answers.close()
