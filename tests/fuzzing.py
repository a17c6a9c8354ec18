"""The command in this process, as a user meets it: its exit code, and what it wrote."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, settings

import sparta_bench
from sparta_bench.cli.main import main

TINY = str(Path(sparta_bench.__file__).parent / "tiny_models" / "tiny-gemma")
SECONDS = 300  # after which a command counts as hung
# SPARTA_BENCH_FUZZ=2000 gives each test so many examples, others each time
CAMPAIGN = int(os.environ.get("SPARTA_BENCH_FUZZ", "0"))


def examples(few: int) -> settings:
    """`few` examples, the same in every run; or those of a campaign, made smaller if they fail."""
    return settings(
        phases=[Phase.generate, Phase.shrink] if CAMPAIGN else [Phase.generate],
        max_examples=CAMPAIGN or few,
        derandomize=not CAMPAIGN,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=bool(CAMPAIGN),
    )


class HungError(BaseException):
    """No Exception, so that nothing takes it for a fault of a file."""


class Told(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


def command(arguments: list[str], stdin: bytes = b"") -> Told:
    """Run it as a shell would: strict UTF-8 on standard output, anything on standard error."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict", newline="\n")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace", newline="\n")
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
    ends = signal.getsignal(signal.SIGTERM)
    try:
        with redirect_stdout(out), redirect_stderr(err), _no_longer_than(SECONDS):
            code = main(arguments)
            out.flush()
    finally:
        sys.stdin = before
        signal.signal(signal.SIGTERM, ends)  # `main` makes an interruption of it
        err.flush()
    return Told(code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode())  # type: ignore[attr-defined]


@contextmanager
def _no_longer_than(seconds: int) -> Iterator[None]:
    def hung(number: int, frame: FrameType | None) -> None:
        raise HungError(f"for {seconds} s")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def assert_told_well(told: Told, *codes: int) -> None:
    """One of the codes; no traceback; and of wrong input a line that says what is wrong."""
    assert told.code in codes, told
    assert "Traceback" not in told.err, told.err
    if told.code == 2:
        lines = told.err.splitlines()
        said = [line for line in lines if line.startswith("sparta-bench: ")]
        assert said and said[-1] == lines[-1], told.err
        assert all(len(line) > len("sparta-bench: ") + 8 for line in said), told.err
