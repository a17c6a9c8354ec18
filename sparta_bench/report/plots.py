"""The figures as PNG and SVG for papers, drawn by matplotlib."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sparta_bench.errors import InputError
from sparta_bench.files import whole_file
from sparta_bench.report.chart import TONES, Bars, Figure, Line, Marker, Plot, Series
from sparta_bench.text import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing
    from matplotlib.lines import Line2D

COLUMNS, COLUMN_INCHES, PLOT_INCHES, BAR_INCHES = 3, 2.35, 1.95, 0.19
LEGEND_COLUMNS, LEGEND_INCHES = 4, 0.16
DOTS_PER_INCH = 200
MAX_PANELS = 400  # of all figures, half a minute; all of the paper has 288


class Margin(NamedTuple):
    """Inches around a panel's axes."""

    left: float
    right: float
    top: float
    bottom: float


MARGINS = {"plot": Margin(0.5, 0.12, 0.26, 0.48), "bars": Margin(0.98, 0.1, 0.26, 0.12)}
MARKS: dict[Marker, str] = {
    "circle": "o", "square": "s", "diamond": "D", "up": "^", "down": "v", "cross": "x",
}  # fmt: skip
STYLES: dict[Line, Any] = {"none": "", "solid": "-", "dashed": "--"}
SETTINGS: dict[Any, Any] = {
    "font.size": 7.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 7.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": TONES["muted"].light,
    "axes.axisbelow": True,
    "grid.linewidth": 0.4,
    "grid.color": "#dcdfe3",
    "legend.frameon": False,
    "legend.borderpad": 0.2,
    "axes.labelpad": 2.0,
    "svg.fonttype": "none",  # texts stay texts
    "svg.hashsalt": "sparta-bench",  # the same ids each time
    "text.parse_math": False,  # a name may have a dollar sign
}


def check_matplotlib(option: str) -> None:
    """Fail early, in one line, where the optional dependency is not there.

    `option` is what asked for figures, or what goes without them, as the message has it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            f"{option}: the figures need matplotlib: pip install 'sparta-bench[plots]'"
        ) from None


def write_figures(figures: Iterable[Figure], folder: Path) -> int:
    """Write each as `<name>.png` and `<name>.svg`, up to a limit; returns how many figures."""
    import matplotlib

    count = panels = 0
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        # a name in a script that the font lacks is drawn as boxes; the page has it right
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for figure in figures:
            panels += len(figure.panels)
            if panels > MAX_PANELS:
                break
            drawing = _draw(figure)
            with whole_file(folder / f"{figure.name}.svg") as path:
                drawing.savefig(path, format="svg", metadata={"Date": None})
            with whole_file(folder / f"{figure.name}.png") as path:
                drawing.savefig(path, format="png", dpi=DOTS_PER_INCH)
            count += 1
    return count


def _draw(figure: Figure) -> Drawing:
    """Panels in columns, each placed by hand: matplotlib's own layout costs seconds a figure."""
    from matplotlib.figure import Figure as Drawing

    columns = min(COLUMNS, len(figure.panels))
    rows = [
        figure.panels[start : start + columns] for start in range(0, len(figure.panels), columns)
    ]
    heights = [max(map(_height, row)) for row in rows]
    legend = 0.05 + LEGEND_INCHES * math.ceil(len(figure.legend) / LEGEND_COLUMNS)
    width = COLUMN_INCHES * max(columns, 2 if figure.legend else 1)  # room for the legend
    height = sum(heights) + legend
    drawing = Drawing(figsize=(width, height))
    top = height
    for row, row_height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            margin = MARGINS["plot" if isinstance(panel, Plot) else "bars"]
            low = top - _height(panel) + margin.bottom
            box = (
                (column * COLUMN_INCHES + margin.left) / width,
                low / height,
                (COLUMN_INCHES - margin.left - margin.right) / width,
                (top - margin.top - low) / height,
            )
            axes = drawing.add_axes(box)
            # from the panel's edge, not the axes'
            shift = -margin.left / (COLUMN_INCHES - margin.left - margin.right)
            axes.set_title(shortened(panel.title, 40), loc="left", x=shift + 0.02)
            if isinstance(panel, Plot):
                _plot(axes, panel)
            else:
                _bars(axes, panel)
        top -= row_height
    if figure.legend:
        drawing.legend(handles=_handles(figure), loc="lower left", ncols=LEGEND_COLUMNS)
    return drawing


def _height(panel: Plot | Bars) -> float:
    if isinstance(panel, Plot):
        return PLOT_INCHES
    return MARGINS["bars"].top + BAR_INCHES * len(panel.rows) + MARGINS["bars"].bottom


def _plot(axes: Axes, plot: Plot) -> None:
    if plot.x.log:
        axes.set_xscale("log")
    if plot.y.log:
        axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_xlim(plot.x.low, plot.x.high)
    axes.set_ylim(plot.y.low, plot.y.high)
    axes.set_xticks([at for at, _ in plot.x.ticks], [label for _, label in plot.x.ticks])
    axes.set_yticks([at for at, _ in plot.y.ticks], [label for _, label in plot.y.ticks])
    axes.set_xlabel(plot.x.title)
    axes.set_ylabel(plot.y.title)
    axes.grid(axis="y")
    for order, series in enumerate(plot.series):
        _series(axes, series, 3 + order)


def _series(axes: Axes, series: Series, order: int) -> None:
    color = TONES[series.tone].light
    width = 0.7 if series.line == "dashed" else 1.1
    axes.plot(
        series.xs,
        series.ys,
        linestyle=STYLES[series.line],
        linewidth=width,
        color=color,
        marker=MARKS[series.marker] if series.marked else "",
        markersize=3.5,
        markevery=list(series.marked),
        zorder=order,
    )
    for x, y, spread in zip(series.xs, series.ys, series.spreads, strict=False):
        if spread:
            axes.plot([x, x], [y - spread, y + spread], color=color, linewidth=0.8, zorder=order)


def _bars(axes: Axes, bars: Bars) -> None:
    labels = [shortened(row.label, 24) for row in bars.rows]
    values = [row.value for row in bars.rows]
    places = list(range(len(bars.rows)))
    for place, row in zip(places, bars.rows, strict=True):
        start = 0.0
        for piece in row.drawn:
            axes.barh(place, piece.value, 0.62, left=start, color=TONES[piece.tone].light)
            start += piece.value
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_xlim(0, (max(values) or 1.0) * 1.35)  # room for the texts at the ends
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)
    for place, row in zip(places, bars.rows, strict=True):
        axes.annotate(row.text, (row.value, place), (3, 0), textcoords="offset points", va="center")


def _handles(figure: Figure) -> list[Line2D]:
    from matplotlib.lines import Line2D

    return [
        Line2D(
            [],
            [],
            color=TONES[key.tone].light,
            linestyle=STYLES[key.line],
            linewidth=0.7 if key.line == "dashed" else 1.1,
            marker=MARKS[key.marker] if key.marker else "",
            markersize=3.5,
            label=key.label,
        )
        for key in figure.legend
    ]
