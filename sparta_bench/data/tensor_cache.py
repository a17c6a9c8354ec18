"""Tensors that are kept only to save time: used where they are as they were written, made again
where not. A byte that a disk has changed would change a run's numbers unseen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparta_bench.files import write_tensors

SEAL, DIGITS = "sha256_and_about", 64  # hexadecimal digits, then the text


def write_kept(path: Path, tensors: Mapping[str, Tensor], about: str = "") -> None:
    """Write tensors (on the CPU, contiguous) with a text about them, and the hash of both."""
    # one entry: the order of several is not always the same, and equal content has equal bytes here
    write_tensors(path, tensors, {SEAL: _hash_of(tensors, about) + about})


def try_to_keep(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors where they can be written: without them it takes longer, no more."""
    with suppress(OSError, SafetensorError):
        write_kept(path, tensors)


def read_kept(path: Path) -> tuple[dict[str, Tensor], str] | None:
    """Read what `write_kept` wrote; `None` where no file is, or not as it was written."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError):
        return None
    seal = metadata.get(SEAL, "")
    digest, about = seal[:DIGITS], seal[DIGITS:]
    return (tensors, about) if digest == _hash_of(tensors, about) else None


def _hash_of(tensors: Mapping[str, Tensor], about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
