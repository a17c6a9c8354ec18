"""Find and load the base model under what was trained, and check that it is the right one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparta_bench.adapters.manifest import Manifest
from sparta_bench.config.conf_folder import named_models
from sparta_bench.config.relations import is_folder
from sparta_bench.config.rules import is_hub_name
from sparta_bench.config.schema import ModelConfig
from sparta_bench.data.tokenize import tokenizer_fingerprint
from sparta_bench.errors import InputError
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.dtypes import DTYPES
from sparta_bench.models.load import fit_embeddings, load_backbone
from sparta_bench.models.source import EMBEDDED, folder_of, load_tokenizer
from sparta_bench.sparta import store


def base_of(about: Manifest, base: str | None, tokenizer: str | None, folder: Path) -> ModelConfig:
    """Return the base as it is to be loaded: where the user says, else where the manifest says;
    raises InputError if neither says it, or it is not there."""
    model = about.model
    if base is not None:
        model = named_by(base, "--base", model)
    elif (
        model.path is not None and (path := store.base_path_of(about.base_fingerprint)) is not None
    ):
        model = replace(model, path=path)
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
    if is_folder(name):
        return replace(model, path=name, embedded=False)
    if name in named_models():
        from sparta_bench.config.compose import compose

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
    head = torch.zeros(shape, dtype=DTYPES[about.dtypes["trained"]])
    classifier = Classifier(backbone, head)
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
