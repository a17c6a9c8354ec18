"""Where the rows come from, and how they become train, dev and test (Tables 2 and 9); and what a
task does not say, found in the data: columns, labels, dev and test sets, and a prompt."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

from sparta_bench.config.schema import Config, Dev, Hub, Prompt, TaskConfig
from sparta_bench.data import local_files
from sparta_bench.data.examples import BadRowError, Examples, NumberedRow, add_rows, label_text
from sparta_bench.data.generated import generate
from sparta_bench.errors import InputError, log, one_of, shown

T = TypeVar("T")
DEV_SPLITS = ("validation", "dev", "valid", "val")
IDS = ("id", "idx", "index", "guid")  # columns that are no text to read
SPLIT_OFF = 10  # one row of so many goes to a set that is split off training
MOST_SPLIT_OFF = 1000  # rows
LEAST_ROWS = 20


@dataclass
class Splits:
    """The labelled examples of one task; `train` is capped, but long ones are still in it."""

    train: Examples
    dev: Examples
    test: Examples
    bad_rows: int

    def fingerprint(self) -> str:
        """A hash of everything that the three sets hold."""
        parts = (self.train, self.dev, self.test)
        return "-".join(part.fingerprint()[:8] for part in parts)


def load_splits(task: TaskConfig, limit: int | None = None) -> Splits:
    """Read the task's raw splits from where the configuration says, divide them, and take at most
    `limit` examples of each. Raises InputError if the data cannot be had, a row is bad, or a split
    would be left without rows."""
    needed = dict.fromkeys([task.train_split, task.dev.split, *task.test_splits])
    raw = {split: read_split(task, split) for split in needed}
    bad_rows = sum(examples.bad_rows for examples in raw.values())
    dev_rows, others = _draw_dev(task, raw[task.dev.split].labels)
    dev = raw[task.dev.split].select(dev_rows)
    raw[task.dev.split] = raw[task.dev.split].select(others)
    test = Examples()
    for split in task.test_splits:
        test.texts += raw[split].texts
        test.labels += raw[split].labels
    train = raw[task.train_split]
    if task.test_examples is not None:
        if task.test_examples >= len(train):
            raise InputError(
                f"task.test_examples={task.test_examples}: training has only {len(train)} rows, "
                "and some must be left"
            )
        drawn = stratified(train.labels, task.test_examples, task.draw_seed)
        test = train.select(drawn)
        train = train.select(sorted({*range(len(train))} - {*drawn}))
    cap = task.max_train_examples
    if cap is not None and cap < len(train):
        at_random = task.cap_takes != "first"
        rows = stratified(train.labels, cap, task.draw_seed) if at_random else range(cap)
        train = train.select(rows)
    train, dev, test = (_limited(one, limit, task.draw_seed) for one in (train, dev, test))
    return Splits(train, dev, test, bad_rows)


def _limited(examples: Examples, limit: int | None, seed: int) -> Examples:
    if limit is None or limit >= len(examples):
        return examples
    return examples.select(stratified(examples.labels, limit, seed))


def _draw_dev(task: TaskConfig, labels: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """Numbers of the dev rows in their raw split, and of the others."""
    rows = len(labels)
    if task.dev.take == "all":
        return range(rows), range(0)
    wanted = task.dev.examples or 0
    if wanted >= rows:
        raise InputError(
            f"task.dev.examples={wanted}: split {task.dev.split} has only {rows} rows, and some "
            "must be left"
        )
    if task.dev.take == "last":
        return range(rows - wanted, rows), range(rows - wanted)
    if task.dev.take == "stratified":
        drawn = set(stratified(labels, wanted, task.draw_seed))
    else:
        drawn = set(random.Random(task.draw_seed).sample(range(rows), wanted))
    return sorted(drawn), [row for row in range(rows) if row not in drawn]


def stratified(labels: Sequence[int], wanted: int, seed: int) -> list[int]:
    """Draw so many row numbers, in order: each label in its share of all, and at least once where
    there is room for all."""
    rows_of: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        rows_of.setdefault(label, []).append(row)
    least = int(wanted >= len(rows_of))
    counts = {
        label: max(least, wanted * len(rows_of[label]) // len(labels)) for label in sorted(rows_of)
    }

    def owed(label: int) -> int:  # times the number of rows
        return wanted * len(rows_of[label]) - counts[label] * len(labels)

    while (left := wanted - sum(counts.values())) > 0:
        counts[max(counts, key=owed)] += 1
    for _ in range(-left):  # the least of one was more than the share of some
        counts[min((label for label in counts if counts[label] > least), key=owed)] -= 1
    draw = random.Random(seed)
    return sorted(row for label in counts for row in draw.sample(rows_of[label], counts[label]))


# ----------------------------------------------------------------------------- the sources
def read_split(task: TaskConfig, split: str) -> Examples:
    """Read one raw split. Raises InputError if it is not there, a file cannot be read, or (unless
    `task.on_bad_row=skip`) a row is bad: file or source, row number and rule."""
    examples, first = Examples(), ""
    for source, rows in _rows_of(task, split):
        if not _is_local(task) and task.generated is None:
            source += f", split {split}"
        first = first or source
        add_rows(examples, rows, task, source)
    if not examples:
        bad = f" ({examples.bad_rows} bad)" if examples.bad_rows else ""
        none = f"split {split} has no usable rows{bad}" if _is_local(task) else "no usable rows"
        raise InputError(f"{first}: {none}")
    return examples


def _is_local(task: TaskConfig) -> bool:
    return task.data is not None or task.data_dir is not None


def _rows_of(task: TaskConfig, split: str) -> Iterator[tuple[str, Iterable[NumberedRow]]]:
    """The numbered rows of a split, of each of its files or from where else it is."""
    if _is_local(task):
        for path, rows in local_files.rows_of(task, split):
            yield str(path), rows
    elif task.generated is not None:
        generated = generate(task.generated)
        if split not in generated:
            raise InputError(f"split {split}: task {task.name} has only {one_of(generated)}")
        yield f"task.generated={task.generated}", enumerate(generated[split], start=1)
    else:
        assert task.hub is not None
        yield task.hub.path, enumerate(_hub_rows(task.hub, split), start=1)


def _split_names(task: TaskConfig) -> list[str]:
    """The splits that are there; of a folder those that a dev or a test set may be."""
    if task.data is not None:
        return []
    if task.data_dir is not None:
        return [name for name in (*DEV_SPLITS, "test") if local_files.has_split(task, name)]
    if task.hub is None:
        return list(generate(str(task.generated)))
    return _on_hub(task.hub, lambda builder: [str(name) for name in builder.info.splits])


def _hub_rows(repository: Hub, split: str) -> Any:
    return _on_hub(repository, lambda builder: builder.as_dataset(split=split))


def _on_hub(repository: Hub, read: Callable[[Any], T]) -> T:
    """What is read of a data set's builder, at the revision asked for."""
    try:
        return read(_prepared(repository))
    except InputError:
        raise
    except Exception as error:  # the client raises many kinds, all of them about access or content
        from sparta_bench import hub

        reason, cause = hub.why(error)
        page = f"https://huggingface.co/datasets/{repository.path}"
        ways = hub.ways_out(cause, page, "download the files and set task.data_dir=DIR")
        raise InputError(
            f"task.hub={repository.path}: cannot be loaded from the hub: {reason}. {ways}"
        ) from None


@lru_cache(maxsize=1)  # a task's splits are read one after the other
def _prepared(repository: Hub) -> Any:
    """The data set's builder, with its files in the cache."""
    import datasets  # here, because it takes seconds

    from sparta_bench import hub

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    path, revision = repository.path, repository.revision
    commit, refusal = hub.look(path, revision, "dataset")
    settings = {"download_config": datasets.DownloadConfig(max_retries=2)}
    try:
        with hub.cache_alone(commit is None):
            builder = datasets.load_dataset_builder(
                path, repository.name, revision=revision, **settings
            )
    except Exception as error:
        raise refusal or error from None
    # from whatever goes wrong on the way it falls back on the latest that is in its cache
    wanted = commit or (revision if hub.is_commit(revision) else builder.hash)
    if builder.hash != wanted:
        raise InputError(
            f"task.hub.revision={revision}: cannot be had from the hub, and the cache has only "
            f"{builder.hash} of {path}"
        )
    builder.download_and_prepare(**settings)
    return builder


# ------------------------------------------------------------- what a task does not say of itself
def complete(config: Config) -> Config:
    """Return the configuration with a task that says everything; most do already. Raises InputError
    if the data does not show it."""
    task = config.task
    if task.columns and task.labels and task.dev.split and task.prompt.instruction:
        return config
    return replace(config, task=_completed(task))


@lru_cache(maxsize=8)  # a grid has a task many times
def _completed(task: TaskConfig) -> TaskConfig:
    known = _names_on_hub(task)
    columns, labels, rows = _look_through(task)
    if not task.labels:
        are_numbers = all(name.removeprefix("-").isdecimal() for name in labels)
        names = known or tuple(sorted(labels, key=int) if are_numbers else sorted(labels))
        column = f"task.label_column={task.label_column}"
        if len(names) < 2:
            only = f"one label ({shown(names[0])})" if names else "no label"
            raise InputError(
                f"{column}: must hold two labels or more; the {rows:,} rows have {only}"
            )
        if len(names) > max(2, rows // 2):
            raise InputError(
                f"{column}: must be the column of the labels; it has {len(names):,} different "
                f"values in {rows:,} rows"
            )
        task = replace(task, labels=names)
    task = _with_sets(replace(task, columns=columns), rows)
    if not task.prompt.instruction:  # an instruction model is asked in the labels' own words
        answers = tuple(name.replace("_", " ") for name in task.labels)
        pair = len(task.columns) == 2
        texts = "two texts belong" if pair else "text belongs"
        question = f"Determine to which category the following {texts}."
        fields = ("Text 1", "Text 2") if pair else ("Text",)
        return replace(task, prompt=Prompt(question, answers, one_of(answers), fields))
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


def _look_through(task: TaskConfig) -> tuple[tuple[str, ...], dict[str, None], int]:
    """The columns to read, the labels and the number of rows of the training split."""
    columns, rows = task.columns, 0
    labels: dict[str, None] = {}  # in the order of the rows
    ids: dict[Any, int] = {}
    numbered = (
        (source, number, row)
        for source, part in _rows_of(task, task.train_split)
        for number, row in part
    )
    for source, number, row in numbered:
        if isinstance(row, BadRowError):
            continue  # reading the split names it, or counts it
        if not columns:
            columns = tuple(
                name for name in row if name != task.label_column and name.lower() not in IDS
            )
            if len(columns) != 1:
                raise InputError(
                    f"{source}: name the column to read, or the two of a pair, with "
                    f"task.columns=[NAME] (there are: {shown(', '.join(row))})"
                )
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
        if text := label_text(row[task.label_column]):
            labels[text] = None
        elif task.on_bad_row != "skip":
            raise InputError(
                f"{source}, row {number}: the label is empty "
                "(task.on_bad_row=skip leaves such rows out and counts them)"
            )
    return columns, labels, rows


def _names_on_hub(task: TaskConfig) -> tuple[str, ...]:
    """The labels' names where a data set of the hub has numbers with names. Raises InputError if it
    has no training split."""
    if task.hub is None or _is_local(task):
        return ()
    splits = _split_names(task)
    if task.train_split not in splits:
        raise InputError(
            f"task.hub={task.hub.path}: has no split {task.train_split} (it has {one_of(splits)})"
        )
    features: Mapping[str, Any] = _hub_rows(task.hub, task.train_split).features
    names = tuple(getattr(features.get(task.label_column), "names", None) or ())
    if not task.labels and any(name.isdigit() for name in names):
        raise InputError(
            f"task.hub={task.hub.path}: its labels are named by numbers ({', '.join(names)}); give "
            "names with task.labels=[…], in this order"
        )
    return names


def _with_sets(task: TaskConfig, rows: int) -> TaskConfig:
    """The task with a dev and a test set: of the data, or split off training."""
    splits = _split_names(task)
    if not task.dev.split:
        name = next((name for name in DEV_SPLITS if name in splits), None)
        count = _split_off(task, "dev", rows) if name is None else None
        dev = Dev(task.train_split, "stratified", count) if name is None else Dev(name, "all", None)
        task = replace(task, dev=dev)
    if not task.test_splits and task.test_examples is None:
        if "test" in splits:
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
