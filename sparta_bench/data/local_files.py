"""Local data files: GLUE's TSV layout, or parquet, jsonl and csv with the hub's column names."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sparta_bench.config.rules import TABLE_SUFFIXES
from sparta_bench.config.schema import TaskConfig, Tsv
from sparta_bench.data.examples import BadRowError, NumberedRow, is_unicode
from sparta_bench.errors import InputError, reason_of, shown

ROWS_AT_ONCE = 10_000  # of a parquet file, so that it is never in memory as a whole


def rows_of(task: TaskConfig, split: str) -> Iterator[tuple[Path, Iterator[NumberedRow]]]:
    """The numbered rows of each file of a split. Raises InputError if no file holds it, or one
    cannot be read."""
    for path in _find(task, split):
        yield path, _rows(path, task.tsv)


def has_split(task: TaskConfig, split: str) -> bool:
    """Whether `task.data_dir` has a file of a split."""
    try:
        return bool(_find(task, split))
    except InputError:
        return False


def _rows(path: Path, tsv: Tsv | None) -> Iterator[NumberedRow]:
    readers = {".parquet": _parquet_rows, ".jsonl": _jsonl_rows, ".csv": _csv_rows}
    try:
        if path.suffix in readers:
            yield from readers[path.suffix](path)
        else:
            yield from _tsv_rows(path, tsv)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _find(task: TaskConfig, split: str) -> list[Path]:
    if task.data is not None:
        if split == task.train_split:
            return [Path(task.data)]
        raise InputError(f"task.data={task.data}: is the file of split {task.train_split} alone")
    root = Path(str(task.data_dir))
    tried: list[str] = []
    if task.tsv is not None and split in task.tsv.files:
        for folder in (root / task.tsv.folder, root):
            path = folder / task.tsv.files[split]
            if path.is_file():
                return [path]
        tried.append(f"{task.tsv.folder}/{task.tsv.files[split]}")
    suffixes = TABLE_SUFFIXES if task.tsv is None else TABLE_SUFFIXES[:-1]  # theirs are described
    names = [name for name in (task.name, task.hub.name if task.hub else None) if name]
    for folder in (root, *(root / name for name in names)):
        for suffix in suffixes:
            if paths := _files_of(folder, split, suffix):
                return paths
    tried += [f"{split}{suffix}" for suffix in suffixes]
    raise InputError(
        f"task.data_dir={task.data_dir}: no file for split {split}; looked for {', '.join(tried)}"
    )


def _files_of(folder: Path, split: str, suffix: str) -> list[Path]:
    """`train.csv`, and `train-00000-of-00001.csv`, as the hub names its files."""
    try:
        paths = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"task.data_dir: {folder}: cannot be read: {error.strerror}") from None
    return [
        path
        for path in paths
        if path.suffix == suffix
        and (path.stem == split or path.name.startswith(f"{split}-"))
        and path.is_file()
    ]


def _tsv_rows(path: Path, tsv: Tsv | None) -> Iterator[NumberedRow]:
    """Tabs, no quoting, so a lone quotation mark is text; rows counted as lines. GLUE's files have
    a description of their own; another's first line has its columns' names."""
    positions: dict[str, int] | None = None
    width = 0
    with path.open("rb") as file:
        for number, line in numbered_lines(file):
            if isinstance(line, BadRowError):
                yield number, line
                if tsv is None and number == 1:
                    positions = {}  # nothing says what the columns are
                continue
            fields = line.split("\t")
            if positions is None:
                columns = tsv.columns if tsv else dict(zip(fields, fields, strict=True))
                _refuse_twice(path, [name for name in fields if name in columns.values()])
                missing = [name for name in columns.values() if name not in fields]
                stated = tsv.positions if tsv else None
                if missing and stated is None:
                    raise InputError(
                        f"{path}, row {number}: the header lacks {', '.join(missing)} "
                        f"(it has: {shown(', '.join(fields))})"
                    )
                if not missing:
                    positions = {name: fields.index(head) for name, head in columns.items()}
                    width = len(fields)
                    continue
                positions, width = stated or {}, (tsv and tsv.fields) or len(fields)
            if len(fields) != width:
                problem = f"{len(fields)} tab-separated fields, where {width} belong"
                yield number, BadRowError(problem)
            else:
                yield number, {name: fields[index] for name, index in positions.items()}


def _refuse_twice(path: Path, header: Sequence[str]) -> None:
    twice = [name for name in dict.fromkeys(header) if header.count(name) > 1]
    if twice:
        raise InputError(f"{path}, row 1: the header has {shown(', '.join(twice))} twice")


def numbered_lines(file: Iterable[bytes]) -> Iterator[tuple[int, str | BadRowError]]:
    """Lines of a file opened as bytes, from 1, without their ends and a byte-order mark."""
    # Split at the newline byte only: str.splitlines would also cut at U+2028 and its kind.
    for number, raw in enumerate(file, start=1):
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")  # as MRPC has
        try:
            yield number, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            at = f"byte {error.start + 1} of the line (0x{raw[error.start]:02x})"
            yield number, BadRowError(f"{at} is no UTF-8")


def json_object(line: str) -> dict[str, Any] | BadRowError:
    """Parse a line of a jsonl file."""
    try:
        row = json.loads(line)
    except ValueError as error:
        return BadRowError(f"not JSON: {error}")
    except RecursionError:
        return BadRowError("not JSON: nested too deeply")
    return row if isinstance(row, dict) else BadRowError("not a JSON object")


def _jsonl_rows(path: Path) -> Iterator[NumberedRow]:
    with path.open("rb") as file:
        for number, line in numbered_lines(file):
            if isinstance(line, BadRowError):
                yield number, line
            elif line.strip():
                yield number, json_object(line)


def _csv_rows(path: Path) -> Iterator[NumberedRow]:
    csv.field_size_limit(2**31 - 1)
    number = 1
    try:
        # what is no UTF-8 comes as lone surrogates, so that it is a fault of its row alone
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or []
            _refuse_twice(path, names)
            for row in reader:
                number = reader.line_num
                if None in row or None in row.values():
                    problem = f"not the header's number of fields ({len(names)})"
                    yield number, BadRowError(problem)
                elif not all(map(is_unicode, row.values())):
                    yield number, BadRowError("holds bytes that are no UTF-8")
                else:
                    yield number, row
    except csv.Error as error:
        raise InputError(f"{path}, after row {number}: not readable as csv: {error}") from None


def _parquet_rows(path: Path) -> Iterator[NumberedRow]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as parquet: {reason_of(error)}") from None
