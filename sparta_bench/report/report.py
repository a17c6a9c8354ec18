"""What stands on the page: first what came out, then what to look at, then tables and facts."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sparta_bench.records.record import Cell, Excluded, Record
from sparta_bench.report.cards import Card, cards_of, tables_without_runs
from sparta_bench.report.facts import facts_of
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
from sparta_bench.text import plain, shortened

MAX_PANELS = 400  # of models on the page: what is looked at at all, and less than 2 MB
PAPER = Key("the paper", "muted", "|")
# a table of the paper, or a title's words up to its first comma or colon outside of parentheses
_NAME = re.compile(r"[^:,(]*?\bTable \d+|(?:[^:,(]|\([^)]*\))+")


def report(
    folders: Sequence[Path], records: list[Record], unread: list[Excluded]
) -> tuple[str, list[Figure]]:
    """The page, and its figures for papers. Needs matplotlib."""
    selection = select(records)
    gone = {item.path for item in selection.excluded}
    told = [record for record in records if record.path not in gone]
    cards = [(card, card_panel(card)) for card in cards_of(selection)]
    groups = groups_of(selection, told)
    compared: dict[Cell, list[Record]] = defaultdict(list)
    for record in selection.not_selected:
        compared[record.cell].append(record)
    panels = [(group, _panels(group, compared)) for group in groups]
    with style():
        text = page(
            facts=facts_of(folders, told, [*unread, *selection.excluded], selection),
            cards=[
                (card, Markup(inline_svg(panel, f"c{number}")))
                for number, (card, panel) in enumerate(cards)
            ],
            without_runs=tables_without_runs(selection),
            keys=_keys(
                [method for group in groups for method in group.methods],
                [card for card, _ in cards],
            ),
            models=list(_models(panels)),
            tables=_tables(selection),
            tiny_note=TWIN_NOTE,
        )
    figures = [
        Figure(card.key, card.title, (panel,), _keys(card.tones, [card])) for card, panel in cards
    ]
    for group, kinds in panels:
        keys = method_keys(group.methods)
        figures += [
            Figure(f"{kind} {group.name}", kind, tuple(filter(None, found)), keys)
            for kind, found in kinds.items()
            if any(found)
        ]
    return text, _named(figures)


def _keys(methods: Sequence[str], cards: Sequence[Card]) -> tuple[Key, ...]:
    """The legend of cards."""
    return (*method_keys(methods), *([PAPER] if any(card.printed for card in cards) else []))


def _panels(group: Group, compared: Mapping[Cell, list[Record]]) -> dict[str, list[Panel | None]]:
    """What there is to look at of a model, by kind: a panel a task, and the costs."""
    tasks = group.tasks().items()
    return {
        "density": [density_panel(task, cells) for task, cells in tasks],
        "loss": [loss_panel(task, cells, group.failed) for task, cells in tasks],
        "settings": [settings_panel(task, cells, compared) for task, cells in tasks],
        "cost": [*cost_panels(group)],
    }


def _models(
    panels: Sequence[tuple[Group, dict[str, list[Panel | None]]]],
) -> Iterator[dict[str, Any]]:
    """The models as the template needs them, with a row of drawings a task, up to a limit."""
    numbers = count()
    for group, kinds in panels:
        *by_task, costs = kinds.values()
        rows, left = [], 0
        for row in (*zip(*by_task, strict=True), costs):
            found = [panel for panel in row if panel is not None]
            drawn = [
                Markup(inline_svg(panel, f"m{number}"))
                for panel, number in zip(found, numbers, strict=False)
                if number < MAX_PANELS
            ]
            rows.append(drawn)
            left += len(found) - len(drawn)
        yield {
            "group": group,
            "runs": sum(len(chosen.runs) for chosen in group.cells),
            "keys": method_keys(group.methods),
            "rows": list(filter(None, rows)),
            "left": left,
            "numbers": numbers_table(group),
        }


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
