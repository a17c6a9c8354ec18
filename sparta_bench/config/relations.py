"""Checks that look at more than one key of a configuration, or at the disk."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from sparta_bench.config.rules import are_words, look_up, show
from sparta_bench.files import why_no_folder, why_not_writable


def is_folder(path: str) -> bool:
    """Whether there is a folder that can be looked into."""
    return why_no_folder(path) is None


def _folder_line(key: str) -> Callable[[Any], str | None]:
    def line(folder: Any) -> str | None:
        problem = None if folder is None else why_no_folder(folder)
        return None if problem is None else f"{key}={folder}: {problem}"

    return line


def _results_dir(folder: str) -> str | None:
    problem = why_not_writable(Path(folder))
    return problem and f"results_dir={folder}: must be a folder that can be written; {problem}"


def _model_source(path: str | None, hub_id: str | None, embedded: bool) -> str | None:
    if path is None:
        needed = not (hub_id or embedded)
        return "model.path=null: needs the folder of a Hugging Face model" if needed else None
    if why_no_folder(path) is None and not (Path(path) / "config.json").is_file():
        return f"model.path={path}: the folder has no config.json"
    return None


def _task_source(hub: Any, data_dir: Any, generated: Any) -> str | None:
    if hub is None and data_dir is None and generated is None:
        return "task.data_dir=null: this task has no data elsewhere, so it needs a folder"
    return None


def _dev_count(take: str, examples: int | None) -> str | None:
    if take == "all" and examples is not None:
        return f"task.dev.examples={examples}: must be null with take=all"
    if take != "all" and examples is None:
        return f"task.dev.examples=null: take={take} needs a number of examples"
    return None


def _dev_leaves(take: str, split: str, train_split: str, test_splits: list[str]) -> str | None:
    if take == "all" and split in (train_split, *test_splits):
        return f"task.dev.take=all: would leave nothing of split {split} to train on or test"
    return None


def _test_apart(test_splits: list[str], train_split: str) -> str | None:
    if train_split in test_splits:
        return f"task.test_splits={show(test_splits)}: must not hold the training split"
    return None


def _answers(answers: list[str], labels: list[str]) -> str | None:
    if len(answers) != len(labels):
        rule = f"must hold one word for each of {len(labels)} labels"
        return f"task.prompt.answers={show(answers)}: {rule}"
    if len(set(answers)) != len(answers):
        return f"task.prompt.answers={show(answers)}: two labels have the same word"
    return None


def _fields(names: list[str], columns: list[str]) -> str | None:
    if len(names) != len(columns):
        return f"task.prompt.fields={show(names)}: must name each of {len(columns)} column(s)"
    return None


def _targets(name: str, targets: Any) -> str | None:
    if are_words(targets) or (name == "sparta" and targets == "all"):
        return None
    rule = "must be a list of module names" + (", or all" if name == "sparta" else "")
    return f"method.targets={show(targets)}: {rule}"


def _batch_parts(parts: int, batch: int) -> str | None:
    if parts > batch:
        return f"train.accumulation_steps={parts}: must not be above train.batch_size={batch}"
    return None


# Checks that look at more than one key, or at the disk. Each is made where its keys are without
# fault, so that one mistake is told once.
RELATIONS: tuple[tuple[tuple[str, ...], Callable[..., str | None]], ...] = (
    (("results_dir",), _results_dir),
    (("model.path",), _folder_line("model.path")),
    (("model.tokenizer",), _folder_line("model.tokenizer")),
    (("model.path", "model.hub_id", "model.embedded"), _model_source),
    (("task.data_dir",), _folder_line("task.data_dir")),
    (("task.hub", "task.data_dir", "task.generated"), _task_source),
    (("task.dev.take", "task.dev.examples"), _dev_count),
    (("task.dev.take", "task.dev.split", "task.train_split", "task.test_splits"), _dev_leaves),
    (("task.test_splits", "task.train_split"), _test_apart),
    (("task.prompt.answers", "task.labels"), _answers),
    (("task.prompt.fields", "task.columns"), _fields),
    (("method.name", "method.targets"), _targets),
    (("train.accumulation_steps", "train.batch_size"), _batch_parts),
)


def relation_faults(raw: Mapping[str, Any], faulty: Container[str]) -> list[str]:
    """A line for each relation that does not hold, among keys that are there and not `faulty`."""
    lines = []
    for keys, check in RELATIONS:
        found = [look_up(raw, key) for key in keys]
        if all(there for there, _ in found) and not any(key in faulty for key in keys):
            line = check(*(value for _, value in found))
            lines += [line] if line else []
    return lines
