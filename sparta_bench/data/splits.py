"""Where the rows come from, and how they become train, dev and test (Tables 2 and 9)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sparta_bench.config.schema import Hub, TaskConfig
from sparta_bench.data import local_files
from sparta_bench.data.examples import Examples, add_rows
from sparta_bench.data.generated.data_sets import generate
from sparta_bench.errors import InputError, one_of


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
    raw = {split: _read(task, split) for split in needed}
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
        test, train = _draw_test(task, train)
    train = train.select(_capped(task, train.labels))
    train, dev, test = (_limited(one, limit, task.draw_seed) for one in (train, dev, test))
    return Splits(train, dev, test, bad_rows)


def _limited(examples: Examples, limit: int | None, seed: int) -> Examples:
    if limit is None or limit >= len(examples):
        return examples
    return examples.select(stratified(examples.labels, limit, seed))


def _capped(task: TaskConfig, labels: Sequence[int]) -> Sequence[int]:
    """Numbers of the training rows that the cap leaves."""
    rows, cap = range(len(labels)), task.max_train_examples
    if cap is None or cap >= len(rows) or task.cap_takes == "first":
        return rows[:cap]
    return stratified(labels, cap, task.draw_seed)


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


def _draw_test(task: TaskConfig, train: Examples) -> tuple[Examples, Examples]:
    """The test set that is drawn from training, and what is left."""
    wanted = task.test_examples or 0
    if wanted >= len(train):
        raise InputError(
            f"task.test_examples={wanted}: training has only {len(train)} rows, and some must be "
            "left"
        )
    drawn = stratified(train.labels, wanted, task.draw_seed)
    return train.select(drawn), train.select(sorted({*range(len(train))} - {*drawn}))


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


def _read(task: TaskConfig, split: str) -> Examples:
    if task.data is not None or task.data_dir is not None:
        return local_files.read_split(task, split)
    if task.generated is not None:
        generated = generate(task.generated)
        if split not in generated:
            raise InputError(f"split {split}: task {task.name} has only {one_of(generated)}")
        rows, source = generated[split], f"task.generated={task.generated}"
    else:
        assert task.hub is not None
        rows, source = hub_rows(task.hub, split), f"{task.hub.path}, split {split}"
    examples = Examples()
    add_rows(examples, enumerate(rows, start=1), task, source)
    if not examples:
        raise InputError(f"{source}: no usable rows")
    return examples


def hub_rows(repository: Hub, split: str) -> Any:
    """The rows of a split, at the revision asked for."""
    with _errors_of_hub(repository):
        return _prepared(repository).as_dataset(split=split)


@contextmanager
def _errors_of_hub(repository: Hub) -> Iterator[None]:
    try:
        yield
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


def hub_splits(repository: Hub) -> list[str]:
    """The names of a data set's splits, at the revision asked for."""
    with _errors_of_hub(repository):
        return [str(name) for name in _prepared(repository).info.splits]


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
