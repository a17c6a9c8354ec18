"""Panels as inline SVG: small, and coloured by the page's style, so that light and dark work."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from sparta_bench.report.chart import Axis, Bars, Key, Marker, Plot, Series
from sparta_bench.text import escaped, shortened

# in units of the drawing, which is scaled to its column; texts are 11 units high
WIDTH, HEIGHT = 320, 216
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 22, 40
ROW, LABEL, VALUE = 22, 108, 60
MARKS: dict[Marker, str] = {
    "circle": "m-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z",
    "square": "m-3.2-3.2h6.4v6.4h-6.4z",
    "diamond": "m0-4.6l4.6 4.6l-4.6 4.6l-4.6-4.6z",
    "up": "m0-4.4l4.4 7.6h-8.8z",
    "down": "m0 4.4l4.4-7.6h-8.8z",
    "cross": "m-3.5-3.5l7 7m0-7l-7 7",
}


def panel(drawn: Plot | Bars, name: str) -> str:
    """One `<svg>`; `name` is a word that no other drawing of the page has."""
    return _plot(drawn, name) if isinstance(drawn, Plot) else _bars(drawn)


def key(entry: Key) -> str:
    """The sample of a legend's entry."""
    parts = []
    if entry.line != "none":
        parts.append(f'<path class="{_line_class(entry.line)} {entry.tone}" d="M1 7h26"/>')
    if entry.marker is not None:
        parts.append(_mark(entry.marker, entry.tone, 14, 7))
    return f'<svg class="key" viewBox="0 0 28 14" aria-hidden="true">{"".join(parts)}</svg>'


def _svg(height: float, alt: str, body: Iterable[str]) -> str:
    label = escaped(alt)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {_short(height)}" role="img" '
        f'aria-label="{label}">{"".join(body)}</svg>'
    )


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    # far outside of the frame is far enough: the frame cuts it
    part = min(5.0, max(-5.0, axis.place(value)))
    return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)


# ------------------------------------------------------------------------------------- plots
def _plot(plot: Plot, name: str) -> str:
    clip = f"clip-{name}"
    frame = (
        f'<clipPath id="{clip}"><path d="M{LEFT} {TOP - 4}H{WIDTH}V{HEIGHT - BOTTOM + 4}H{LEFT}z"/>'
        "</clipPath>"
    )
    inner = "".join(part for series in plot.series for part in _series(plot, series))
    return _svg(HEIGHT, plot.alt, [frame, *_axes(plot), f'<g clip-path="url(#{clip})">{inner}</g>'])


def _axes(plot: Plot) -> Iterable[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    grid = [_y(plot.y, at) for at, _ in plot.y.ticks]
    ticks = [_x(plot.x, at) for at, _ in plot.x.ticks]
    yield f'<path class="grid" d="{"".join(f"M{LEFT} {_short(y)}H{right}" for y in grid)}"/>'
    marks = "".join(f"M{_short(x)} {bottom}v4" for x in ticks)
    yield f'<path class="axis" d="M{LEFT} {bottom}H{right}{marks}"/>'
    for y, (_, label) in zip(grid, plot.y.ticks, strict=True):
        yield f'<text class="e" x="{LEFT - 6}" y="{_short(y + 3.8)}">{escaped(label)}</text>'
    for x, (_, label) in zip(ticks, plot.x.ticks, strict=True):
        yield f'<text class="m" x="{_short(x)}" y="{bottom + 16}">{escaped(label)}</text>'
    yield f'<text x="0" y="10">{escaped(plot.y.title)}</text>'
    yield f'<text class="e" x="{right}" y="{HEIGHT - 6}">{escaped(plot.x.title)}</text>'


def _series(plot: Plot, series: Series) -> Iterable[str]:
    places = [(_x(plot.x, x), _y(plot.y, y)) for x, y in zip(series.xs, series.ys, strict=True)]
    if series.line != "none" and len(places) > 1:
        path = "M" + "L".join(f"{_short(x)} {_short(y)}" for x, y in places)
        yield f'<path class="{_line_class(series.line)} {series.tone}" d="{path}"/>'
    for (x, _), y, spread in zip(places, series.ys, series.spreads, strict=False):
        if spread:
            low, high = _y(plot.y, y - spread), _y(plot.y, y + spread)
            path = f"M{_short(x)} {_short(low)}V{_short(high)}"
            yield f'<path class="l thin {series.tone}" d="{path}"/>'
    for index, tip in itertools.zip_longest(series.marked, series.tips, fillvalue=""):
        if isinstance(index, int):
            yield _mark(series.marker, series.tone, *places[index], tip)


def _line_class(line: str) -> str:
    return "l dash" if line == "dashed" else "l"


def _mark(marker: Marker, tone: str, x: float, y: float, tip: str = "") -> str:
    kind = "l" if marker == "cross" else "f"
    start = f'<path class="{kind} {tone}" d="M{_short(x)} {_short(y)}{MARKS[marker]}"'
    return f"{start}><title>{escaped(tip)}</title></path>" if tip else f"{start}/>"


# -------------------------------------------------------------------------------------- bars
def _bars(bars: Bars) -> str:
    most = max((row.value for row in bars.rows), default=0.0) or 1.0
    room = WIDTH - LABEL - VALUE
    parts = []
    for index, row in enumerate(bars.rows):
        top, length = index * ROW, room * max(0.0, row.value) / most
        base, end = _short(top + 14.5), _short(LABEL + max(length, 1) + 5)
        label = escaped(shortened(row.label, 18))
        parts.append(f'<text x="0" y="{base}">{label}</text>')
        start = float(LABEL)
        for piece in row.drawn:
            long = room * max(0.0, piece.value) / most
            seen = long if row.pieces else max(long, 1)  # a bar of nothing, too
            bar = f"M{_short(start)} {top + 6}h{_short(seen)}v10H{_short(start)}z"
            parts.append(f'<path class="f {piece.tone}" d="{bar}"/>')
            start += long
        parts.append(f'<text class="v" x="{end}" y="{base}">{escaped(row.text)}</text>')
    return _svg(len(bars.rows) * ROW + 2, bars.alt, parts)
