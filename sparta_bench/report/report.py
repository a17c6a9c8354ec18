"""What stands on the page: first what came out, then what to look at, then tables and facts."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sparta_bench import __version__
from sparta_bench.records.read import read_races
from sparta_bench.records.record import Cell, Excluded, Record
from sparta_bench.report import facts
from sparta_bench.report.facts import Card, Group, cards_of, groups_of, numbers_table
from sparta_bench.report.pictures import (
    card_panel,
    cost_panels,
    density_panel,
    loss_panel,
    method_keys,
    settings_panel,
)
from sparta_bench.report.plots import TONES, Figure, Key, Panel, inline_svg, style
from sparta_bench.tables.build import TINY_NOTE, build_tables
from sparta_bench.tables.select import Selection, select
from sparta_bench.tables.table import Table
from sparta_bench.text import counted, plain, shortened

MAX_PANELS = 400  # of models on the page: what is looked at at all, and less than 2 MB
PAPER = Key("the paper", "muted", "|")
LONG = 48  # characters: a longer text breaks into lines
SIGNS = {"o": "●", "s": "■", "D": "◆", "^": "▲", "v": "▼", "|": "|"}  # markers in texts
# a table of the paper, or a title's words up to its first comma or colon outside of parentheses
_NAME = re.compile(r"[^:,(]*?\bTable \d+|(?:[^:,(]|\([^)]*\))+")
_NUMBER = re.compile(r"[-+≈<]?\.?\d")


def report(
    folders: Sequence[Path], records: list[Record], unread: list[Excluded]
) -> tuple[str, list[Figure]]:
    """The page, and its figures for papers. Needs matplotlib."""
    selection = select(records, read_races(folders))
    gone = {item.path for item in selection.excluded}
    shown = [record for record in records if record.path not in gone]
    failed = [record for record in shown if record.status == "failed"]
    stopped = sum(record.status == "stopped" for record in shown)
    excluded = [*unread, *selection.excluded]
    cards = [(card, card_panel(card)) for card in cards_of(selection)]
    compared: dict[Cell, list[Record]] = defaultdict(list)
    for record in selection.not_selected:
        compared[record.cell].append(record)
    # what there is to look at of a model, by kind: a panel a task, and the costs
    panels: list[tuple[Group, dict[str, list[Panel | None]]]] = []
    for group in groups_of(selection, shown):
        tasks = group.tasks().items()
        kinds: dict[str, list[Panel | None]] = {
            "density": [density_panel(task, cells) for task, cells in tasks],
            "loss": [loss_panel(task, cells, group.failed) for task, cells in tasks],
            "settings": [settings_panel(task, cells, compared) for task, cells in tasks],
            "cost": [*cost_panels(group)],
        }
        panels.append((group, kinds))
    methods = [chosen.cell.method for group, _ in panels for chosen in group.cells]
    with style():
        text = _page(
            counts={
                "shown": selection.used,
                "compared, not chosen": len(selection.not_selected),
                "failed": len(failed),
                **({"stopped by a race": stopped} if stopped else {}),
                "left out": len(excluded),
            },
            folders=[facts.last_parts(folder) for folder in folders],
            days=facts.days_of(shown),
            cards=[
                (card, Markup(inline_svg(panel, f"c{number}")))
                for number, (card, panel) in enumerate(cards)
            ],
            keys=_keys(methods, [card for card, _ in cards]),
            without_runs=facts.tables_without_runs(selection),
            models=_models(panels),
            tables=_tables(selection),
            failures=facts.failures(failed, folders),
            reasons=facts.reasons(excluded, folders),
            environment=facts.environments(shown),
        )
    figures = [
        Figure(card.key, card.title, (panel,), _keys((tone for _, tone in card.rows), [card]))
        for card, panel in cards
    ]
    for group, kinds in panels:
        legend = method_keys(chosen.cell.method for chosen in group.cells)
        figures += [
            Figure(f"{kind} {group.name}", kind, tuple(drawn), legend)
            for kind, of_kind in kinds.items()
            if (drawn := [*filter(None, of_kind)])
        ]
    names: list[str] = []  # of files, each once, of letters, digits and hyphens
    for one in figures:
        base = re.sub(r"[^a-z0-9]+", "-", plain(one.name).lower()).strip("-")[:60] or "figure"
        numbered = (base if number == 1 else f"{base}-{number}" for number in count(1))
        names.append(next(name for name in numbered if name not in names))
    return text, [replace(one, name=name) for one, name in zip(figures, names, strict=True)]


def _page(**values: Any) -> str:
    """The document, which loads nothing and runs nothing; all but `Markup` is escaped."""
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else plain(value),
    )
    environment.globals.update(
        kinds=_kinds, counted=counted, signs=SIGNS, tones=TONES, version=__version__,
        tiny_note=TINY_NOTE,
    )  # fmt: skip
    style = Markup((folder / "style.css").read_text(encoding="utf-8"))
    template = (folder / "page.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(style=style, **values)


def _kinds(rows: Sequence[Sequence[str]]) -> list[str]:
    """Of each column: `n` for numbers, set flush right; `wide` for texts that break into lines."""
    kinds = [""]  # the first column names its row
    for column in list(zip(*rows, strict=True))[1:]:
        cells = [cell for cell in column if cell.strip(" –-")]
        numbers = sum(bool(_NUMBER.match(cell)) and len(cell) < LONG / 2 for cell in cells)
        wide = max(map(len, cells), default=0) > LONG
        # one "failed" among numbers turns nothing
        kinds.append("wide" if wide else "n" if 2 * numbers > len(cells) else "")
    return kinds


def _keys(methods: Iterable[str], cards: Sequence[Card]) -> tuple[Key, ...]:
    """The legend of cards."""
    return (*method_keys(methods), *([PAPER] if any(card.printed for card in cards) else []))


def _models(panels: Sequence[tuple[Group, dict[str, list[Panel | None]]]]) -> list[dict[str, Any]]:
    """The models as the template needs them, with a row of drawings a task, up to a limit."""
    numbers = count()
    models = []
    for group, kinds in panels:
        *by_task, costs = kinds.values()
        rows, left = [], 0
        for row in (*zip(*by_task, strict=True), costs):
            named = [(next(numbers), panel) for panel in row if panel is not None]
            drawn = [pair for pair in named if pair[0] < MAX_PANELS]
            rows.append([Markup(inline_svg(panel, f"m{number}")) for number, panel in drawn])
            left += len(named) - len(drawn)
        models.append({
            "group": group,
            "runs": sum(len(chosen.runs) for chosen in group.cells),
            "keys": method_keys(chosen.cell.method for chosen in group.cells),
            "rows": [*filter(None, rows)],
            "left": left,
            "numbers": numbers_table(group),
        })  # fmt: skip
    return models


def _tables(selection: Selection) -> list[tuple[str, bool, list[Table]]]:
    """By what titles begin with, a table of the paper or a model; the tiny models' come last."""
    tables: dict[tuple[bool, str], list[Table]] = defaultdict(list)
    for one in build_tables(selection):
        match = _NAME.match(one.title)
        name = shortened(match[0] if match else one.title, 80)
        kept = tuple(note for note in one.notes if note != TINY_NOTE)  # said once for all
        tables[TINY_NOTE in one.notes, name].append(replace(one, notes=kept))
    return [
        (name, tiny, tables[tiny, name]) for tiny, name in sorted(tables, key=lambda key: key[0])
    ]
