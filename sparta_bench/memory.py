"""Peak memory of a run, and the paper's formula for it (section 5)."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

from sparta_bench.models.counts import ParameterCounts


def forget_peak(device: torch.device) -> None:
    """Let the peak start anew, as far as the system allows."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        pass  # not Linux, or not allowed: the peak is then the whole process's


def peak_bytes(device: torch.device) -> int:
    """Bytes allocated on CUDA at the peak; on a CPU the process's largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def paper_formula_bytes(counts: ParameterCounts, method: str) -> dict[str, int]:
    """Bytes to train with Adam, all in bfloat16, activations aside (section 5, inequality 1).

    Each trained scalar needs itself, its gradient and two moments. SpaRTA's deltas are trained
    beside the weights, and each chosen scalar has two 16-bit indices.
    """
    trained = 4 * 2 * counts.trainable
    weights = 0 if method == "full_ft" else 2 * counts.total
    indices = 2 * 2 * (counts.sampled or 0)
    return {
        "weights": weights,
        "trained": trained,
        "indices": indices,
        "total": weights + trained + indices,
        "full_ft_total": 4 * 2 * counts.total,
    }
