"""Tensors of safetensors files, read in blocks of rows; no model is ever built."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparta_bench.errors import InputError
from sparta_bench.models.checkpoint_names import check_source
from sparta_bench.models.dtypes import STORED_DTYPES
from sparta_bench.models.source import folder_of, hub_folder
from sparta_bench.models.weight_files import (
    SINGLE,
    checkpoint_files,
    download_weights,
    is_head,
    open_file,
)
from sparta_bench.sparta.store import fingerprint_of_tensors


@dataclass(frozen=True)
class Stored:
    """Where a tensor is: its own name in its file. `dtype` is `None` where it is no plain
    floating-point one."""

    name: str
    file: Any
    shape: tuple[int, ...]
    dtype: torch.dtype | None


class Checkpoint:
    """The tensors of some safetensors files by their names in the backbone.

    `label` is what the user called it. A causal language model's `model.layers…` and a bare
    backbone's `layers…` are the same name here. Files are mapped into memory, so that only what is
    asked for is read.
    """

    def __init__(self, label: str, paths: Iterable[Path]) -> None:
        self.label = label
        self.tensors: dict[str, Stored] = {}
        for path in paths:
            file = open_file(path)
            for own in file.keys():
                name = own.removeprefix("model.")
                if name in self.tensors:
                    raise InputError(f"{label}: {name} is there twice, as {own} too")
                about = file.get_slice(own)
                dtype = STORED_DTYPES.get(about.get_dtype())
                self.tensors[name] = Stored(own, file, tuple(about.get_shape()), dtype)

    @property
    def name(self) -> str:
        """The label without the folders around it."""
        path = Path(self.label)
        if path.name == SINGLE:
            path = path.parent
        return path.resolve().name or self.label

    def shape_of(self, name: str) -> tuple[int, ...] | None:
        """`None` where there is no such tensor."""
        stored = self.tensors.get(name)
        return None if stored is None else stored.shape

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a matrix (at most stop - start x columns), in the dtype of the file."""
        stored = self.tensors[name]
        block: Tensor = stored.file.get_slice(stored.name)[start:stop]
        return block

    def fingerprint(self, dtype: torch.dtype | None) -> str:
        """`store.fingerprint_of` of the backbone, had it been loaded from here in `dtype`
        (`None`: in the file's)."""
        return fingerprint_of_tensors(
            (name, stored.file.get_tensor(stored.name).to(dtype or stored.dtype))
            for name, stored in self.tensors.items()
            # quantised weights are no base of ours; very old checkpoints hold a rotary buffer
            if stored.dtype is not None and not is_head(name) and not name.endswith("inv_freq")
        )


def open_checkpoint(source: str) -> Checkpoint:
    """Open a safetensors file, a folder with one or with shards, a model of `conf/model`, or a
    repository on the hub. Raises InputError if there is none, or it cannot be had."""
    path = Path(source)
    if path.is_file():
        return Checkpoint(source, [path])
    if path.is_dir():
        return Checkpoint(source, checkpoint_files(source, path))
    check_source(source)
    repo, revision = source, "main"
    if "/" not in source:
        from sparta_bench.config.compose import compose  # Hydra takes a while

        model = compose([f"model={source}"]).model
        if model.embedded:
            return Checkpoint(source, checkpoint_files(source, folder_of(model)))
        repo, revision = str(model.hub_id), model.revision
    folder = hub_folder(source, repo, revision, "give a folder")
    download_weights(source, repo, folder)
    return Checkpoint(source, checkpoint_files(source, folder))
