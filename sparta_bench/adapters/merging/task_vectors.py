"""What is to be merged: trained models of one base, each as what it changed in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparta_bench.adapters.base import base_of, check_base, load_base
from sparta_bench.adapters.load_adapter import check_shapes, lora_settings, why_nothing
from sparta_bench.adapters.manifest import Manifest
from sparta_bench.adapters.merging.merge_methods import Changes, SparseDelta
from sparta_bench.adapters.whole_model import SCORE, WHOLE, read_whole
from sparta_bench.errors import InputError, reason_of
from sparta_bench.methods.lora import lora
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.dtypes import DTYPES, Precision
from sparta_bench.models.source import load_architecture
from sparta_bench.models.stored_tensors import Checkpoint, open_checkpoint
from sparta_bench.sparta import SpartaAdapter, peft_sparta, store

HEAD = "head.weight"


class Base:
    """The model that all were trained on, with its tokenizer. `values` are its parameters, by
    name; `dtype` is theirs; `has_added_rows` says whether the embeddings grew for the tokenizer;
    `shown` is what the user called it."""

    def __init__(
        self, backbone: Any, tokenizer: Any, dtype: str, has_added_rows: bool, shown: str
    ) -> None:
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.dtype = dtype
        self.has_added_rows = has_added_rows
        self.shown = shown
        self.values = {name: value.detach() for name, value in backbone.named_parameters()}

    def keep(self) -> None:
        """Make `values` copies, so that `restore` can give them back."""
        self.values = {name: value.clone() for name, value in self.values.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Give the backbone its values back."""
        for name, parameter in self.backbone.named_parameters():
            parameter.copy_(self.values[name])


@dataclass
class TaskVector:
    """What a trained model changed in its base. `name` is that of its head (classes x hidden);
    `factors` are LoRA's matrices by peft's names, else null; `folder` is what the user called
    it."""

    name: str
    folder: Path
    about: Manifest
    head: Tensor
    changes: Changes
    factors: dict[str, Tensor] | None = None
    draw: store.Draw | None = None

    def entries(self, name: str, base: Tensor) -> SparseDelta:
        """What it changed in a tensor of the base, which holds these values."""
        if name not in self.changes:
            return SparseDelta(torch.empty(0, dtype=torch.int64), torch.empty(0))
        return self.changes[name](base)


def open_task_vectors(
    folders: Sequence[Path],
    base: str | None = None,
    tokenizer: str | None = None,
    names: Sequence[str] | None = None,
) -> tuple[Base, list[TaskVector]]:
    """Adapters and whole classifiers of one base, checked, and that base.

    Parameters
    ----------
    base, tokenizer
        Where the base model and its tokenizer are, if not where the first says.
    names
        Of the heads; null: each task's own, numbered where one stands twice.

    Raises
    ------
    InputError
        If one cannot be read, is of another base, dtype or vocabulary than the first, or a name
        cannot be that of a head.
    """
    abouts = [describe(folder) for folder in folders]
    refuse_unlike(folders, abouts)
    tasks = [
        about.task or folder.resolve().name for about, folder in zip(abouts, folders, strict=True)
    ]
    named = names or _names(tasks)
    _refuse_names(named)
    found = open_base(folders[0], abouts[0], base, tokenizer)
    if found.has_added_rows:
        refuse_other_rows(folders, abouts)
    sources = [
        open_task_vector(name, folder, about, found)
        for name, folder, about in zip(named, folders, abouts, strict=True)
    ]
    return found, sources


def open_base(
    folder: Path, about: Manifest, base: str | None = None, tokenizer: str | None = None
) -> Base:
    """The model on which what is in the folder was trained. Raises InputError if it cannot be had;
    whether it is that one is for `open_task_vector` to say."""
    model = base_of(about, base, tokenizer, folder)
    classifier, words = load_base(about, model)
    added = len(words) > load_architecture(model).get_text_config().vocab_size
    shown = about.model.name if base is None else f"--base {base}"
    return Base(classifier.backbone, words, about.dtypes["model"], added, str(shown))


def open_task_vector(name: str, folder: Path, about: Manifest, base: Base) -> TaskVector:
    """What was trained on `base`, which must hold its own values. Raises InputError if it was
    trained on another, or a file is broken."""
    try:
        return _open(name, folder, about, base)
    except ValueError as error:
        raise InputError(reason_of(error)) from None


def describe(folder: Path) -> Manifest:
    """What the folder says of what is in it. Raises InputError if that cannot be merged."""
    if (folder / WHOLE).is_file():
        return read_whole(folder)
    if peft_sparta.is_in(folder):
        raise InputError(
            f"{folder}: an adapter of peft-sparta, which does not say what its base was; only this "
            "project's are merged"
        )
    if not (folder / store.CONFIG).is_file():
        raise InputError(f"{folder}: {why_nothing(folder)}")
    try:
        return Manifest.from_dict(store.read_config(folder), folder / store.CONFIG)
    except ValueError as error:
        raise InputError(reason_of(error)) from None


def refuse_unlike(folders: Sequence[Path], abouts: Sequence[Manifest]) -> None:
    """Raise InputError if one is of another base, vocabulary or dtype than the first: told before
    any weights are read."""
    first = abouts[0]
    for folder, about in zip(folders, abouts, strict=True):
        unlike = {
            "base model": (first.base_model["fingerprint"], about.base_model["fingerprint"]),
            "vocabulary (tokenizer)": (first.tokenizer_fingerprint, about.tokenizer_fingerprint),
            "dtype": (first.dtypes["model"], about.dtypes["model"]),
        }
        for what, (one, other) in unlike.items():
            if one != other:
                raise InputError(
                    f"{folder}: was trained with another {what} than {folders[0]}: {other}, not "
                    f"{one}; only changes of one and the same base can be added up"
                )


def refuse_other_rows(folders: Sequence[Path], abouts: Sequence[Manifest]) -> None:
    """Raise InputError for unlike seeds on a base that was given rows for added tokens: they are
    drawn from the run's seed."""
    for folder, about in zip(folders, abouts, strict=True):
        if about.seed != abouts[0].seed:
            raise InputError(
                f"{folder}: was trained with task.separator=sep_token, whose embedding is drawn "
                f"from the seed: {about.seed}, and {abouts[0].seed} of {folders[0]}; so their "
                "bases differ"
            )


def _names(tasks: Sequence[str]) -> list[str]:
    """The tasks' own, with the first number that makes them different from all before."""
    names: list[str] = []
    for task in tasks:
        numbered = (task if number == 1 else f"{task}-{number}" for number in count(1))
        names.append(next(name for name in numbered if name not in names))
    return names


def _refuse_names(names: Sequence[str]) -> None:
    for name in names:
        # a line of predictions has tabs between its parts; safetensors keeps the other for itself
        if not name.isprintable() or name == "__metadata__":
            raise InputError(f"{name!r}: no name for a head; --names gives others, one for each")


def _open(name: str, folder: Path, about: Manifest, base: Base) -> TaskVector:
    check_base(about, base.backbone, base.tokenizer, folder, base.shown)
    if (folder / WHOLE).is_file():
        return _whole(name, folder, about, base)
    dtype = DTYPES[about.dtypes["trained"]]
    empty = torch.zeros(len(about.labels), base.backbone.config.hidden_size, dtype=dtype)
    classifier = Classifier(base.backbone, empty)
    if about.method["name"] == "sparta":
        return _sparta(name, folder, about, classifier)
    tensors = store.read_tensors(folder, store.read_config(folder))
    if about.method["name"] == "lora":
        return _lora(name, folder, about, classifier, tensors)
    check_shapes(tensors, {HEAD: empty}, folder)
    return TaskVector(name, folder, about, tensors[HEAD], {})


def _sparta(name: str, folder: Path, about: Manifest, classifier: Classifier) -> TaskVector:
    with SpartaAdapter.load(classifier, folder, merge_after_step=False) as adapter:
        entries = {
            tensor: SparseDelta(adapter.indices[tensor].long(), deltas.detach().clone())
            for tensor, deltas in adapter.deltas.items()
        }
        head = classifier.head_weight.detach().clone()
    changes = {tensor: _constant(found) for tensor, found in entries.items()}
    return TaskVector(name, folder, about, head, changes, draw=adapter.draw)


def _constant(entries: SparseDelta) -> Any:
    return lambda base: entries


def _lora(
    name: str, folder: Path, about: Manifest, classifier: Classifier, tensors: dict[str, Tensor]
) -> TaskVector:
    settings = lora_settings(about, folder)
    precision = Precision(DTYPES[about.dtypes["model"]], DTYPES[about.dtypes["trained"]])
    trained = lora(classifier, settings, precision, seed=0)
    try:
        check_shapes(tensors, trained.values, folder)
    finally:
        trained.unload()
    head = tensors.pop(HEAD)
    scale = settings.alpha / settings.r
    changes: dict[str, Any] = {}
    for key, b in tensors.items():
        module, found, _ = key.partition(".lora_B.")
        if found:
            a = tensors[key.replace(".lora_B.", ".lora_A.")]
            changes[f"{module}.weight"] = _product(a, b, scale)
    return TaskVector(name, folder, about, head, changes, factors=tensors)


def _product(a: Tensor, b: Tensor, scale: float) -> Any:
    return lambda base: SparseDelta(None, scale * (b.float() @ a.float()))


def _whole(name: str, folder: Path, about: Manifest, base: Base) -> TaskVector:
    checkpoint = open_checkpoint(str(folder))
    shapes = {tensor: tuple(value.shape) for tensor, value in base.values.items()}
    shapes[SCORE] = (len(about.labels), base.backbone.config.hidden_size)
    for tensor, shape in shapes.items():
        stored = checkpoint.tensors.get(tensor)
        if stored is None or stored.shape != shape:
            here = "missing" if stored is None else f"of shape {stored.shape}"
            raise InputError(f"{folder}: {tensor} is {here}, where {shape} belongs")
    changes = {tensor: _difference(checkpoint, tensor) for tensor in base.values}
    head = _finite_rows(checkpoint, SCORE, len(about.labels))
    return TaskVector(name, folder, about, head, changes)


def _difference(checkpoint: Checkpoint, name: str) -> Any:
    def entries(base: Tensor) -> SparseDelta:
        tuned = _finite_rows(checkpoint, name, len(base))
        # of float32 in float64, so that base + difference is the tuned value again
        wide = torch.float64 if base.dtype == torch.float32 else torch.float32
        return SparseDelta(None, tuned.to(wide).sub_(base))

    return entries


def _finite_rows(checkpoint: Checkpoint, name: str, count: int) -> Tensor:
    tensor = checkpoint.rows(name, 0, count)
    if not store.is_finite(tensor):
        raise InputError(f"{checkpoint.label}: {name} does not hold finite numbers")
    return tensor
