"""The base model under what was trained: which it is, loaded, and whether it is the right one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparta_bench.adapters.manifest import Manifest
from sparta_bench.config.compose import compose
from sparta_bench.config.conf_folder import choices
from sparta_bench.config.relations import is_folder
from sparta_bench.config.rules import is_hub_name
from sparta_bench.config.schema import ModelConfig
from sparta_bench.data.tokenize import tokenizer_fingerprint
from sparta_bench.errors import InputError
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.dtypes import DTYPES
from sparta_bench.models.load import fit_embeddings, load_backbone
from sparta_bench.models.source import EMBEDDED, load_tokenizer, source_of
from sparta_bench.sparta import store


def base_of(about: Manifest, base: str | None, tokenizer: str | None, folder: Path) -> ModelConfig:
    """The base as it is to be loaded: where the user says, else where the description says.

    Raises
    ------
    InputError
        If neither says it, or the place is none.
    """
    model = about.model
    if base is not None:
        model = named_by(base, "--base", model)
    elif model.path is not None:
        raise InputError(
            f"{folder}: was trained on a base model in a folder, called {model.path} then; say "
            "with --base DIR where it is"
        )
    elif model.embedded and model.name not in [path.name for path in EMBEDDED.iterdir()]:
        raise InputError(f"{folder}: this version has no embedded model {model.name}")
    if tokenizer is not None:
        named = named_by(tokenizer, "--tokenizer", model)
        where = source_of(named) if named.embedded else tokenizer
        return replace(model, tokenizer=where)
    if about.model.tokenizer is not None:
        raise InputError(
            f"{folder}: was trained with a tokenizer in a folder of its own, called "
            f"{about.model.tokenizer} then; say with --tokenizer DIR where it is"
        )
    return replace(model, tokenizer=None)


def named_by(name: str, option: str, model: ModelConfig) -> ModelConfig:
    """The model under another name: a folder, a model of `conf/model`, or a repository of the hub
    (at `main`, unless it is the model's own).

    Raises
    ------
    InputError
        If it is none of them; `option` is what the user gave it with.
    """
    if is_folder(name):
        return replace(model, path=name, embedded=False)
    if name in choices("model") and name != "local":
        known = compose([f"model={name}"]).model
        where = {key: getattr(known, key) for key in ("name", "hub_id", "revision", "embedded")}
        return replace(model, path=None, **where)
    if not is_hub_name(name):
        raise InputError(f"{option} {name}: there is no such folder")
    revision = model.revision if name == model.hub_id else "main"
    return replace(model, name=name, hub_id=name, revision=revision, path=None, embedded=False)


def load_base(
    about: Manifest, model: ModelConfig, told_as: str = "--base "
) -> tuple[Classifier, Any]:
    """The base with a head of zeros, and its tokenizer. Faults of its folder are told of as the
    user gave it: with an option, or as the folder of a whole model."""
    try:
        tokenizer = load_tokenizer(model, about)
        backbone = load_backbone(model, DTYPES[about.dtypes["model"]])
        added = 1 if about.separator == "sep_token" else 0
        fit_embeddings(backbone, tokenizer, added, about.seed or 0)
    except InputError as error:  # told of in the words of a run's settings
        lines = (line.replace("model.path=", told_as) for line in error.lines)
        lines = (line.replace("model.tokenizer=", "--tokenizer ") for line in lines)
        raise InputError(*lines) from None
    shape = len(about.labels), backbone.config.hidden_size
    head = torch.zeros(shape, dtype=DTYPES[about.dtypes["trained"]])
    classifier = Classifier(backbone, head)
    classifier.requires_grad_(False).eval()
    return classifier, tokenizer


def check_base(
    about: Manifest, backbone: nn.Module, tokenizer: Any, folder: Path, shown: str
) -> None:
    """Whether what is in the folder was trained on this backbone with this tokenizer; `shown` is
    what the user called them.

    Raises
    ------
    InputError
        If it was not.
    """
    found = store.fingerprint_of(backbone)
    if about.base_fingerprint is None:
        raise InputError(f"{folder}: does not say what its base's weights were (base_fingerprint)")
    if found != about.base_fingerprint:
        raise InputError(
            f"{folder}: was trained on another base model: the fingerprint of its weights is "
            f"{about.base_fingerprint}, and {shown} has {found}"
        )
    if about.tokenizer_fingerprint != tokenizer_fingerprint(tokenizer):
        raise InputError(
            f"{folder}: was trained with another tokenizer (fingerprint "
            f"{about.tokenizer_fingerprint}, this one has {tokenizer_fingerprint(tokenizer)}; "
            "--tokenizer says where it is)"
        )
