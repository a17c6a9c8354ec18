"""SpaRTA itself (sections 4 and 5); knows nothing of tasks, Hydra or the runner."""

from sparta_bench.sparta.adapter import SpartaAdapter

__all__ = ["SpartaAdapter"]
