"""How far long work is, on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from sparta_bench.errors import log


def progress_bar(total: float, what: str, speaks: bool = True, **how: Any) -> Any:
    """A bar of tqdm's that leaves nothing behind; `disable` is set where nobody would see it."""
    disable = not (speaks and sys.stderr.isatty())
    return tqdm(total=total, desc=what, leave=False, dynamic_ncols=True, disable=disable, **how)


def watched(batches: Sequence[list[int]], what: str, speaks: bool) -> Iterator[list[int]]:
    """The batches, with a bar or a line from the moment when the first is asked for."""
    with progress_bar(len(batches), what, speaks) as bar:
        if bar.disable and speaks:
            examples = sum(map(len, batches))
            print(f"{what}: {examples} examples, once for all epochs", file=sys.stderr, flush=True)
        for batch in batches:
            yield batch
            bar.update()


class ProgressReporter:
    """What the training loop reports; of several processes only the main one `speaks`."""

    def __init__(self, steps: int, speaks: bool = True) -> None:
        self.steps, self.speaks = steps, speaks
        self.bar = progress_bar(steps, "step", speaks)
        self.started = time.perf_counter()
        self.first_step: int | None = None  # a resumed run does not begin at 0
        self.dev_scores = ""

    def __enter__(self) -> ProgressReporter:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def step(self, step: int, loss: float, rate: float) -> None:
        """Shown in the bar only."""
        self.bar.set_postfix_str(f"loss {loss:.3f}  rate {rate:.1e}{self.dev_scores}", False)
        self.bar.update(step - self.bar.n)

    def evaluated(self, step: int, scores: Mapping[str, float], best: bool) -> None:
        """Shown in the bar, and as a line where there is none."""
        text = f"dev loss {scores['loss']:.4f}  accuracy {scores['accuracy']:.3f}"
        self.dev_scores = f"  {text}"
        self.first_step = step if self.first_step is None else self.first_step
        if self.bar.disable and self.speaks:
            seconds = time.perf_counter() - self.started
            done = step - self.first_step
            left = f", at most {seconds / done * (self.steps - step):.0f} s left" if done else ""
            mark = "  best so far" if best else ""
            line = f"step {step}/{self.steps}  {text}  {seconds:.0f} s{left}{mark}"
            print(f"{line}\n", end="", file=sys.stderr, flush=True)  # whole, or not at all

    def warn(self, line: str) -> None:
        """A line of its own, also where there is a bar."""
        self.bar.clear()
        if self.speaks:
            log(line)
