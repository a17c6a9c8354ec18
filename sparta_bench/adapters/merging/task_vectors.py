"""Open what is to be merged: trained models of one base, each as what it changed in it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from sparta_bench.adapters.base import base_of, check_base, load_base
from sparta_bench.adapters.manifest import Manifest
from sparta_bench.adapters.read_folder import TaskVector, read_changes, read_manifest
from sparta_bench.errors import InputError
from sparta_bench.methods.trained import HEAD
from sparta_bench.models.source import load_architecture


class Base:
    """The model that all were trained on, with its tokenizer; `manifest` is that of the `folder`
    that says which it is. `values` are its parameters by name; `has_added_rows` says whether the
    embeddings grew for the tokenizer."""

    def __init__(
        self, folder: Path, manifest: Manifest, base: str | None, tokenizer: str | None
    ) -> None:
        model = base_of(manifest, base, tokenizer, folder)
        classifier, self.tokenizer = load_base(manifest, model)
        vocabulary: int = load_architecture(model).get_text_config().vocab_size
        self.has_added_rows = len(self.tokenizer) > vocabulary
        self.backbone: Any = classifier.backbone
        self.dtype = manifest.dtypes["model"]
        self.shown = str(manifest.model.name) if base is None else f"--base {base}"
        self.values = {name: value.detach() for name, value in self.backbone.named_parameters()}

    def keep(self) -> None:
        """Make `values` copies, so that `restore` can give them back."""
        self.values = {name: value.clone() for name, value in self.values.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Give the backbone its values back."""
        for name, parameter in self.backbone.named_parameters():
            parameter.copy_(self.values[name])

    def open(self, name: str, folder: Path) -> TaskVector:
        """Return what was trained on this base, which must hold its own values; raises InputError
        if it was trained on another, or a file is broken."""
        check_base(read_manifest(folder), self.backbone, self.tokenizer, folder, self.shown)
        shapes = {name: tuple(value.shape) for name, value in self.values.items()}
        vector = read_changes(folder, shapes, self.backbone)
        vector.name = name
        wanted = (len(vector.manifest.labels), self.backbone.config.hidden_size)
        if vector.heads.keys() != {HEAD} or vector.heads[HEAD].shape != wanted:
            own = {name: tuple(head.shape) for name, head in vector.heads.items()}
            raise InputError(f"{folder}: its head is {own or 'none'}, where {wanted} belongs")
        return vector


def open_task_vectors(
    folders: Sequence[Path],
    base: str | None = None,
    tokenizer: str | None = None,
    names: Sequence[str] | None = None,
) -> tuple[Base, list[TaskVector]]:
    """Open adapters and whole classifiers of one base, checked, and that base.

    `base` and `tokenizer` say where these are, if not where the first says. `names` are those of
    the heads; None: each task's own, numbered where one stands twice.
    """
    manifests = [read_manifest(folder) for folder in folders]
    refuse_mixed(folders, manifests)
    described = zip(manifests, folders, strict=True)
    names = names or _names([about.task or folder.resolve().name for about, folder in described])
    for name in names:
        # a line of predictions has tabs between its parts; safetensors keeps the other for itself
        if not name.isprintable() or name == "__metadata__":
            raise InputError(f"{name!r}: no name for a head; --names gives others, one for each")
    opened = Base(folders[0], manifests[0], base, tokenizer)
    if opened.has_added_rows:
        refuse_other_rows(folders, manifests)
    return opened, [opened.open(*each) for each in zip(names, folders, strict=True)]


def refuse_mixed(folders: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    """Raise InputError if one is of another base, vocabulary or dtype than the first: before any
    weights are read."""
    first = manifests[0]
    for folder, about in zip(folders, manifests, strict=True):
        compared = {
            "base model": (first.base_model["fingerprint"], about.base_model["fingerprint"]),
            "vocabulary (tokenizer)": (first.tokenizer_fingerprint, about.tokenizer_fingerprint),
            "dtype": (first.dtypes["model"], about.dtypes["model"]),
            "set of base weights": (first.base_fingerprint, about.base_fingerprint),
        }
        for what, (one, other) in compared.items():
            if one != other:
                raise InputError(
                    f"{folder}: was trained with another {what} than {folders[0]}: {other}, not "
                    f"{one}; only changes of one and the same base can be added up"
                )


def refuse_other_rows(folders: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    """Raise InputError for different seeds on a base that was given rows for added tokens: they
    are drawn from the run's seed."""
    for folder, about in zip(folders, manifests, strict=True):
        if about.seed != manifests[0].seed:
            raise InputError(
                f"{folder}: was trained with task.separator=sep_token, whose embedding is drawn "
                f"from the seed: {about.seed}, and {manifests[0].seed} of {folders[0]}; so their "
                "bases differ"
            )


def _names(tasks: Sequence[str]) -> list[str]:
    """The tasks' own, with the first number that makes them different from all before."""
    names: list[str] = []
    for task in tasks:
        numbered = (task if number == 1 else f"{task}-{number}" for number in count(1))
        names.append(next(name for name in numbered if name not in names))
    return names
