"""What a person sees while a run goes on: a bar when someone is watching, plain lines when not."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    track,
)


class Reporter(Protocol):
    """What the training loop tells."""

    def step(self, step: int, loss: float, rate: float) -> None: ...

    def evaluated(self, step: int, scores: Mapping[str, float], best: bool) -> None: ...

    def warn(self, line: str) -> None: ...


def watched(
    batches: Sequence[list[int]], what: str, speaks: bool
) -> Generator[list[int], None, None]:
    """The batches, with a bar when someone is watching and a line at the start when not.

    Nothing is shown before the first batch is asked for. To be closed, so that the bar goes.
    """
    console = Console(stderr=True, quiet=not speaks)
    if not console.is_terminal:
        examples = sum(len(rows) for rows in batches)
        console.print(f"{what}: {examples} examples, once for all epochs", highlight=False)
        yield from batches
    else:
        yield from track(batches, what, console=console, transient=True)


class ProgressReporter:
    """A reporter on standard error. Standard output is left to the result; of several processes
    only the main one speaks."""

    def __init__(self, steps: int, speaks: bool = True) -> None:
        self.steps = steps
        self.console = Console(stderr=True, quiet=not speaks)
        self.started = time.perf_counter()
        self.first_step: int | None = None  # a resumed run does not begin at 0
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("", total=steps)
        self.dev = ""

    def __enter__(self) -> ProgressReporter:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.bar.disable:  # rich 14 ends a disabled bar with an empty line
            self.bar.stop()

    def step(self, step: int, loss: float, rate: float) -> None:
        """Shown in the bar only."""
        text = f"loss {loss:.3f}  rate {rate:.1e}{self.dev}"
        self.bar.update(self.task, completed=step, description=text)

    def evaluated(self, step: int, scores: Mapping[str, float], best: bool) -> None:
        """Shown in the bar, and as a line where there is none."""
        self.first_step = step if self.first_step is None else self.first_step
        text = f"dev loss {scores['loss']:.4f}  accuracy {scores['accuracy']:.3f}"
        self.dev = f"  {text}"
        if self.bar.disable:
            seconds = time.perf_counter() - self.started
            done = step - (self.first_step or 0)
            left = f", at most {seconds / done * (self.steps - step):.0f} s left" if done else ""
            mark = "  best so far" if best else ""
            self.console.print(
                f"step {step}/{self.steps}  {text}  {seconds:.0f} s{left}{mark}",
                highlight=False,
                soft_wrap=True,
            )

    def warn(self, line: str) -> None:
        """A line of its own, also where there is a bar."""
        self.console.print(f"sparta-bench: {line}", highlight=False, markup=False, soft_wrap=True)
