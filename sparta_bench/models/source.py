"""Where model and tokenizer come from: always a folder, the hub's in its client's cache.

transformers is imported where something is loaded: it takes seconds, and fingerprints need it not.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparta_bench.config.schema import ModelConfig
from sparta_bench.data.examples import SEP_TOKEN, Reading
from sparta_bench.devices import heavy_imports
from sparta_bench.errors import InputError, reason_of
from sparta_bench.files import hash_of, json_of, sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

EMBEDDED = Path(str(resources.files("sparta_bench") / "tiny_models"))
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
CONTEXT = "Response:"  # how every prompt ends


def is_local(model: ModelConfig) -> bool:
    """Whether the model's files are in a folder of the user or of this package."""
    return model.path is not None or model.embedded


def label_of(model: ModelConfig) -> str:
    """What messages about the model's files begin with."""
    return f"model.path={folder_of(model)}" if is_local(model) else f"model={model.name}"


def folder_of(model: ModelConfig) -> Path:
    """Return the folder that holds the model's files, the weights of a hub's model aside."""
    if model.path is not None:
        return Path(model.path)
    if model.embedded:
        return EMBEDDED / model.name
    label, ways = f"model={model.name}", "give a folder with model.path=DIR"
    return hub_folder(label, str(model.hub_id), model.revision, ways)


def hub_folder(label: str, repo: str, revision: str, without: str) -> Path:
    """Return the folder of a model of the hub; its name is the commit. Raises InputError if it
    cannot be had; `without` says how to do without the hub."""
    from sparta_bench import hub

    try:
        return hub.snapshot(repo, revision)
    except Exception as error:  # the client raises many kinds
        reason, cause = hub.why(error)
        where = repo if revision == "main" else f"{repo} at {revision}"
        ways = hub.ways_out(cause, f"https://huggingface.co/{repo}", without)
        raise InputError(
            f"{label}: {where} cannot be loaded from the hub: {reason}. {ways}"
        ) from None


def load_architecture(model: ModelConfig) -> PreTrainedConfig:
    """Load the transformers configuration: of the folder, or of the shape in the YAML. Raises
    InputError if there is neither, or the folder's shape is not the one that the YAML states."""
    with heavy_imports():
        from transformers import AutoConfig

    if not is_local(model) and model.shape is not None:
        shape = dict(model.shape)
        try:
            return AutoConfig.for_model(shape.pop("model_type"), **shape)
        except Exception as error:
            raise InputError(f"model.shape={model.shape}: {reason_of(error)}") from None
    try:
        config = AutoConfig.from_pretrained(folder_of(model), trust_remote_code=False)
    except InputError:
        raise
    except Exception as error:  # the libraries raise many kinds for a broken configuration
        raise cannot_be_loaded(model, error) from None
    for key, value in (model.shape or {}).items() if model.path is not None else ():
        if getattr(config, key, value) != value:
            raise InputError(
                f"model.path={model.path}: {key} is {getattr(config, key)}, "
                f"where {model.name} has {value}"
            )
    return config


def context_of(architecture: Any) -> int | None:
    """Return how many tokens a model reads at most; None where its configuration names no limit."""
    tokens = getattr(architecture.get_text_config(), "max_position_embeddings", None)
    return int(tokens) if tokens else None


def cannot_be_loaded(model: ModelConfig, error: Exception) -> InputError:
    """The message for a model that transformers does not load."""
    reason = reason_of(error).rstrip(".")
    if "trust_remote_code" in str(error):
        reason = "it needs code of its own (auto_map in config.json), which is never run here"
    return InputError(f"{label_of(model)}: cannot be loaded: {reason}")


def load_tokenizer(model: ModelConfig, task: Reading) -> Any:
    """Load the model's tokenizer, with the authors' separator token if it is asked for."""
    folder = Path(model.tokenizer) if model.tokenizer else folder_of(model)
    label = f"model.tokenizer={folder}" if model.tokenizer else label_of(model)
    # from a folder without a tokenizer transformers builds an empty one, that knows no word
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise InputError(f"{label}: the folder has no tokenizer ({', '.join(TOKENIZERS)})")
    keys: dict[str, Any] = {}
    for path in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        try:
            keys = dict(json_of(path)) if path.exists() else keys
        except (OSError, ValueError, TypeError):
            raise InputError(f"{path}: cannot be read, is not JSON, or cut short") from None
    elsewhere = [key for key in keys if key.endswith("_file") and isinstance(keys[key], str)]
    if elsewhere and not (folder / "tokenizer.json").is_file():  # else they are not looked at
        raise InputError(f"{path}: {elsewhere[0]} points elsewhere, and is not followed")
    with heavy_imports():
        from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer("a", add_special_tokens=True, verbose=False)  # a broken one may load
    except Exception as error:  # the libraries raise many kinds for a broken tokenizer.json
        reason = reason_of(error)
        if not (folder / "tokenizer.json").is_file():
            reason = f"there is no tokenizer.json, and none can be built ({reason})"
        raise InputError(f"{label}: the tokenizer cannot be loaded: {reason}") from None
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{label}: no tokenizer.json there, and none can be built")
    if task.separator == "sep_token" and model.kind == "base" and len(task.columns) == 2:
        tokenizer.add_special_tokens({"additional_special_tokens": [SEP_TOKEN]})
    return tokenizer


class PlainTokenizer:
    """What `data` and `plan` ask of a tokenizer, for an embedded model without transformers. That
    takes these `tokenizer.json` as they are, so that the ids are the same ones."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.backend_tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        unknown = json_of(folder / "tokenizer_config.json")["unk_token"]
        self.unk_token_id: int | None = self.backend_tokenizer.token_to_id(unknown)

    def __call__(self, texts: str | list[str], **settings: Any) -> dict[str, Any]:
        """Token ids of a text, or of each, special tokens added."""
        if isinstance(texts, str):
            return {"input_ids": self.backend_tokenizer.encode(texts).ids}
        return {"input_ids": [one.ids for one in self.backend_tokenizer.encode_batch(texts)]}

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self.backend_tokenizer.decode(ids, skip_special_tokens=False))


def answer_tokens(tokenizer: Any, answers: list[str]) -> list[int]:
    """The token with which each answer begins after the prompt, leading space included (section
    6.3). Raises InputError if an answer does not begin with a token of its own."""
    prefix = tokenizer(CONTEXT)["input_ids"]
    ids, lines = [], []
    for answer in answers:
        tokens = tokenizer(f"{CONTEXT} {answer}")["input_ids"]
        token = tokens[len(prefix)] if tokens[: len(prefix)] == prefix < tokens else None
        text = "" if token is None else tokenizer.decode([token]).strip()
        # some tokenizers lower-case what they read
        begins = bool(text) and answer.casefold().startswith(text.casefold())
        if token is None or token == tokenizer.unk_token_id or not begins:
            lines.append(
                f"task.prompt.answers: {answer!r} is not one token's start after {CONTEXT!r} in "
                f"this tokenizer (it reads {text!r})"
            )
        else:
            ids.append(token)
    if lines:
        raise InputError(*lines)
    if len(set(ids)) < len(ids):
        raise InputError(
            f"task.prompt.answers={answers}: two answers begin with the same token ({ids})"
        )
    return ids


def source_fingerprint(model: ModelConfig) -> str:
    """What identifies the base model: its files' hash, or the hub's commit."""
    tokenizer = [Path(model.tokenizer)] if model.tokenizer else []
    if is_local(model):
        return hash_of("".join(map(_hash_folder, [folder_of(model), *tokenizer])))
    return "+".join([folder_of(model).name, *map(_hash_folder, tokenizer)])


def _hash_folder(folder: Path) -> str:
    paths = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in (".json", ".safetensors", ".model")
        and path.name != "generation_config.json"
    ]
    digests = [f"{p.name} {_hash_file(p, p.stat().st_size, p.stat().st_mtime_ns)}" for p in paths]
    return hash_of("\n".join(digests))


@lru_cache(maxsize=1024)
def _hash_file(path: Path, size_bytes: int, modified_ns: int) -> str:
    # size and time are only there so that a changed file is hashed again
    return sha256_of(path)
