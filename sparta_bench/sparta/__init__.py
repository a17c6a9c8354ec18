"""SpaRTA itself (sections 4 and 5); knows nothing of tasks, Hydra or the runner."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparta_bench.sparta.adapter import SpartaAdapter

__all__ = ["SpartaAdapter"]


def __getattr__(name: str) -> Any:
    """`SpartaAdapter`, and with it torch, when it is asked for: counts need neither."""
    if name != "SpartaAdapter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sparta_bench.sparta.adapter import SpartaAdapter

    return SpartaAdapter
