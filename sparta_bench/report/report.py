"""What stands on the page: first what came out, then what to look at, then tables and facts."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparta_bench.records.record import Cell, LeftOut, Record
from sparta_bench.report.cards import Card, cards_of, tables_without_runs
from sparta_bench.report.facts import facts_of, failures_of
from sparta_bench.report.groups import Group, groups_of
from sparta_bench.report.numbers import numbers_table
from sparta_bench.report.page import page
from sparta_bench.report.pictures import (
    card_panel,
    cost_panels,
    density_panel,
    loss_panel,
    method_keys,
    settings_panel,
)
from sparta_bench.report.plots import Figure, Key, Panel, inline_svg, style
from sparta_bench.tables.build import TWIN_NOTE, build_tables
from sparta_bench.tables.select import Selection, select
from sparta_bench.tables.table import Table
from sparta_bench.text import counted, plain, shortened

MAX_PANELS = 400  # of models on the page: what is looked at at all, and less than 2 MB
KINDS = ("density", "loss", "settings", "cost")
PAPER = Key("the paper", "muted", "|")
# a table of the paper, or a title's words up to its first comma or colon outside of parentheses
_NAME = re.compile(r"[^:,(]*?\bTable \d+|(?:[^:,(]|\([^)]*\))+")


@dataclass(frozen=True, slots=True)
class Pictures:
    """What there is to look at of a model: by task the panels of the first three kinds; costs."""

    group: Group
    tasks: list[list[Panel | None]]
    costs: list[Panel]

    @property
    def keys(self) -> tuple[Key, ...]:
        """The legend."""
        return method_keys(chosen.cell.method for chosen in self.group.cells)

    @property
    def rows(self) -> list[list[Panel]]:
        """Panels that stand side by side."""
        rows = [[panel for panel in row if panel is not None] for row in self.tasks]
        return [row for row in (*rows, self.costs) if row]

    def figures(self) -> list[Figure]:
        """The files: of each kind all tasks together."""
        by_kind = [*zip(*self.tasks, strict=True), self.costs]
        return [
            Figure(f"{kind} {self.group.name}", kind, tuple(filter(None, panels)), self.keys)
            for kind, panels in zip(KINDS, by_kind, strict=True)
            if any(panels)
        ]


def report(
    folders: Sequence[Path], records: list[Record], unread: list[LeftOut]
) -> tuple[str, list[Figure]]:
    """The page, and its figures for papers. Needs matplotlib."""
    selection = select(records)
    gone = {item.path for item in selection.left_out}
    told = [record for record in records if record.path not in gone]
    cards = cards_of(selection)
    models = [_pictures(group, selection) for group in groups_of(selection, told)]
    with style():
        text = page(
            facts_of(folders, told, [*unread, *selection.left_out], selection),
            cards=[(card, inline_svg(card_panel(card), f"c{at}")) for at, card in enumerate(cards)],
            without_runs=tables_without_runs(selection),
            keys=_all_keys(cards, models),
            models=_drawn(models),
            tables=_tables(selection),
            tiny_note=TWIN_NOTE,
            failures=failures_of(told, folders),
        )
    figures = [Figure(card.key, card.title, (card_panel(card),), card_keys(card)) for card in cards]
    figures += [figure for one in models for figure in one.figures()]
    return text, _named(figures)


def card_keys(card: Card) -> tuple[Key, ...]:
    """The legend of a card."""
    return (*method_keys(card.tones), *([PAPER] if card.printed else []))


def _all_keys(cards: list[Card], models: list[Pictures]) -> list[Key]:
    keys = method_keys(chosen.cell.method for one in models for chosen in one.group.cells)
    return [*keys, *([PAPER] if any(card.printed for card in cards) else [])]


def _pictures(group: Group, selection: Selection) -> Pictures:
    others: dict[Cell, list[Record]] = defaultdict(list)
    for record in selection.outdone:
        others[record.cell].append(record)
    tasks = [
        [
            density_panel(task, cells),
            loss_panel(task, cells, group.failed),
            settings_panel(task, cells, others),
        ]
        for task, cells in group.tasks().items()
    ]
    return Pictures(group, tasks, cost_panels(group))


def _drawn(models: list[Pictures]) -> list[dict[str, Any]]:
    """The models as the template needs them, with their panels up to a limit."""
    parts, drawn = [], 0
    for one in models:
        rows = []
        for row in one.rows:
            if drawn + len(row) <= MAX_PANELS:
                rows.append([inline_svg(panel, f"m{drawn + at}") for at, panel in enumerate(row)])
                drawn += len(row)
        left = sum(map(len, one.rows)) - sum(map(len, rows))
        group = one.group
        runs = sum(len(chosen.runs) for chosen in group.cells)
        tasks = counted(len(group.tasks()), "task", "tasks")
        parts.append(
            {
                "name": group.name,
                "about": f"{tasks}, {counted(runs, 'run', 'runs')} shown",
                "embedded": group.embedded,
                "keys": one.keys,
                "rows": rows,
                "most": max(map(len, rows), default=1),
                "left": left,
                "numbers": numbers_table(group),
            }
        )
    return parts


def _tables(selection: Selection) -> list[tuple[str, bool, list[Table]]]:
    """By what titles begin with, a table of the paper or a model; the tiny models' come last."""
    found: dict[tuple[bool, str], list[Table]] = defaultdict(list)
    for one in build_tables(selection):
        tiny = TWIN_NOTE in one.notes
        match = _NAME.match(one.title)
        name = shortened(match[0] if match else one.title, 80)
        kept = tuple(note for note in one.notes if note != TWIN_NOTE)  # said once for all
        found[tiny, name].append(replace(one, notes=kept))
    return [(name, tiny, found[tiny, name]) for tiny, name in sorted(found, key=lambda key: key[0])]


def _named(figures: list[Figure]) -> list[Figure]:
    """Each with a name of its own, of letters, digits and hyphens."""
    taken: set[str] = set()
    named = []
    for one in figures:
        base = re.sub(r"[^a-z0-9]+", "-", plain(one.name).lower()).strip("-")[:60] or "figure"
        name, number = base, 1
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name)
        named.append(replace(one, name=name))
    return named
