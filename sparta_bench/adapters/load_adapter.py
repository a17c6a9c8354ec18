"""Load what a run or `merge` left in a folder as a classifier, checked and ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparta_bench.adapters import read_folder
from sparta_bench.adapters.base import base_of, check_base, load_base, named_by
from sparta_bench.adapters.manifest import Manifest
from sparta_bench.config.rules import LABELS, is_hub_name, show
from sparta_bench.config.schema import ModelConfig
from sparta_bench.errors import InputError
from sparta_bench.methods.head import head as train_head
from sparta_bench.methods.lora import lora as train_lora
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.dtypes import DTYPES, Precision
from sparta_bench.models.source import is_local
from sparta_bench.models.stored_tensors import open_checkpoint
from sparta_bench.sparta import SpartaAdapter, peft_sparta, store


@dataclass
class Loaded:
    """A classifier from disk, on the CPU, frozen, in evaluation mode, in the dtypes of training.

    `sparta` is the attached adapter, where it is one; `merge_and_unload` makes the backbone plain.
    """

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
        trained = train_lora(
            classifier, read_folder.lora_settings(about, folder), precision, seed=0
        )
    else:
        trained = train_head(classifier)
    tensors = store.read_tensors(folder, store.read_config(folder))
    _check(tensors, trained.values, folder / store.TENSORS)
    trained.restore(tensors)
    classifier.requires_grad_(False).eval()
    return Loaded(classifier, loaded_tokenizer, about, None, trained.merge_and_unload)


def _check(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor], file: Path) -> None:
    """Raise InputError unless a file holds tensors of these shapes and no others, all finite."""
    own = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = {name: tuple(value.shape) for name, value in values.items()}
    for name in sorted(own.keys() | wanted.keys()):
        if own.get(name) != wanted.get(name):
            raise InputError(
                f"{file}: {name} has the shape {own.get(name)}, where {wanted.get(name)} belongs"
            )
        read_folder.refuse_not_finite(file, name, tensors[name])


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
    about = _authors_manifest(folder, base)
    if tokenizer is None and (folder / "tokenizer_config.json").is_file():
        tokenizer = str(folder)
    model = replace(about.model, tokenizer=tokenizer)
    about = replace(about, model=model)
    classifier, loaded_tokenizer = load_base(about, model)
    return _with_sparta(classifier, loaded_tokenizer, about, folder, allow_pickle)


def _authors_manifest(folder: Path, base: str | None) -> Manifest:
    """Return as much as their `config.json` says; they know single texts without a prompt alone."""
    config = peft_sparta.read_config(folder)
    path, labels = folder / peft_sparta.CONFIG, config.get("id2label")
    if not isinstance(labels, dict) or sorted(labels) != sorted(map(str, range(len(labels)))):
        raise InputError(f"{path}: no id2label in it")
    names, rule = [labels[str(number)] for number in range(len(labels))], LABELS
    if not rule.check(names):
        raise InputError(f"{path}: id2label={show(labels)}: {rule.text}")
    name = base or config[peft_sparta.BASE]
    if base is None and not is_hub_name(name):  # an adapter may come from anybody
        raise InputError(
            f"{folder}: was trained on the base model in {name}, and no folder that an adapter "
            "names is opened; say with --base DIR where it is"
        )
    dtype = config.get("dtype") or config.get("torch_dtype")
    dtype = dtype if dtype in list(DTYPES) else "bfloat16"
    any_model = ModelConfig(
        name=Path(name).resolve().name, hub_id=None, revision="main", path=None, tokenizer=None,
        kind="base", dtype=dtype, embedded=False, shape=None,
    )  # fmt: skip
    model = named_by(name, "--base", any_model)
    return Manifest(
        method={"name": "sparta"},
        density=None,
        seed=None,
        base_model={"name": Path(name).name if is_local(model) else name, "fingerprint": None},
        task=None,
        labels=names,
        columns=["text"],
        prompt=None,
        separator="newline",
        undo_spacing=False,
        model=model,
        dtypes={"model": dtype, "trained": "float32"},  # their head is float32 wherever it is used
        tokenizer_fingerprint=None,
    )
