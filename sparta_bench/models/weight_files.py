"""The weight files of a folder or of a repository on the hub: which, and that each is whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file

from sparta_bench import hub
from sparta_bench.errors import InputError, reason_of
from sparta_bench.files import json_of

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth")


def checkpoint_files(label: str, where: str, commit: str | None) -> dict[Path, list[str]]:
    """The safetensors files that transformers would read, in the order of their names, each with
    the tensors that an index says it has (none without an index).

    Parameters
    ----------
    label
        What messages begin with.
    where, commit
        A folder and null, or a repository and its commit. What the cache lacks is downloaded.

    Raises
    ------
    InputError
        If there is none, one is missing, no safetensors file or cut short, or the hub cannot be
        asked.
    """
    single = file_of_model(label, where, SINGLE, commit)
    files = {single: list[str]()} if single is not None else _sharded(label, where, commit)
    for path in files:
        open_file(path)
    return files


def file_with(tensor: str, source: str, commit: str | None) -> Path:
    """The file of a model's checkpoint that holds a tensor, if any does; else its first.

    Raises
    ------
    InputError
        If the checkpoint is not whole.
    """
    files = checkpoint_files(f"model.path={source}", source, commit)
    return next((path for path, tensors in files.items() if tensor in tensors), min(files))


def open_file(path: Path) -> Any:
    """A safetensors file, mapped into memory.

    Raises
    ------
    InputError
        If it is none, cut short, or cannot be read.
    """
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        reason = reason_of(error)
        raise InputError(f"{path}: no safetensors file, or cut short ({reason})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason_of(error)}") from None


def file_of_model(label: str, where: str, name: str, commit: str | None) -> Path | None:
    """A file of a folder or a repository; null where it has none of that name.

    Raises
    ------
    InputError
        If the hub cannot be asked.
    """
    try:
        path = cached_file(
            where,
            name,
            revision=commit,
            tqdm_class=hub.Bar,
            _raise_exceptions_for_missing_entries=False,
        )
    except Exception as error:  # the client raises many kinds
        raise InputError(f"{label}: {name} cannot be had: {hub.why(error)[0]}") from None
    return None if path is None else Path(path)


def _sharded(label: str, where: str, commit: str | None) -> dict[Path, list[str]]:
    index = file_of_model(label, where, INDEX, commit)
    if index is None:
        raise InputError(f"{label}: {_why_nothing(where, commit)}")
    files = {}
    for name, tensors in _shards(index).items():
        path = file_of_model(label, where, name, commit)
        if path is None:
            raise InputError(f"{label}: {INDEX} names {name}, which is not there")
        files[path] = tensors
    return files


def _shards(index: Path) -> dict[str, list[str]]:
    """Names of the shards, in order, with their tensors."""
    shards: dict[str, list[str]] = {}
    try:
        places = json_of(index)["weight_map"]
        for tensor, name in places.items():
            shards.setdefault(name, []).append(tensor)
        names = sorted(shards)
        outside = [n for n in names if not re.fullmatch(r"[^/\\\0]+\.safetensors", n)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{index}: no index of shards (weight_map), or cut short") from None
    if outside:
        raise InputError(f"{index}: names {outside[0]!r}, and shards are .safetensors beside it")
    return {name: shards[name] for name in names}


def _why_nothing(where: str, commit: str | None) -> str:
    folder = Path(where)
    for inner in ("adapter", "model"):
        if (folder / inner).is_dir():
            return f"a run's folder; what it trained is in {folder / inner}"
    if commit is not None and hub.is_offline():
        return f"{hub.endpoint()} cannot be reached, and the cache does not have the weights"
    if commit is not None:
        names = HfApi().list_repo_files(where, revision=commit)
    else:
        names = [path.name for path in folder.iterdir()]
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if not pickles:
        return f"neither {SINGLE} nor {INDEX} is there"
    return (
        f"holds pickles alone ({pickles[0]}), which can run code and are never read; convert "
        f"them where you trust them: AutoModelForCausalLM.from_pretrained({where!r}, "
        "use_safetensors=False).save_pretrained(DIR), and the tokenizer's files to the same DIR"
    )
