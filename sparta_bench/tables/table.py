"""A table as text cells; as Markdown, CSV or LaTeX; and as files."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparta_bench.files import clear_leftovers, whole_file
from sparta_bench.text import padded

MARKDOWN = str.maketrans(
    {"\\": "\\\\", "|": "\\|", "*": "\\*", "`": "\\`", "[": "\\[", "~": "\\~"}
    | {"&": "&amp;", "<": "&lt;"}
)
LATEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    # what text fonts lack, or have another character for
    | {"–": "--", "±": r"$\pm$", "×": r"$\times$", "≈": r"$\approx$", "≠": r"$\neq$"}
    | {"α": r"$\alpha$", "<": r"$<$", ">": r"$>$", "|": r"$|$"}
)
# What a spreadsheet would take for a formula; numbers that begin with a sign are none.
FORMULA = re.compile(r"[=@]|[+-](?![\d.,% ±()≠]*$)")
NUMBER = re.compile(r"[-+]?\.?\d|–|failed|≈|<|yes|no")
# what the last call wrote, so that a table without records any more does not stay
LIST = ".sparta-bench-tables"


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading over `span` columns."""

    text: str
    span: int = 1


@dataclass(frozen=True, slots=True)
class Table:
    """`key` names its files; each row of headings spans the width; cells are plain text."""

    key: str
    title: str
    headings: tuple[tuple[Heading, ...], ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def table_of(
    key: str, title: str, heads: Iterable[str], rows: Iterable[Sequence[str]], *notes: str
) -> Table:
    """A table with one heading a column."""
    return Table(key, title, (tuple(map(Heading, heads)),), tuple(map(tuple, rows)), notes)


def flat_headings(table: Table) -> list[str]:
    """One heading a column: those above each other, joined."""
    rows = [[head.text for head in row for _ in range(head.span)] for row in table.headings]
    return [" ".join(filter(None, column)) for column in zip(*rows, strict=True)]


def _one_line(text: str) -> str:
    """Names come from records, and a folder's name may hold a line break."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


# ------------------------------------------------------------------------------------- Markdown
def as_markdown(table: Table) -> str:
    """A GitHub table under its title, with the notes below."""
    rows = [[_markdown(cell) for cell in row] for row in (flat_headings(table), *table.rows)]
    lines = padded(rows, left=len(rows[0]), least=3)
    lines.insert(1, ["-" * len(cell) for cell in lines[0]])
    text = [f"## {_markdown(table.title)}", "", *(f"| {' | '.join(line)} |" for line in lines)]
    if table.notes:
        text += ["", *(f"- {_markdown(note)}" for note in table.notes)]
    return "\n".join(text) + "\n"


def _markdown(text: str) -> str:
    return _one_line(text).translate(MARKDOWN)


# ------------------------------------------------------------------------------------------ CSV
def as_csv(table: Table) -> str:
    """One header row, then the rows; what a cell says is the same as in the other forms."""
    text = io.StringIO()
    rows = (map(_csv, row) for row in (flat_headings(table), *table.rows))
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _csv(text: str) -> str:
    """Names come from records: one that a spreadsheet would run gets an apostrophe before it."""
    line = _one_line(text)
    return f"'{line}" if FORMULA.match(line) else line


# ---------------------------------------------------------------------------------------- LaTeX
def as_latex(table: Table) -> str:
    """A `table` environment for a document that loads booktabs and graphicx."""
    columns = zip(flat_headings(table), *table.rows, strict=True)
    letters = [  # names to the left, values to the right
        "r" if column and values and all(map(NUMBER.match, values)) else "l"
        for column, (_, *values) in enumerate(columns)
    ]
    lines = [
        r"\begin{table}[p]",
        r"\centering",
        rf"\caption{{{_latex(table.title)}}}",
        # shrunk where it is wider than the page, never blown up
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{''.join(letters)}}}",
        r"\toprule",
    ]
    for number, row in enumerate(table.headings, start=1):
        cells, rules, end = [], [], 0
        for heading in row:
            start, end = end + 1, end + heading.span
            text = _latex(heading.text)
            if heading.span > 1:
                text = rf"\multicolumn{{{heading.span}}}{{c}}{{{text}}}"
                rules.append(rf"\cmidrule(lr){{{start}-{end}}}")
            cells.append(text)
        lines.append(_latex_row(cells))
        if rules and number < len(table.headings):
            lines.append(" ".join(rules))
    lines += [r"\midrule", *(_latex_row(map(_latex, row)) for row in table.rows)]
    lines += [r"\bottomrule", r"\end{tabular}}"]
    lines += [rf"\par\smallskip\raggedright\footnotesize {_latex(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}", ""])


def _latex_row(cells: Iterable[str]) -> str:
    row = " & ".join(cells)
    # after the end of the row before, a bracket or a star would be that end's option
    return ("{}" if row.startswith(("[", "*")) else "") + row + r" \\"


def _latex(text: str) -> str:
    # a minus, not a hyphen
    parts = re.split(r"(?<![\w-])-(?=\d)", _one_line(text))
    return "$-$".join("".join(map(_latex_char, part)) for part in parts)


def _latex_char(char: str) -> str:
    replaced = char.translate(LATEX)
    # not in every font
    return f"[U+{ord(char):04X}]" if replaced == char and not char.isascii() else replaced


# ---------------------------------------------------------------------------------------- files
FORMATS: dict[str, Callable[[Table], str]] = {"md": as_markdown, "csv": as_csv, "tex": as_latex}


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write a file for each name, whole or not at all. Raises OSError if one cannot be written."""
    for name, text in texts.items():
        with whole_file(folder / name) as path:
            path.write_text(text, encoding="utf-8", newline="\n")


def write_tables(out: Path, tables: Sequence[Table], formats: Sequence[str], overview: str) -> None:
    """Write a file for each table and format, and `tables.md`; remove those of an earlier call.
    Raises OSError if a file cannot be written."""
    files = {"tables.md": overview}
    for table in tables:
        files |= {f"{table.key}.{name}": FORMATS[name](table) for name in formats}
    try:
        listed = (out / LIST).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        listed = []
    ours = re.compile(rf"[\w.+-]+\.({'|'.join(FORMATS)})", re.ASCII)  # names that it may hold
    for name in set(filter(ours.fullmatch, listed)) - files.keys():
        (out / name).unlink(missing_ok=True)
    # the list first: a file that it names and that is not there does no harm
    for name, text in {LIST: "\n".join(sorted(files)) + "\n", **files}.items():
        try:
            same = (out / name).read_bytes() == text.encode()
        except OSError:
            same = False
        if same:  # to write it again takes longer than to read it
            clear_leftovers(out, name)
        else:
            write_texts(out, {name: text})
