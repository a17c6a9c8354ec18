"""One style for all figures, drawn by matplotlib: inline SVG for the page, files for papers."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sparta_bench.errors import InputError
from sparta_bench.files import whole_file
from sparta_bench.text import escaped, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing
    from matplotlib.lines import Line2D
    from matplotlib.transforms import Transform


class Tone(NamedTuple):
    """A colour on a white ground (and on paper), and its counterpart on a dark one."""

    light: str
    dark: str


# After Okabe and Ito's colour-blind-safe set, darkened or lightened until each has a contrast of
# at least 4.5 to its ground. The light values differ from each other: the page finds them in the
# SVG, and puts the variable of that name in their stead.
TONES = {
    "sparta": Tone("#0067a8", "#5db7f0"),
    "sparta_vo": Tone("#8a3f8f", "#d79be0"),
    "lora": Tone("#b34700", "#f0a04b"),
    "full_ft": Tone("#22262b", "#e8eaed"),
    "head": Tone("#00705a", "#3cc7a3"),
    "other": Tone("#6b5a00", "#d6c25a"),
    "bad": Tone("#b3123b", "#ff8fa3"),
    "ink": Tone("#1d2125", "#e4e7ea"),
    "muted": Tone("#5c636b", "#a3abb5"),
    "rule": Tone("#dcdfe3", "#31373d"),
    "above": Tone("#0a62a6", "#62b5ee"),
    "below": Tone("#b04600", "#f2a65a"),
}
MARKS = {"sparta": "o", "sparta_vo": "D", "lora": "s", "full_ft": "^", "head": "v", "other": "D"}
UNITS_PER_INCH = 72  # of SVG; sizes of panels are in these units
WIDTH, HEIGHT = 320, 210
COLUMNS, LEGEND_COLUMNS = 3, 6  # of the files, at most
DOTS_PER_INCH = 150
MAX_PANELS = 200  # of all files, about half a minute
SETTINGS: dict[Any, Any] = {
    "font.size": 9.5,
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": TONES["ink"].light,
    "text.parse_math": False,  # a name may have a dollar sign
    **{f"axes.spines.{side}": False for side in ("top", "right", "left")},
    "axes.facecolor": "none",
    "ytick.major.size": 0.0,
    "lines.linewidth": 1.3,
    "lines.markersize": 5.0,
    "lines.markeredgewidth": 0.0,
    "lines.solid_capstyle": "butt",
    "legend.frameon": False,
    "svg.fonttype": "none",  # texts stay texts
    "svg.hashsalt": "sparta-bench",  # the same ids each time
}


class Lines(NamedTuple):
    """Points of a chart, with lines between them that have gaps at NaN; `look` is matplotlib's."""

    xs: Sequence[float]
    ys: Sequence[float]
    tone: str
    look: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Panel:
    """One drawing. `note` stands beside the title, `alt` says it to who cannot see it.

    `draw` draws into a frame of `width` by `height` units of 1/72 inch, below the title.
    """

    title: str
    note: str
    alt: str
    draw: Callable[[Frame], None]
    width: float = WIDTH
    height: float = HEIGHT


class Key(NamedTuple):
    """An entry of a legend; without a marker it is a line, drawn in `style`."""

    label: str
    tone: str
    marker: str = ""
    style: Any = "-"


@dataclass(frozen=True, slots=True)
class Figure:
    """Panels that are read together. `name` is that of its files."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    legend: tuple[Key, ...] = ()
    columns: int = COLUMNS


def check_matplotlib(option: str) -> None:
    """Fail early, in one line that names the option, where the optional dependency is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            f"{option}: the figures need matplotlib: pip install 'sparta-bench[plots]'"
        ) from None


@contextmanager
def style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        # a name in a script that the font lacks is drawn as boxes in a PNG; SVG has it right
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


# ---------------------------------------------------------------------------------- drawing
@dataclass(frozen=True, slots=True)
class Frame:
    """A rectangle of a drawing, in units from its upper left corner, `top` from the drawing's
    lower edge. matplotlib's own axes, ticks and layout take most of the time of a drawing.
    """

    drawing: Drawing
    left: float
    top: float
    width: float
    height: float

    def _units(self) -> Transform:
        from matplotlib.transforms import Affine2D

        return Affine2D().scale(1 / UNITS_PER_INCH) + self.drawing.dpi_scale_trans

    def text(self, x: float, y: float, text: str, tone: str = "ink", **look: Any) -> None:
        """A text, vertically centred unless `look` says otherwise."""
        look = {"va": "center", "color": TONES[tone].light, "transform": self._units(), **look}
        self.drawing.text(self.left + x, self.top - y, text, **look)

    def line(self, xs: Iterable[float], ys: Iterable[float], tone: str, **look: Any) -> Line2D:
        """A line with or without marks, or marks alone."""
        from matplotlib.lines import Line2D

        points = [self.left + x for x in xs], [self.top - y for y in ys]
        look = {"color": TONES[tone].light, "transform": self._units(), **look}
        line = Line2D(*points, **look)
        self.drawing.add_artist(line)
        return line

    def axes(self, left: float, right: float, top: float, bottom: float) -> Axes:
        width, height = self.drawing.get_size_inches() * UNITS_PER_INCH
        x, y = (self.left + left) / width, (self.top - self.height + bottom) / height
        across, up = self.width - left - right, self.height - top - bottom
        return self.drawing.add_axes((x, y, across / width, up / height))

    def chart(
        self, lines: Sequence[Lines], label: str, *, log_x: bool = False, log_y: bool = False,
        x: tuple[float, float] | None = None, y: tuple[float, float] | None = None,
        names: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Lines on a grid with round numbers; `x` and `y` are limits, `names` those of rows 0, 1, …
        instead of numbers. What lies beyond given limits is cut off."""
        from matplotlib.transforms import Bbox, TransformedBbox

        left, right = 108.0 if names else 44.0, self.width - 10
        upper, lower = 24.0, self.height - 36
        to_x, x_ticks = _axis([one.xs for one in lines], x, log_x, left, right)
        to_y, y_ticks = _axis([one.ys for one in lines], y, log_y, lower, upper)
        numbers = ((value, number_text(value)) for value in y_ticks)
        rows: list[tuple[float, str]] = [*enumerate(names)] or [*numbers]
        for value, text in rows:
            self.text(left - 4, to_y(value), text, "ink" if names else "muted", ha="right")
        grid = joined([((left, right), (to_y(value), to_y(value))) for value, _ in rows])
        self.line(*grid, "rule", lw=0.7, zorder=1)
        self.line((left, right), (lower, lower), "muted", lw=0.7, zorder=1)
        for value in x_ticks:
            self.text(to_x(value), lower + 4, number_text(value), "muted", ha="center", va="top")
        self.text((left + right) / 2, lower + 24, label, "muted", ha="center")
        for one in lines:
            line = self.line(map(to_x, one.xs), map(to_y, one.ys), one.tone, **one.look)
            if y is not None:
                ends = (self.left + left, self.top - lower), (self.left + right, self.top - upper)
                line.set_clip_box(TransformedBbox(Bbox(ends), self._units()))


def joined(lines: Iterable[Iterable[Iterable[float]]]) -> tuple[list[float], list[float]]:
    """Several lines as one with gaps, which is drawn much faster."""
    xs: list[float] = []
    ys: list[float] = []
    for x, y in lines:
        xs += [*x, math.nan]
        ys += [*y, math.nan]
    return xs, ys


def _axis(
    lines: Iterable[Sequence[float]], limits: tuple[float, float] | None, log: bool, start: float,
    end: float,
) -> tuple[Callable[[float], float], list[float]]:  # fmt: skip
    """What gives a value its place between `start` and `end`, and round values for ticks. Without
    limits those are the least and the greatest value with a margin."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    def own(value: float) -> float:
        return math.log10(value) if log else value

    if limits is not None:
        low, high = map(own, limits)
    else:
        values = [own(value) for one in lines for value in one if not math.isnan(value)]
        margin = 0.08 * (max(values) - min(values)) or (0.2 if log else 0.5)
        low, high = min(values) - margin, max(values) + margin
    locator: Any = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
    if log:
        locator = LogLocator(subs=(1, 2, 5) if high - low < 1.3 else (1,), numticks=7)
    ends = sorted((low, high))
    ticks = locator.tick_values(*(math.pow(10, end) if log else end for end in ends)).tolist()
    factor = (end - start) / (high - low)
    return (
        lambda value: start + factor * (own(value) - low),
        [value for value in ticks if ends[0] <= own(value) <= ends[1]],
    )


def number_text(value: float) -> str:
    """`0.25`, `1,000`, `2e-5`."""
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return re.sub(r"e([+-])0*", lambda sign: f"e{sign[1].strip('+')}", f"{value:.4g}")


# ------------------------------------------------------------------------------ for the page
_STRIPPED = re.compile(
    r"<defs>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>|<!--.*?-->"
    r"|; font-family: [^;\"]*| transform=\"rotate\(-?0 [^\"]*\"",
    re.DOTALL,
)
_COLORS = {tone.light: f"var(--{name})" for name, tone in TONES.items()}
# what is put in the stead of what, in this order
_SHORTER: tuple[tuple[str, Any], ...] = (
    (r'<g id="[^"]*">', "<g>"),
    ("xlink:href", "href"),
    (
        r' (?:d|x|y|x1|y1|width|height|transform)="[^"]*"',
        lambda found: re.sub(r"(\.\d)\d+", r"\1", found[0]),
    ),
    ("|".join(_COLORS), lambda found: _COLORS[found[0]]),
    (r">-(?=[\d.])", ">−"),  # a text that begins with a minus
    (r"\s*\n\s*", " "),
    ("> <", "><"),
)


def inline_svg(panel: Panel, name: str) -> str:
    """The panel as an `<svg>` of a page, coloured by the page's variables.

    `name` is a word that no other drawing of the page has: ids begin with it. Call it in `style`.
    """
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing((panel.width / UNITS_PER_INCH, panel.height / UNITS_PER_INCH))
    drawing.patch.set_visible(False)
    _draw(panel, drawing, 0.0, panel.height)
    out = io.StringIO()
    drawing.savefig(
        out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    text = _STRIPPED.sub("", out.getvalue().partition("<svg")[2].partition(">")[2])
    for pattern, by in _SHORTER:
        text = re.sub(pattern, by, text)
    ids: dict[str, int] = {}
    text = re.sub(
        r'(id="|href="#|url\(#)([^")]+)',
        lambda found: f"{found[1]}{name}-{ids.setdefault(found[2], len(ids))}",
        text,
    )
    return (
        f'<svg class="chart" viewBox="0 0 {panel.width:g} {panel.height:g}" role="img" '
        f'aria-label="{escaped(panel.alt)}">{text.strip()}'
    )


# -------------------------------------------------------------------------------- for papers
def write_figures(figures: Iterable[Figure], folder: Path) -> int:
    """Write each as `<name>.png` and `<name>.svg`, up to a limit; returns how many figures."""
    count = panels = 0
    with style():
        for figure in figures:
            panels += len(figure.panels)
            if panels > MAX_PANELS:
                break
            drawing = _drawing(figure)
            with whole_file(folder / f"{figure.name}.svg") as path:
                drawing.savefig(path, format="svg", metadata={"Date": None})
            with whole_file(folder / f"{figure.name}.png") as path:
                drawing.savefig(path, format="png", dpi=DOTS_PER_INCH)
            count += 1
    return count


def _drawing(figure: Figure) -> Drawing:
    """Panels in columns, the legend below."""
    from matplotlib.figure import Figure as Drawing
    from matplotlib.lines import Line2D

    columns = min(figure.columns, len(figure.panels))
    rows = [figure.panels[at : at + columns] for at in range(0, len(figure.panels), columns)]
    heights = [max(panel.height for panel in row) for row in rows]
    per_row = 3 if columns == 1 else LEGEND_COLUMNS
    gap = 16.0
    width = columns * (max(panel.width for panel in figure.panels) + gap) + gap
    total = sum(heights) + 8.0 + 14 * math.ceil(len(figure.legend) / per_row) + gap
    drawing = Drawing((width / UNITS_PER_INCH, total / UNITS_PER_INCH), facecolor="white")
    top = total - gap / 2
    for row, height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            _draw(panel, drawing, gap + column * (width - gap) / columns, top)
        top -= height
    handles = []
    for key in figure.legend:
        look: Any = {"color": TONES[key.tone].light, "marker": key.marker, "label": key.label}
        handles.append(Line2D([], [], linestyle="" if key.marker else key.style, **look))
    if handles:
        drawing.legend(handles=handles, loc="lower left", ncols=per_row)
    return drawing


def _draw(panel: Panel, drawing: Drawing, left: float, top: float) -> None:
    frame = Frame(drawing, left, top, panel.width, panel.height)
    title = shortened(panel.title, 40)
    frame.text(0, 9, title, fontweight="bold")
    frame.text(min(0.65 * panel.width, 8 + 6.6 * len(title)), 9, panel.note, "muted")
    panel.draw(frame)
