"""Checks that look at more than one key of a configuration, or at the disk."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sparta_bench.config.rules import are_words, look_up, show
from sparta_bench.errors import one_of
from sparta_bench.files import why_no_folder, why_not_writable

TABLE_SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv")  # of the files that `task.data` may name


def is_folder(path: str) -> bool:
    """Whether there is a folder that can be looked into."""
    return why_no_folder(path) is None


def _folder_problem(path: str | None) -> str | None:
    return None if path is None else why_no_folder(path)


def _results_dir(folder: str) -> str | None:
    problem = why_not_writable(Path(folder))
    return problem and f"must be a folder that can be written; {problem}"


def why_no_tracker(name: str) -> str | None:
    """Why a run cannot be logged with this package; None: it can be, or `name` is none."""
    spec = None if name == "none" else find_spec(name)
    # wandb leaves a folder of its own name where it runs, which is no package
    if name == "none" or (spec is not None and spec.origin is not None):
        return None
    return f"needs a package that is not there: pip install 'sparta-bench[{name}]'"


def _model_path(path: str | None, hub_id: str | None, embedded: bool) -> str | None:
    if path is None:
        needed = not (hub_id or embedded)
        return "needs the folder of a Hugging Face model (or model.hub_id=NAME)" if needed else None
    is_model = not is_folder(path) or (Path(path) / "config.json").is_file()
    return None if is_model else "the folder has no config.json"


def _data_file(path: str | None) -> str | None:
    if path is None or (Path(path).is_file() and Path(path).suffix in TABLE_SUFFIXES):
        return None
    if not Path(path).is_file():
        return "there is no such file"
    return f"must be a file ending in {one_of(TABLE_SUFFIXES)}"


def _dev_examples(examples: int | None, take: str) -> str | None:
    if (take == "all") == (examples is None):
        return None
    return (
        "must be null with take=all" if take == "all" else f"take={take} needs a number of examples"
    )


def _answers(answers: list[str], labels: list[str] | None) -> str | None:
    if labels is not None and len(answers) != len(labels):
        return f"must hold one word for each of {len(labels)} labels"
    return None if len(set(answers)) == len(answers) else "two labels have the same word"


def _targets(targets: Any, name: str) -> str | None:
    if are_words(targets) or (name == "sparta" and targets == "all"):
        return None
    return "must be a list of module names" + (", or all" if name == "sparta" else "")


# The keys that a check looks at, the first of which its line names, and what is wrong with them. A
# check is made where its keys are without fault, so that one mistake is reported once.
RELATIONS: tuple[tuple[tuple[str, ...], Callable[..., str | None]], ...] = (
    (("results_dir",), _results_dir),
    (("logger",), why_no_tracker),
    (("model.path",), _folder_problem),
    (("model.tokenizer",), _folder_problem),
    (("model.path", "model.hub_id", "model.embedded"), _model_path),
    (("task.data_dir",), _folder_problem),
    (
        ("task.data_dir", "task.data", "task.hub", "task.generated"),
        lambda *sources: (
            "give a folder, a file (task.data=FILE) or a data set of the hub (task.hub=NAME): this "
            "task has no data elsewhere"
            if sources == (None,) * 4
            else None
        ),
    ),
    (("task.data",), _data_file),
    (
        ("task.data", "task.data_dir"),
        lambda file, folder: (
            "give either a file or a folder (task.data_dir)" if file and folder else None
        ),
    ),
    (
        ("task.test_examples", "task.test_splits"),
        lambda examples, splits: (
            "must be null where task.test_splits names the test set"
            if examples and splits
            else None
        ),
    ),
    (("task.dev.examples", "task.dev.take"), _dev_examples),
    (
        ("task.dev.take", "task.dev.split", "task.train_split", "task.test_splits"),
        lambda take, split, train, test: (
            f"would leave nothing of split {split} to train on or test"
            if take == "all" and split in (train, *(test or ()))
            else None
        ),
    ),
    (
        ("task.test_splits", "task.train_split"),
        lambda test, train: "must not hold the training split" if train in (test or ()) else None,
    ),
    (("task.prompt.answers", "task.labels"), _answers),
    (
        ("task.prompt.fields", "task.columns"),
        lambda names, columns: (
            f"must name each of {len(columns)} column(s)"
            if columns and len(names) != len(columns)
            else None
        ),
    ),
    (("method.targets", "method.name"), _targets),
    (
        ("search.rival", "search.name"),
        lambda rival, name: (
            "is for search=race alone" if rival is not None and name != "race" else None
        ),
    ),
    (
        ("train.accumulation_steps", "train.batch_size"),
        lambda parts, batch: (
            f"must not be above train.batch_size={batch}" if parts > batch else None
        ),
    ),
    (
        ("train.sharding", "task.separator", "save"),
        lambda sharding, separator, save: (
            None
            if sharding == "none"
            else "needs task.separator=newline, since no row is added to sharded embeddings"
            if separator == "sep_token"
            else "needs save=adapter or none; sparta-bench merge bake writes the whole model"
            if save == "full"
            else None
        ),
    ),
)


def relation_faults(raw: Mapping[str, Any], faulty: Container[str]) -> list[str]:
    """A line for each relation that does not hold, among keys that are there and not `faulty`."""
    lines = []
    for keys, problem_of in RELATIONS:
        values = [look_up(raw, key) for key in keys]
        if all(is_there for is_there, _ in values) and not any(key in faulty for key in keys):
            problem = problem_of(*(value for _, value in values))
            lines += [f"{keys[0]}={show(values[0][1])}: {problem}"] if problem else []
    return lines
