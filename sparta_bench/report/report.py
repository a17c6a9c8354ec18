"""What stands on the page, section by section."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sparta_bench.records.record import Excluded, Record
from sparta_bench.report import figures as drawn
from sparta_bench.report.chart import Figure
from sparta_bench.report.facts import facts_of, failures_of, gaps_of
from sparta_bench.report.groups import Group, groups_of
from sparta_bench.report.numbers import numbers_table
from sparta_bench.report.page import (
    Names,
    Part,
    Section,
    failures_table,
    figure,
    gaps_table,
    made_of,
    page,
    paragraph,
    table,
)
from sparta_bench.tables.build import TWIN_NOTE, build_tables
from sparta_bench.tables.select import Selection, select
from sparta_bench.tables.table import Table
from sparta_bench.text import counted, shortened

MAX_LOSS_PANELS = 400  # on the page: what is read at all, and a few MB
ABOUT_SCORES = (
    "Test scores of the setting with the lowest dev loss: means over seeds, with bars of one "
    "standard deviation where there are several. Density is the share of all the model's "
    "scalars that were trained, head included, so that methods of equal size stand above each "
    "other."
)
ABOUT_LOSSES = (
    "The runs of the chosen settings, one curve a seed. All panels of a task have the same scales; "
    "a curve that leaves the frame goes on outside of it. Train loss is the mean since the "
    "evaluation before."
)
ABOUT_COSTS = (
    "Medians over seeds, compared within one device only; each panel has its own scale. Times are "
    "of training without its evaluations. Runs may stop early, at different steps, and other work "
    "on the machine counts: compare with care. Memory is the highest use in one training, on a "
    "CPU that of the whole process."
)
# a table of the paper, or a title's words up to its first comma or colon outside of parentheses
_NAME = re.compile(r"[^:,(]*?\bTable \d+|(?:[^:,(]|\([^)]*\))+")


def report(
    folders: Sequence[Path], records: list[Record], unread: list[Excluded]
) -> tuple[str, list[Figure]]:
    """The page, and its figures for papers."""
    selection = select(records)
    gone = {item.path for item in selection.excluded}
    told = [record for record in records if record.path not in gone]
    groups = groups_of(selection, told)
    facts = facts_of(folders, told, [*unread, *selection.excluded], selection)
    figures = _Figures()
    sections = [
        Section("What it is made of", made_of(facts)),
        _tables(selection),
        _scores(groups, figures),
        _losses(groups, figures),
        _costs(groups, figures),
        Section(
            "What is missing",
            "",
            (
                Part("Cells without runs", gaps_table(gaps_of(selection))),
                Part("Failed runs", failures_table(failures_of(told, folders))),
            ),
        ),
    ]
    return page(facts, sections), figures.found


class _Figures:
    """The figures of a page in their order, each under a name of its own."""

    def __init__(self) -> None:
        self.found: list[Figure] = []
        self._names = Names()

    def html(self, one: Figure) -> str:
        """Take a figure in, and draw it."""
        named = replace(one, name=self._names.new(one.name))
        self.found.append(named)
        return figure(named)


def _tables(selection: Selection) -> Section:
    """The tables by what their titles begin with: a table of the paper, or a model; twins last."""
    found: dict[tuple[bool, str], list[Table]] = {}
    for one in build_tables(selection):
        twins = TWIN_NOTE in one.notes
        match = _NAME.match(one.title)
        name = shortened(match[0] if match else one.title, 80)
        if twins and "twin" not in name.lower():
            name += " (embedded twin)"
        kept = tuple(note for note in one.notes if note != TWIN_NOTE)  # said once for all
        found.setdefault((twins, name), []).append(replace(one, notes=kept))
    parts = [
        Part(name, _twins(twins) + "".join(map(table, found[twins, name])))
        for twins, name in sorted(found, key=lambda key: key[0])
    ]
    intro = "" if parts else paragraph("No record fits a table.")
    return Section("Tables, with the paper’s beside", intro, tuple(parts))


def _scores(groups: Iterable[Group], figures: _Figures) -> Section:
    parts = []
    for group in groups:
        one = drawn.accuracy_figure(group)
        if one is not None:
            html = _twins(group.embedded) + figures.html(one) + table(numbers_table(group))
            parts.append(Part(group.name, html))
    intro = paragraph(ABOUT_SCORES if parts else "No run completed.")
    return Section("Results by model", intro, tuple(parts))


def _losses(groups: Iterable[Group], figures: _Figures) -> Section:
    parts, panels, left = [], 0, 0
    for group in groups:
        html = []
        for task, cells in group.tasks().items():
            one = drawn.loss_figure(group, task, cells)
            if one is None:
                continue
            if panels + len(one.panels) > MAX_LOSS_PANELS:
                left += len(one.panels)
                continue
            panels += len(one.panels)
            html.append(figures.html(one))
        if html:
            parts.append(Part(group.name, _twins(group.embedded) + "".join(html)))
    intro = paragraph(ABOUT_LOSSES if parts else "No record has a history.")
    if left:
        intro += paragraph(
            f"{counted(left, 'panel is', 'panels are')} not drawn, more than {MAX_LOSS_PANELS} in "
            "all: name fewer folders to see them."
        )
    return Section("Loss curves", intro, tuple(parts))


def _costs(groups: Iterable[Group], figures: _Figures) -> Section:
    parts = [
        Part(
            f"{group.name} on {device}",
            _twins(group.embedded) + "".join(map(figures.html, found)),
        )
        for group in groups
        for device, found in drawn.cost_figures(group)
    ]
    intro = paragraph(ABOUT_COSTS if parts else "No record has a time or a peak.")
    return Section("Time and memory", intro, tuple(parts))


def _twins(embedded: bool) -> str:
    return paragraph(TWIN_NOTE, "soft") if embedded else ""
