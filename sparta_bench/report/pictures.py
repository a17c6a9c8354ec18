"""What the panels of the report show: tables, scores over density, losses, settings, costs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sparta_bench.records.record import Cell, Record
from sparta_bench.report.cards import Card, Score, signed, test_score
from sparta_bench.report.groups import (
    METHODS,
    Group,
    device_of,
    median,
    number,
    share_of,
    tone_of,
    value_at,
)
from sparta_bench.report.plots import MARKS, TONES, WIDTH, Frame, Key, Panel, plain_ticks
from sparta_bench.tables import paper_tables
from sparta_bench.tables.select import Chosen
from sparta_bench.text import shortened, spread_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 60  # of a curve; a panel is not much wider than 300 pixels
MAX_FAILED, MAX_CELLS = 3, 12  # curves in one panel
LABELS, ROW = 88, 17  # of a card: width of the names of its rows, height of a row
STYLES = ("-", (0, (4, 2)), (0, (1.2, 1.6)))  # SpaRTA's densities, the highest first


def method_keys(methods: Iterable[str]) -> tuple[Key, ...]:
    """The legend of colours and markers."""
    tones = {tone_of(method) for method in methods}
    keys = [
        Key(paper_tables.method_name(method), method, MARKS[method])
        for method in METHODS
        if method in tones
    ]
    return (*keys, *([Key("other methods", "other", MARKS["other"])] if "other" in tones else []))


def task_of(task: str) -> str:
    """A task's name, as a title has it."""
    return shortened(paper_tables.task_name(task), 40)


def name_of(chosen: Chosen) -> str:
    """Method and density."""
    return shortened(paper_tables.row_name(chosen.cell.method, chosen.cell.density), 40)


# ------------------------------------------------------------------------------------- cards
def card_panel(card: Card) -> Panel:
    """Scores with spread above, each column with its own scale; differences as a heat map below.

    Both have the same rows and columns.
    """
    rows, columns = len(card.rows), len(card.columns)
    below = 52 + ROW * rows
    mapped = bool(card.printed or card.differences)
    height = below + ROW * rows + 2 if mapped else below - 18

    def draw(frame: Frame) -> None:
        axes = frame.axes(0, 0, 0, 0)
        axes.set_xlim(0, WIDTH)
        axes.set_ylim(height, 0)  # downwards, like lines of a page
        axes.axis("off")
        room = (WIDTH - LABELS) / columns
        for row, name in enumerate(card.rows):
            axes.text(0, 16 + (row + 0.5) * ROW, name, fontsize=8.5, va="center")
        for column, name in enumerate(card.columns):
            middle = LABELS + (column + 0.5) * room
            axes.text(middle, 8, shortened(name, round(room / 5)), ha="center", fontsize=8.5)
            _card_scores(axes, card, column, LABELS + column * room, room)
        if mapped:
            _card_differences(axes, card, below, room)

    return Panel("", "", f"{card.title}: {_said(card)}", draw, WIDTH, height)


def _card_differences(axes: Axes, card: Card, below: float, room: float) -> None:
    """A coloured field with a number for each difference."""
    what = "paper’s" if card.printed else card.against
    muted, ink = TONES["muted"].light, TONES["ink"].light
    axes.text(0, below - 8, f"Points less {what}", fontsize=8.5, color=muted, va="center")
    limit = max(1.0, *(abs(one.points) for one in card.differences.values()), 0.0)
    for row, name in enumerate(card.rows):
        top = below + row * ROW
        axes.text(0, top + 0.5 * ROW, name, fontsize=8.5, va="center")
        for column in range(len(card.columns)):
            left = LABELS + column * room
            one = card.differences.get((row, column))
            text, color, weight = "–", muted, "normal"
            if one is not None:
                text, color = signed(one.points), ink
                weight = "bold" if one.within is False else "normal"
                tone = TONES["above" if one.points > 0 else "below"].light
                alpha = round(0.04 + 0.36 * min(1.0, abs(one.points) / limit), 2)
                box = (left + 1, left + room - 1), top + 1, top + ROW - 1
                axes.fill_between(*box, color=tone, alpha=alpha, linewidth=0)
            elif not card.printed and row == 0:
                continue
            look: Any = {
                "fontsize": 8.5 if room > 34 else 7.5,
                "color": color,
                "fontweight": weight,
            }
            axes.text(left + room / 2, top + ROW / 2, text, ha="center", va="center", **look)


def _card_scores(axes: Axes, card: Card, column: int, left: float, room: float) -> None:
    """The scores of a column: a marker and a bar for ours, a line across for the paper's."""
    ours = {row: one for (row, where), one in card.scores.items() if where == column}
    printed = {row: value for (row, where), value in card.printed.items() if where == column}
    ends = [one.mean + sign * (one.std or 0.0) for one in ours.values() for sign in (-1, 1)]
    ends += printed.values()
    bottom = 16 + ROW * len(card.rows)
    axes.plot([left + 3, left + room - 3], [bottom + 1] * 2, color=TONES["rule"].light, lw=1)
    if not ends:
        return
    low, high = min(ends), max(ends)
    span = max(high - low, 1e-9)

    def x(value: float) -> float:
        return left + 7 + (room - 14) * ((value - low) / span if high > low else 0.5)

    digits = 1 if high - low < 2 else 0
    text = f"{low:.{digits}f}–{high:.{digits}f}" if high - low >= 0.1 else f"{low:.{digits}f}"
    text = text.replace("-", "−")
    axes.text(left + room / 2, bottom + 9, text, ha="center", va="center", fontsize=7.5,
              color=TONES["muted"].light)  # fmt: skip
    for row, tone in enumerate(card.tones):
        y = 16 + (row + 0.5) * ROW
        color = TONES[tone].light
        if row in printed:
            at = x(printed[row])
            axes.plot([at, at], [y - 6, y + 6], color=TONES["muted"].light, lw=1.6)
        if row in ours:
            mean, std = ours[row].mean, ours[row].std or 0.0
            axes.plot([x(mean - std), x(mean + std)], [y, y], color=color, lw=1.4)
            axes.plot([x(mean)], [y], MARKS[tone], color=color, markersize=4.5, mew=0)


def _said(card: Card) -> str:
    parts = []
    for column, head in enumerate(card.columns):
        values = []
        for row, name in enumerate(card.rows):
            score, printed = card.scores.get((row, column)), card.printed.get((row, column))
            if score is not None:
                beside = "" if printed is None else f" (paper {printed:g})"
                values.append(f"{name} {spread_text(score.mean, score.std, 1)}{beside}")
        if values:
            parts.append(f"{head}: {', '.join(values)}")
    return "; ".join(parts) or "no run completed"


# ------------------------------------------------------------------------------- by density
def density_panel(task: str, cells: Sequence[Chosen]) -> Panel | None:
    """Test score over the share of all scalars that were trained; None where nothing is known."""
    by_method: dict[str, list[tuple[float, Score, Chosen]]] = defaultdict(list)
    for chosen in cells:
        share, score = share_of(chosen), test_score(chosen) if chosen.runs else None
        if share is not None and score is not None:
            by_method[chosen.cell.method].append((100 * share, score, chosen))
    if not by_method:
        return None

    def draw(frame: Frame) -> None:
        axes = frame.axes()
        axes.set_xscale("log")
        # SpaRTA last, so that it lies over what it is compared with
        for method in sorted(by_method, key=lambda method: "sparta" in method):
            color, mark = TONES[tone_of(method)].light, MARKS[tone_of(method)]
            points = sorted((share, score.mean) for share, score, _ in by_method[method])
            line = "-" if method.startswith("sparta") else ""
            axes.plot(*zip(*points, strict=True), line, color=color, marker=mark, mew=0)
            for share, score, _ in by_method[method]:
                if score.std:
                    ends = score.mean - score.std, score.mean + score.std
                    axes.plot([share] * 2, ends, color=color, lw=1)
        axes.margins(0.08, 0.1)
        _finish(axes, "% of all scalars trained", log=True)

    what = "test accuracy, %" if paper_tables.score_of(task) == "accuracy" else "test mcc × 100"
    said = "; ".join(
        f"{name_of(chosen)} {spread_text(score.mean, score.std, 1)}"
        for found in by_method.values()
        for _, score, chosen in found
    )
    return Panel(task_of(task), what, f"{what} on {task_of(task)}: {said}", draw)


def _finish(axes: Axes, label: str, log: bool = False) -> None:
    plain_ticks(axes.xaxis, log)
    plain_ticks(axes.yaxis)
    axes.set_xlabel(label)
    axes.grid(axis="y")


# ------------------------------------------------------------------------------------- loss
class _Curve(NamedTuple):
    """Dev loss of a run by step, thinned; `kept` is the point that was kept."""

    name: str
    color: str
    line: Any
    steps: list[float]
    losses: list[float]
    kept: tuple[float, float] | None

    @property
    def course(self) -> str:
        return (
            f"{self.name} {self.losses[0]:.3f}, lowest {min(self.losses):.3f}, "
            f"{self.losses[-1]:.3f} at step {self.steps[-1]:.0f}"
        )


def loss_panel(
    task: str, cells: Sequence[Chosen], failed: Mapping[Cell, Sequence[Record]]
) -> Panel | None:
    """Dev loss of the settings shown, a line a seed; None where no run has a history."""
    curves, lost = [], []
    for chosen, color, line in _styled(cells):
        curves += [_curve(run, name_of(chosen), color, line) for run in chosen.runs]
        runs = sorted(failed.get(chosen.cell, ()), key=lambda run: (run.seed, run.run_id))
        lost += [_curve(run, "failed:", TONES["bad"].light, "-") for run in runs]
    good = [curve for curve in curves if curve is not None]
    bad = [curve for curve in lost if curve is not None][:MAX_FAILED]
    if not good and not bad:
        return None
    losses = [loss for curve in good or bad for loss in curve.losses]
    # what ran far away leaves the frame; the end of a failed run is marked at its edge
    low, high = min(0.0, *losses), 1.06 * min(max(losses), 4 * statistics.median(losses)) or 1.0

    def draw(frame: Frame) -> None:
        axes = frame.axes()
        for one in (*good, *bad):
            axes.plot(one.steps, one.losses, color=one.color, linestyle=one.line, lw=1)
            if one.kept is not None:
                axes.plot(*one.kept, "o", color=one.color, markersize=3.5, mew=0)
        for one in bad:
            end = max(low, min(one.losses[-1], high))
            axes.plot(one.steps[-1], end, "x", color=one.color, clip_on=False)
        axes.set_ylim(low, high)
        axes.set_xlim(left=0)
        _finish(axes, "steps")

    said = "; ".join(curve.course for curve in (*good, *bad)[:MAX_CELLS])
    note = "dev loss, nats" + (f", {len(bad)} failed" if bad else "")
    return Panel(task_of(task), note, f"Dev loss on {task_of(task)}: {said}", draw)


def _styled(cells: Sequence[Chosen]) -> Iterator[tuple[Chosen, str, Any]]:
    """The first cells with a colour and a line: densities of a method, the highest first."""
    seen: dict[str, int] = defaultdict(int)
    for chosen in cells[:MAX_CELLS]:
        method = chosen.cell.method
        yield chosen, TONES[tone_of(method)].light, STYLES[min(seen[method], len(STYLES) - 1)]
        seen[method] += 1


def _curve(run: Record, name: str, color: str, line: Any) -> _Curve | None:
    history = run.raw.get("history")
    found = [
        (step, loss)
        for entry in (history if isinstance(history, list) else ())
        if isinstance(entry, dict)
        and (step := number(entry.get("step"))) is not None
        and (loss := number(entry.get("dev_loss"))) is not None
    ]
    if not found:
        return None
    found.sort()
    best = value_at(run, "training", "best_step")
    kept = [index for index, (step, _) in enumerate(found) if step == best]
    points = [found[index] for index in thinned(len(found), MAX_POINTS, kept)]
    steps, losses = map(list, zip(*points, strict=True))
    at = found[kept[-1]] if kept else None
    return _Curve(f"{name} seed {run.seed}", color, line, steps, losses, at)


def thinned(length: int, at_most: int, keep: Sequence[int] = ()) -> list[int]:
    """Evenly spaced indices of a sequence, its first and last and those of `keep` among them."""
    if length <= at_most:
        return list(range(length))
    even = {round(index * (length - 1) / (at_most - 1)) for index in range(at_most)}
    return sorted(even | set(keep))


# --------------------------------------------------------------------------------- settings
def settings_panel(
    task: str, cells: Sequence[Chosen], others: Mapping[Cell, Sequence[Record]]
) -> Panel | None:
    """Mean dev loss of every setting compared, by learning rate; the one shown has a ring.

    None where no cell had a choice.
    """
    lines = [
        (chosen, color, line, points)
        for chosen, color, line in _styled(cells)
        if (points := _settings(chosen, others.get(chosen.cell, ())))
    ]
    if all(len(points) < 2 for *_, points in lines):
        return None
    losses = [loss for *_, points in lines for _, loss, _ in points]
    high = min(max(losses), 4 * statistics.median(losses))
    room = 0.08 * (high - min(losses)) or 0.05

    def draw(frame: Frame) -> None:
        axes = frame.axes()
        axes.set_xscale("log")
        for _, color, line, points in lines:
            xs, ys, _ = zip(*points, strict=True)
            axes.plot(xs, ys, linestyle=line, color=color, lw=1, marker="o", markersize=2.5)
            best = [(x, y) for x, y, shown in points if shown]
            axes.plot(*zip(*best, strict=True), "o", color=color, markersize=7, mfc="none")
        axes.set_ylim(min(losses) - room, high + room)
        axes.margins(x=0.08)
        _finish(axes, "learning rate", log=True)

    said = "; ".join(
        f"{name_of(chosen)} {loss:.3f} at {rate:g}, of {len(points)}"
        for chosen, *_, points in lines
        for rate, loss, shown in points
        if shown
    )
    note = "dev loss of the settings compared"
    return Panel(task_of(task), note, f"Settings compared on {task_of(task)}: {said}", draw)


def _settings(chosen: Chosen, others: Sequence[Record]) -> list[tuple[float, float, bool]]:
    """Learning rate, mean dev loss, and whether it is shown; nothing where that one has none."""
    by_setting: dict[str, list[Record]] = defaultdict(list)
    for run in (*chosen.runs, *others):
        by_setting[run.setting].append(run)
    points = [
        (rate, loss, runs[0].setting == chosen.runs[0].setting)
        for runs in by_setting.values()
        if (rate := number(runs[0].train.get("learning_rate"))) and rate > 0
        and (loss := number(statistics.fmean(run.score("dev", "loss") for run in runs))) is not None
    ]  # fmt: skip
    return sorted(points) if any(shown for *_, shown in points) else []


# ------------------------------------------------------------------------------------ costs
def cost_panels(group: Group) -> list[Panel]:
    """Time and memory, a panel a device: times on different devices are not compared."""
    devices = sorted({device_of(run) for chosen in group.cells for run in chosen.runs})
    panels = (_cost_panel(group, device, *cost) for device in devices for cost in COSTS)
    return [panel for panel in panels if panel is not None]


def _cost_panel(
    group: Group,
    device: str,
    title: str,
    cost: Callable[[Record], float | None],
    show: Callable[[float], str],
) -> Panel | None:
    """A row for each method and density, a dot for each task: the median over seeds."""
    rows: dict[str, tuple[str, list[float]]] = {}
    for chosen in group.cells:
        value = median(cost(run) for run in chosen.runs if device_of(run) == device)
        if value is not None and value > 0:
            rows.setdefault(name_of(chosen), (chosen.cell.method, []))[1].append(value)
    left_out = len(rows) - MAX_CELLS
    rows = dict(list(rows.items())[:MAX_CELLS])
    if not rows:
        return None
    height = 58 + ROW * len(rows)

    def draw(frame: Frame) -> None:
        axes = frame.axes(left=108, right=14, bottom=24)
        for row, (method, values) in enumerate(rows.values()):
            color = TONES[tone_of(method)].light
            axes.plot(values, [row] * len(values), "o", color=color, markersize=5, alpha=0.7,
                      mew=0)  # fmt: skip
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_yticks(range(len(rows)), [shortened(name, 18) for name in rows])
        axes.tick_params(axis="y", labelcolor=TONES["ink"].light)
        axes.locator_params(axis="x", nbins=4)
        axes.xaxis.set_major_formatter(lambda value, _: show(value) if value else "0")
        axes.grid(axis="both")

    said = "; ".join(f"{name} {', '.join(map(show, values))}" for name, (_, values) in rows.items())
    note = shortened(device, 36) + (f", {left_out} more not drawn" if left_out > 0 else "")
    return Panel(title, note, f"{title} on {device}: {said}", draw, WIDTH, height)


def seconds_text(seconds: float) -> str:
    """`7.6 s`, `1,234 s`."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"


def bytes_text(count: float) -> str:
    """`868 MB`, `25.1 GB`; powers of ten."""
    return f"{count / 1e6:,.0f} MB" if count < 1e10 else f"{count / 1e9:,.1f} GB"


def training_seconds(run: Record) -> float | None:
    """Seconds of training without evaluations, but with Head's one pass for its features."""
    seconds = value_at(run, "training", "seconds")
    features = value_at(run, "training", "features_seconds")
    return seconds if seconds is None else seconds + (features or 0.0)


def peak_bytes(run: Record) -> float | None:
    """Memory at its peak, in bytes."""
    return value_at(run, "training", "peak_memory_bytes")


COSTS = (
    ("Training time", training_seconds, seconds_text),
    ("Peak memory", peak_bytes, bytes_text),
)
