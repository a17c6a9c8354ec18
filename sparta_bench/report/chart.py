"""What a figure shows, before it is drawn: axes, curves and bars as plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Line = Literal["none", "solid", "dashed"]
Marker = Literal["circle", "square", "diamond", "up", "down", "cross"]


class Tone(NamedTuple):
    """A colour on a white ground (and on paper), and its counterpart on a dark one."""

    light: str
    dark: str


# After Okabe and Ito's colour-blind-safe set, darkened or lightened until each has a contrast of
# at least 4.5 to its ground: bars carry text of the same colour.
TONES = {
    "sparta": Tone("#0067a8", "#5db7f0"),
    "sparta_vo": Tone("#8a3f8f", "#d79be0"),
    "lora": Tone("#b34700", "#f0a04b"),
    "full_ft": Tone("#22262b", "#e8eaed"),
    "head": Tone("#00705a", "#3cc7a3"),
    "other": Tone("#6b5a00", "#d6c25a"),
    "muted": Tone("#5c636b", "#a3abb5"),
    "bad": Tone("#b3123b", "#ff8fa3"),
}
MARKERS: dict[str, Marker] = {
    "sparta": "circle", "sparta_vo": "diamond", "lora": "square", "full_ft": "up", "head": "down",
    "other": "diamond", "muted": "circle", "bad": "cross",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Axis:
    """From `low` to `high`, linear or logarithmic, with labelled ticks."""

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def place(self, value: float) -> float:
        """0 at `low`, 1 at `high`; beyond both where the value is."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return (value - low) / (high - low)


@dataclass(frozen=True, slots=True)
class Series:
    """A curve, or points. `spreads` are half lengths of error bars, `tips` texts of points.

    `marked` says which points carry the marker; a tip needs one.
    """

    name: str
    tone: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    line: Line = "none"
    marker: Marker = "circle"
    marked: tuple[int, ...] = ()
    spreads: tuple[float | None, ...] = ()
    tips: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plot:
    """One pair of axes; `note` stands under the title, `alt` says it to who cannot see it."""

    title: str
    note: str
    alt: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]


class Piece(NamedTuple):
    """A part of a bar."""

    tone: str
    value: float


class Bar(NamedTuple):
    """A bar of `value`, with `text` at its end; where it has pieces they add up to the value, and
    stand one after the other in its place."""

    label: str
    tone: str
    value: float
    text: str
    pieces: tuple[Piece, ...] = ()

    @property
    def drawn(self) -> tuple[Piece, ...]:
        """What is drawn: at least one piece."""
        return self.pieces or (Piece(self.tone, self.value),)


@dataclass(frozen=True, slots=True)
class Bars:
    """Horizontal bars that begin at zero."""

    title: str
    note: str
    alt: str
    rows: tuple[Bar, ...]


class Key(NamedTuple):
    """An entry of a legend."""

    label: str
    tone: str
    marker: Marker | None
    line: Line


@dataclass(frozen=True, slots=True)
class Figure:
    """Panels that are read together. `name` is that of its files."""

    name: str
    title: str
    panels: tuple[Plot | Bars, ...]
    legend: tuple[Key, ...] = ()


def number(value: Any) -> float | None:
    """A finite number as a float, or null: records may hold anything."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    # beyond this, differences overflow
    return found if math.isfinite(found) and abs(found) < 1e100 else None


def linear_axis(title: str, values: Iterable[float], pad: float = 0.06) -> Axis:
    """An axis around values, with two to six ticks at round numbers."""
    found = list(values)
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 0.05 * abs(high) or 0.5
        low, high = low - room, high + room
    low, high = low - pad * (high - low), high + pad * (high - low)
    step = _step((high - low) / 5)
    first, last = math.ceil(low / step), math.floor(high / step)
    digits = min(12, max(0, -math.floor(math.log10(step) + 1e-9)))
    if round(step * 10**digits) != round(step * 10**digits, 6):  # 0.25 needs a digit more
        digits += 1
    at = [index * step for index in range(first, last + 1)]
    return Axis(title, low, high, tuple((tick, _tick(tick, digits)) for tick in at))


def _step(least: float) -> float:
    """The round number 1, 2, 2.5 or 5 times a power of ten that is nearest above."""
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(unit * power for unit in (1, 2, 2.5, 5, 10) if unit * power >= least * 0.999)


def _tick(value: float, digits: int) -> str:
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    return f"{value:,.{digits}f}".replace("-", "−")


def log_axis(title: str, values: Iterable[float]) -> Axis:
    """A logarithmic axis around positive values, a tick at each power of ten."""
    found = list(values)
    low, high = (min(found), max(found)) if found else (1.0, 10.0)
    low, high = low / 1.5, high * 1.5
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = math.ceil((last - first + 1) / 8)
    at = [10.0**power for power in range(first, last + 1, every)]
    inside = [tick for tick in at if low <= tick <= high]
    if len(inside) < 2:  # less than a decade or two
        fine = [unit * 10.0**power for power in range(first, last + 1) for unit in (1, 2, 5)]
        inside = [tick for tick in fine if low <= tick <= high]
    return Axis(title, low, high, tuple((tick, f"{tick:.12g}") for tick in inside), log=True)


def thinned(length: int, at_most: int, keep: Sequence[int] = ()) -> list[int]:
    """Evenly spaced indices of a sequence, its first and last and those of `keep` among them."""
    if length <= at_most:
        return list(range(length))
    even = {round(index * (length - 1) / (at_most - 1)) for index in range(at_most)}
    return sorted(even | {index for index in keep if 0 <= index < length})
