"""Weight files: which safetensors files a model's folder has, that each is whole, and their
tensors, read in blocks of rows; no model is ever built."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import list_repo_files
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparta_bench import hub
from sparta_bench.config.conf_folder import check_source
from sparta_bench.config.schema import ModelConfig
from sparta_bench.errors import InputError, reason_of
from sparta_bench.files import json_of
from sparta_bench.models.dtypes import STORED_DTYPES
from sparta_bench.models.source import folder_of, hub_folder, is_local, label_of
from sparta_bench.sparta.store import fingerprint_of_tensors

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth")
HEADS = {"lm_head", "score"}  # what stands on a backbone in a checkpoint


def folder_with_weights(model: ModelConfig) -> Path:
    """The folder with the model's files, weights too, downloaded where the cache lacks them."""
    folder = folder_of(model)
    if not is_local(model):
        _download_weights(label_of(model), str(model.hub_id), folder)
    return folder


def _download_weights(label: str, repo: str, folder: Path) -> None:
    """Download to a snapshot of the hub's cache what it lacks of the weights."""
    index = folder / INDEX
    for name in _shards(index) if index.is_file() else [SINGLE]:
        try:
            hub.download(repo, name, folder.name)
        except RemoteEntryNotFoundError:
            reason = _why_no_weights(list_repo_files(repo, revision=folder.name), repo)
            raise InputError(f"{label}: {reason}") from None
        except Exception as error:  # the client raises many kinds
            raise InputError(f"{label}: {name} cannot be had: {hub.why(error)[0]}") from None


def checkpoint_files(label: str, folder: Path) -> dict[Path, list[str]]:
    """Return the safetensors files of a model, each with the tensors that an index gives it. Raises
    InputError, its message begun with `label`, if there is none, or one is missing, no safetensors
    file, or cut short."""
    files: dict[Path, list[str]] = {}
    if (folder / SINGLE).is_file():
        files = {folder / SINGLE: []}
    elif (folder / INDEX).is_file():
        files = {folder / name: tensors for name, tensors in _shards(folder / INDEX).items()}
    else:
        for inner in ("adapter", "model"):
            if (folder / inner).is_dir():
                raise InputError(f"{label}: a run's folder; what it trained is in {folder / inner}")
        names = (path.name for path in folder.iterdir())
        raise InputError(f"{label}: {_why_no_weights(names, str(folder))}")
    for path in files:
        if not path.is_file():
            raise InputError(f"{label}: {INDEX} names {path.name}, which is not there")
        open_file(path)
    return files


def file_with(tensor: str, folder: Path) -> Path:
    """Return the file of a model's folder that holds a tensor, if any does; else its first."""
    files = checkpoint_files(f"model.path={folder}", folder)
    return next((path for path, tensors in files.items() if tensor in tensors), min(files))


def open_file(path: Path) -> Any:
    """Map a safetensors file into memory. Raises InputError if it is none, or cannot be read."""
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        reason = reason_of(error)
        raise InputError(f"{path}: no safetensors file, or cut short ({reason})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason_of(error)}") from None


def is_head(tensor: str) -> bool:
    """Whether a tensor belongs to a vocabulary or classification head."""
    return not HEADS.isdisjoint(tensor.split("."))


def _shards(index: Path) -> dict[str, list[str]]:
    """Names of the shards, in order, with their tensors."""
    shards: dict[str, list[str]] = {}
    try:
        for tensor, name in json_of(index)["weight_map"].items():
            shards.setdefault(name, []).append(tensor)
        names = sorted(shards)
        outside = [n for n in names if not re.fullmatch(r"[^/\\\0]+\.safetensors", n)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{index}: no index of shards (weight_map), or cut short") from None
    if outside:
        raise InputError(f"{index}: names {outside[0]!r}, and shards are .safetensors beside it")
    return {name: shards[name] for name in names}


def _why_no_weights(names: Iterable[str], source: str) -> str:
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if not pickles:
        return f"neither {SINGLE} nor {INDEX} is there"
    return (
        f"holds pickles alone ({pickles[0]}), which can run code and are never read; convert "
        f"them where you trust them: AutoModelForCausalLM.from_pretrained({source!r}, "
        "use_safetensors=False).save_pretrained(DIR), and the tokenizer's files to the same DIR"
    )


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
    folder = Path(source)
    if folder.is_file():
        return Checkpoint(source, [folder])
    if not folder.is_dir():
        check_source(source)
        repo, revision = source, "main"
        model = None
        if "/" not in source:
            from sparta_bench.config.compose import compose  # Hydra takes a while

            model = compose([f"model={source}"]).model
        if model is not None:
            repo, revision = str(model.hub_id), model.revision
        if model is not None and model.embedded:
            folder = folder_of(model)
        else:
            folder = hub_folder(source, repo, revision, "give a folder")
            _download_weights(source, repo, folder)
    return Checkpoint(source, checkpoint_files(source, folder))
