"""Reproduce "Sparsity May Be All You Need: Sparse Random Parameter Adaptation"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparta_bench.sparta.adapter import SpartaAdapter

__version__ = "0.1.0"
__all__ = ["SpartaAdapter", "run"]


def __getattr__(name: str) -> Any:
    """`SpartaAdapter`, and with it torch, when it is asked for."""
    if name != "SpartaAdapter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sparta_bench.sparta.adapter import SpartaAdapter

    return SpartaAdapter


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
