"""Load what a run or `merge` left in a folder as a classifier, on the base that it was trained on,
checked and ready."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparta_bench.adapters import read_folder
from sparta_bench.adapters.manifest import OF_TEXTS, Manifest
from sparta_bench.config.compose import compose
from sparta_bench.config.conf_folder import named_models
from sparta_bench.config.rules import LABELS, is_hub_name, show
from sparta_bench.config.schema import ModelConfig
from sparta_bench.data.tokenize import tokenizer_fingerprint
from sparta_bench.errors import InputError
from sparta_bench.files import why_no_folder
from sparta_bench.methods.head import head as train_head
from sparta_bench.methods.lora import lora as train_lora
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.dtypes import DTYPES, Precision
from sparta_bench.models.load import fit_embeddings, load_backbone
from sparta_bench.models.source import EMBEDDED, folder_of, is_local, load_tokenizer
from sparta_bench.models.stored_tensors import open_checkpoint
from sparta_bench.sparta import SpartaAdapter, peft_sparta, store


@dataclass
class Loaded:
    """A classifier from disk, on the CPU, frozen, in evaluation mode, in the dtypes of training,
    with the attached adapter where it is SpaRTA's; `merge_and_unload` makes the backbone plain."""

    classifier: Classifier
    tokenizer: Any
    about: Manifest
    sparta: SpartaAdapter | None
    merge_and_unload: Callable[[], None]


def load(
    folder: Path, base: str | None, tokenizer: str | None, allow_pickle: bool = False
) -> Loaded:
    """Load an adapter of a run, a whole classifier, or an adapter of peft-sparta.

    `base` and `tokenizer` are a folder or a name on the hub: where these are, if not where the
    adapter says. `allow_pickle` reads the `.pt` files of the authors' trainer (tensors only).
    Raises InputError if there is nothing to load, a file is broken, or the base is another one.
    """
    kind = read_folder.kind_of(folder)
    with read_folder.errors_of_input():
        if kind == read_folder.ADAPTER:
            return _load_adapter(folder, base, tokenizer)
        if kind == read_folder.WHOLE:
            refuse_sources(folder, base, tokenizer)
            return _load_whole(folder)
        if kind == read_folder.AUTHORS:
            return _load_authors(folder, base, tokenizer, allow_pickle)
    raise InputError(read_folder.why_unreadable(folder))


def refuse_sources(folder: Path, base: str | None, tokenizer: str | None) -> None:
    """Raise InputError where a whole model is given a base or a tokenizer."""
    for option, name in (("--base", base), ("--tokenizer", tokenizer)):
        if name is not None:
            raise InputError(f"{option} {name}: {folder} is whole and needs none")


def _load_adapter(folder: Path, base: str | None, tokenizer: str | None) -> Loaded:
    about = read_folder.read_manifest(folder)
    classifier, loaded_tokenizer = load_base(about, base_of(about, base, tokenizer, folder))
    shown = str(about.model.name) if base is None else f"--base {base}"
    check_base(about, classifier.backbone, loaded_tokenizer, folder, shown)
    if about.method["name"] == "sparta":
        return _with_sparta(classifier, loaded_tokenizer, about, folder, allow_pickle=False)
    precision = Precision(DTYPES[about.dtypes["model"]], DTYPES[about.dtypes["trained"]])
    if about.method["name"] == "lora":
        settings = read_folder.lora_settings(about, folder)
        trained = train_lora(classifier, settings, precision, seed=0)
    else:
        trained = train_head(classifier)
    tensors, file = store.read_tensors(folder, store.read_config(folder)), folder / store.TENSORS
    own = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = {name: tuple(value.shape) for name, value in trained.values.items()}
    for name in sorted(own.keys() | wanted.keys()):
        if own.get(name) != wanted.get(name):
            raise InputError(
                f"{file}: {name} has the shape {own.get(name)}, where {wanted.get(name)} belongs"
            )
        read_folder.refuse_not_finite(file, name, tensors[name])
    trained.restore(tensors)
    classifier.requires_grad_(False).eval()
    return Loaded(classifier, loaded_tokenizer, about, None, trained.merge_and_unload)


def _with_sparta(
    classifier: Classifier, tokenizer: Any, about: Manifest, folder: Path, allow_pickle: bool
) -> Loaded:
    adapter = SpartaAdapter.load(
        classifier, folder, merge_after_step=False, allow_pickle=allow_pickle
    )
    classifier.requires_grad_(False).eval()
    return Loaded(classifier, tokenizer, about, adapter, adapter.bake)


def _load_whole(folder: Path) -> Loaded:
    about = read_folder.read_manifest(folder)
    model = replace(about.model, path=str(folder), embedded=False, tokenizer=None)
    classifier, tokenizer = load_base(about, model, option="")
    head = read_folder.whole_head(open_checkpoint(str(folder)))
    if head.shape != classifier.head_weight.shape:
        raise InputError(f"{folder}: {read_folder.SCORE} has the shape {tuple(head.shape)}")
    classifier.head.weight = nn.Parameter(head, requires_grad=False)
    return Loaded(classifier, tokenizer, about, None, lambda: None)


def _load_authors(
    folder: Path, base: str | None, tokenizer: str | None, allow_pickle: bool
) -> Loaded:
    """Their `config.json` says less; they know single texts without a prompt alone."""
    config = peft_sparta.read_config(folder)
    path, labels = folder / peft_sparta.CONFIG, config.get("id2label")
    if not isinstance(labels, dict) or sorted(labels) != sorted(map(str, range(len(labels)))):
        raise InputError(f"{path}: no id2label in it")
    names = [labels[str(number)] for number in range(len(labels))]
    if not LABELS.check(names):
        raise InputError(f"{path}: id2label={show(labels)}: {LABELS.text}")
    name = base or config[peft_sparta.BASE]
    if base is None and not is_hub_name(name):  # an adapter may come from anybody
        raise InputError(
            f"{folder}: was trained on the base model in {name}, and no folder that an adapter "
            "names is opened; say with --base DIR where it is"
        )
    dtype = config.get("dtype") or config.get("torch_dtype")
    dtype = dtype if dtype in list(DTYPES) else "bfloat16"
    model = ModelConfig(
        name=Path(name).resolve().name, hub_id=None, revision="main", path=None, tokenizer=None,
        kind="base", dtype=dtype, embedded=False, shape=None,
    )  # fmt: skip
    model = named_by(name, "--base", model)
    if tokenizer is None and (folder / "tokenizer_config.json").is_file():
        tokenizer = str(folder)
    about = Manifest(
        **OF_TEXTS,
        base_model={"name": Path(name).name if is_local(model) else name, "fingerprint": None},
        labels=names,
        model=replace(model, tokenizer=tokenizer),
        dtypes={"model": dtype, "trained": "float32"},  # their head is float32 wherever it is used
    )
    classifier, loaded_tokenizer = load_base(about, about.model)
    return _with_sparta(classifier, loaded_tokenizer, about, folder, allow_pickle)


# ------------------------------------------------------------------------------------- the base
def base_of(about: Manifest, base: str | None, tokenizer: str | None, folder: Path) -> ModelConfig:
    """Return the base as it is to be loaded: where the user says, else where the manifest says;
    raises InputError if neither says it, or it is not there."""
    model = about.model
    known_path = None if model.path is None else store.base_path_of(about.base_fingerprint)
    if base is not None:
        model = named_by(base, "--base", model)
    elif known_path is not None:
        model = replace(model, path=known_path)
    elif model.path is not None:
        raise InputError(
            f"{folder}: was trained on a base model in a folder, called {model.path} then; say "
            "with --base DIR where it is"
        )
    elif model.embedded and model.name not in [path.name for path in EMBEDDED.iterdir()]:
        raise InputError(f"{folder}: this version has no embedded model {model.name}")
    if tokenizer is not None:
        named = named_by(tokenizer, "--tokenizer", model)
        return replace(model, tokenizer=str(folder_of(named)) if named.embedded else tokenizer)
    if about.model.tokenizer is not None:
        raise InputError(
            f"{folder}: was trained with a tokenizer in a folder of its own, called "
            f"{about.model.tokenizer} then; say with --tokenizer DIR where it is"
        )
    return model


def named_by(name: str, option: str, model: ModelConfig) -> ModelConfig:
    """Return the model under another name, which the user gave with `option`: a folder, a model of
    `conf/model`, or a repository of the hub (at `main`, unless it is the model's own)."""
    if why_no_folder(name) is None:
        return replace(model, path=name, embedded=False)
    if name in named_models():
        known = compose([f"model={name}"]).model
        source = {key: getattr(known, key) for key in ("name", "hub_id", "revision", "embedded")}
        return replace(model, path=None, **source)
    if not is_hub_name(name):
        raise InputError(f"{option} {name}: there is no such folder")
    revision = model.revision if name == model.hub_id else "main"
    return replace(model, name=name, hub_id=name, revision=revision, path=None, embedded=False)


def load_base(
    about: Manifest, model: ModelConfig, option: str = "--base "
) -> tuple[Classifier, Any]:
    """Return the base with a head of zeros, and its tokenizer. Messages name its folder with the
    `option` that the user gave; empty for the folder of a whole model."""
    try:
        tokenizer = load_tokenizer(model, about)
        backbone = load_backbone(model, DTYPES[about.dtypes["model"]])
        added = 1 if about.separator == "sep_token" else 0
        fit_embeddings(backbone, tokenizer, added, about.seed or 0)
    except InputError as error:  # in the words of a run's settings
        lines = (line.replace("model.path=", option) for line in error.lines)
        lines = (line.replace("model.tokenizer=", "--tokenizer ") for line in lines)
        raise InputError(*lines) from None
    shape = len(about.labels), backbone.config.hidden_size
    classifier = Classifier(backbone, torch.zeros(shape, dtype=DTYPES[about.dtypes["trained"]]))
    classifier.requires_grad_(False).eval()
    return classifier, tokenizer


def check_base(
    about: Manifest, backbone: nn.Module, tokenizer: Any, folder: Path, shown: str
) -> None:
    """Raise InputError unless what is in the folder was trained on this backbone with this
    tokenizer; `shown` is what the user called the backbone."""
    if about.base_fingerprint is None:
        raise InputError(f"{folder}: does not say what its base's weights were (base_fingerprint)")
    refuse_other_base(about.base_fingerprint, store.fingerprint_of(backbone), str(folder), shown)
    own = tokenizer_fingerprint(tokenizer)
    if about.tokenizer_fingerprint not in (own, None):  # a script's adapter says none
        raise InputError(
            f"{folder}: was trained with another tokenizer (fingerprint "
            f"{about.tokenizer_fingerprint}, this one has {own}; --tokenizer says where it is)"
        )


def refuse_other_base(expected: Any, own: str, folder: str, shown: str) -> None:
    """Raise InputError where the base that is called `shown` has another fingerprint."""
    if own != expected:
        raise InputError(
            f"{folder}: was trained on another base model: the fingerprint of its weights is "
            f"{expected}, and {shown} has {own}"
        )
