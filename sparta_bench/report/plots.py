"""One style for all figures, drawn by matplotlib: inline SVG for the page, files for papers."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sparta_bench.errors import InputError
from sparta_bench.files import whole_file
from sparta_bench.text import escaped, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Drawing
    from matplotlib.lines import Line2D


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
COLUMNS, LEGEND_COLUMNS = 3, 6  # of the files
DOTS_PER_INCH = 150
MAX_PANELS = 200  # of all files, about half a minute
SETTINGS: dict[Any, Any] = {
    "font.size": 9.5,
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": TONES["ink"].light,
    "text.parse_math": False,  # a name may have a dollar sign
    "axes.labelcolor": TONES["muted"].light,
    "axes.edgecolor": TONES["muted"].light,
    "axes.facecolor": "none",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.labelpad": 3.0,
    "grid.linewidth": 0.7,
    "grid.color": TONES["rule"].light,
    "xtick.color": TONES["muted"].light,
    "ytick.color": TONES["muted"].light,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "lines.linewidth": 1.3,
    "lines.markersize": 5.0,
    "legend.frameon": False,
    "svg.fonttype": "none",  # texts stay texts
    "svg.hashsalt": "sparta-bench",  # the same ids each time
}


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


def check_matplotlib(option: str) -> None:
    """Fail early, in one line, where the optional dependency is not there.

    `option` is what needs figures, as the message has it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            f"{option}: the figures need matplotlib: pip install 'sparta-bench[plots]'"
        ) from None


@contextmanager
def style() -> Iterator[None]:
    """The style of all figures."""
    import matplotlib

    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        # a name in a script that the font lacks is drawn as boxes in a PNG; SVG has it right
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


# ---------------------------------------------------------------------------------- drawing
@dataclass(frozen=True, slots=True)
class Frame:
    """A rectangle of a drawing; sizes are in units. matplotlib's own layout costs seconds."""

    drawing: Drawing
    left: float
    bottom: float
    width: float
    height: float

    def axes(
        self, left: float = 44.0, right: float = 8.0, top: float = 24.0, bottom: float = 36.0
    ) -> Axes:
        """Axes with these margins."""
        width, height = self.drawing.get_size_inches() * UNITS_PER_INCH
        return self.drawing.add_axes(
            (
                (self.left + left) / width,
                (self.bottom + bottom) / height,
                (self.width - left - right) / width,
                (self.height - top - bottom) / height,
            )
        )

    def head(self, title: str, note: str) -> None:
        """The title and a note beside it, at the top."""
        width, height = self.drawing.get_size_inches() * UNITS_PER_INCH
        y = (self.bottom + self.height - 9) / height
        title = shortened(title, 40)
        self.drawing.text(self.left / width, y, title, fontweight="bold", va="center")
        if note:
            shift = min(0.65 * self.width, 8 + 6.6 * len(title))
            at = (self.left + shift) / width
            self.drawing.text(at, y, note, color=TONES["muted"].light, va="center")


def plain_ticks(axis: Axis, log: bool = False) -> None:
    """Ticks at round numbers, written in full."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    if log:
        narrow = math.log10(high / low) < 1.3
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=7))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))


def _number(value: float) -> str:
    """`0.25`, `1,000`, `2e-5`."""
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    text = re.sub(r"e([+-])0*(\d+)", lambda m: f"e{m[1].strip('+')}{m[2]}", f"{value:.4g}")
    return text.replace("-", "−")


# ------------------------------------------------------------------------------ for the page
_NUMBERS = re.compile(r' (?:d|x|y|x1|y1|width|height|transform)="[^"]*"')
_STRIPPED = re.compile(
    r"<defs>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>|<!--.*?-->"
    r"|; font-family: [^;\"]*| transform=\"rotate\(-?0 [^\"]*\"",
    re.DOTALL,
)


def inline_svg(panel: Panel, name: str) -> str:
    """The panel as an `<svg>` of a page, coloured by the page's variables.

    `name` is a word that no other drawing of the page has: ids begin with it. Call it in `style`.
    """
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing((panel.width / UNITS_PER_INCH, panel.height / UNITS_PER_INCH))
    drawing.patch.set_visible(False)
    _draw(panel, drawing, 0.0, 0.0)
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    drawing.savefig(out, format="svg", metadata=nothing)
    text = _STRIPPED.sub("", out.getvalue()[out.getvalue().index("<svg") :])
    text = re.sub(r'<g id="[^"]*">', "<g>", text).replace("xlink:href", "href")
    for number, found in enumerate(dict.fromkeys(re.findall(r' id="([^"]*)"', text))):
        text = re.sub(
            rf'(id="|"#|url\(#){re.escape(found)}(?="|\))', rf"\g<1>{name}-{number}", text
        )
    text = _NUMBERS.sub(lambda match: re.sub(r"(\.\d)\d+", r"\1", match[0]), text)
    for tone, (light, _) in TONES.items():
        text = text.replace(light, f"var(--{tone})")
    text = re.sub(r"\s*\n\s*", " ", text).replace("> <", "><").strip()
    start = (
        f'<svg class="chart" viewBox="0 0 {panel.width:g} {panel.height:g}" role="img" '
        f'aria-label="{escaped(panel.alt)}">'
    )
    return start + text[text.index(">") + 1 :]


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

    columns = min(COLUMNS, len(figure.panels))
    rows = [figure.panels[at : at + columns] for at in range(0, len(figure.panels), columns)]
    heights = [max(panel.height for panel in row) for row in rows]
    per_row = 3 if columns == 1 else LEGEND_COLUMNS
    legend = 8.0 + 14 * math.ceil(len(figure.legend) / per_row)
    gap = 16.0
    width = columns * (max(panel.width for panel in figure.panels) + gap) + gap
    total = sum(heights) + legend + gap
    drawing = Drawing((width / UNITS_PER_INCH, total / UNITS_PER_INCH), facecolor="white")
    top = total - gap / 2
    for row, height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            left = gap + column * (width - gap) / columns
            _draw(panel, drawing, left, top - panel.height)
        top -= height
    if figure.legend:
        drawing.legend(handles=_handles(figure.legend), loc="lower left", ncols=per_row)
    return drawing


def _draw(panel: Panel, drawing: Drawing, left: float, bottom: float) -> None:
    frame = Frame(drawing, left, bottom, panel.width, panel.height)
    frame.head(panel.title, panel.note)
    panel.draw(frame)


def _handles(legend: Iterable[Key]) -> list[Line2D]:
    from matplotlib.lines import Line2D

    return [
        Line2D(
            [],
            [],
            color=TONES[key.tone].light,
            linestyle="" if key.marker else key.style,
            marker=key.marker,
            label=key.label,
        )
        for key in legend
    ]
