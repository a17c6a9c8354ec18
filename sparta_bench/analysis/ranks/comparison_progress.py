"""How far the comparison is and how long it will take, on standard error."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from sparta_bench.text import as_duration

EVERY_SECONDS = 10  # between two lines where there is no bar


class Progress:
    """A bar when someone is watching, a line now and then when not.

    `work` is the sum of `work_of` over all matrices: they differ a thousandfold in time.
    """

    def __init__(self, matrices: int, work: float) -> None:
        self.matrices, self.work = matrices, work
        self.done, self.done_work = 0, 0.0
        self.started = self.told = time.perf_counter()
        self.console = Console(stderr=True)
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("", total=work)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self.bar.disable:  # rich 14 ends a disabled bar with an empty line
            self.bar.stop()

    def begin(self, what: str) -> None:
        """The next matrix, before it is read."""
        self.bar.update(self.task, description=f"{self.done + 1:,}/{self.matrices:,} {what}")

    def end(self, work: float) -> None:
        """It is done, and was that much work."""
        self.done += 1
        self.done_work += work
        self.bar.update(self.task, completed=self.done_work)
        now = time.perf_counter()
        last = self.done == self.matrices
        if self.bar.disable and (last or now - self.told >= EVERY_SECONDS):
            self.told = now
            seconds = now - self.started
            left = seconds / self.done_work * (self.work - self.done_work)
            tail = "" if last else f", {as_duration(left)} left"
            self.console.print(
                f"ranks: {self.done:,}/{self.matrices:,} matrices, {as_duration(seconds)}{tail}",
                highlight=False,
                soft_wrap=True,
            )


def work_of(shape: tuple[int, int]) -> float:
    """The time that a matrix takes, in some unit: its QR decomposition, and the singular values of
    the triangle, which are slower per operation (a fit to times on a CPU)."""
    short, long = sorted(shape)
    return float(long * short**2 + 5 * short**3)
