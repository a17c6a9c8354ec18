"""Tensors of safetensors files, read in blocks of rows; no model is ever built."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

from sparta_bench.compose import choices, compose
from sparta_bench.errors import InputError, did_you_mean, reason_of
from sparta_bench.models.source import revision_of, source_of
from sparta_bench.sparta.store import fingerprint_of_tensors

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
NOT_FROM_HUB = "cannot be had from the hub (a folder with its files does as well)"
HEADS = ("lm_head", "score")  # what stands on a backbone in a checkpoint


@dataclass(frozen=True)
class Stored:
    """Where a tensor is: its own name in its file. `dtype` is null where it is no plain
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

    Raises
    ------
    InputError
        If a file is no safetensors file, or two tensors have the same name.
    """

    def __init__(self, label: str, paths: Iterable[Path]) -> None:
        self.label = label
        self.tensors: dict[str, Stored] = {}
        for path in paths:
            try:
                file: Any = safe_open(path, framework="pt")
            except SafetensorError as error:
                reason = reason_of(error)
                raise InputError(f"{path}: no safetensors file, or cut short ({reason})") from None
            except OSError as error:
                raise InputError(f"{path}: cannot be read: {reason_of(error)}") from None
            for own in file.keys():
                name = own.removeprefix("model.")
                if name in self.tensors:
                    raise InputError(f"{label}: {name} is there twice, as {own} too")
                about = file.get_slice(own)
                dtype = DTYPES.get(about.get_dtype())
                self.tensors[name] = Stored(own, file, tuple(about.get_shape()), dtype)

    @property
    def name(self) -> str:
        """The label without the folders around it."""
        path = Path(self.label)
        if path.name == SINGLE:
            path = path.parent
        return path.resolve().name or self.label

    def shape_of(self, name: str) -> tuple[int, ...] | None:
        """Null where there is no such tensor."""
        stored = self.tensors.get(name)
        return None if stored is None else stored.shape

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a matrix (at most stop - start x columns), in the dtype of the file."""
        stored = self.tensors[name]
        block: Tensor = stored.file.get_slice(stored.name)[start:stop]
        return block

    def fingerprint(self, dtype: torch.dtype | None) -> str:
        """`store.fingerprint_of` of the backbone, had it been loaded from here in `dtype`
        (null: in the file's)."""
        return fingerprint_of_tensors(
            (name, stored.file.get_tensor(stored.name).to(dtype or stored.dtype))
            for name, stored in self.tensors.items()
            # quantised weights are no base of ours; very old checkpoints hold a rotary buffer
            if stored.dtype is not None and not is_head(name) and not name.endswith("inv_freq")
        )


def is_head(name: str) -> bool:
    """Whether a tensor belongs to a vocabulary or classification head."""
    return any(head in name.split(".") for head in HEADS)


def open_checkpoint(source: str) -> Checkpoint:
    """A safetensors file, a folder with one or with shards, a model of `conf/model`, or a
    repository on the hub.

    Raises
    ------
    InputError
        If there is none, it holds pickles alone, or the hub cannot be asked.
    """
    path = Path(source)
    if path.is_file():
        return Checkpoint(source, [path])
    if path.is_dir():
        return Checkpoint(source, _files(source, source, None))
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or path.suffix:
        raise InputError(f"{source}: there is no such file or folder")
    if "/" in source:
        return Checkpoint(source, _files(source, source, None))
    known = [name for name in choices("model") if name != "local"]
    if source not in known:
        near = did_you_mean(source, known)
        raise InputError(f"{source}: neither a file, a folder, nor a model of conf/model{near}")
    model = compose([f"model={source}"]).model
    return Checkpoint(source, _files(source, source_of(model), revision_of(model)))


def _files(label: str, where: str, revision: str | None) -> list[Path]:
    """The files of a folder or a repository, the shards' in the order of their names."""
    single = _file(label, where, SINGLE, revision)
    if single is not None:
        return [single]
    index = _file(label, where, INDEX, revision)
    if index is None:
        raise InputError(f"{label}: {_why_nothing(where, revision)}")
    found = {shard: _file(label, where, shard, revision) for shard in _shards(label, index)}
    missing = [shard for shard, path in found.items() if path is None]
    if missing:
        raise InputError(f"{label}: {INDEX} names {missing[0]}, which is not there")
    return [path for path in found.values() if path is not None]


def _shards(label: str, index: Path) -> list[str]:
    """The names in an index. None may lead out of its folder."""
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [shard for shard in shards if Path(shard).name != shard]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{label}: {INDEX} has no weight_map of file names, or is cut short"
        ) from None
    if outside:
        raise InputError(f"{label}: {INDEX} names {outside[0]}, and shards lie beside it")
    return shards


def _file(label: str, where: str, name: str, revision: str | None) -> Path | None:
    """Null where the folder or repository has no such file, or none is in the cache, offline."""
    try:
        path = cached_file(
            where, name, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    except OSError as error:
        raise InputError(f"{label}: {NOT_FROM_HUB}: {reason_of(error)}") from None
    return None if path is None else Path(path)


def _why_nothing(where: str, revision: str | None) -> str:
    folder = Path(where)
    if not folder.is_dir():
        try:
            cached_file(where, SINGLE, revision=revision)
        except OSError as error:  # which tells a file that is missing from a hub out of reach
            return f"{NOT_FROM_HUB}: {reason_of(error)}"
    for inner in ("adapter", "model"):
        if (folder / inner).is_dir():
            return f"a run's folder; what it trained is in {folder / inner}"
    pickles = sorted(file.name for end in ("bin", "pt", "pth") for file in folder.glob(f"*.{end}"))
    if pickles:
        return f"holds pickles alone ({pickles[0]}), which can run code; safetensors are read"
    return f"neither {SINGLE} nor {INDEX} is there"
