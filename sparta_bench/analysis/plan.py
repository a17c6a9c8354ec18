"""`sparta-bench plan`: what would run, without weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from sparta_bench.analysis.memory.formula import paper_formula_bytes
from sparta_bench.analysis.run_cost import Cost, cost_of
from sparta_bench.config.presets import Lengths, lengths_for, preset_rows
from sparta_bench.config.schema import Config
from sparta_bench.data.examples import as_line, check_classes, class_counts
from sparta_bench.data.splits import load_splits
from sparta_bench.data.tokenize import Encoded, encode_splits
from sparta_bench.devices import device_kind
from sparta_bench.errors import InputError, log, one_line
from sparta_bench.models.counts import count_parameters, known_context, shapes_for
from sparta_bench.models.source import (
    PlainTokenizer,
    answer_tokens,
    context_of,
    folder_of,
    is_local,
    load_architecture,
    load_tokenizer,
)
from sparta_bench.text import as_duration
from sparta_bench.training.step_time import DEVICES, basis_of, device_named, is_named
from sparta_bench.training.steps import plan_steps

SETS = ("train", "dev", "test")


def plan(
    config: Config,
    gpu: str | None = None,
    recorded: Callable[[Callable[[str], bool]], float | None] = lambda is_device: None,
) -> dict[str, Any]:
    """Return counts, lengths, steps, work, time and memory of an experiment, named as in the result
    record.

    `gpu` is a device of `step_time.DEVICES`, None for the one that there is; `recorded` gives the
    seconds of runs like this one on devices whose names it is told to take. Where the hub's data or
    tokenizer cannot be reached, `data` or its token counts are None, and `unavailable` says why.
    Raises InputError if something local cannot be used, or the method does not fit.
    """
    device = device_named(gpu, "cpu" if config.device == "cpu" else device_kind("auto", ""))
    shapes = shapes_for(config.model)
    counts = count_parameters(shapes, len(config.task.labels), config.method)
    data, unavailable, inputs = _data(config)
    steps = plan_steps(data["train"], config.train).steps if data else None
    lengths = _lengths(config, data)
    cost = cost_of(config, shapes, lengths, device) if lengths else None
    return {
        "model": config.model.name,
        "task": config.task.name,
        "method": config.method.name,
        "parameters": counts.as_dict(),
        "data": data,
        "inputs": inputs,
        "steps": steps,
        "batch_size": config.train.batch_size,
        "learning_rate": config.train.learning_rate,
        "epochs": config.train.epochs,
        "presets": preset_rows(config),
        "work": cost and lengths and _work(cost, lengths),
        "time": cost and _time(cost, device, recorded),
        "memory_bytes": paper_formula_bytes(counts, config.method.name),
        "unavailable": unavailable,
    }


def _tokenizer(config: Config) -> Any:
    model, task = config.model, config.task
    is_plain = model.path is None and model.embedded and model.tokenizer is None
    if is_plain and task.separator == "newline":
        return PlainTokenizer(folder_of(model))
    return load_tokenizer(model, task)


def _lengths(config: Config, data: dict[str, Any] | None) -> Lengths | None:
    """What the data says, else what `conf/lengths.csv` says of the task."""
    if data is None or data.get("mean_train_tokens") is None:
        return lengths_for(config)
    mean = data["mean_train_tokens"]
    sizes = (data["train"], data["dev"], data["test"])
    return Lengths(*sizes, mean, data["mean_eval_tokens"], data["shared_prefix_tokens"], "data")


def _work(cost: Cost, lengths: Lengths) -> dict[str, Any]:
    return {
        "step_flops": cost.step_flops,
        "step_flops_in_full": cost.whole_step_flops,
        "saved_share": cost.saved,
        "shared_prefix_tokens": lengths.shared,
        "tokens_once": cost.once._asdict(),
        "lengths": lengths.source,
    }


def _time(
    cost: Cost,
    device: str | None,
    recorded: Callable[[Callable[[str], bool]], float | None],
) -> dict[str, Any] | None:
    if device is None or cost.seconds is None:
        return None
    title = DEVICES[device].title
    if (seconds := recorded(partial(is_named, device))) is not None:
        basis = "by what such runs took"
        return {"device": title, "low_seconds": seconds, "high_seconds": seconds, "basis": basis}
    low, high = cost.seconds
    basis = f"an estimate {basis_of(device)}"
    return {"device": title, "low_seconds": low, "high_seconds": high, "basis": basis}


def _data(config: Config) -> tuple[dict[str, Any] | None, list[str], list[dict[str, str]]]:
    """The record's `data`, as far as it can be had; what could not be; and two inputs."""
    task = config.task
    try:
        splits = load_splits(task, config.limit)
    except InputError as error:
        if task.hub is None or task.data is not None or task.data_dir is not None:
            raise
        return None, list(error.lines), []
    try:
        tokenizer = _tokenizer(config)
    except InputError as error:
        if is_local(config.model) or config.model.tokenizer is not None:
            raise
        sizes = {"train": len(splits.train), "dev": len(splits.dev), "test": len(splits.test)}
        unknown = {"train_dropped": None, "max_train_tokens": task.max_train_tokens}
        labels = {name: class_counts(getattr(splits, name).labels, task.labels) for name in SETS}
        return sizes | unknown | {"labels": labels}, list(error.lines), []
    if config.model.kind == "instruct":
        answer_tokens(tokenizer, list(task.prompt.answers))
    context = known_context(config.model) or context_of(load_architecture(config.model))
    encoded = encode_splits(config, splits, tokenizer, context)
    log(*check_classes(task.name, encoded.summary["labels"]))
    return encoded.summary, [], _inputs(encoded.train, config, tokenizer)


def _inputs(train: Encoded, config: Config, tokenizer: Any) -> list[dict[str, str]]:
    """The first training example of each of two labels, as the model reads it, and its label: of an
    instruction model with the answer that stands for it."""
    task, inputs = config.task, []
    for number in dict.fromkeys(train.labels):
        row = train.labels.index(number)
        label = task.labels[number]
        if config.model.kind == "instruct":
            label = f"{label} ({task.prompt.answers[number]})"
        inputs.append({"text": tokenizer.decode(train.ids[row].tolist()), "label": label})
    return inputs[:2]


def as_text(planned: dict[str, Any]) -> str:
    """The plan for people."""
    lines = [f"{planned['method']} on {planned['task']} with {planned['model']}", ""]
    lines += _section("parameters", planned["parameters"])
    data = dict(planned["data"] or {})
    labels = data.pop("labels", {})
    data |= {f"labels of {split}": as_line(counts) for split, counts in labels.items()}
    lines += _section("data", data)
    if planned["inputs"]:
        lines.append("inputs, as the model reads them, and their labels")
        lines += [f"  {one_line(one['text'])} → {one['label']}" for one in planned["inputs"]]
        lines.append("")
    lines += _section(
        "training",
        {key: planned[key] for key in ("batch_size", "learning_rate", "epochs", "steps")},
    )
    if work := planned["work"]:
        lines += _section("work", _work_values(work))
    if time := planned["time"]:
        low, high = (as_duration(time[key]) for key in ("low_seconds", "high_seconds"))
        about = f"about {low}" if low == high else f"{low} to {high}"
        lines += _section("time", {time["device"]: f"{about}, {time['basis']}"})
    rows = planned["presets"]
    lines += _section(
        "presets", {row: [key for key in rows if rows[key] == row] for row in rows.values()}
    )
    lines += _section(
        "memory in GB, the paper's formula in bfloat16, without activations",
        {name: size / 1e9 for name, size in planned["memory_bytes"].items()},
    )
    return "\n".join([*lines, *planned["unavailable"]])


def _work_values(work: dict[str, Any]) -> dict[str, Any]:
    once = work["tokens_once"]
    values: dict[str, Any] = {
        "TFLOP a step": work["step_flops"] / 1e12,
        "saved by computing each token once": f"{work['saved_share']:.0%}",
        "tokens that all inputs begin with": work["shared_prefix_tokens"],
    }
    if once["prefix_tokens"] and not once["in_training"]:
        values["computed once"] = "in evaluation alone: training draws dropout"
    if work["lengths"] != "data":
        values["lengths"] = f"{work['lengths']}, from conf/lengths.csv"
    return values


def _section(title: str, values: dict[str, Any]) -> list[str]:
    width = max((len(name) for name in values), default=0)
    return [title, *(f"  {name:<{width}}  {_text(value)}" for name, value in values.items()), ""]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else "not known" if value is None else str(value)


def as_json(planned: dict[str, Any]) -> str:
    """The plan for machines."""
    return json.dumps(planned, indent=2)
