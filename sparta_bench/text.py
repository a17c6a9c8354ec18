"""Values as text for people, and texts of records on their way into HTML, SVG and file names."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

# characters that XML has not, and those that turn the reading direction of what follows
_UNFIT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def plain(value: object) -> str:
    """Any value as text that both XML and a reader can take."""
    return _UNFIT.sub("\ufffd", str(value))


def escaped(value: object) -> str:
    """Any value as text of HTML or SVG, or as an attribute's value in quotes."""
    return html.escape(plain(value))


def shortened(value: object, length: int) -> str:
    """At most `length` characters, in one line."""
    text = " ".join(plain(value).split())
    return text if len(text) <= length else text[: length - 1] + "…"


def spread_text(mean: float, std: float | None, digits: int) -> str:
    """`97.5 ± 0.6`, or the mean alone."""
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def method_text(method: str, density: float | None) -> str:
    """`sparta 5 %`, or the method alone."""
    return method if density is None else f"{method} {100 * density:.3g} %"


def signed(value: float, digits: int = 1) -> str:
    """`+0.12`; zero without a sign."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def counted(count: int, one: str, many: str = "") -> str:
    """`1 run`, `2,000 runs`; `many` is needed where it is not `one` with an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def as_duration(seconds: float, digits: int = 0) -> str:
    """`40 s`, `12 min`, `3 h 20 min` or `5 days`; `digits` are those of seconds."""
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.{digits}f} s"
    if minutes < 120:
        return f"{minutes:.0f} min"
    hours, rest = divmod(round(minutes), 60)
    return f"{hours} h {rest} min" if hours < 48 else f"{minutes / 1440:.1f} days"


def as_bytes(count: float) -> str:
    """`8.7 MB`, `868 MB`, `25.1 GB`; powers of ten."""
    if count >= 1e9:
        return f"{count / 1e9:,.1f} GB"
    return f"{count / 1e6:.{1 if count < 1e7 else 0}f} MB"


def padded(rows: Sequence[Sequence[str]], left: int = 1, least: int = 0) -> list[list[str]]:
    """Cells of one width a column, at least `least`: the first `left` flush left, others right."""
    widths = [max(least, *map(len, column)) for column in zip(*rows, strict=True)]
    return [
        [
            f"{cell:{'<' if column < left else '>'}{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
