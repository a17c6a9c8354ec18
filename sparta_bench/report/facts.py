"""What records say, as far as they do: values, cells by model, and tables of all of them."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparta_bench.records.record import Cell, Excluded, Record
from sparta_bench.tables.format import MISSING, SCALE
from sparta_bench.tables.paper_tables import cell_order, model_order, row_name, task_name
from sparta_bench.tables.protocol import TINY_MODELS
from sparta_bench.tables.select import Chosen, Selection
from sparta_bench.tables.table import Table, table_of
from sparta_bench.text import as_bytes, as_duration, counted, plain, shortened, spread_text

METHODS = ("full_ft", "sparta", "sparta_vo", "lora", "head")  # those with a colour of their own
EXAMPLES = 3  # paths that are named for each reason
MOST_ROWS = 200  # of failed runs; more are counted


# ------------------------------------------------------------------------------- of a record
def number(value: Any) -> float | None:
    """A finite number as a float, or None: records may hold anything."""
    if type(value) not in (int, float) or not math.isfinite(value):
        return None
    return float(value)


def training_value(record: Record, key: str) -> float | None:
    """A number of the record's `training`, or None where it is missing or of another type."""
    return number(_mapping(record.raw["training"]).get(key))


def training_seconds(record: Record) -> float | None:
    """Seconds of training without evaluations, but with Head's one pass for its features."""
    seconds = training_value(record, "seconds")
    return seconds and seconds + (training_value(record, "features_seconds") or 0.0)


def peak_bytes(record: Record) -> float | None:
    """Memory at its peak, in bytes."""
    return training_value(record, "peak_memory_bytes")


def median(values: Iterable[float | None]) -> float | None:
    """The median of the values that are there."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def device_of(record: Record) -> str:
    """Name, kind, threads and processes: what times must have in common to be compared."""
    environment = _mapping(record.raw["environment"])
    device = _mapping(environment.get("device"))
    parts = [plain(device.get("type") or "?")]
    if device.get("type") == "cpu" and device.get("threads") is not None:
        threads = shortened(device["threads"], 8)
        parts.append("1 thread" if threads == "1" else f"{threads} threads")
    if environment.get("processes") not in (None, 1):
        parts.append(f"{shortened(environment['processes'], 8)} processes")
    return f"{shortened(device.get('name') or 'unknown device', 60)} ({', '.join(parts)})"


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _said(value: Any) -> str:
    return "not recorded" if value is None else shortened(value, 60)


# --------------------------------------------------------------------------------- of a cell
def tone_of(method: str) -> str:
    """The name of a method's colour: `lora` for a cell's `lora r=16`."""
    first = method.partition(" ")[0]
    return first if first in METHODS else "other"


def task_of(task: str) -> str:
    """A task's name, as a title has it."""
    return shortened(task_name(task), 40)


def name_of(chosen: Chosen) -> str:
    """Method and density."""
    return shortened(row_name(chosen.cell.method, chosen.cell.density), 40)


def share_of(chosen: Chosen) -> float:
    """Scalars trained over all scalars of the model, 0 to 1."""
    total = statistics.fmean(run.raw["parameters"]["total"] for run in chosen.runs)
    return chosen.trained / total if total else 0.0


class Group(NamedTuple):
    """The cells of one model in their order, and the failed runs of each cell."""

    model: str
    cells: list[Chosen]
    failed: dict[Cell, list[Record]]

    @property
    def embedded(self) -> bool:
        """Whether the model is one of those in the package, which say nothing about the paper's."""
        return self.model in TINY_MODELS

    @property
    def name(self) -> str:
        """The model's name, as a heading has it."""
        return shortened(self.model, 60) + (" (embedded tiny model)" if self.embedded else "")

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
    groups: dict[str, Group] = {}
    for cell in sorted(selection.cells, key=cell_order):
        group = groups.setdefault(cell.model, Group(cell.model, [], failed))
        group.cells.append(selection.cells[cell])
    return sorted(groups.values(), key=lambda one: (one.embedded, model_order(one.model)))


# ------------------------------------------------------------------------------------ tables
def numbers_table(group: Group) -> Table:
    """The numbers behind a model's figures, one row a cell."""
    heads = ("Task", "Method", "scalars", "share, %", "dev loss", "test loss", "acc., %",
             "mcc × 100", "time", "memory", "seeds", "settings", "failed")  # fmt: skip
    note = (
        "Scalars: how many were trained. Scores and losses: mean ± standard deviation over "
        "seeds. Time: of training without evaluations, the median, and so the highest use of "
        "memory. Settings: how many were compared by dev loss. Failed: runs of any setting."
    )
    rows = [
        (task_of(one.cell.task), name_of(one), *(_values(one) if one.runs else [MISSING] * 8),
         *map(str, (len(one.runs), one.tried, one.failed)))
        for one in group.cells
    ]  # fmt: skip
    return table_of("numbers", f"The numbers of {group.name}", heads, rows, note)


def _values(chosen: Chosen) -> list[str]:
    def spread(split: str, metric: str, digits: int) -> str:
        found = chosen.over_seeds(split, metric).times(SCALE[metric])
        return spread_text(found.mean, found.std, digits)

    def cost(of: Callable[[Record], float | None], show: Callable[[float], str]) -> str:
        value = median(map(of, chosen.runs))
        return MISSING if value is None else show(value)

    return [
        f"{chosen.trained:,.0f}",
        f"{100 * share_of(chosen):.3g}",
        spread("dev", "loss", 3),
        spread("test", "loss", 3),
        spread("test", "accuracy", 1),
        spread("test", "mcc", 1),
        cost(training_seconds, lambda seconds: as_duration(seconds, 1)),
        cost(peak_bytes, as_bytes),
    ]


def failures(failed: Iterable[Record], folders: Sequence[Path]) -> Table:
    """Which runs failed and what they said, in the order of the tables."""
    ordered = sorted(failed, key=lambda run: (*cell_order(run.cell), run.seed, run.run_id))
    rows = []
    for run in ordered[:MOST_ROWS]:
        error = _mapping(run.raw.get("error"))
        message = shortened(error.get("message") or "no message", 300)
        model, task, method, density = run.cell
        rows.append((model, task_name(task), row_name(method, density), str(run.seed),
                     _said(error.get("type")), message, _shown(run.path, folders)))  # fmt: skip
    rest = len(ordered) - len(rows)
    note = f"{counted(rest, 'other failed run is', 'other failed runs are')} not listed."
    heads = ("Model", "Task", "Method", "Seed", "Error", "Message", "Record")
    return table_of("failures", "Failed runs", heads, rows, *([note] if rest else []))


def reasons(excluded: Iterable[Excluded], folders: Sequence[Path]) -> Table:
    """Why records are left out, with some of their folders."""
    found: dict[str, list[Path]] = defaultdict(list)
    for item in excluded:
        found[item.reason].append(item.path)
    rows = []
    for reason, paths in sorted(found.items(), key=lambda item: (-len(item[1]), item[0])):
        where = ", ".join(_shown(path, folders) for path in paths[:EXAMPLES])
        more = f" and {len(paths) - EXAMPLES:,} more" if len(paths) > EXAMPLES else ""
        rows.append((reason, f"{len(paths):,}", where + more))
    return table_of("left-out", "Left out, and why", ("Reason", "Records", "Where"), rows)


def last_parts(folder: Path) -> str:
    """The folder as it was given, but of an absolute one its name: pages travel."""
    return (folder.name or "/") if folder.is_absolute() else str(folder)


def _shown(path: Path, folders: Iterable[Path]) -> str:
    """A record's folder, from the report's folder on."""
    for folder in folders:
        if path.is_relative_to(folder):
            return str(Path(last_parts(folder)) / path.relative_to(folder).parent)
    return str(path.parent)


def days_of(records: Iterable[Record]) -> str:
    """The first and the last day (UTC) on which a record was made, as far as they say."""
    moments = (record.raw.get(key) for record in records for key in ("started", "finished"))
    days = sorted({at[:10] for at in moments if isinstance(at, str) and len(at) >= 10})
    return " to ".join(dict.fromkeys([days[0], days[-1]])) if days else ""


def environments(records: Iterable[Record]) -> Table:
    """Where the records were made: name, then values with their counts."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for name, value in _environment(record):
            found[name][value] += 1
    rows = []
    for name, counts in found.items():
        one = len(counts) == 1
        values = (
            value if one else f"{value} ({counted(count, 'record')})"
            for value, count in sorted(counts.items())
        )
        rows.append((name, "; ".join(values)))
    heads = ("What", "Values in the records")
    return table_of("environment", "Where the records were made", heads, rows)


def _environment(record: Record) -> Iterator[tuple[str, str]]:
    environment = _mapping(record.raw["environment"])
    dtypes = _mapping(environment.get("dtypes"))
    model, trained = _said(dtypes.get("model")), _said(dtypes.get("trained"))
    dirty = ", with changes" if environment.get("dirty") else ""
    yield "device", device_of(record)
    yield "platform", _said(environment.get("platform"))
    yield "dtype", f"weights {model}, trained values {trained}"
    yield "git revision", _said(environment.get("git_revision"))[:12] + dirty
    yield "protocol", _said(record.raw.get("protocol"))
    for package, version in _mapping(environment.get("versions")).items():
        yield shortened(package, 30), _said(version)
