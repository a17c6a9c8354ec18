"""Tensors that are kept only to save time: used where they are as they were written, made again
where not. A byte that a disk has changed would change a run's numbers unseen.

They are torch's, or numpy's, for which no torch is imported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from sparta_bench.files import write_tensors

SEAL, DIGITS = "sha256_and_about", 64  # hexadecimal digits, then the text


def write_kept(path: Path, tensors: Mapping[str, Any], about: str = "") -> None:
    """Write tensors (on the CPU, contiguous) with a text about them, and the hash of both."""
    # one entry: the order of several is not always the same, and equal content has equal bytes here
    write_tensors(path, tensors, {SEAL: _hash_of(tensors, about) + about})


def try_to_keep(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write tensors where they can be written: without them it takes longer, no more."""
    with suppress(OSError, SafetensorError):
        write_kept(path, tensors)


def read_kept(path: Path, framework: str = "pt") -> tuple[dict[str, Any], str] | None:
    """Read what `write_kept` wrote, as tensors of torch ("pt") or arrays ("numpy"); `None` where no
    file is, or not as it was written."""
    try:
        with safe_open(path, framework=framework) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError):
        return None
    seal = metadata.get(SEAL, "")
    digest, about = seal[:DIGITS], seal[DIGITS:]
    return (tensors, about) if digest == _hash_of(tensors, about) else None


def _hash_of(tensors: Mapping[str, Any], about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(tensors.items()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name} torch.{dtype} {tuple(tensor.shape)}".encode())
        if isinstance(tensor, np.ndarray):
            digest.update(tensor.data)
        else:
            import torch

            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
