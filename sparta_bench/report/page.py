"""The page: one HTML file that loads nothing and runs nothing, from a Jinja template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sparta_bench import __version__
from sparta_bench.report.plots import TONES
from sparta_bench.text import counted, plain

LONG = 48  # characters: a longer text breaks into lines
SIGNS = {"o": "●", "s": "■", "D": "◆", "^": "▲", "v": "▼", "|": "|"}  # markers in texts
_NUMBER = re.compile(r"[-−+≈<]?\.?\d")


def page(**values: Any) -> str:
    """The whole document, from the values that the template reads; all but `Markup` is escaped."""
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else plain(value),
    )
    environment.globals.update(kinds=_kinds, counted=counted, signs=SIGNS, version=__version__)
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    return template.render(style=Markup(_style(folder)), **values)


def _style(folder: Path) -> str:
    light = "".join(f"--{name}:{tone.light};" for name, tone in TONES.items())
    dark = "".join(f"--{name}:{tone.dark};" for name, tone in TONES.items())
    rules = (folder / "style.css").read_text(encoding="utf-8")
    return (
        f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        f"{rules}"
    )


def _kinds(rows: Sequence[Sequence[str]]) -> list[str]:
    """Of each column: `n` for numbers, set flush right; `wide` for texts that break into lines."""
    found = [""]  # the first column names its row
    for column in list(zip(*rows, strict=True))[1:]:
        cells = [cell for cell in column if cell.strip(" –—-")]
        numbers = sum(bool(_NUMBER.match(cell)) and len(cell) < LONG / 2 for cell in cells)
        wide = max(map(len, cells), default=0) > LONG
        # one "failed" among numbers turns nothing
        found.append("wide" if wide else "n" if 2 * numbers > len(cells) else "")
    return found
