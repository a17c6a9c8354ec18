"""The figures of the report: accuracy over density, loss over steps, time and memory."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sparta_bench.records.record import Record
from sparta_bench.report.chart import (
    MARKERS,
    Axis,
    Bar,
    Bars,
    Figure,
    Key,
    Plot,
    Series,
    linear_axis,
    log_axis,
    number,
    thinned,
)
from sparta_bench.report.groups import (
    METHODS,
    Group,
    base_method,
    by,
    device_of,
    median,
    share_of,
    value_at,
)
from sparta_bench.tables import paper_tables
from sparta_bench.tables.select import Chosen
from sparta_bench.text import counted, shortened, spread_text

MAX_POINTS = 60  # of a curve; the drawing is not much wider than 300 pixels
MAX_BARS = 40  # of one panel
MAX_FAILED = 5  # curves of failed runs in one panel
LOSS = "loss, nats per example"


def tone_of(method: str) -> str:
    """The name of a method's colour."""
    base = base_method(method)
    return base if base in METHODS else "other"


# ------------------------------------------------------------------------------- by density
@dataclass(frozen=True, slots=True)
class _Score:
    """Where a cell stands: share in percent; accuracy in percent, or mcc × 100."""

    chosen: Chosen
    share: float
    mean: float
    std: float | None
    text: str


def accuracy_figure(group: Group) -> Figure | None:
    """A panel for each task; null where no run of the model completed."""
    panels = [
        panel
        for task, cells in group.tasks().items()
        if (panel := _accuracy_panel(task, list(_scores(cells))))
    ]
    if not panels:
        return None
    methods = {chosen.cell.method for chosen in group.cells if chosen.runs}
    legend = [
        Key(label, tone, MARKERS[tone], "solid" if tone.startswith("sparta") else "none")
        for tone, label in _legend(methods)
    ]
    return Figure(
        f"accuracy {group.name}",
        "Score over density",
        tuple(panels),
        tuple(legend),
    )


def _legend(methods: set[str]) -> Iterator[tuple[str, str]]:
    tones = {tone_of(method) for method in methods}
    for method in METHODS:
        if method in tones:
            yield method, paper_tables.method_name(method)
    if "other" in tones:
        yield "other", "other methods"


def _scores(cells: Iterable[Chosen]) -> Iterator[_Score]:
    for chosen in cells:
        metric = paper_tables.score_of(chosen.cell.task)
        share = share_of(chosen)
        if not chosen.runs or share is None:
            continue
        spread = chosen.over_seeds("test", metric)
        std = None if spread.std is None else 100 * spread.std
        mean = number(100 * spread.mean)
        if mean is not None:
            text = spread_text(mean, std, 1)
            yield _Score(chosen, 100 * share, mean, std, text)


def _accuracy_panel(task: str, scores: list[_Score]) -> Plot | None:
    if not scores:
        return None
    metric = paper_tables.score_of(task)
    title = "test accuracy, %" if metric == "accuracy" else "test mcc × 100"
    ends = [score.mean + sign * (score.std or 0.0) for score in scores for sign in (-1, 1)]
    seeds = sorted({len(score.chosen.runs) for score in scores})
    by_method: dict[str, list[_Score]] = defaultdict(list)
    for score in sorted(scores, key=lambda score: score.share):
        by_method[score.chosen.cell.method].append(score)
    series = [_score_series(method, found) for method, found in by_method.items()]
    # SpaRTA last, so that it lies over what it is compared with
    series.sort(key=lambda one: one.line == "solid")
    return Plot(
        _task(task),
        counted(seeds[0], "seed", "seeds") if len(seeds) == 1 else f"{seeds[0]}–{seeds[-1]} seeds",
        f"{title} on {_task(task)}: "
        + "; ".join(f"{_name(score.chosen)} {score.text}" for score in scores),
        log_axis("density, % of all scalars", [score.share for score in scores]),
        linear_axis(title, ends),
        tuple(series),
    )


def _seeds(chosen: Chosen) -> str:
    return counted(len(chosen.runs), "seed", "seeds")


def _name(chosen: Chosen) -> str:
    return shortened(paper_tables.row_name(chosen.cell.method, chosen.cell.density), 40)


def _task(task: str) -> str:
    return shortened(paper_tables.task_name(task), 40)


def _score_series(method: str, scores: list[_Score]) -> Series:
    tone = tone_of(method)
    return Series(
        shortened(paper_tables.method_name(method), 40),
        tone,
        tuple(score.share for score in scores),
        tuple(score.mean for score in scores),
        "solid" if method.startswith("sparta") else "none",
        MARKERS[tone],
        tuple(range(len(scores))),
        tuple(score.std for score in scores),
        tuple(f"{_name(score.chosen)}: {score.text} ({_seeds(score.chosen)})" for score in scores),
    )


# ------------------------------------------------------------------------------------- loss
@dataclass(frozen=True, slots=True)
class _Curve:
    """Losses of a run by step, as far as its history has them."""

    run: Record
    train: list[tuple[float, float]]
    dev: list[tuple[float, float]]

    @property
    def failed(self) -> bool:
        return self.run.status == "failed"


def loss_figure(group: Group, task: str, cells: list[Chosen]) -> Figure | None:
    """A panel for each method and density, on the same scales; null where none has a history."""
    curves = {chosen.cell: list(_curves(group, chosen)) for chosen in cells}
    every = [curve for found in curves.values() for curve in found]
    if not every:
        return None
    x, y = _loss_axes(every)
    panels = [
        _loss_panel(chosen, curves[chosen.cell], len(group.failed.get(chosen.cell, ())), x, y)
        for chosen in cells
        if curves[chosen.cell]
    ]
    legend = [
        Key("dev loss", "full_ft", None, "solid"),
        Key("kept state", "full_ft", "circle", "none"),
        Key("train loss", "muted", None, "dashed"),
    ]
    if any(curve.failed for curve in every):
        legend.append(Key("failed run, to its end", "bad", "cross", "solid"))
    return Figure(
        f"loss {group.name} {task}",
        _task(task),
        tuple(panels),
        tuple(legend),
    )


def _curves(group: Group, chosen: Chosen) -> Iterator[_Curve]:
    failed = sorted(group.failed.get(chosen.cell, ()), key=lambda run: (run.seed, run.run_id))
    for run in (*chosen.runs, *failed[:MAX_FAILED]):
        curve = _Curve(run, *(_points(run, key) for key in ("train_loss", "dev_loss")))
        if curve.train or curve.dev:
            yield curve


def _points(run: Record, key: str) -> list[tuple[float, float]]:
    history: Any = run.raw.get("history")
    found = []
    for entry in history if isinstance(history, list) else ():
        if isinstance(entry, dict):
            step, loss = number(entry.get("step")), number(entry.get(key))
            if step is not None and loss is not None:
                found.append((step, loss))
    return sorted(found)


def _loss_axes(curves: list[_Curve]) -> tuple[Axis, Axis]:
    """Room for all completed runs; what failed, or ran far away, may leave the frame."""
    points = [point for curve in curves for point in (*curve.train, *curve.dev)]
    sound = [point for curve in curves if not curve.failed for point in (*curve.train, *curve.dev)]
    losses = [loss for _, loss in sound or points]
    limit = 4 * statistics.median(losses)
    y = linear_axis(LOSS, [0.0, *(loss for loss in losses if loss <= limit)], pad=0.04)
    steps = linear_axis("steps", [0.0, *(step for step, _ in points)], pad=0.0)
    return steps, Axis(y.title, min(0.0, y.low) if y.ticks[0][0] < 0 else 0.0, y.high, y.ticks)


def _loss_panel(chosen: Chosen, curves: list[_Curve], failed: int, x: Axis, y: Axis) -> Plot:
    tone = tone_of(chosen.cell.method)
    series = [_loss_series(curve, "muted", curve.train, "dashed") for curve in curves]
    for curve in curves:
        series.append(_loss_series(curve, "bad" if curve.failed else tone, curve.dev, "solid"))
    series += [_end(curve, y) for curve in curves if curve.failed]
    note = _seeds(chosen)
    if failed:
        note += f", {counted(failed, 'failed run', 'failed runs')}"
    said = "; ".join(_said(curve) for curve in curves[:12])
    return Plot(
        _name(chosen), note, f"Loss of {_name(chosen)}: {said}", x, y, tuple(filter(_drawn, series))
    )


def _drawn(series: Series) -> bool:
    return bool(series.xs)


def _loss_series(curve: _Curve, tone: str, points: list[tuple[float, float]], line: Any) -> Series:
    """The curve; on that of dev the state that was kept."""
    best = value_at(curve.run, "training", "best_step")
    kept = [index for index, (step, _) in enumerate(points) if step == best]
    shown = thinned(len(points), MAX_POINTS, kept)
    marked: tuple[int, ...] = ()
    tips: tuple[str, ...] = ()
    if line == "solid" and kept:
        loss = points[kept[-1]][1]
        marked = (shown.index(kept[-1]),)
        tips = (f"seed {curve.run.seed}: {loss:.3f} at step {best:.0f}",)
    return Series(
        f"seed {curve.run.seed}",
        tone,
        tuple(points[index][0] for index in shown),
        tuple(points[index][1] for index in shown),
        line,
        marked=marked,
        tips=tips,
    )


def _end(curve: _Curve, y: Axis) -> Series:
    """Where a failed run ended; at the frame's edge if it had left the frame."""
    step, loss = (curve.dev or curve.train)[-1]
    tip = f"seed {curve.run.seed} failed, {loss:.3g} at step {step:.0f}"
    place = min(max(loss, y.low), y.high)
    return Series("", "bad", (step,), (place,), marker="cross", marked=(0,), tips=(tip,))


def _said(curve: _Curve) -> str:
    points = curve.dev or curve.train
    kind = "dev" if curve.dev else "train"
    (first_step, first), (last_step, last) = points[0], points[-1]
    least = min(loss for _, loss in points)
    failed = ", failed" if curve.failed else ""
    return (
        f"seed {curve.run.seed}{failed}: {kind} {first:.3f} at step {first_step:.0f}, "
        f"lowest {least:.3f}, {last:.3f} at step {last_step:.0f}"
    )


# ------------------------------------------------------------------------- time and memory
def cost_figures(group: Group) -> list[tuple[str, list[Figure]]]:
    """For each device, time and memory: times on different devices are not compared."""
    devices = sorted({device_of(run) for chosen in group.cells for run in chosen.runs})
    found = []
    for device in devices:
        figures = [
            figure
            for kind, title, cost, show in COSTS
            if (figure := _cost_figure(f"{kind} {group.name}", title, group, device, cost, show))
        ]
        if figures:
            found.append((device, figures))
    return found


def _cost_figure(
    name: str,
    title: str,
    group: Group,
    device: str,
    cost: Callable[[Record], float | None],
    show: Callable[[float], str],
) -> Figure | None:
    panels = []
    for task, cells in group.tasks().items():
        rows = []
        for chosen in cells:
            runs = by(chosen.runs, device_of).get(device, [])
            value = median(cost(run) for run in runs)
            if value is not None and value >= 0:
                rows.append(Bar(_name(chosen), tone_of(chosen.cell.method), value, show(value)))
        if rows:
            more = len(rows) - MAX_BARS
            note = f"{more} more not drawn" if more > 0 else ""
            said = "; ".join(f"{row.label} {row.text}" for row in rows)
            alt = f"{title}, {_task(task)}: {said}"
            panels.append(Bars(_task(task), note, alt, tuple(rows[:MAX_BARS])))
    return Figure(name, title, tuple(panels)) if panels else None


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
    ("time", "Training time", training_seconds, seconds_text),
    ("memory", "Peak memory", peak_bytes, bytes_text),
)
