"""Reproduce "Sparsity May Be All You Need: Sparse Random Parameter Adaptation"."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparta_bench.sparta.adapter import SpartaAdapter
    from sparta_bench.sparta.weight_patch import apply_patch

__version__ = "0.1.0"
__all__ = ["SpartaAdapter", "apply_patch", "run"]
LAZY = {"SpartaAdapter": "adapter", "apply_patch": "weight_patch"}


def __getattr__(name: str) -> Any:
    """What needs torch, when it is asked for."""
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"sparta_bench.sparta.{LAZY[name]}"), name)


def run(overrides: list[str]) -> dict[str, Any]:
    """Run the experiment of overrides such as `["task=tiny-rte", "method=lora"]`.

    Returns the record, as in `result.json`; a run that is done already is not repeated. Raises
    InputError with a line for every fault of configuration or input, RuntimeError if the run fails.
    """
    from sparta_bench.config.compose import compose
    from sparta_bench.data.splits import complete
    from sparta_bench.runs.run import run as run_experiment

    record, path, _ = run_experiment(complete(compose(overrides)))
    if record["status"] != "completed":
        error = record["error"]
        raise RuntimeError(f"{error['type']}: {error['message']} → {path}")
    return record
