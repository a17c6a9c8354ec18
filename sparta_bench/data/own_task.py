"""Find in the data what a task does not say: columns, labels, dev and test sets, and a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from sparta_bench.config.schema import Config, Dev, Prompt, TaskConfig
from sparta_bench.data import local_files
from sparta_bench.data.examples import BadRowError, label_text
from sparta_bench.data.generated.data_sets import generate
from sparta_bench.data.splits import hub_rows, hub_splits
from sparta_bench.errors import InputError, log, one_of, shown

DEV_SPLITS = ("validation", "dev", "valid", "val")
IDS = ("id", "idx", "index", "guid")  # columns that are no text to read
SPLIT_OFF = 10  # one row of so many goes to a set that is split off training
MOST_SPLIT_OFF = 1000  # rows
LEAST_ROWS = 20


def complete(config: Config) -> Config:
    """Return the configuration with a task that says everything; most do already. Raises InputError
    if the data does not show it."""
    task = config.task
    if task.columns and task.labels and task.dev.split and task.prompt.instruction:
        return config
    return replace(config, task=_completed(task))


@lru_cache(maxsize=8)  # a grid has a task many times
def _completed(task: TaskConfig) -> TaskConfig:
    names, rows = _names(task), 0
    columns: tuple[str, ...] = task.columns
    labels: dict[str, int] = {}
    ids: dict[Any, int] = {}
    for source, number, row in _rows(task, task.train_split):
        if isinstance(row, BadRowError):
            continue  # reading the split names it, or counts it
        if not columns:
            columns = _columns_of(task, row, source)
        if task.label_column not in row:
            raise InputError(
                f"{source}, row {number}: no column {task.label_column}; name the one with the "
                f"labels with task.label_column=NAME (there are: {shown(', '.join(row))})"
            )
        for column in IDS if task.on_bad_row == "error" else ():
            key = (source, column, row.get(column))
            if row.get(column) is not None and ids.setdefault(key, number) != number:
                raise InputError(
                    f"{source}, row {number}: the {column} {shown(str(row[column]))} stands in row "
                    f"{ids[key]} as well; take one away, or call the column otherwise"
                )
        rows += 1
        text = label_text(row[task.label_column])
        if text is None or not text:
            if task.on_bad_row == "skip":
                continue
            raise InputError(
                f"{source}, row {number}: the label is empty "
                "(task.on_bad_row=skip leaves such rows out and counts them)"
            )
        labels[text] = labels.get(text, 0) + 1
    if not task.labels:
        names = names or _in_order(labels)
        _check_labels(task, names, rows)
        task = replace(task, labels=names)
    task = replace(task, columns=columns)
    task = _with_sets(task, rows)
    if not task.prompt.instruction:
        return replace(task, prompt=_prompt(task))
    for part, given, needed in (
        ("answers", task.prompt.answers, task.labels),
        ("fields", task.prompt.fields, task.columns),
    ):
        if len(given) != len(needed):
            raise InputError(
                f"task.prompt.{part}=[{', '.join(given)}]: must hold one for each of "
                f"{shown(', '.join(needed))}"
            )
    return task


def _rows(task: TaskConfig, split: str) -> Iterator[tuple[str, int, Any]]:
    """Rows with their numbers and where they are from."""
    if task.data is not None or task.data_dir is not None:
        for path, rows in local_files.rows_of(task, split):
            for number, row in rows:
                yield str(path), number, row
        return
    if task.hub is None:
        for number, row in enumerate(generate(str(task.generated))[split], start=1):
            yield f"task.generated={task.generated}", number, row
        return
    if split not in hub_splits(task.hub):
        splits = one_of(hub_splits(task.hub))
        raise InputError(f"task.hub={task.hub.path}: has no split {split} (it has {splits})")
    for number, row in enumerate(hub_rows(task.hub, split), start=1):
        yield task.hub.path, number, row


def _names(task: TaskConfig) -> tuple[str, ...]:
    """The labels' names where a data set of the hub has numbers with names."""
    if task.labels or task.hub is None or task.data is not None or task.data_dir is not None:
        return ()
    rows = (
        hub_rows(task.hub, task.train_split) if task.train_split in hub_splits(task.hub) else None
    )
    features: Mapping[str, Any] = rows.features if rows is not None else {}
    names = tuple(getattr(features.get(task.label_column), "names", None) or ())
    if any(name.isdigit() for name in names):
        raise InputError(
            f"task.hub={task.hub.path}: its labels are named by numbers ({', '.join(names)}); give "
            "names with task.labels=[…], in this order"
        )
    return names


def _columns_of(task: TaskConfig, row: Mapping[str, Any], source: str) -> tuple[str, ...]:
    others = [name for name in row if name != task.label_column and name.lower() not in IDS]
    if len(others) != 1:
        raise InputError(
            f"{source}: name the column to read, or the two of a pair, with task.columns=[NAME] "
            f"(there are: {shown(', '.join(row))})"
        )
    return (others[0],)


def _in_order(labels: Mapping[str, int]) -> tuple[str, ...]:
    numbers = all(name.removeprefix("-").isdecimal() for name in labels)
    return tuple(sorted(labels, key=int) if numbers else sorted(labels))


def _check_labels(task: TaskConfig, names: Sequence[str], rows: int) -> None:
    column = f"task.label_column={task.label_column}"
    if len(names) < 2:
        only = f"one label ({shown(names[0])})" if names else "no label"
        raise InputError(f"{column}: must hold two labels or more; the {rows:,} rows have {only}")
    if len(names) > max(2, rows // 2):
        raise InputError(
            f"{column}: must be the column of the labels; it has {len(names):,} different values "
            f"in {rows:,} rows"
        )


def _with_sets(task: TaskConfig, rows: int) -> TaskConfig:
    """The task with a dev and a test set: of the data, or split off training."""
    there = _splits_there(task)
    if not task.dev.split:
        name = next((name for name in DEV_SPLITS if name in there), None)
        count = _split_off(task, "dev", rows) if name is None else None
        dev = Dev(task.train_split, "stratified", count) if name is None else Dev(name, "all", None)
        task = replace(task, dev=dev)
    if not task.test_splits and task.test_examples is None:
        if "test" in there:
            task = replace(task, test_splits=("test",))
        else:
            task = replace(task, test_examples=_split_off(task, "test", rows))
    return task


def _split_off(task: TaskConfig, name: str, rows: int) -> int:
    if rows < LEAST_ROWS:
        raise InputError(
            f"task={task.name}: give a file for {name}, or at least {LEAST_ROWS} rows of training "
            f"from which it is split off; there are {rows}"
        )
    count = min(MOST_SPLIT_OFF, max(len(task.labels), rows // SPLIT_OFF))
    log(
        f"task={task.name}: the data has no {name} set, so that {count:,} of the {rows:,} training "
        f"rows are it (each label in its share, drawn by task.draw_seed={task.draw_seed})"
    )
    return count


def _splits_there(task: TaskConfig) -> list[str]:
    if task.data is not None:
        return []
    if task.data_dir is not None:
        return [name for name in (*DEV_SPLITS, "test") if local_files.has_split(task, name)]
    return list(generate(str(task.generated))) if task.hub is None else hub_splits(task.hub)


def _prompt(task: TaskConfig) -> Prompt:
    """How an instruction model is asked, in the labels' own words."""
    answers = tuple(name.replace("_", " ") for name in task.labels)
    pair = len(task.columns) == 2
    texts = "two texts belong" if pair else "text belongs"
    return Prompt(
        f"Determine to which category the following {texts}.",
        answers,
        one_of(answers),
        ("Text 1", "Text 2") if pair else ("Text",),
    )
