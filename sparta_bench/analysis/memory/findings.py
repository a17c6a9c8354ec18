"""All that `sparta-bench memory` tells, as plain values: for the JSON, and for the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import psutil
import torch

from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.analysis.memory.estimate import (
    CHECKPOINTING,
    KEPT_FREE,
    METHODS,
    Estimate,
    as_dict,
    estimate,
)
from sparta_bench.analysis.memory.formula import (
    PAPER,
    SPARSITIES,
    PerScalar,
    less_memory,
    more_storage,
    paper_formula_bytes,
    table1_gb,
)
from sparta_bench.analysis.memory.measured_memory import Measured, measure
from sparta_bench.analysis.memory.parts import parts_of, per_scalar
from sparta_bench.config.compose import compose
from sparta_bench.errors import InputError
from sparta_bench.models.counts import count_parameters, empty_backbone
from sparta_bench.models.dtypes import Precision
from sparta_bench.models.source import load_architecture
from sparta_bench.paper import rows_of
from sparta_bench.records.write import environment, now

# Table 1's columns and their overrides; its share of trained scalars is that of the whole model.
TABLE1 = {
    "full_ft": ("method=full_ft",),
    **{
        f"sparta-{sparsity}": (
            "method=sparta",
            f"method.density={(100 - sparsity) / 100}",
            "method.density_of=backbone",
        )
        for sparsity in SPARSITIES
    },
}


def paper_values() -> dict[str, Any]:
    """Table 1 and the savings of section 5: from the formulas, and as printed."""
    formulas = table1_gb()
    table1 = [
        {
            "model": row["model"],
            "formula_gb": formulas[row["model"]],
            "printed_gb": {name: text for name, text in row.items() if name != "model"},
        }
        for row in rows_of("table1")
    ]
    savings = [
        {
            "sparsity": int(row["sparsity"]),
            "formula": {
                "more_storage": more_storage(int(row["sparsity"])),
                "less_memory": less_memory(int(row["sparsity"])),
            },
            "printed": {name: row[name] for name in ("more_storage", "less_memory")},
        }
        for row in rows_of("section5")
    ]
    return {"table1": table1, "savings": savings, "break_even": _break_evens()}


def _break_evens() -> list[dict[str, Any]]:
    wide = Precision(torch.bfloat16, torch.float32)
    narrow = Precision(torch.bfloat16, torch.bfloat16)
    return [
        _break_even("the paper: everything in bfloat16", PAPER),
        _break_even("here, trained in float32", per_scalar(wide, wide)),
        _break_even("here, trained in bfloat16", per_scalar(narrow, narrow)),
    ]


def _break_even(case: str, sizes: PerScalar) -> dict[str, Any]:
    return {
        "case": case,
        **{f"{name}_bytes": size for name, size in sizes._asdict().items()},
        "density": sizes.break_even,
    }


# ------------------------------------------------------------------------------- estimated
class Estimates(NamedTuple):
    """Of the methods that fit the setting's model, and why others do not."""

    setting: Setting
    found: list[Estimate]
    excluded: dict[str, str]


def estimated(estimates: Estimates, limits_gib: Sequence[int]) -> dict[str, Any]:
    """What every method needs, and what fits memories of these sizes."""
    setting, found, excluded = estimates
    return {
        **_heading(setting, found),
        "device": setting.device.type,
        "kept_free_bytes": KEPT_FREE,
        "break_even": _own_break_even(setting, found[0].setting),
        "methods": [as_dict(one, limits_gib) for one in found],
        "left_out": excluded,
    }


def estimates_of(setting: Setting) -> Estimates:
    """Every method on the setting's model.

    Raises
    ------
    InputError
        If none fits, or the model cannot be had.
    """
    found: list[Estimate] = []
    excluded: dict[str, str] = {}
    for name in METHODS:
        try:
            found.append(estimate(name, setting))
        except InputError as error:
            if not found:  # full fine-tuning fits every model: it is the model's fault
                raise
            excluded[name] = error.lines[0]
    return Estimates(setting, found, excluded)


def _heading(setting: Setting, found: Sequence[Estimate]) -> dict[str, Any]:
    return {
        "model": setting.config.model.name,
        "weights_dtype": setting.precision.as_dict()["model"],
        "parameters": found[0].counts.total,
        "embeddings": found[0].counts.embeddings,
        "rows": setting.rows,
        "tokens": setting.tokens,
    }


def _own_break_even(sparta: Setting, full_ft: Setting) -> dict[str, Any]:
    """In the dtypes of the model's presets."""
    trained = [one.precision.as_dict()["trained"] for one in (full_ft, sparta)]
    model = sparta.config.model.name
    case = f"{model} here: full FT trained in {trained[0]}, SpaRTA in {trained[1]}"
    return _break_even(case, per_scalar(full_ft.precision, sparta.precision))


# -------------------------------------------------------------------------------- measured
def measured(estimates: Estimates, say: Callable[[str], None]) -> dict[str, Any]:
    """The same methods measured on the setting's device, which must be there: on random weights,
    with and without gradient checkpointing. `say` is told what begins."""
    setting, found, excluded = estimates
    return {
        "date": now(),
        **environment(setting.device, setting.precision, 1),
        **_heading(setting, found),
        "methods": list(measured_methods(estimates, say)),
        "left_out": excluded,
        "table1": [_table1_column(setting, column, say) for column in TABLE1],
    }


def measured_methods(estimates: Estimates, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Row after row of what `measured` gives for the methods."""
    for one in estimates.found:
        for way in CHECKPOINTING:
            yield _measured(one, way, say)


def _measured(found: Estimate, way: bool, say: Callable[[str], None]) -> dict[str, Any]:
    setting = found.setting.with_checkpointing(way)
    say(f"measuring {found.name} on {setting.config.model.name}" + ", checkpointing" * way)
    row: dict[str, Any] = {
        "name": found.name,
        "gradient_checkpointing": way,
        "dtypes": setting.precision.as_dict(),
        "status": "measured",
        "estimated": _estimated_side(found, way),
        "measured": None,
        "off": None,
    }
    got = _try(setting, found.peak_bytes(setting.rows, way))
    if isinstance(got, str):
        return row | {"status": got}
    side = _measured_side(got)
    off = {
        name: row["estimated"][name] / size - 1
        for name, size in side.items()
        if name != "parts_bytes" and size
    }
    return row | {"measured": side, "off": off}


def _estimated_side(found: Estimate, way: bool) -> dict[str, Any]:
    rows = found.setting.rows
    return _side(
        found.parts.as_dict(),
        found.parts.held,
        found.peak_bytes(0, way),
        found.peak_bytes(rows, way),
    )


def _measured_side(found: Measured) -> dict[str, Any]:
    return _side(found.parts.as_dict(), found.held, found.smallest_peak, found.peak)


def _side(parts: dict[str, int], held: int, smallest: int, peak: int) -> dict[str, Any]:
    """What is compared; activations are what the batch adds to the peak."""
    return {
        "parts_bytes": parts,
        "held_bytes": held,
        "smallest_peak_bytes": smallest,
        "peak_bytes": peak,
        "activation_bytes": peak - smallest,
    }


def _table1_column(setting: Setting, column: str, say: Callable[[str], None]) -> dict[str, Any]:
    """A column of Table 1 at the setting's shape: the paper's dtypes and count of scalars, a single
    token."""
    words = (*setting.overrides, "model.dtype=bfloat16", "train.trained_dtype=bfloat16")
    config = compose([*words, *TABLE1[column]])
    one = replace(setting, overrides=words, config=config, rows=1, tokens=1)
    say(f"measuring Table 1's {column} on {config.model.name}")
    row: dict[str, Any] = {
        "column": column,
        "status": "measured",
        "formula_bytes": None,
        "parts_bytes": None,
        "peak_bytes": None,
    }
    backbone = empty_backbone(load_architecture(config.model))
    try:
        counts = count_parameters(backbone, len(config.task.labels), config.method)
    except InputError as error:  # so many scalars cannot be chosen beside the embeddings
        return row | {"status": error.lines[0]}
    row["formula_bytes"] = paper_formula_bytes(counts, config.method.name)["total"]
    got = _try(one, parts_of(one, counts).total)
    if isinstance(got, str):
        return row | {"status": got}
    return row | {"parts_bytes": got.parts.as_dict(), "peak_bytes": got.smallest_peak}


def _try(setting: Setting, needed_bytes: int) -> Measured | str:
    """What was measured, or why nothing was."""
    if setting.device.type == "cpu":  # a lack of memory there ends the process, or another one
        free = psutil.virtual_memory().available
        if needed_bytes >= free:
            return f"not tried: needs {needed_bytes / 1e9:,.1f} GB, {free / 1e9:,.1f} are free"
    try:
        return measure(setting)
    except (torch.OutOfMemoryError, MemoryError):
        return "out of memory"
