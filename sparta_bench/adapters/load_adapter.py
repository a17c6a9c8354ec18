"""From what a run or `merge` left in a folder to a classifier, checked and ready.

Three kinds of folder: an adapter of a run (`adapter_config.json`), a whole model (transformers'
files and `classifier_config.json`), and an adapter in the layout of the authors' package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from sparta_bench.adapters.base import base_of, check_base, load_base, named_by
from sparta_bench.adapters.manifest import Manifest
from sparta_bench.adapters.whole_model import SCORE, WHOLE, read_whole
from sparta_bench.config.check import method_of
from sparta_bench.config.rules import RULES, is_hub_name, show
from sparta_bench.config.schema import LoraConfig, ModelConfig
from sparta_bench.errors import InputError, reason_of
from sparta_bench.files import why_no_folder
from sparta_bench.methods.head import head as train_head
from sparta_bench.methods.lora import lora as train_lora
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.dtypes import DTYPES, Precision
from sparta_bench.models.source import is_local
from sparta_bench.models.weight_files import file_with
from sparta_bench.sparta import SpartaAdapter, peft_sparta, store

MULTI_HEAD = "multi_head_config.json"  # see `multi_head`


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
    """Whatever lies in `folder`.

    Parameters
    ----------
    base, tokenizer
        A folder, or a name on the hub: where the base model and its tokenizer are, if not where
        the adapter says.
    allow_pickle
        Whether to read the `.pt` files of the authors' trainer (tensors only).

    Raises
    ------
    InputError
        If there is nothing to load, a file is broken, or the base is not the one trained on.
    """
    try:
        if (folder / store.CONFIG).is_file():
            return _load_adapter(folder, base, tokenizer)
        if (folder / WHOLE).is_file():
            for option, name in (("--base", base), ("--tokenizer", tokenizer)):
                if name is not None:
                    raise InputError(f"{option} {name}: {folder} is whole and needs none")
            return _load_whole(folder)
        if peft_sparta.is_in(folder):
            return _load_authors(folder, base, tokenizer, allow_pickle)
    except ValueError as error:
        raise InputError(reason_of(error)) from None
    raise InputError(f"{folder}: {why_nothing(folder)}")


def why_nothing(folder: Path) -> str:
    """Why a folder holds nothing that `load` could read."""
    if problem := why_no_folder(folder):
        return problem
    if (folder / MULTI_HEAD).is_file():
        return "a multi-head model, merged already; give what it was merged from"
    for inner in (folder / "adapter", folder / "model"):
        if (inner / store.CONFIG).is_file() or (inner / WHOLE).is_file():
            return f"a run's folder; what it trained is in {inner}"
    return f"neither an adapter ({store.CONFIG}) nor a whole classifier ({WHOLE}) is there"


# ------------------------------------------------------------------------ adapters of runs
def _load_adapter(folder: Path, base: str | None, tokenizer: str | None) -> Loaded:
    config = store.read_config(folder)
    about = Manifest.from_dict(config, folder / store.CONFIG)
    classifier, loaded_tokenizer = load_base(about, base_of(about, base, tokenizer, folder))
    check_base(about, classifier.backbone, loaded_tokenizer, folder, _shown(about, base))
    if about.method["name"] == "sparta":
        return _with_sparta(classifier, loaded_tokenizer, about, folder, allow_pickle=False)
    precision = Precision(DTYPES[about.dtypes["model"]], DTYPES[about.dtypes["trained"]])
    if about.method["name"] == "lora":
        trained = train_lora(classifier, lora_settings(about, folder), precision, seed=0)
    else:
        trained = train_head(classifier)
    tensors = store.read_tensors(folder, config)
    check_shapes(tensors, trained.values, folder)
    trained.restore(tensors)
    classifier.requires_grad_(False).eval()
    return Loaded(classifier, loaded_tokenizer, about, None, trained.merge_and_unload)


def _shown(about: Manifest, base: str | None) -> str:
    return f"--base {base}" if base is not None else about.model.name


def check_shapes(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], folder: Path) -> None:
    """Whether an adapter's file holds these tensors and no others, of finite numbers.

    Raises
    ------
    InputError
        At the first name that is wrong.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    fitting = {name: tuple(value.shape) for name, value in wanted.items()}
    for name in sorted(shapes.keys() | fitting.keys()):
        if shapes.get(name) != fitting.get(name):
            raise InputError(
                f"{folder / store.TENSORS}: {name} has the shape {shapes.get(name)}, where "
                f"{fitting.get(name)} belongs"
            )
        if not store.is_finite(found[name]):
            raise InputError(f"{folder / store.TENSORS}: {name} does not hold finite numbers")


def lora_settings(about: Manifest, folder: Path) -> LoraConfig:
    """Those of a LoRA adapter. Raises InputError if they are none."""
    try:
        settings = method_of(about.method)
    except InputError as error:
        raise InputError(*(f"{folder / store.CONFIG}: {line}" for line in error.lines)) from None
    assert isinstance(settings, LoraConfig)
    return settings


def _with_sparta(
    classifier: Classifier, tokenizer: Any, about: Manifest, folder: Path, allow_pickle: bool
) -> Loaded:
    adapter = SpartaAdapter.load(
        classifier, folder, merge_after_step=False, allow_pickle=allow_pickle
    )
    classifier.requires_grad_(False).eval()
    return Loaded(classifier, tokenizer, about, adapter, adapter.bake)


# ---------------------------------------------------------------------------- whole models
def _load_whole(folder: Path) -> Loaded:
    about = read_whole(folder)
    model = replace(about.model, path=str(folder), embedded=False, tokenizer=None)
    classifier, tokenizer = load_base(about, model, told_as="")
    with safe_open(file_with(SCORE, folder), framework="pt") as file:
        if SCORE not in file.keys():
            raise InputError(f"{folder}: the checkpoint has no {SCORE}")
        head = file.get_tensor(SCORE)
    if head.shape != classifier.head_weight.shape:
        raise InputError(f"{folder}: {SCORE} has the shape {tuple(head.shape)}")
    classifier.head.weight = nn.Parameter(head, requires_grad=False)
    return Loaded(classifier, tokenizer, about, None, lambda: None)


# ------------------------------------------------------------------ the authors' adapters
def _load_authors(
    folder: Path, base: str | None, tokenizer: str | None, allow_pickle: bool
) -> Loaded:
    about = _authors_manifest(folder, base)
    model = about.model
    if tokenizer is not None:
        model = replace(model, tokenizer=tokenizer)
    elif (folder / "tokenizer_config.json").is_file():
        model = replace(model, tokenizer=str(folder))
    about = replace(about, model=model)
    classifier, loaded_tokenizer = load_base(about, model)
    return _with_sparta(classifier, loaded_tokenizer, about, folder, allow_pickle)


def _authors_manifest(folder: Path, base: str | None) -> Manifest:
    """As much as their `config.json` says; they know single texts without a prompt alone."""
    config = peft_sparta.read_config(folder)
    labels = _authors_labels(config, folder)
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
        labels=labels,
        columns=["text"],
        prompt=None,
        separator="newline",
        undo_spacing=False,
        model=model,
        # their head is float32 wherever it is used
        dtypes={"model": dtype, "trained": "float32"},
        tokenizer_fingerprint=None,
    )


def _authors_labels(config: Mapping[str, Any], folder: Path) -> list[str]:
    path, labels = folder / peft_sparta.CONFIG, config.get("id2label")
    if not isinstance(labels, dict) or sorted(labels) != sorted(map(str, range(len(labels)))):
        raise InputError(f"{path}: no id2label in it")
    named = [labels[str(number)] for number in range(len(labels))]
    rule = RULES["task.labels"]
    if not rule.check(named):
        raise InputError(f"{path}: id2label={show(labels)}: {rule.text}")
    return named
