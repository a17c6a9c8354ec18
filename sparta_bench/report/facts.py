"""What a report is made of: counts, and tables of what failed, is left out, and of environments."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparta_bench.records.record import Excluded, Record
from sparta_bench.report.groups import cell_order, device_of
from sparta_bench.tables import paper_tables
from sparta_bench.tables.select import Selection
from sparta_bench.tables.table import Heading, Table
from sparta_bench.text import counted, shortened

EXAMPLES = 3  # paths that are named for each reason
MOST_ROWS = 200  # of failed runs; more are counted


@dataclass(frozen=True, slots=True)
class Facts:
    """Counts of records; every file found is in one of the first four."""

    used: int
    compared: int
    failed: int
    excluded: int
    folders: tuple[str, ...]
    days: str
    failures: Table
    reasons: Table
    environment: Table

    @property
    def found(self) -> int:
        """All of them."""
        return self.used + self.compared + self.failed + self.excluded


def facts_of(
    folders: Sequence[Path], told: Sequence[Record], excluded: list[Excluded], selection: Selection
) -> Facts:
    """Count what was found below the folders: the records that are told of, and the others."""
    days = sorted({day for record in told for day in _days(record)})
    failed = [record for record in told if record.status == "failed"]
    return Facts(
        sum(len(chosen.runs) for chosen in selection.cells.values()),
        len(selection.not_selected),
        len(failed),
        len(excluded),
        tuple(map(_last_parts, folders)),
        " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "",
        _failures(failed, folders),
        _reasons(excluded, folders),
        _environment(told),
    )


def _table(key: str, title: str, heads: Iterable[str], rows: Iterable[Any], *notes: str) -> Table:
    return Table(key, title, (tuple(map(Heading, heads)),), tuple(rows), notes)


def _last_parts(folder: Path) -> str:
    """The folder as it was given, but of an absolute one its name: pages travel."""
    return (folder.name or "/") if folder.is_absolute() else str(folder)


def _shown(path: Path, folders: Iterable[Path]) -> str:
    """A record's folder, from the report's folder on."""
    for folder in folders:
        if path.is_relative_to(folder):
            return str(Path(_last_parts(folder)) / path.relative_to(folder).parent)
    return str(path.parent)


def _days(record: Record) -> Iterable[str]:
    """Days in UTC, as far as the record says."""
    for key in ("started", "finished"):
        value = record.raw.get(key)
        if isinstance(value, str) and len(value) >= 10:
            yield shortened(value[:10], 10)


def _failures(failed: list[Record], folders: Sequence[Path]) -> Table:
    """Which runs failed and what they said, in the order of the tables."""
    failed.sort(key=lambda run: (*cell_order(run.cell), run.seed, run.run_id))
    rows = []
    for run in failed[:MOST_ROWS]:
        error = _mapping(run.raw.get("error"))
        rows.append(
            (
                run.cell.model,
                paper_tables.task_name(run.cell.task),
                paper_tables.row_name(run.cell.method, run.cell.density),
                str(run.seed),
                _said(error.get("type")),
                shortened(error.get("message") or "no message", 300),
                _shown(run.path, folders),
            )
        )
    rest = len(failed) - len(rows)
    note = f"{counted(rest, 'other failed run is', 'other failed runs are')} not listed."
    heads = ("Model", "Task", "Method", "Seed", "Error", "Message", "Record")
    return _table("failures", "Failed runs", heads, rows, *([note] if rest else []))


def _reasons(excluded: list[Excluded], folders: Sequence[Path]) -> Table:
    found: dict[str, list[Path]] = defaultdict(list)
    for item in excluded:
        found[item.reason].append(item.path)
    rows = []
    for reason, paths in sorted(found.items(), key=lambda item: (-len(item[1]), item[0])):
        where = ", ".join(_shown(path, folders) for path in paths[:EXAMPLES])
        more = len(paths) - EXAMPLES
        rows.append(
            (reason, f"{len(paths):,}", where + (f" and {more:,} more" if more > 0 else ""))
        )
    return _table("left-out", "Left out, and why", ("Reason", "Records", "Where"), rows)


def _environment(records: Iterable[Record]) -> Table:
    """What the records say about where they were made: name, then values with their counts."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for name, value in _facts_of(record):
            found[name][value] += 1
    rows = []
    for name, counts in found.items():
        values = [
            value if len(counts) == 1 else f"{value} ({counted(count, 'record', 'records')})"
            for value, count in sorted(counts.items())
        ]
        rows.append((name, "; ".join(values)))
    heads = ("What", "Values in the records")
    return _table("environment", "Where the records were made", heads, rows)


def _facts_of(record: Record) -> Iterator[tuple[str, str]]:
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


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _said(value: Any) -> str:
    return "not recorded" if value is None else shortened(value, 60)
