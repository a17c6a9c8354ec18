"""Cells by model: embedded models and real ones never stand together."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sparta_bench.records.record import Cell, Record
from sparta_bench.tables.protocol import MODELS, TASKS
from sparta_bench.tables.select import Chosen, Selection
from sparta_bench.text import plain, shortened

METHODS = ("full_ft", "sparta", "sparta_vo", "lora", "head")  # the paper's order
TOTAL, TRAINED = ("parameters", "total"), ("parameters", "trainable")


@dataclass(frozen=True, slots=True)
class Group:
    """The cells of one model, by task and method, and the failed runs of each cell."""

    model: str
    embedded: bool
    cells: tuple[Chosen, ...]
    failed: dict[Cell, list[Record]]

    @property
    def name(self) -> str:
        """The model's name, as a heading has it."""
        return shortened(self.model, 60) + (" (embedded tiny model)" if self.embedded else "")

    @property
    def methods(self) -> list[str]:
        """The methods of its cells."""
        return [chosen.cell.method for chosen in self.cells]

    def tasks(self) -> dict[str, list[Chosen]]:
        """The cells of each task, in their order."""
        found: dict[str, list[Chosen]] = defaultdict(list)
        for chosen in self.cells:
            found[chosen.cell.task].append(chosen)
        return found


def groups_of(selection: Selection, records: Iterable[Record]) -> list[Group]:
    """Real models first, then the embedded ones; both in the paper's order, then by name."""
    failed: dict[Cell, list[Record]] = defaultdict(list)
    for record in records:
        if record.status == "failed":
            failed[record.cell].append(record)
    found: dict[tuple[bool, str], list[Chosen]] = defaultdict(list)
    for cell, chosen in selection.cells.items():
        embedded = any(map(is_embedded, (*chosen.runs, *failed.get(cell, ()))))
        found[embedded, cell.model].append(chosen)
    ordered = sorted(found, key=lambda key: (key[0], *_place(MODELS, key[1])))
    return [
        Group(
            model,
            embedded,
            tuple(sorted(found[embedded, model], key=lambda chosen: cell_order(chosen.cell))),
            failed,
        )
        for embedded, model in ordered
    ]


def is_embedded(record: Record) -> bool:
    """Whether the model is one of those in the package, which say nothing about the paper's."""
    return record.raw["config"]["model"].get("embedded") is True


def _place(order: tuple[str, ...], name: str) -> tuple[int, str]:
    bare = name.removeprefix("tiny-")
    return (order.index(bare) if bare in order else len(order), name)


def cell_order(cell: Cell) -> tuple[Any, ...]:
    """By model, task and method as the paper has them, densities downwards."""
    density = 0.0 if cell.density is None else cell.density
    return (
        *_place(MODELS, cell.model),
        *_place(TASKS, cell.task),
        *_place(METHODS, base_method(cell.method)),
        cell.method,
        -density,
    )


def base_method(method: str) -> str:
    """`lora` of a cell's `lora r=16`."""
    return method.partition(" ")[0]


def tone_of(method: str) -> str:
    """The name of a method's colour."""
    base = base_method(method)
    return base if base in METHODS else "other"


def number(value: Any) -> float | None:
    """A finite number as a float, or None: records may hold anything."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    # beyond this, differences overflow
    return found if math.isfinite(found) and abs(found) < 1e100 else None


def value_at(record: Record, *keys: str) -> float | None:
    """A number of the record, or None where it is missing or of another type."""
    value: Any = record.raw
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return number(value)


def median(values: Iterable[float | None]) -> float | None:
    """The median of the values that are there."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are there."""
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else None


def share_of(chosen: Chosen) -> float | None:
    """Scalars trained over all scalars of the model, 0 to 1; None where records do not say."""
    trained, total = trained_of(chosen), mean(value_at(run, *TOTAL) for run in chosen.runs)
    if trained is None or total is None or trained <= 0 or total <= 0:
        return None
    return trained / total


def trained_of(chosen: Chosen) -> float | None:
    """Scalars trained, the mean over seeds: each draws another number."""
    return mean(value_at(run, *TRAINED) for run in chosen.runs)


def device_of(record: Record) -> str:
    """Name, kind, threads and processes: what times must have in common to be compared."""
    environment = record.raw["environment"]
    environment = environment if isinstance(environment, dict) else {}
    device = environment.get("device")
    device = device if isinstance(device, dict) else {}
    name = shortened(device.get("name") or "unknown device", 60)
    parts = [plain(device.get("type") or "?")]
    if device.get("type") == "cpu" and device.get("threads") is not None:
        threads = shortened(device["threads"], 8)
        parts.append("1 thread" if threads == "1" else f"{threads} threads")
    processes = environment.get("processes")
    if processes not in (None, 1):
        parts.append(f"{shortened(processes, 8)} processes")
    return f"{name} ({', '.join(parts)})"
