"""How far long work is, on standard error: a bar on a terminal; elsewhere plain lines, at least one
in half a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from sparta_bench.devices import worker_threads
from sparta_bench.errors import log

SECONDS_BETWEEN_LINES = 30.0
# tqdm's own without the rate: with losses it would not fit 80 columns
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class Lines:
    """Lines where there is no bar, and when the last one was printed."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def print(self, line: str) -> None:
        if worker_threads() is None:  # else the process that started this one shows how far all are
            print(f"{line}\n", end="", file=sys.stderr, flush=True)  # whole, or not at all
        self.last = time.perf_counter()

    @property
    def is_due(self) -> bool:
        return time.perf_counter() - self.last >= SECONDS_BETWEEN_LINES


def progress_bar(total: float, what: str, speaks: bool = True, **how: Any) -> Any:
    """A bar of tqdm's that leaves nothing behind; `disable` is set where nobody would see it."""
    disable = not (speaks and sys.stderr.isatty())
    how |= {"bar_format": BAR, "dynamic_ncols": True, "leave": False}
    return tqdm(total=total, desc=what, disable=disable, **how)


def watched(
    batches: Sequence[list[int]],
    what: str,
    speaks: bool = True,
    heading: str = "",
    lines: Lines | None = None,
) -> Iterator[list[int]]:
    """The batches, with a bar where they take over a second; without a terminal with a line each
    half minute, and a first one if there is a `heading`."""
    with progress_bar(len(batches), what, speaks, delay=1) as bar:
        prints, lines = bar.disable and speaks, lines or Lines()
        started, done, examples = time.perf_counter(), 0, sum(map(len, batches))
        if prints and heading:
            lines.print(f"{what}: {examples:,} examples{heading}")
        for batch in batches:
            yield batch
            bar.update()
            done += len(batch)
            if prints and lines.is_due:
                seconds = time.perf_counter() - started
                left = seconds / done * (examples - done)
                lines.print(
                    f"{what}: {done:,}/{examples:,} examples  {seconds:.0f} s, "
                    f"about {left:.0f} s left"
                )


class ProgressReporter:
    """What the training loop reports; of several processes only the main one `speaks`."""

    def __init__(self, steps: int, speaks: bool = True) -> None:
        self.steps, self.speaks = steps, speaks
        self.lines = Lines()
        self.bar = progress_bar(steps, "step", speaks)
        self.started = time.perf_counter()
        self.first_step = 0  # but for a resumed run
        self.dev_scores = ""

    def __enter__(self) -> ProgressReporter:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def step(self, step: int, loss: float) -> None:
        """Shown in the bar; as a line where there is none, and has been none for a while."""
        if self._prints and self.lines.is_due:
            self.lines.print(f"step {step}/{self.steps}  loss {loss:.3f}{self._time(step)}")
        self.bar.set_postfix_str(f"loss {loss:.3f}{self.dev_scores}", False)
        self.bar.update(step - self.bar.n)

    def evaluated(self, step: int, scores: Mapping[str, float], best: bool) -> None:
        """Shown in the bar, and as a line where there is none."""
        text = f"dev loss {scores['loss']:.4f}  accuracy {scores['accuracy']:.3f}"
        self.dev_scores = f"  dev {scores['loss']:.4f}, {scores['accuracy']:.1%}"
        if self._prints:
            mark = "  best so far" if best else ""
            self.lines.print(f"step {step}/{self.steps}  {text}{self._time(step)}{mark}")

    def evaluating(self, what: str) -> Callable[[Sequence[list[int]]], Iterator[list[int]]]:
        """Shows how far an evaluation of `what` is."""
        return lambda batches: watched(batches, what, self.speaks, lines=self.lines)

    def resumed(self, step: int) -> None:
        """Say that a checkpoint was found, and of which step."""
        self.first_step = step
        self.warn(f"goes on from step {step} of {self.steps}, where its checkpoint is")

    @property
    def _prints(self) -> bool:
        return bool(self.bar.disable and self.speaks)

    def _time(self, step: int) -> str:
        seconds = time.perf_counter() - self.started
        done = step - self.first_step
        left = f", at most {seconds / done * (self.steps - step):.0f} s left" if done else ""
        return f"  {seconds:.0f} s{left}"

    def warn(self, line: str) -> None:
        """A line of its own, also where there is a bar."""
        self.bar.clear()
        if self.speaks:
            log(line)
