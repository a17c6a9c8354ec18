"""What a report is made of, and what it lacks, counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparta_bench.records.record import LeftOut, Record
from sparta_bench.report.groups import cell_order, device_of
from sparta_bench.tables import paper_tables
from sparta_bench.tables.select import Selection
from sparta_bench.text import shortened

EXAMPLES = 3  # paths that are named for each reason


@dataclass(frozen=True, slots=True)
class Reason:
    """Why some records are used nowhere; `paths` are the first of them."""

    text: str
    count: int
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """Counts of records; every file found is in one of the five. Environments with their counts."""

    folders: tuple[str, ...]
    used: int
    outdone: int
    failed: int
    left_out: int
    reasons: tuple[Reason, ...]
    environments: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]
    first_day: str | None
    last_day: str | None

    @property
    def found(self) -> int:
        """All of them."""
        return self.used + self.outdone + self.failed + self.left_out


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that failed."""

    model: str
    task: str
    method: str
    seed: int
    kind: str
    message: str
    path: str


def facts_of(
    folders: Sequence[Path], told: Sequence[Record], left_out: list[LeftOut], selection: Selection
) -> Facts:
    """Count what was found below the folders: the records that are told of, and the others."""
    days = sorted({day for record in told for day in _days(record)})
    return Facts(
        tuple(_last_parts(folder) for folder in folders),
        sum(len(chosen.runs) for chosen in selection.cells.values()),
        len(selection.outdone),
        sum(record.status == "failed" for record in told),
        len(left_out),
        _reasons(left_out, folders),
        _environments(told),
        days[0] if days else None,
        days[-1] if days else None,
    )


def _last_parts(folder: Path) -> str:
    """The folder as it was given, but of an absolute one its name: pages travel."""
    return (folder.name or "/") if folder.is_absolute() else str(folder)


def shown_path(path: Path, folders: Iterable[Path]) -> str:
    """A record's folder, from the report's folder on."""
    for folder in folders:
        if path.is_relative_to(folder):
            inside = path.relative_to(folder).parent
            return str(Path(_last_parts(folder)) / inside)
    return str(path.parent)


def _reasons(left_out: list[LeftOut], folders: Sequence[Path]) -> tuple[Reason, ...]:
    found: dict[str, list[Path]] = defaultdict(list)
    for item in left_out:
        found[item.reason].append(item.path)
    reasons = [
        Reason(text, len(paths), tuple(shown_path(path, folders) for path in paths[:EXAMPLES]))
        for text, paths in found.items()
    ]
    return tuple(sorted(reasons, key=lambda reason: (-reason.count, reason.text)))


def _days(record: Record) -> Iterable[str]:
    """Days in UTC, as far as the record says."""
    for key in ("started", "finished"):
        value = record.raw.get(key)
        if isinstance(value, str) and len(value) >= 10:
            yield shortened(value[:10], 10)


def _environments(
    records: Iterable[Record],
) -> tuple[tuple[str, tuple[tuple[str, int], ...]], ...]:
    """What the records say about where they were made: name, then values with their counts."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        found["device"][device_of(record)] += 1
        environment = _mapping(record.raw["environment"])
        found["platform"][_said(environment.get("platform"))] += 1
        dtypes = _mapping(environment.get("dtypes"))
        found["dtype"][
            f"weights {_said(dtypes.get('model'))}, trained values {_said(dtypes.get('trained'))}"
        ] += 1
        revision = _said(environment.get("git_revision"))
        dirty = ", with changes" if environment.get("dirty") else ""
        found["git revision"][revision[:12] + dirty] += 1
        found["protocol"][_said(record.raw.get("protocol"))] += 1
        for package, version in _mapping(environment.get("versions")).items():
            found[shortened(package, 30)][_said(version)] += 1
    return tuple((name, tuple(sorted(counts.items()))) for name, counts in found.items())


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _said(value: Any) -> str:
    return "not recorded" if value is None else shortened(value, 60)


def failures_of(records: Iterable[Record], folders: Sequence[Path]) -> list[Failure]:
    """All failed runs, in the order of the tables."""
    failed = [record for record in records if record.status == "failed"]
    failed.sort(key=lambda run: (*cell_order(run.cell), run.seed, run.run_id))
    return [_failure(record, folders) for record in failed]


def _failure(record: Record, folders: Sequence[Path]) -> Failure:
    cell, error = record.cell, _mapping(record.raw.get("error"))
    return Failure(
        cell.model,
        paper_tables.task_name(cell.task),
        paper_tables.row_name(cell.method, cell.density),
        record.seed,
        _said(error.get("type")),
        shortened(error.get("message") or "no message", 300),
        shown_path(record.path, folders),
    )
