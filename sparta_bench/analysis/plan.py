"""`sparta-bench plan`: what would run, without weights."""

from __future__ import annotations

import json
from typing import Any

from sparta_bench.analysis.memory.formula import paper_formula_bytes
from sparta_bench.config.presets import preset_rows
from sparta_bench.config.schema import Config
from sparta_bench.data.classes import as_line, check_classes
from sparta_bench.data.splits import load_splits
from sparta_bench.data.tokenize import encode_splits
from sparta_bench.errors import InputError, log
from sparta_bench.models.answers import answer_tokens
from sparta_bench.models.counts import count_parameters, empty_backbone
from sparta_bench.models.skeleton import skeleton
from sparta_bench.models.source import context_of, is_local, load_architecture, load_tokenizer
from sparta_bench.training.steps import plan_steps


def plan(config: Config) -> dict[str, Any]:
    """Return counts, lengths, steps and memory of an experiment, named as in the result record.

    Where the hub's data or tokenizer cannot be reached, `data` or its token counts are None, and
    `unavailable` says why. Raises InputError if something local cannot be used, or the method does
    not fit.
    """
    architecture = load_architecture(config.model)
    backbone = skeleton(architecture) or empty_backbone(architecture)
    counts = count_parameters(backbone, len(config.task.labels), config.method)
    data, unavailable = _data(config, context_of(architecture))
    steps = plan_steps(data["train"], config.train).steps if data else None
    return {
        "model": config.model.name,
        "task": config.task.name,
        "method": config.method.name,
        "parameters": counts.as_dict(),
        "data": data,
        "steps": steps,
        "batch_size": config.train.batch_size,
        "learning_rate": config.train.learning_rate,
        "epochs": config.train.epochs,
        "presets": preset_rows(config),
        "memory_bytes": paper_formula_bytes(counts, config.method.name),
        "unavailable": unavailable,
    }


def _data(config: Config, context: int | None) -> tuple[dict[str, Any] | None, list[str]]:
    """The record's `data`, as far as it can be had, and what could not be."""
    task = config.task
    try:
        splits = load_splits(task)
    except InputError as error:
        if task.hub is None or task.data is not None or task.data_dir is not None:
            raise
        return None, list(error.lines)
    try:
        tokenizer = load_tokenizer(config.model, task)
    except InputError as error:
        if is_local(config.model) or config.model.tokenizer is not None:
            raise
        sizes = {"train": len(splits.train), "dev": len(splits.dev), "test": len(splits.test)}
        unknown = {"train_dropped": None, "max_train_tokens": task.max_train_tokens}
        return sizes | unknown, list(error.lines)
    if config.model.kind == "instruct":
        answer_tokens(tokenizer, list(task.prompt.answers))
    summary = encode_splits(config, splits, tokenizer, context).summary
    log(*check_classes(task.name, summary["labels"]))
    return summary, []


def as_text(planned: dict[str, Any]) -> str:
    """The plan for people."""
    lines = [f"{planned['method']} on {planned['task']} with {planned['model']}", ""]
    lines += _section("parameters", planned["parameters"])
    data = dict(planned["data"] or {})
    labels = data.pop("labels", {})
    data |= {f"labels of {split}": as_line(counts) for split, counts in labels.items()}
    lines += _section("data", data)
    lines += _section(
        "training",
        {key: planned[key] for key in ("batch_size", "learning_rate", "epochs", "steps")},
    )
    rows = planned["presets"]
    lines += _section(
        "presets", {row: [key for key in rows if rows[key] == row] for row in rows.values()}
    )
    lines += _section(
        "memory in GB, the paper's formula in bfloat16, without activations",
        {name: size / 1e9 for name, size in planned["memory_bytes"].items()},
    )
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
    """The plan for machines."""
    return json.dumps(planned, indent=2)
