"""The page: one HTML file that loads nothing and runs nothing, from a Jinja template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sparta_bench import __version__
from sparta_bench.report.cards import Card
from sparta_bench.report.facts import Facts, Failure
from sparta_bench.report.plots import TONES, Key
from sparta_bench.tables.table import Heading, Table
from sparta_bench.text import counted, plain

MOST_ROWS = 200  # of failed runs; more are counted
LONG = 48  # characters: a longer text breaks into lines
SIGNS = {"o": "●", "s": "■", "D": "◆", "^": "▲", "v": "▼", "|": "|", "x": "×"}
_NUMBER = re.compile(r"[-−+≈<]?\.?\d")


def page(
    facts: Facts,
    *,
    cards: Sequence[tuple[Card, str]],
    keys: Sequence[Key],
    models: Sequence[dict[str, Any]],
    failures: Sequence[Failure],
    **more: Any,
) -> str:
    """The whole document; `more` are values that the template alone reads."""
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else plain(value),
    )
    environment.globals.update(kinds=_kinds, counted=counted)
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    days = dict.fromkeys(day for day in (facts.first_day, facts.last_day) if day)
    return template.render(
        **more,
        version=__version__,
        style=Markup(_style(folder)),
        facts=facts,
        days=" to ".join(days),
        cards=[(card, Markup(drawing)) for card, drawing in cards],
        keys=[(SIGNS[key.marker], key) for key in keys],
        models=[_model(model) for model in models],
        failures=_failures_table(failures),
        left_out=_left_out_table(facts),
        environment=_environment_table(facts),
    )


def _model(model: dict[str, Any]) -> dict[str, Any]:
    """With its drawings as such."""
    keys = [(SIGNS[key.marker], key) for key in model["keys"]]
    return model | {"rows": [list(map(Markup, row)) for row in model["rows"]], "keys": keys}


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
    found = []
    for column in range(max(map(len, rows), default=0)):
        cells = [row[column] for row in rows if row[column].strip(" –—-")]
        fits = [bool(_NUMBER.match(cell)) and len(cell) < LONG / 2 for cell in cells]
        if column == 0:  # names its row
            found.append("")
        elif max(map(len, cells), default=0) > LONG:
            found.append("wide")
        else:  # one "failed" among numbers turns nothing
            found.append("n" if 2 * sum(fits) > len(fits) else "")
    return found


# ------------------------------------------------------------------------------------ tables
def _table(key: str, title: str, heads: Sequence[str], rows: Any, *notes: str) -> Table:
    return Table(key, title, (tuple(map(Heading, heads)),), tuple(rows), notes)


def _failures_table(failures: Sequence[Failure]) -> Table | None:
    """Which runs failed, and what they said."""
    rows = [
        (run.model, run.task, run.method, str(run.seed), run.kind, run.message, run.path)
        for run in failures[:MOST_ROWS]
    ]
    names = ("Model", "Task", "Method", "Seed", "Error", "Message", "Record")
    rest = len(failures) - len(rows)
    note = f"{counted(rest, 'other failed run is', 'other failed runs are')} not listed."
    table = _table("failures", "Failed runs", names, rows, *([note] if rest else []))
    return table if rows else None


def _left_out_table(facts: Facts) -> Table | None:
    rows = [
        (reason.text, f"{reason.count:,}", _paths(reason.paths, reason.count))
        for reason in facts.reasons
    ]
    names = ("Reason", "Records", "Where")
    return _table("left-out", "Left out, and why", names, rows) if rows else None


def _environment_table(facts: Facts) -> Table:
    rows = [
        (name, "; ".join(_with_count(value, count, values) for value, count in values))
        for name, values in facts.environments
    ]
    names = ("What", "Values in the records")
    return _table("environment", "Where the records were made", names, rows)


def _paths(paths: Sequence[str], count: int) -> str:
    more = f" and {count - len(paths):,} more" if count > len(paths) else ""
    return ", ".join(paths) + more


def _with_count(value: str, count: int, values: Sequence[tuple[str, int]]) -> str:
    return value if len(values) == 1 else f"{value} ({counted(count, 'record', 'records')})"
