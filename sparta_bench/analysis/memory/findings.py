"""All that `sparta-bench memory` finds, as plain values for the JSON and the tables: the paper's
formula, estimates, and what was measured by CUDA's allocator or, on a CPU, of every tensor."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor

from sparta_bench.analysis.bench.contenders import with_own_optimizer
from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.analysis.memory import formula
from sparta_bench.analysis.memory.estimate import (
    CHECKPOINTING,
    KEPT_FREE,
    METHODS,
    Estimate,
    Footprint,
    Parts,
    estimate,
    parts_of,
    per_scalar,
)
from sparta_bench.errors import InputError
from sparta_bench.models.counts import count_parameters, empty_backbone, shapes_of
from sparta_bench.models.dtypes import Precision
from sparta_bench.models.source import load_architecture
from sparta_bench.models.tensor_memory import live_bytes, peak_of
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
        setting, counts = self.setting, self.methods[0].counts
        return {
            "model": setting.config.model.name,
            "weights_dtype": setting.precision.as_dict()["model"],
            "parameters": counts.total,
            "embeddings": counts.embeddings,
            "rows": setting.rows,
            "tokens": setting.tokens,
            "shared_tokens": setting.shared_tokens,
        }


def estimates_of(setting: Setting, gpus: int = 1) -> Estimates:
    """Estimate every method on the setting's model. Raises InputError if none fits, or the model
    cannot be had."""
    methods: list[Estimate] = []
    excluded: dict[str, str] = {}
    for name in METHODS:
        try:
            methods.append(estimate(name, setting, gpus))
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
            setting = one.setting.with_checkpointing(way)
            model = setting.config.model.name
            say(f"measuring {one.name} on {model}" + ", checkpointing" * way)
            expected = one.footprint(way).as_dict()
            outcome = _try(setting, expected["peak_bytes"])
            sizes = None if isinstance(outcome, str) else outcome.as_dict()
            yield {
                "name": one.name,
                "gradient_checkpointing": way,
                "dtypes": setting.precision.as_dict(),
                "status": outcome if isinstance(outcome, str) else "measured",
                "estimated": expected,
                "measured": sizes,
                "off": sizes and {
                    name: expected[name] / size - 1
                    for name, size in sizes.items()
                    if name != "parts_bytes" and size
                },
            }  # fmt: skip


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
    row["formula_bytes"] = formula.paper_formula_bytes(counts, config.method.name)["total"]
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


def measure(setting: Setting) -> Footprint:
    """Build the setting's method on random weights and make steps with it; other tensors of the
    process are not counted. Raises InputError if the method does not fit the model, and
    OutOfMemoryError where the device's memory does not suffice."""
    device = setting.device
    with _nothing_else():
        if device.type == "cuda":
            torch.cuda.empty_cache()
        before = live_bytes(device)
        smallest = replace(setting, rows=1, tokens=1, shared_tokens=0).batch()
        batch = setting.batch()
        before += _bytes([*smallest.values(), *batch.values()])
        classifier = setting.as_in_a_run()
        weights = set(classifier.backbone.parameters())
        ready = with_own_optimizer(classifier, setting)
        ready.step(smallest)  # makes the optimizer's state
        held = live_bytes(device)
        smallest_peak = peak_of(lambda: ready.step(smallest), device)
        peak = peak_of(lambda: ready.step(batch), device)
        ready.forward(smallest).backward()  # type: ignore[no-untyped-call]
        states, adapter = ready.optimizer.state.values(), ready.adapter
        parts = Parts(
            weights=_bytes(weights),
            # weights may train themselves
            trained=_bytes(value for value in ready.values if value not in weights),
            indices=_bytes(adapter.indices.values()) if adapter else 0,
            originals=_bytes(adapter.originals.values()) if adapter else 0,
            gradients=_bytes(value.grad for value in ready.values if value.grad is not None),
            moments=_bytes(tensor for state in states for tensor in state.values()),
        )
        return Footprint(parts, held - before, smallest_peak - before, peak - before)


@contextmanager
def _nothing_else() -> Iterator[None]:
    """Free what has no owner, and keep the collector, and so `live_bytes` on a CPU, from looking
    at all else again: hundreds of thousands of objects, several times."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
