"""The page: sections of headings, tables and figures, in one HTML file that loads nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparta_bench import __version__
from sparta_bench.report import svg
from sparta_bench.report.chart import TONES, Figure
from sparta_bench.report.facts import Facts, Failure, Gap
from sparta_bench.tables.table import Heading, Table
from sparta_bench.text import counted, escaped, plain

MOST_ROWS = 200  # of failed runs; more are counted
LONG = 48  # characters: a longer text breaks into lines
_NUMBER = re.compile(r"[-−+≈<]?\.?\d")


@dataclass(frozen=True, slots=True)
class Part:
    """A heading of the third level and what stands below it; `html` is finished."""

    title: str
    html: str


@dataclass(frozen=True, slots=True)
class Section:
    """A heading of the second level, what stands below it, and its parts."""

    title: str
    html: str
    parts: tuple[Part, ...] = ()


@dataclass
class Names:
    """Ids that are unique on the page."""

    taken: set[str] = field(default_factory=set)

    def new(self, text: str) -> str:
        """An id made of the text's letters and digits, numbered where it is taken."""
        base = re.sub(r"[^a-z0-9]+", "-", plain(text).lower()).strip("-")[:60] or "part"
        name, count = base, 1
        while name in self.taken:
            count += 1
            name = f"{base}-{count}"
        self.taken.add(name)
        return name


def page(facts: Facts, sections: Sequence[Section]) -> str:
    """The whole document."""
    names = Names({"top", "contents"})
    entries, bodies = [], []
    for section in sections:
        name = names.new(section.title)
        inner, below = [], []
        for part in section.parts:
            part_name = names.new(f"{section.title} {part.title}")
            below.append(f'<li><a href="#{part_name}">{escaped(part.title)}</a></li>')
            inner.append(
                f'<section class="part" aria-labelledby="{part_name}">'
                f'<h3 id="{part_name}">{escaped(part.title)}</h3>{part.html}</section>'
            )
        deeper = f"<ul>{''.join(below)}</ul>" if below else ""
        entries.append(f'<li><a href="#{name}">{escaped(section.title)}</a>{deeper}</li>')
        bodies.append(
            f'<section class="section" aria-labelledby="{name}"><h2 id="{name}">'
            f"{escaped(section.title)}</h2>{section.html}{''.join(inner)}</section>"
        )
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">\n'
        # whatever a record might smuggle in: nothing is loaded, no script runs
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta name="generator" content="sparta-bench {escaped(__version__)}">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escaped(_title(facts))}</title>\n<style>\n{_style()}</style></head>\n"
        f'<body><a class="skip" href="#content">Skip to the content</a><div class="frame">\n'
        f'<header id="top">{_header(facts)}</header>\n'
        f'<nav id="contents" aria-label="Contents"><ul>{"".join(entries)}</ul></nav>\n'
        f'<main id="content" tabindex="-1">\n{chr(10).join(bodies)}\n</main>\n'
        f"<footer><p>Made by sparta-bench {escaped(__version__)} from the records alone: the same "
        "records give the same page.</p></footer></div></body></html>\n"
    )


def _title(facts: Facts) -> str:
    return f"Sparse random parameter adaptation: {counted(facts.found, 'record', 'records')}"


def _header(facts: Facts) -> str:
    days = (
        [facts.first_day]
        if facts.first_day == facts.last_day
        else [facts.first_day, facts.last_day]
    )
    when = " to ".join(day for day in days if day)
    parts = [", ".join(facts.folders), counted(facts.found, "record", "records"), when]
    spans = [f"<span>{escaped(part)}</span>" for part in parts if part]
    return (
        '<p class="kicker">sparta-bench report</p>'
        "<h1>Sparse random parameter adaptation</h1>"
        f'<p class="lede">{" · ".join(spans)}</p>'
    )


def _style() -> str:
    light = "".join(f"--{name}:{tone.light};" for name, tone in TONES.items())
    dark = "".join(f"--{name}:{tone.dark};" for name, tone in TONES.items())
    use = "".join(
        f".l.{name}{{stroke:var(--{name})}}.f.{name}{{fill:var(--{name})}}" for name in TONES
    )
    rules = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    return (
        f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        f"{use}\n{rules}"
    )


# ----------------------------------------------------------------------------------- pieces
def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escaped(text)}</p>' if kind else f"<p>{escaped(text)}</p>"


def table(shown: Table) -> str:
    """A table that scrolls inside its own box, and its notes."""
    kinds = _kinds(shown.rows)
    head = "".join(f"<tr>{''.join(_heads(row, kinds))}</tr>" for row in shown.headings)
    body = "".join(_rows(shown.rows, kinds))
    notes = "".join(f"<li>{escaped(note)}</li>" for note in shown.notes)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(shown.title)}">'
        f"<table><caption><span>{escaped(shown.title)}</span></caption><thead>{head}</thead>"
        f"<tbody>{body}</tbody></table></div>"
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def _kinds(rows: Sequence[Sequence[str]]) -> list[str]:
    """Of each column: `n` for numbers, set flush right; `wide` for texts that break into lines."""
    found = []
    for column in range(max(map(len, rows), default=0)):
        cells = [row[column] for row in rows if column < len(row) and row[column].strip(" –—-")]
        fits = [bool(_NUMBER.match(cell)) and len(cell) < LONG / 2 for cell in cells]
        if column == 0:  # names its row
            found.append("")
        elif max(map(len, cells), default=0) > LONG:
            found.append("wide")
        else:  # one "failed" among numbers turns nothing
            found.append("n" if 2 * sum(fits) > len(fits) else "")
    return found


def _heads(row: Iterable[Heading], kinds: list[str]) -> Iterable[str]:
    column = 0
    for heading in row:
        right = kinds[column : column + heading.span] == ["n"]
        column += heading.span
        if not heading.text:
            yield f'<td colspan="{heading.span}"></td>' if heading.span > 1 else "<td></td>"
        elif heading.span > 1:
            yield (
                f'<th class="over" scope="colgroup" colspan="{heading.span}">'
                f"{escaped(heading.text)}</th>"
            )
        else:
            kind = ' class="n"' if right else ""
            yield f'<th{kind} scope="col">{escaped(heading.text)}</th>'


def _rows(rows: Sequence[Sequence[str]], kinds: list[str]) -> Iterable[str]:
    """Rows; where the first column names groups of them, each group begins visibly."""
    before = None
    grouped = len({row[0] for row in rows}) < len(rows)
    for row in rows:
        new = grouped and row[0] != before
        kind = ' class="first"' if new else ""
        again = ' class="again"' if grouped and not new else ""
        cells = "".join(map(_cell, row[1:], kinds[1:]))
        yield f'<tr{kind}><th{again} scope="row">{escaped(row[0])}</th>{cells}</tr>'
        before = row[0]


def _cell(text: str, kind: str) -> str:
    return f'<td class="{kind}">{escaped(text)}</td>' if kind else f"<td>{escaped(text)}</td>"


def figure(shown: Figure) -> str:
    """The panels of a figure side by side, as many as there is room for."""
    panels = "".join(
        f'<div class="panel"><h4>{escaped(panel.title)}'
        + (f" <small>{escaped(panel.note)}</small>" if panel.note else "")
        + f"</h4>{svg.panel(panel, f'{shown.name}-{index}')}</div>"
        for index, panel in enumerate(shown.panels)
    )
    legend = "".join(f"<li>{svg.key(key)}{escaped(key.label)}</li>" for key in shown.legend)
    return (
        f"<figure><figcaption>{escaped(shown.title)}</figcaption>"
        + (f'<ul class="legend">{legend}</ul>' if legend else "")
        + f'<div class="panels">{panels}</div></figure>'
    )


# --------------------------------------------------------------------- what it is made of
def made_of(facts: Facts) -> str:
    """Counts, the reasons for what is left out, and where the records were made."""
    counts = [
        ("used", facts.used, "completed runs of the setting that is shown for their cell"),
        ("compared", facts.not_selected, "completed runs of settings with a higher mean dev loss"),
        ("failed", facts.failed, "runs that ended with an error"),
        ("left out", facts.excluded, "records that could not be compared with the others"),
    ]
    items = "".join(
        f"<div><dt>{name}</dt><dd>{count:,}</dd><dd>{escaped(text)}</dd></div>"
        for name, count, text in counts
    )
    parts = [f'<dl class="counts">{items}</dl>']
    if facts.reasons:
        parts.append(table(_left_out_table(facts)))
    if facts.environments:
        parts.append(table(_environment_table(facts)))
    return "".join(parts)


def _left_out_table(facts: Facts) -> Table:
    rows = tuple(
        (reason.text, f"{reason.count:,}", _paths(reason.paths, reason.count))
        for reason in facts.reasons
    )
    heads = (Heading("Reason"), Heading("Records"), Heading("Where"))
    return Table("left-out", "Left out, and why", (heads,), rows)


def _environment_table(facts: Facts) -> Table:
    rows = tuple(
        (name, "; ".join(_with_count(value, count, values) for value, count in values))
        for name, values in facts.environments
    )
    heads = (Heading("What"), Heading("Values in the records"))
    return Table("environment", "Where the records were made", (heads,), rows)


def _paths(paths: Sequence[str], count: int) -> str:
    more = f" and {count - len(paths):,} more" if count > len(paths) else ""
    return ", ".join(paths) + more


def _with_count(value: str, count: int, values: Sequence[tuple[str, int]]) -> str:
    return value if len(values) == 1 else f"{value} ({counted(count, 'record', 'records')})"


# -------------------------------------------------------------------------------- what lacks
def gaps_table(gaps: Sequence[Gap]) -> str:
    """How much of each table of the paper has records."""
    rows = tuple(
        (gap.title, f"{gap.cells - gap.missing} of {gap.cells}", gap.text or "none") for gap in gaps
    )
    heads = (Heading("Table"), Heading("Cells with runs"), Heading("Without"))
    return table(Table("gaps", "Cells of the paper's tables", (heads,), rows))


def failures_table(failures: Sequence[Failure]) -> str:
    """Which runs failed, and what they said."""
    if not failures:
        return paragraph("No run failed.")
    rows = tuple(
        (run.model, run.task, run.method, str(run.seed), run.kind, run.message, run.path)
        for run in failures[:MOST_ROWS]
    )
    names = ("Model", "Task", "Method", "Seed", "Error", "Message", "Record")
    rest = len(failures) - len(rows)
    notes = (f"{counted(rest, 'other failed run is', 'other failed runs are')} not listed.",)
    heads = tuple(Heading(name) for name in names)
    return table(Table("failures", "Failed runs", (heads,), rows, notes if rest else ()))
