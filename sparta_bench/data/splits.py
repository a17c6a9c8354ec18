"""Where the rows come from, and how they become train, dev and test (Tables 2 and 9)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sparta_bench.config.schema import Hub, TaskConfig
from sparta_bench.data import local_files
from sparta_bench.data.examples import Ends, Examples, add_rows
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


def load_splits(task: TaskConfig) -> Splits:
    """Read the task's raw splits from where the configuration says, and divide them.

    Raises
    ------
    InputError
        If the data cannot be had, a row is bad, or a split would be left without rows.
    """
    needed = dict.fromkeys([task.train_split, task.dev.split, *task.test_splits])
    raw = {split: _read(task, split) for split in needed}
    bad_rows = sum(examples.bad_rows for examples in raw.values())
    dev_rows, others = _draw_dev(task, len(raw[task.dev.split]))
    rows: dict[str, Sequence[int]] = {
        split: range(len(examples)) for split, examples in raw.items()
    }
    rows[task.dev.split] = others
    train_rows = rows[task.train_split][: task.max_train_examples]
    test = Examples()
    for split in task.test_splits:
        part = raw[split].select(rows[split])
        test.texts += part.texts
        test.labels += part.labels
    return Splits(
        raw[task.train_split].select(train_rows),
        raw[task.dev.split].select(dev_rows),
        test,
        bad_rows,
    )


def _draw_dev(task: TaskConfig, rows: int) -> tuple[Sequence[int], Sequence[int]]:
    """Places of the dev rows in their raw split, and of the others."""
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
    drawn = set(random.Random(task.draw_seed).sample(range(rows), wanted))
    return sorted(drawn), [row for row in range(rows) if row not in drawn]


def _read(task: TaskConfig, split: str) -> Examples:
    if task.data_dir is not None:
        return local_files.read_split(task, split, _room_for(task, split))
    if task.generated is not None:
        made = generate(task.generated)
        if split not in made:
            raise InputError(f"split {split}: task {task.name} has only {one_of(made)}")
        return _from_rows(made[split], task, split, f"task.generated={task.generated}")
    assert task.hub is not None
    rows = _hub_rows(task.hub, split)
    return _from_rows(rows, task, split, f"{task.hub.path}, split {split}")


def _room_for(task: TaskConfig, split: str) -> Examples:
    """Where a split's rows go: under a cap, training rows that are of no use are not kept."""
    if task.max_train_examples is None or split != task.train_split:
        return Examples()
    if split != task.dev.split:
        return Ends(task.max_train_examples, 0)
    if task.dev.take == "last":
        return Ends(task.max_train_examples, task.dev.examples or 0)
    return Examples()


def _from_rows(
    rows: Iterable[Mapping[str, object]], task: TaskConfig, split: str, source: str
) -> Examples:
    examples = _room_for(task, split)
    add_rows(examples, enumerate(rows, start=1), task, source)
    if not examples:
        raise InputError(f"{source}: no usable rows")
    return examples


def _hub_rows(hub: Hub, split: str) -> Iterable[Mapping[str, object]]:
    """The rows of a split; raises InputError if they cannot be had at the revision asked for."""
    from sparta_bench.hub import refusal, ways_out, why

    try:
        rows: Iterable[Mapping[str, object]] = _prepared(hub).as_dataset(split=split)
    except InputError:
        raise
    except Exception as error:  # the client raises many kinds, all of them about access or content
        reason, cause = why(refusal(hub.path, hub.revision, "dataset") or error)
        page = f"https://huggingface.co/datasets/{hub.path}"
        ways = ways_out(cause, page, "download the files and set task.data_dir=DIR")
        raise InputError(
            f"task.hub={hub.path}: cannot be loaded from the hub: {reason}. {ways}"
        ) from None
    return rows


@lru_cache(maxsize=1)  # a task's splits are read one after the other
def _prepared(hub: Hub) -> Any:
    """The data set's builder, with its files here."""
    import datasets

    from sparta_bench.hub import look

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    commit = look(hub.path, hub.revision, "dataset")
    settings = {"download_config": datasets.DownloadConfig(max_retries=2)}
    builder = datasets.load_dataset_builder(hub.path, hub.name, revision=hub.revision, **settings)
    # from whatever goes wrong on the way it falls back on the latest that is in its cache
    if commit not in (None, builder.hash):
        raise InputError(
            f"task.hub.revision={hub.revision}: cannot be had from the hub, and the cache has only "
            f"{builder.hash} of {hub.path}"
        )
    builder.download_and_prepare(**settings)
    return builder
