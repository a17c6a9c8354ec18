"""`sparta-bench plan`: what would run, without weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from sparta_bench.analysis.memory.formula import paper_formula_bytes
from sparta_bench.analysis.run_cost import cost_of
from sparta_bench.config.presets import Lengths, lengths_for, preset_rows
from sparta_bench.config.schema import Config
from sparta_bench.data.examples import as_line, check_classes, class_counts
from sparta_bench.data.splits import load_splits
from sparta_bench.data.tokenize import encode_splits
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
from sparta_bench.text import as_bytes, as_duration
from sparta_bench.training.step_time import DEVICES, basis_of, device_named, is_named
from sparta_bench.training.steps import plan_steps


def plan(
    config: Config,
    gpu: str | None = None,
    recorded: Callable[[Callable[[str], bool]], float | None] = lambda is_device: None,
    gpus: int = 1,
) -> dict[str, Any]:
    """Return counts, lengths, steps, work, time and memory of an experiment, named as in the result
    record.

    `gpu` is a device of `step_time.DEVICES`, None for the one that there is; `recorded` gives the
    seconds of runs like this one on devices whose names it is told to take. `per_gpu` is the peak
    of a step on each of several `gpus`, among which FSDP cuts the model; of one it is None. Where
    the hub's data or tokenizer cannot be reached, `data` or its token counts are None, and
    `unavailable` says why. Raises InputError if something local cannot be used, or the method does
    not fit.
    """
    device = device_named(gpu, "cpu" if config.device == "cpu" else device_kind("auto", ""))
    shapes = shapes_for(config.model)
    counts = count_parameters(shapes, len(config.task.labels), config.method)
    data, unavailable, inputs = _data(config)
    lengths = lengths_for(config)  # what `conf/lengths.csv` says of the task
    if data is not None and (mean := data.get("mean_train_tokens")) is not None:
        sizes = (data["train"], data["dev"], data["test"])
        evaluated, shared = data["mean_eval_tokens"], data["shared_prefix_tokens"]
        lengths = Lengths(*sizes, mean, evaluated, shared, "data")
    work, time = None, None
    if lengths:
        cost = cost_of(config, shapes, lengths, device)
        work = {
            "step_flops": cost.step_flops,
            "step_flops_in_full": cost.whole_step_flops,
            "saved_share": cost.saved,
            "shared_prefix_tokens": lengths.shared,
            "tokens_once": cost.once._asdict(),
            "lengths": lengths.source,
        }
        if device is not None and cost.seconds is not None:
            seconds = recorded(partial(is_named, device))
            low, high = cost.seconds if seconds is None else (seconds, seconds)
            time = {
                "device": DEVICES[device].title,
                "low_seconds": low,
                "high_seconds": high,
                "basis": "by what such runs took"
                if seconds is not None
                else f"an estimate {basis_of(device)}",
            }
    per_gpu = None
    if gpus > 1:
        from sparta_bench.analysis.price import fits, step_peak  # torch takes a while

        peak = step_peak(config, lengths.shared if lengths else 0, "cuda", gpus)
        per_gpu = {"gpus": gpus, "peak_bytes": peak, "fits": fits(peak, device)}
    return {
        "model": config.model.name,
        "task": config.task.name,
        "method": config.method.name,
        "parameters": counts.as_dict(),
        "data": data,
        "inputs": inputs,
        "steps": plan_steps(data["train"], config.train).steps if data else None,
        "batch_size": config.train.batch_size,
        "learning_rate": config.train.learning_rate,
        "epochs": config.train.epochs,
        "presets": preset_rows(config),
        "work": work,
        "time": time,
        "memory_bytes": paper_formula_bytes(counts, config.method.name),
        "per_gpu": per_gpu,
        "unavailable": unavailable,
    }


def _data(config: Config) -> tuple[dict[str, Any] | None, list[str], list[dict[str, str]]]:
    """The record's `data`, as far as it can be had; what could not be; and the first training
    example of each of two labels, as the model reads it, with its label: of an instruction model
    with the answer that stands for it."""
    task, model = config.task, config.model
    try:
        splits = load_splits(task, config.limit)
    except InputError as error:
        if task.hub is None or task.data is not None or task.data_dir is not None:
            raise
        return None, list(error.lines), []
    is_plain = model.path is None and model.embedded and model.tokenizer is None
    try:
        if is_plain and task.separator == "newline":
            tokenizer: Any = PlainTokenizer(folder_of(model))
        else:
            tokenizer = load_tokenizer(model, task)
    except InputError as error:
        if is_local(model) or model.tokenizer is not None:
            raise
        sets = {"train": splits.train, "dev": splits.dev, "test": splits.test}
        known: dict[str, Any] = {name: len(examples) for name, examples in sets.items()}
        known |= {"train_dropped": None, "max_train_tokens": task.max_train_tokens}
        labels = {name: class_counts(one.labels, task.labels) for name, one in sets.items()}
        return known | {"labels": labels}, list(error.lines), []
    if model.kind == "instruct":
        answer_tokens(tokenizer, list(task.prompt.answers))
    context = known_context(model) or context_of(load_architecture(model))
    encoded = encode_splits(config, splits, tokenizer, context)
    log(*check_classes(task.name, encoded.summary["labels"]))
    train, inputs = encoded.train, []
    for number in dict.fromkeys(train.labels):
        label = task.labels[number]
        if model.kind == "instruct":
            label = f"{label} ({task.prompt.answers[number]})"
        ids = train.ids[train.labels.index(number)]
        inputs.append({"text": tokenizer.decode(ids.tolist()), "label": label})
    return encoded.summary, [], inputs[:2]


def as_text(planned: dict[str, Any]) -> str:
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
    training = ("batch_size", "learning_rate", "epochs", "steps")
    lines += _section("training", {key: planned[key] for key in training})
    if work := planned["work"]:
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
        lines += _section("work", values)
    if time := planned["time"]:
        low, high = (as_duration(time[key]) for key in ("low_seconds", "high_seconds"))
        about = f"about {low}" if low == high else f"{low} to {high}"
        lines += _section("time", {time["device"]: f"{about}, {time['basis']}"})
    rows = planned["presets"]
    by_row = {row: [key for key in rows if rows[key] == row] for row in rows.values()}
    lines += _section("presets", by_row)
    title = "memory in GB, the paper's formula in bfloat16, without activations"
    sizes = planned["memory_bytes"].items()
    lines += _section(title, {name: size / 1e9 for name, size in sizes})
    if per_gpu := planned["per_gpu"]:
        verdict = {None: "", True: ", which fits", False: ", which does not fit"}[per_gpu["fits"]]
        peak = as_bytes(per_gpu["peak_bytes"])
        title = f"each of {per_gpu['gpus']} GPUs, with train.sharding=fsdp"
        lines += _section(title, {"peak of a step": f"{peak}{verdict}"})
    return "\n".join([*lines, *planned["unavailable"]])


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
    return json.dumps(planned, indent=2)
