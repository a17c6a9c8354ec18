"""A table as Markdown, CSV or LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

from sparta_bench.tables.table import Table

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


def flat_headings(table: Table) -> list[str]:
    """One heading a column: those above each other, joined."""
    rows = [
        [heading.text for heading in row for _ in range(heading.span)] for row in table.headings
    ]
    return [" ".join(filter(None, column)) for column in zip(*rows, strict=True)]


def as_markdown(table: Table) -> str:
    """A GitHub table under its title, with the notes below."""
    lines = [f"## {_markdown(table.title)}", "", *_pipes([flat_headings(table), *table.rows])]
    if table.notes:
        lines += ["", *(f"- {_markdown(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def _pipes(rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[_markdown(cell) for cell in row] for row in rows]
    widths = [max(3, *(len(row[place]) for row in cells)) for place in range(len(cells[0]))]
    lines = [
        f"| {' | '.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))} |"
        for row in cells
    ]
    rule = " | ".join("-" * width for width in widths)
    return [lines[0], f"| {rule} |", *lines[1:]]


def _markdown(text: str) -> str:
    return _one_line(text).translate(MARKDOWN)


def _one_line(text: str) -> str:
    """Names come from records, and a folder's name may hold a line break."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def as_csv(table: Table) -> str:
    """One header row, then the rows; what a cell says is the same as in the other forms."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [[_csv(cell) for cell in row] for row in (flat_headings(table), *table.rows)]
    )
    return text.getvalue()


def _csv(text: str) -> str:
    """Names come from records: one that a spreadsheet would run gets an apostrophe before it."""
    line = _one_line(text)
    return f"'{line}" if FORMULA.match(line) else line


def as_latex(table: Table) -> str:
    """A `table` environment for a document that loads booktabs and graphicx."""
    width = len(flat_headings(table))
    lines = [
        r"\begin{table}[p]",
        r"\centering",
        rf"\caption{{{_latex(table.title)}}}",
        # shrunk where it is wider than the page, never blown up
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{_alignment(table, width)}}}",
        r"\toprule",
    ]
    for number, row in enumerate(table.headings):
        cells, rules, place = [], [], 1
        for heading in row:
            text = _latex(heading.text)
            cells.append(
                rf"\multicolumn{{{heading.span}}}{{c}}{{{text}}}" if heading.span > 1 else text
            )
            if heading.span > 1:
                rules.append(rf"\cmidrule(lr){{{place}-{place + heading.span - 1}}}")
            place += heading.span
        lines.append(_latex_row(cells))
        if rules and number < len(table.headings) - 1:
            lines.append(" ".join(rules))
    lines.append(r"\midrule")
    lines += [_latex_row(map(_latex, row)) for row in table.rows]
    lines += [r"\bottomrule", r"\end{tabular}}"]
    for note in table.notes:
        lines.append(rf"\par\smallskip\raggedright\footnotesize {_latex(note)}")
    return "\n".join([*lines, r"\end{table}", ""])


def _latex_row(cells: Iterable[str]) -> str:
    row = " & ".join(cells)
    # after the end of the row before, a bracket or a star would be that end's option
    return ("{}" if row.startswith(("[", "*")) else "") + row + r" \\"


def _alignment(table: Table, width: int) -> str:
    """Names to the left, values to the right."""
    letters = ""
    for place in range(width):
        values = [row[place] for row in table.rows]
        numeric = values and all(re.match(r"[-+]?\.?\d|–|failed|≈|<|yes|no", v) for v in values)
        letters += "r" if numeric and place else "l"
    return letters


def _latex(text: str) -> str:
    text = _one_line(text)
    pieces = []
    for match in re.finditer(r"(?<![\w-])-(?=\d)|(.)", text):
        # a minus, not a hyphen
        pieces.append(r"$-$" if match[1] is None else _latex_char(match[1]))
    return "".join(pieces)


def _latex_char(char: str) -> str:
    replaced = char.translate(LATEX)
    if replaced == char and not char.isascii():  # not in every font
        return f"[U+{ord(char):04X}]"
    return replaced
