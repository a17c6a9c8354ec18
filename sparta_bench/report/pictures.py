"""What the panels of the report show: tables, scores over density, losses, settings, costs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sparta_bench.records.record import Cell, Record
from sparta_bench.report.facts import (
    METHODS,
    Card,
    Group,
    device_of,
    median,
    name_of,
    number,
    peak_bytes,
    share_of,
    task_of,
    test_score,
    tone_of,
    training_seconds,
    training_value,
)
from sparta_bench.report.plots import MARKS, WIDTH, Frame, Key, Lines, Panel, joined
from sparta_bench.tables.paper_tables import row_name, score_of
from sparta_bench.tables.select import Chosen, Spread
from sparta_bench.text import as_bytes, as_duration, shortened, signed, spread_text

MAX_POINTS = 60  # of a curve; a panel is not much wider than 300 pixels
MAX_FAILED, MAX_CELLS = 3, 12  # curves in one panel
LABELS, ROW = 88, 17  # of a card: width of the names of its rows, height of a row
STYLES = ("-", (0, (4, 2)), (0, (1.2, 1.6)))  # SpaRTA's densities, the highest first


def method_keys(methods: Iterable[str]) -> tuple[Key, ...]:
    """The legend of colours and markers."""
    tones = {tone_of(method) for method in methods}
    names = {**{method: row_name(method) for method in METHODS}, "other": "other methods"}
    return tuple(Key(name, tone, MARKS[tone]) for tone, name in names.items() if tone in tones)


# ------------------------------------------------------------------------------------- cards
def card_panel(card: Card) -> Panel:
    """Scores with spread above, each column with its own scale; differences as a heat map below.

    Both have the same rows and columns.
    """
    end = 16 + ROW * len(card.rows)  # of the scores
    below = end + 36
    mapped = bool(card.printed or card.differences)
    room = (WIDTH - LABELS) / len(card.columns)

    def draw(frame: Frame) -> None:
        for row, (name, _) in enumerate(card.rows):
            for top in (16, below) if mapped else (16,):
                frame.text(0, top + (row + 0.5) * ROW, name, fontsize=8.5)
        for column, name in enumerate(card.columns):
            middle = LABELS + (column + 0.5) * room
            frame.text(middle, 8, shortened(name, round(room / 5)), ha="center", fontsize=8.5)
            _draw_scores(frame, card, column, LABELS + column * room, room)
        if mapped:
            _draw_differences(frame, card, below, room)

    said = []
    for column, head in enumerate(card.columns):
        values = []
        for row, (name, _) in enumerate(card.rows):
            score, printed = card.scores.get((row, column)), card.printed.get((row, column))
            if score is not None:
                beside = "" if printed is None else f" (paper {printed:g})"
                values.append(f"{name} {spread_text(score.mean, score.std, 1)}{beside}")
        if values:
            said.append(f"{head}: {', '.join(values)}")
    alt = f"{card.title}: {'; '.join(said) or 'no run completed'}"
    height = below + ROW * len(card.rows) + 2 if mapped else end + 18
    return Panel("", "", alt, draw, WIDTH, height)


def _draw_scores(frame: Frame, card: Card, column: int, left: float, room: float) -> None:
    """A mark and a bar for each of our scores of a column, a line across for the paper's."""
    end = 16 + ROW * len(card.rows)
    frame.line((left + 3, left + room - 3), (end + 1, end + 1), "rule", lw=1)
    ours = {row: one for (row, at), one in card.scores.items() if at == column}
    printed = {row: value for (row, at), value in card.printed.items() if at == column}
    ends = [one.mean + sign * (one.std or 0.0) for one in ours.values() for sign in (-1, 1)]
    ends += printed.values()
    if not ends:
        return
    low, high = min(ends), max(ends)
    start = left + 7 if high > low else left + room / 2
    scale = (room - 14) / (high - low) if high > low else 0.0
    marks = []
    for row, value in printed.items():
        x, y = start + scale * (value - low), 16 + (row + 0.5) * ROW
        marks.append(((x, x), (y - 6, y + 6)))
    frame.line(*joined(marks), "muted", lw=1.6)
    for row, score in ours.items():
        x, y = start + scale * (score.mean - low), 16 + (row + 0.5) * ROW
        half, tone = scale * (score.std or 0.0), card.rows[row][1]
        look = {"lw": 1.4, "marker": MARKS[tone], "markersize": 4.5, "markevery": [1]}
        frame.line((x - half, x, x + half), (y, y, y), tone, **look)
    digits = 1 if high - low < 2 else 0
    text = f"{low:.{digits}f}" + (f"–{high:.{digits}f}" if high - low >= 0.1 else "")
    frame.text(left + room / 2, end + 9, text, "muted", ha="center", fontsize=7.5)


def _draw_differences(frame: Frame, card: Card, below: float, room: float) -> None:
    """A coloured field with a number for each difference."""
    what = "the paper’s" if card.printed else card.rows[0][0]
    frame.text(0, below - 8, f"Points less {what}", "muted", fontsize=8.5)
    limit = max(1.0, *(abs(one.points) for one in card.differences.values()), 0.0)
    look: Any = {"ha": "center", "fontsize": 8.5 if room > 34 else 7.5}
    for row in range(len(card.rows)):
        y = below + (row + 0.5) * ROW
        for column in range(len(card.columns)):
            left = LABELS + column * room
            one = card.differences.get((row, column))
            if one is not None:
                tone = "above" if one.points > 0 else "below"
                alpha = round(0.04 + 0.36 * abs(one.points) / limit, 2)
                frame.line((left + 1, left + room - 1), (y, y), tone, lw=ROW - 2, alpha=alpha)
                weight = "bold" if one.within is False else "normal"
                frame.text(left + room / 2, y, signed(one.points), fontweight=weight, **look)
            elif card.printed or row > 0:
                frame.text(left + room / 2, y, "–", "muted", **look)


# ------------------------------------------------------------------------------- by density
def density_panel(task: str, cells: Sequence[Chosen]) -> Panel | None:
    """Test score over the share of all scalars that were trained; None where nothing is known."""
    by_method: dict[str, list[tuple[float, Spread]]] = defaultdict(list)
    said = []
    for chosen in cells:
        if chosen.runs and (share := share_of(chosen)) > 0:
            score = test_score(chosen)
            by_method[chosen.cell.method].append((100 * share, score))
            said.append(f"{name_of(chosen)} {spread_text(score.mean, score.std, 1)}")
    lines = []
    # SpaRTA last, so that it lies over what it is compared with
    for method in sorted(by_method, key=lambda method: "sparta" in method):
        points, tone = sorted(by_method[method], key=lambda point: point[0]), tone_of(method)
        look = {"ls": "-" if method.startswith("sparta") else "", "marker": MARKS[tone]}
        shares, scores = zip(*points, strict=True)
        lines.append(Lines(shares, [score.mean for score in scores], tone, look))
        bars = [
            ((share, share), (score.mean - score.std, score.mean + score.std))
            for share, score in points
            if score.std
        ]
        lines.append(Lines(*joined(bars), tone, {"lw": 1}))
    if not lines:
        return None
    what = "test accuracy, %" if score_of(task) == "accuracy" else "test mcc × 100"

    def draw(frame: Frame) -> None:
        frame.chart(lines, "% of all scalars trained", log_x=True)

    return Panel(task_of(task), what, f"{what} on {task_of(task)}: {'; '.join(said)}", draw)


# ------------------------------------------------------------------------------------- loss
class _Curve(NamedTuple):
    """Dev loss of a run by step, thinned; `kept` is the point that was kept."""

    course: str
    steps: tuple[float, ...]
    losses: tuple[float, ...]
    kept: list[tuple[float, float]]


def loss_panel(
    task: str, cells: Sequence[Chosen], failed: Mapping[Cell, Sequence[Record]]
) -> Panel | None:
    """Dev loss of the settings shown, a line a seed; None where no run has a history."""
    good: list[_Curve] = []
    lines = []
    for chosen, tone, style in _styled(cells):
        curves = _curves(chosen.runs, name_of(chosen))
        good += curves
        xs, ys = joined((curve.steps, curve.losses) for curve in curves)
        lines.append(Lines(xs, ys, tone, {"ls": style, "lw": 1}))
        xs, ys = joined(zip(*curve.kept, strict=True) for curve in curves if curve.kept)
        lines.append(Lines(xs, ys, tone, {"ls": "", "marker": "o", "markersize": 3.5}))
    runs = [run for chosen in cells[:MAX_CELLS] for run in failed.get(chosen.cell, ())]
    runs.sort(key=lambda run: (run.seed, run.run_id))
    bad = _curves(runs, "failed:")[:MAX_FAILED]
    if not good and not bad:
        return None
    losses = [loss for curve in good or bad for loss in curve.losses]
    # what ran far away leaves the frame; the end of a failed run is marked at its edge
    low, high = min(0.0, *losses), 1.06 * min(max(losses), 4 * statistics.median(losses)) or 1.0
    last = max(curve.steps[-1] for curve in (*good, *bad)) or 1.0
    for one in bad:
        lines.append(Lines(one.steps, one.losses, "bad", {"lw": 1}))
        cross = {"marker": "x", "mew": 1, "clip_on": False}
        lines.append(Lines([one.steps[-1]], [max(low, min(one.losses[-1], high))], "bad", cross))

    def draw(frame: Frame) -> None:
        frame.chart(lines, "steps", x=(0.0, 1.04 * last), y=(low, high))

    said = "; ".join(curve.course for curve in (*good, *bad)[:MAX_CELLS])
    note = "dev loss, nats" + (f", {len(bad)} failed" if bad else "")
    return Panel(task_of(task), note, f"Dev loss on {task_of(task)}: {said}", draw)


def _styled(cells: Sequence[Chosen]) -> Iterator[tuple[Chosen, str, Any]]:
    """The first cells with a tone and a line: densities of a method, the highest first."""
    seen: dict[str, int] = defaultdict(int)
    for chosen in cells[:MAX_CELLS]:
        method = chosen.cell.method
        yield chosen, tone_of(method), STYLES[min(seen[method], len(STYLES) - 1)]
        seen[method] += 1


def _curves(runs: Iterable[Record], name: str) -> list[_Curve]:
    curves = []
    for run in runs:
        history = run.raw.get("history")
        points = sorted(
            (step, loss)
            for entry in (history if isinstance(history, list) else ())
            if isinstance(entry, dict)
            and (step := number(entry.get("step"))) is not None
            and (loss := number(entry.get("dev_loss"))) is not None
        )
        if points:
            best = training_value(run, "best_step")
            kept = [point for point in points if point[0] == best][-1:]
            steps, losses = zip(*sorted({*thinned(points, MAX_POINTS), *kept}), strict=True)
            course = (
                f"{name} seed {run.seed} {losses[0]:.3f}, lowest {min(losses):.3f}, "
                f"{losses[-1]:.3f} at step {steps[-1]:.0f}"
            )
            curves.append(_Curve(course, steps, losses, kept))
    return curves


def thinned(points: Sequence[Any], at_most: int) -> list[Any]:
    """Evenly spaced ones, the first and the last among them."""
    if len(points) <= at_most:
        return list(points)
    return [points[round(index * (len(points) - 1) / (at_most - 1))] for index in range(at_most)]


# --------------------------------------------------------------------------------- settings
def settings_panel(
    task: str, cells: Sequence[Chosen], others: Mapping[Cell, Sequence[Record]]
) -> Panel | None:
    """Mean dev loss of every setting compared, by learning rate; the one shown has a ring.

    None where no cell had a choice.
    """
    lines, said = [], []
    losses: list[float] = []
    for chosen, tone, style in _styled(cells):
        means: dict[str, tuple[float, float]] = {}
        by_setting: dict[str, list[Record]] = defaultdict(list)
        for run in (*chosen.runs, *others.get(chosen.cell, ())):
            by_setting[run.setting].append(run)
        for setting, runs in by_setting.items():
            if (rate := runs[0].train["learning_rate"]) > 0:
                means[setting] = rate, statistics.fmean(run.score("dev", "loss") for run in runs)
        shown = means.get(chosen.runs[0].setting) if chosen.runs else None
        if shown is None:
            continue
        xs, ys = zip(*sorted(means.values()), strict=True)
        losses += ys
        lines.append(Lines(xs, ys, tone, {"ls": style, "lw": 1, "marker": "o", "markersize": 2.5}))
        ring = {"marker": "o", "markersize": 7, "mfc": "none", "mew": 1}
        lines.append(Lines([shown[0]], [shown[1]], tone, ring))
        said.append(f"{name_of(chosen)} {shown[1]:.3f} at {shown[0]:g}, of {len(means)}")
    if all(len(one.xs) < 2 for one in lines):
        return None
    high = min(max(losses), 4 * statistics.median(losses))
    room = 0.08 * (high - min(losses)) or 0.05

    def draw(frame: Frame) -> None:
        frame.chart(lines, "learning rate", log_x=True, y=(min(losses) - room, high + room))

    note = "dev loss of the settings compared"
    alt = f"Settings compared on {task_of(task)}: {'; '.join(said)}"
    return Panel(task_of(task), note, alt, draw)


# ------------------------------------------------------------------------------------ costs
def cost_panels(group: Group) -> list[Panel]:
    """Time and memory, a panel a device: times on different devices are not compared."""
    devices = sorted({device_of(run) for chosen in group.cells for run in chosen.runs})
    panels = (_cost_panel(group, device, time) for device in devices for time in (True, False))
    return [panel for panel in panels if panel is not None]


def _cost_panel(group: Group, device: str, time: bool) -> Panel | None:
    """A row for each method and density, a dot for each task: the median over seeds."""
    title, cost = ("Training time", training_seconds) if time else ("Peak memory", peak_bytes)
    rows: dict[str, tuple[str, list[float]]] = {}
    for chosen in group.cells:
        value = median(cost(run) for run in chosen.runs if device_of(run) == device)
        if value:
            rows.setdefault(name_of(chosen), (chosen.cell.method, []))[1].append(value)
    left_out = len(rows) - MAX_CELLS
    rows = dict(list(rows.items())[:MAX_CELLS])
    if not rows:
        return None
    most = max(value for _, values in rows.values() for value in values)
    units = (("s", 1.0), ("min", 60.0), ("h", 3600.0)) if time else (("MB", 1e6), ("GB", 1e9))
    unit, size = next((one for one in reversed(units) if most >= 2 * one[1]), units[0])
    lines = [
        Lines([value / size for value in values], [row] * len(values), tone_of(method),
              {"ls": "", "marker": "o", "alpha": 0.7})
        for row, (method, values) in enumerate(rows.values())
    ]  # fmt: skip

    def draw(frame: Frame) -> None:
        names, limits = [shortened(name, 18) for name in rows], (len(rows) - 0.4, -0.6)
        frame.chart(lines, unit, names=names, x=(0.0, 1.04 * most / size), y=limits)

    said = "; ".join(
        f"{name} {', '.join(as_duration(one, 1) if time else as_bytes(one) for one in values)}"
        for name, (_, values) in rows.items()
    )
    note = shortened(device, 36) + (f", {left_out} more not drawn" if left_out > 0 else "")
    return Panel(title, note, f"{title} on {device}: {said}", draw, WIDTH, 68 + ROW * len(rows))
