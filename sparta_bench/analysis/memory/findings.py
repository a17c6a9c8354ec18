"""All that `sparta-bench memory` finds, as plain values: for the JSON, and for the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import psutil
import torch

from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.analysis.memory import formula
from sparta_bench.analysis.memory.estimate import CHECKPOINTING, KEPT_FREE, METHODS, Estimate
from sparta_bench.analysis.memory.estimate import estimate as estimate_of
from sparta_bench.analysis.memory.measured_memory import measure
from sparta_bench.analysis.memory.parts import Footprint, parts_of, per_scalar
from sparta_bench.errors import InputError
from sparta_bench.models.counts import count_parameters, empty_backbone, shapes_of
from sparta_bench.models.dtypes import Precision
from sparta_bench.models.source import load_architecture
from sparta_bench.paper import rows_of
from sparta_bench.records.write import environment, now
from sparta_bench.text import as_bytes

# Table 1's columns and their overrides; its share of trained scalars is that of the whole model.
TABLE1 = {"full_ft": ("method=full_ft",)} | {
    f"sparta-{sparsity}": (
        "method=sparta",
        f"method.density={(100 - sparsity) / 100}",
        "method.density_of=backbone",
    )
    for sparsity in formula.SPARSITIES
}


def paper_values() -> dict[str, Any]:
    """Return Table 1, the savings of section 5 and the break-even, from the formulas and as
    printed."""
    formulas = formula.table1_gb()
    wide, narrow = (Precision(torch.bfloat16, dtype) for dtype in (torch.float32, torch.bfloat16))
    return {
        "table1": [
            {
                "model": row["model"],
                "formula_gb": formulas[row["model"]],
                "printed_gb": {name: text for name, text in row.items() if name != "model"},
            }
            for row in rows_of("table1")
        ],
        "savings": [
            {
                "sparsity": int(row["sparsity"]),
                "formula": formula.savings(int(row["sparsity"])),
                "printed": {name: row[name] for name in ("more_storage", "less_memory")},
            }
            for row in rows_of("section5")
        ],
        "break_even": [
            _break_even("the paper: everything in bfloat16", formula.PAPER),
            _break_even("here, trained in float32", per_scalar(wide, wide)),
            _break_even("here, trained in bfloat16", per_scalar(narrow, narrow)),
        ],
    }


def _break_even(case: str, sizes: formula.PerScalar) -> dict[str, Any]:
    scalars = {f"{name}_bytes": size for name, size in sizes._asdict().items()}
    return {"case": case, **scalars, "density": sizes.break_even}


# ------------------------------------------------------------------------------- estimated
class Estimates(NamedTuple):
    """Of the methods that fit the setting's model, and why others do not."""

    setting: Setting
    methods: list[Estimate]
    excluded: dict[str, str]

    def heading(self) -> dict[str, Any]:
        """Return what the JSON says of the setting."""
        return {
            "model": self.setting.config.model.name,
            "weights_dtype": self.setting.precision.as_dict()["model"],
            "parameters": self.methods[0].counts.total,
            "embeddings": self.methods[0].counts.embeddings,
            "rows": self.setting.rows,
            "tokens": self.setting.tokens,
            "shared_tokens": self.setting.shared_tokens,
        }


def estimates_of(setting: Setting, gpus: int = 1) -> Estimates:
    """Estimate every method on the setting's model. Raises InputError if none fits, or the model
    cannot be had."""
    methods: list[Estimate] = []
    excluded: dict[str, str] = {}
    for name in METHODS:
        try:
            methods.append(estimate_of(name, setting, gpus))
        except InputError as error:
            if not methods:  # full fine-tuning fits every model: it is the model's fault
                raise
            excluded[name] = error.lines[0]
    return Estimates(setting, methods, excluded)


def estimated(estimates: Estimates, limits_gib: Sequence[int]) -> dict[str, Any]:
    """Return what every method needs, and what fits memories of these sizes."""
    setting, methods, excluded = estimates
    dtypes = [methods[0].setting.precision, setting.precision]
    full_ft, sparta = (precision.as_dict()["trained"] for precision in dtypes)
    name = setting.config.model.name
    case = f"{name} here: full FT trained in {full_ft}, SpaRTA in {sparta}"
    return {
        **estimates.heading(),
        "device": setting.device.type,
        "gpus": methods[0].gpus,
        "kept_free_bytes": KEPT_FREE,
        "break_even": _break_even(case, per_scalar(*dtypes)),
        "methods": [one.as_dict(limits_gib) for one in methods],
        "left_out": excluded,
    }


# -------------------------------------------------------------------------------- measured
def measured(estimates: Estimates, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure the same methods on the setting's device, which must be there: on random weights,
    with and without gradient checkpointing. `say` gets a line for each that begins."""
    setting = estimates.setting
    return {
        "date": now(),
        **environment(setting.device, setting.precision, 1),
        **estimates.heading(),
        "methods": list(measured_methods(estimates, say)),
        "left_out": estimates.excluded,
        "table1": [_table1_column(setting, column, say) for column in TABLE1],
    }


def measured_methods(estimates: Estimates, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Yield row after row of what `measured` gives for the methods."""
    for one in estimates.methods:
        for way in CHECKPOINTING:
            yield _measured(one, way, say)


def _measured(one: Estimate, way: bool, say: Callable[[str], None]) -> dict[str, Any]:
    setting = one.setting.with_checkpointing(way)
    say(f"measuring {one.name} on {setting.config.model.name}" + ", checkpointing" * way)
    estimated = one.footprint(way).as_dict()
    outcome = _try(setting, estimated["peak_bytes"])
    measured = None if isinstance(outcome, str) else outcome.as_dict()
    off = measured and {
        name: estimated[name] / size - 1
        for name, size in measured.items()
        if name != "parts_bytes" and size
    }
    return {
        "name": one.name,
        "gradient_checkpointing": way,
        "dtypes": setting.precision.as_dict(),
        "status": outcome if isinstance(outcome, str) else "measured",
        "estimated": estimated,
        "measured": measured,
        "off": off,
    }


def _table1_column(setting: Setting, column: str, say: Callable[[str], None]) -> dict[str, Any]:
    """A column of Table 1 at the setting's shape: the paper's dtypes and count of scalars, a single
    token."""
    dtypes = ("model.dtype=bfloat16", "train.trained_dtype=bfloat16")
    one = replace(setting.changed(*dtypes, *TABLE1[column]), rows=1, tokens=1)
    config = one.config
    say(f"measuring Table 1's {column} on {config.model.name}")
    unknown = dict.fromkeys(("formula_bytes", "parts_bytes", "peak_bytes"))
    row: dict[str, Any] = {"column": column, "status": "measured", **unknown}
    backbone = empty_backbone(load_architecture(config.model))
    try:
        counts = count_parameters(shapes_of(backbone), len(config.task.labels), config.method)
    except InputError as error:  # so many scalars cannot be chosen beside the embeddings
        return row | {"status": error.lines[0]}
    sizes = formula.paper_formula_bytes(counts, config.method.name)
    row["formula_bytes"] = sizes["total"]
    outcome = _try(one, parts_of(one, counts).total)
    if isinstance(outcome, str):
        return row | {"status": outcome}
    return row | {"parts_bytes": outcome.parts.as_dict(), "peak_bytes": outcome.smallest_peak}


def _try(setting: Setting, needed_bytes: int) -> Footprint | str:
    """What was measured, or why nothing was."""
    if setting.device.type == "cpu":  # a lack of memory there ends the process, or another one
        free = psutil.virtual_memory().available
        if needed_bytes >= free:
            return f"not tried: needs {as_bytes(needed_bytes)}, {as_bytes(free)} are free"
    try:
        return measure(setting)
    except (torch.OutOfMemoryError, MemoryError):
        return "out of memory"
