"""The weight files of a model's folder: which they are, and that each is whole."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import list_repo_files
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors import SafetensorError, safe_open

from sparta_bench import hub
from sparta_bench.errors import InputError, reason_of
from sparta_bench.files import json_of

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth")
HEADS = {"lm_head", "score"}  # what stands on a backbone in a checkpoint


def checkpoint_files(label: str, folder: Path) -> dict[Path, list[str]]:
    """Return the safetensors files of a model, each with the tensors that an index gives it.

    Raises InputError, its message begun with `label`, if there is none, or one is missing, no
    safetensors file, or cut short.
    """
    files: dict[Path, list[str]]
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


def download_weights(label: str, repo: str, folder: Path) -> None:
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
