"""What trains: one function for each method."""

from sparta_bench.methods.prepare import prepare

__all__ = ["prepare"]
