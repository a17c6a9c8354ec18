"""Where model and tokenizer come from, and how they are named where no path may stand."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from sparta_bench import hub
from sparta_bench.config.schema import ModelConfig
from sparta_bench.data.prompts import SEP_TOKEN, Reading
from sparta_bench.errors import InputError, reason_of
from sparta_bench.files import json_of, sha256_of

EMBEDDED = Path(str(resources.files("sparta_bench") / "tiny_models"))


def source_of(model: ModelConfig) -> str:
    """The folder, or the repository on the hub, that transformers is to load."""
    if model.path is not None:
        return model.path
    if model.embedded:
        return str(EMBEDDED / model.name)
    assert model.hub_id is not None
    return model.hub_id


def is_local(model: ModelConfig) -> bool:
    """Whether the model's files are in a folder of this machine."""
    return model.path is not None or model.embedded


def revision_of(model: ModelConfig) -> str | None:
    """The hub's commit; a folder has none.

    Raises
    ------
    InputError
        If the hub cannot be asked, or a folder here bears the repository's name.
    """
    if is_local(model):
        return None
    name = str(model.hub_id)
    if Path(name).exists():  # transformers would load that, and the record would name the hub's
        raise InputError(
            f"model={model.name}: {name} is a folder here as well as a name on the hub; give "
            f"model.path={name}, or start elsewhere"
        )
    try:
        return hub.commit_of(name, model.revision)
    except Exception as error:  # the client raises many kinds
        raise unreachable(model, error) from None


def load_architecture(model: ModelConfig) -> PreTrainedConfig:
    """The transformers configuration: of the folder, or of the shape in the YAML.

    Raises
    ------
    InputError
        If there is neither, or the folder's shape is not the one that the YAML states.
    """
    if not is_local(model) and model.shape is not None:
        shape = dict(model.shape)
        try:
            return AutoConfig.for_model(shape.pop("model_type"), **shape)
        except Exception as error:
            raise InputError(f"model.shape={model.shape}: {reason_of(error)}") from None
    commit = revision_of(model)
    try:
        found = AutoConfig.from_pretrained(
            source_of(model), revision=commit, trust_remote_code=False
        )
    except Exception as error:  # the libraries raise many kinds for a broken configuration
        raise unreachable(model, error) from None
    stated = (model.shape or {}) if model.path is not None else {}
    for key, value in stated.items():
        if getattr(found, key, value) != value:
            raise InputError(
                f"model.path={model.path}: {key} is {getattr(found, key)}, "
                f"where {model.name} has {value}"
            )
    return found


def load_tokenizer(model: ModelConfig, task: Reading) -> Any:
    """The model's tokenizer (a fast one), with the authors' separator token if it is asked for.

    Raises
    ------
    InputError
        If it cannot be had.
    """
    source = model.tokenizer or source_of(model)
    revision = None if model.tokenizer else revision_of(model)
    key = "model.tokenizer" if model.tokenizer else "model.path"
    if revision is None:
        _check_tokenizer_files(f"{key}={source}", Path(source))
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
        tokenizer("a", add_special_tokens=True, verbose=False)  # a broken one may load
    except Exception as error:  # the libraries raise many kinds for a broken tokenizer.json
        if revision is not None:
            raise unreachable(model, error, "the tokenizer of ") from None
        raise InputError(
            f"{key}={source}: the tokenizer cannot be loaded: {_tokenizer_fault(source, error)}"
        ) from None
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{key}={source}: no tokenizer.json there, and none can be built")
    if task.separator == "sep_token" and model.kind == "base" and len(task.columns) == 2:
        tokenizer.add_special_tokens({"additional_special_tokens": [SEP_TOKEN]})
    return tokenizer


def _check_tokenizer_files(label: str, folder: Path) -> None:
    # From a folder without a tokenizer transformers builds an empty one, that knows no word.
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    if not any((folder / name).is_file() for name in names):
        raise InputError(f"{label}: the folder has no tokenizer ({', '.join(names)})")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        try:
            found = json_of(folder / name)
        except FileNotFoundError:
            found = {}
        except (OSError, ValueError):
            raise InputError(
                f"{folder / name}: cannot be read, is not JSON, or cut short"
            ) from None
        if not isinstance(found, dict):
            raise InputError(f"{folder / name}: is no JSON object")
    named = [key for key in found if key.endswith("_file") and isinstance(found[key], str)]
    if named and not (folder / "tokenizer.json").is_file():  # else they are not looked at
        raise InputError(f"{folder / name}: {named[0]} points elsewhere, and is not followed")


def _tokenizer_fault(source: str, error: Exception) -> str:
    if (Path(source) / "tokenizer.json").is_file():
        return reason_of(error)
    return f"there is no tokenizer.json, and none can be built ({reason_of(error)})"


def unreachable(model: ModelConfig, error: Exception, what: str = "") -> InputError:
    """One message for a model (or `what` of it) that cannot be loaded, and what a person can do."""
    reason, cause = hub.why(error)
    if "trust_remote_code" in str(error):
        reason = "it needs code of its own (auto_map in config.json), which is never run here"
    if is_local(model):
        return InputError(f"model.path={source_of(model)}: cannot be loaded: {reason}")
    at = "" if model.revision == "main" else f" at {model.revision}"
    name = f"{what}{model.hub_id}{at}"
    page = f"https://huggingface.co/{model.hub_id}"
    ways = hub.ways_out(cause, page, "give a folder with model.path=DIR")
    return InputError(f"model={model.name}: {name} cannot be loaded from the hub: {reason}. {ways}")


def source_fingerprint(model: ModelConfig) -> str:
    """What identifies the base model: its files' hash, or the hub's commit.

    Raises
    ------
    InputError
        If the hub cannot be asked.
    """
    commit = revision_of(model)
    if commit is None:
        folders = [source_of(model)] + ([model.tokenizer] if model.tokenizer else [])
        return hashlib.sha256("".join(_hash_folder(f) for f in folders).encode()).hexdigest()[:16]
    return commit + (f"+{_hash_folder(model.tokenizer)}" if model.tokenizer else "")


def _hash_folder(folder: str) -> str:
    paths = [
        path
        for path in sorted(Path(folder).iterdir())
        if path.suffix in (".json", ".safetensors", ".model")
        and path.name != "generation_config.json"
    ]
    digests = [f"{p.name} {_hash_file(p, p.stat().st_size, p.stat().st_mtime_ns)}" for p in paths]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


@lru_cache(maxsize=1024)
def _hash_file(path: Path, size_bytes: int, modified_ns: int) -> str:
    # size and time are only there so that a changed file is hashed again
    return sha256_of(path)
