"""Which records may stand under the names that they bear: the paper's, the tiny models', others'.

A model of 0.2 million parameters on generated text must never be taken for one of the paper's, nor
a run on a part of the data for one on all of it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sparta_bench.paper import number_of, rows_of
from sparta_bench.records.record import INCOMPLETE, Record

# Parameters without the head, which depends on the number of classes: what fits the paper's shares
# (head 1.63e-4 % and 1.15e-4 %) and Tables 7 and 8.
BACKBONE = {
    "gemma-2b": 2_506_172_416, "gemma-2b-it": 2_506_172_416,
    "mistral-7b": 7_113_805_824, "mistral-7b-it": 7_113_805_824,
}  # fmt: skip
MODELS = tuple(BACKBONE)
GLUE = ("qnli", "rte", "sst2", "qqp", "mnli", "mrpc", "cola")  # the order of Tables 4, 5, 10, 11
TASKS = (*GLUE, "imdb")
TINY_MODELS = ("tiny-gemma", "tiny-gemma-it", "tiny-mistral", "tiny-mistral-it")
GENERATED_TASKS = tuple(f"tiny-{task}" for task in TASKS)
MOST_TRAINED_ON = 100_000  # examples: "training sets limited to 100K samples" (Table 2)
GLUE_EPOCHS = "2"  # "over 2 epochs of training" (Table 13)
# Fewer would end a training before early stopping does; the paper gives no number for its "*".
LEAST_EPOCHS_TO_STOP_IN = 10


def is_of_paper(model: str, task: str) -> bool:
    return model in MODELS and task in TASKS


def reason_against(record: Record) -> str | None:
    """Why the record may stand in no table; None if it may."""
    name, task = record.cell.model, record.cell.task
    try:
        if (limit := record.raw["config"].get("limit")) is not None:
            return f"limited to {limit:,} examples of each set (limit={limit})"
        model_config, task_config = record.raw["config"]["model"], record.raw["config"]["task"]
        embedded, generated = model_config["embedded"], task_config["generated"] is not None
        if embedded and name not in TINY_MODELS:
            return "an embedded model under another name"
        if name in TINY_MODELS and not embedded:
            return "another model under the name of an embedded one"
        if generated and task not in GENERATED_TASKS:
            return "generated data under another name"
        if task in GENERATED_TASKS and not generated:
            return "other data under the name of a generated task"
        if embedded != generated:
            return (
                "an embedded model on real data" if embedded else "a real model on generated data"
            )
        return _against_the_paper(record, task_config) if is_of_paper(name, task) else None
    except (KeyError, TypeError, ValueError):
        return INCOMPLETE


def _against_the_paper(record: Record, task: dict[str, Any]) -> str | None:
    name, tokens = record.cell.task, 384 if record.cell.task == "imdb" else 256
    if task["max_train_tokens"] != tokens:
        return f"max_train_tokens is {task['max_train_tokens']}, in the paper {tokens}"
    cap = task["max_train_examples"]
    drawn = task.get("cap_takes") == "random"
    if cap is not None and cap < MOST_TRAINED_ON:
        return f"trained on {'' if drawn else 'the first '}{cap:,} examples only"
    if record.train["max_steps"] is not None:
        return f"training was limited to {record.train['max_steps']:,} steps"
    if reason := _against_the_epochs(record):
        return reason
    if data := record.raw["data"]:  # None if it failed early
        ours, printed = (data["dev"], data["test"]), _dev_and_test(name)
        if ours != printed:
            counts = [f"{dev:,} and {test:,}" for dev, test in (ours, printed)]
            return f"dev and test are {counts[0]}, in the paper {counts[1]}"
        if drawn and cap is not None and data["train"] + (data["train_dropped"] or 0) == cap:
            return f"trained on {cap:,} examples drawn at random, in the paper on the first"
        if data["train"] > MOST_TRAINED_ON:
            most = f"in the paper at most {MOST_TRAINED_ON:,}"
            return f"trained on {data['train']:,} examples, {most}"
    if parameters := record.raw["parameters"]:
        backbone = parameters["total"] - parameters["head"]
        if backbone != BACKBONE[record.cell.model]:
            return f"another model under the name of one of the paper's ({backbone:,} parameters)"
    return None


def _against_the_epochs(record: Record) -> str | None:
    """What its epochs and stopping have against Tables 12 and 13; "*" stands for early stopping."""
    cell, epochs, patience = record.cell, record.train["epochs"], record.train["patience"]
    printed = GLUE_EPOCHS if cell.task in GLUE else _imdb_epochs(record.raw["method"], cell.model)
    if printed != "*" and epochs != number_of(printed):
        return f"{epochs:g} epochs of training, in the paper {printed}"
    if printed != "*" and patience:
        full = f"in the paper {printed} epochs in full"
        return f"early stopping (train.patience is {patience}), {full}"
    if printed == "*" and not patience:
        return "no early stopping (train.patience is 0), in the paper there is"
    if printed == "*" and epochs < LEAST_EPOCHS_TO_STOP_IN:
        least = f"with early stopping at least {LEAST_EPOCHS_TO_STOP_IN} (docs/fidelity.md)"
        return f"limited to {epochs:g} epochs, {least}"
    return None


@cache
def _imdb_epochs(method: str, model: str) -> str:
    """Epochs in Table 12, as printed."""
    wanted = (method, "num epochs")
    rows = rows_of("table12")
    return next(row[model] for row in rows if (row["row"], row["parameter"]) == wanted)


@cache
def _dev_and_test(task: str) -> tuple[int, int]:
    """Examples in Table 2."""
    row = next(row for row in rows_of("table2") if row["task"] == task)
    return int(number_of(row["dev"])), int(number_of(row["test"]))
