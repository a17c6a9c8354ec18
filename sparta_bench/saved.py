"""From what a run or `merge` left in a folder to a classifier, checked and ready.

Three kinds of folder: an adapter of a run (`adapter_config.json`), a whole model (transformers'
files and `classifier_config.json`), and an adapter in the layout of the authors' package.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from sparta_bench.checks.configuration import method_of
from sparta_bench.checks.relations import is_folder
from sparta_bench.checks.rules import (
    NUMBER_OR_NULL,
    RULES,
    TEXT_OR_NULL,
    Rule,
    faults_by,
    is_hub_name,
    or_null,
    show,
)
from sparta_bench.config import LoraConfig, ModelConfig, Prompt
from sparta_bench.data.encode import tokenizer_fingerprint
from sparta_bench.errors import InputError, reason_of
from sparta_bench.files import json_of, write_json
from sparta_bench.methods.prepare import head as train_head
from sparta_bench.methods.prepare import lora as train_lora
from sparta_bench.models.answers import file_of
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.load import fit_embeddings, load_backbone
from sparta_bench.models.precision import DTYPES, Precision
from sparta_bench.models.source import EMBEDDED, is_local, load_tokenizer
from sparta_bench.sparta import SpartaAdapter, authors_layout, store

WHOLE = "classifier_config.json"  # peft would take a folder with adapter_config.json for its own
MULTI_HEAD = "multi_head_config.json"  # see `multi_head`
SCORE = "score.weight"  # transformers' name of the head


@dataclass(frozen=True)
class Description:
    """What one must know to use what was trained; the part of `adapter_config.json` and
    `classifier_config.json` that all methods share.

    `dtypes` are those of model and trained values in training. A `model.path` is the folder's own
    name, since other machines have other paths; a `model.revision` is the hub's commit.
    `base_fingerprint` is that of the base's values (`store.fingerprint_of`); null in the layout of
    the authors and in whole models of an earlier version.
    """

    method: dict[str, Any]
    density: float | None
    seed: int | None
    base_model: dict[str, Any]
    task: str | None
    labels: list[str]
    columns: list[str]
    prompt: Prompt | None
    separator: str
    undo_spacing: bool
    model: ModelConfig
    dtypes: dict[str, str]
    tokenizer_fingerprint: str | None
    base_fingerprint: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For the file."""
        values = asdict(self)
        del values["model"]["shape"], values["model"]["dtype"]  # not needed, or in `dtypes`
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: Path) -> Description:
        """Read from `source`; other keys are left alone.

        Raises
        ------
        InputError
            With a line for each key that is missing, or has another value than it may.
        """
        if "labels" not in values:
            raise InputError(
                f"{source}: was saved by a script, without labels, prompt and base model; "
                "SpartaAdapter.load(model, folder) puts it on its model"
            )
        values = {"base_fingerprint": None, **values}  # not there in older ones
        lines = faults_by(_RULES, values)
        if values.get("prompt") is not None:
            lines += faults_by(_PROMPT_RULES, values)
        if lines:
            raise InputError(*(f"{source}: {line}" for line in lines))
        found = {name: values[name] for name in cls.__dataclass_fields__}
        about_model = {name: values["model"][name] for name in _MODEL}
        found["model"] = ModelConfig(**about_model, shape=None, dtype=found["dtypes"]["model"])
        if found["prompt"] is not None:
            found["prompt"] = Prompt(**{name: found["prompt"][name] for name in _PROMPT})
        read = cls(**found)
        if problem := read._problem():
            raise InputError(f"{source}: {problem}")
        return read

    def _problem(self) -> str | None:
        """What more than one key has to do with."""
        model, prompt = self.model, self.prompt
        if (model.kind == "instruct") != (prompt is not None):
            return "prompt: belongs to an instruction model (model.kind=instruct), and to no other"
        if prompt is not None and len(prompt.fields) != len(self.columns):
            columns = show(self.columns)
            return f"prompt.fields={show(prompt.fields)}: must name each of columns={columns}"
        if not (model.hub_id or model.path or model.embedded):
            return "model.hub_id=null: the base model has no name, and was in no folder"
        try:
            json.dumps(self.as_dict(), allow_nan=False)
        except ValueError:
            return "holds a number that is infinite, or none"
        return None


_MODEL = ("name", "hub_id", "revision", "path", "tokenizer", "kind", "embedded")
_PROMPT = ("instruction", "answers", "answers_text", "fields")
_RULES = {  # what a configuration has as well is checked as there
    "method.name": RULES["method.name"],
    "density": NUMBER_OR_NULL,
    "seed": or_null(RULES["seed"]),
    "base_model.name": TEXT_OR_NULL,
    "base_model.fingerprint": TEXT_OR_NULL,
    "base_fingerprint": TEXT_OR_NULL,
    "task": TEXT_OR_NULL,
    **{key: RULES[f"task.{key}"] for key in ("labels", "columns", "separator", "undo_spacing")},
    "prompt": Rule(lambda v: v is None or isinstance(v, dict), "must be null or have keys"),
    **{f"model.{key}": RULES[f"model.{key}"] for key in _MODEL if key != "name"},
    "model.name": TEXT_OR_NULL,  # the hub's names have a slash
    "dtypes.model": RULES["train.trained_dtype"],
    "dtypes.trained": RULES["train.trained_dtype"],
    "tokenizer_fingerprint": TEXT_OR_NULL,
}
_PROMPT_RULES = {f"prompt.{key}": RULES[f"task.prompt.{key}"] for key in _PROMPT}


@dataclass
class Loaded:
    """A classifier from disk, on the CPU, frozen, in evaluation mode, in the dtypes of training.

    `sparta` is the attached adapter, where it is one; `merge_for_good` makes the backbone plain.
    """

    classifier: Classifier
    tokenizer: Any
    about: Description
    sparta: SpartaAdapter | None
    merge_for_good: Callable[[], None]


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
        if authors_layout.is_in(folder):
            return _load_authors(folder, base, tokenizer, allow_pickle)
    except ValueError as error:
        raise InputError(reason_of(error)) from None
    raise InputError(f"{folder}: {why_nothing(folder)}")


def why_nothing(folder: Path) -> str:
    """Why a folder holds nothing that `load` could read."""
    if not folder.is_dir():
        return "there is no such folder"
    if (folder / MULTI_HEAD).is_file():
        return "a multi-head model, merged already; give what it was merged from"
    for inner in (folder / "adapter", folder / "model"):
        if (inner / store.CONFIG).is_file() or (inner / WHOLE).is_file():
            return f"a run's folder; what it trained is in {inner}"
    return f"neither an adapter ({store.CONFIG}) nor a whole classifier ({WHOLE}) is there"


# ------------------------------------------------------------------------ adapters of runs
def _load_adapter(folder: Path, base: str | None, tokenizer: str | None) -> Loaded:
    config = store.read_config(folder)
    about = Description.from_dict(config, folder / store.CONFIG)
    classifier, words = load_base(about, base_of(about, base, tokenizer, folder))
    check_base(about, classifier.backbone, words, folder, _shown(about, base))
    if about.method["name"] == "sparta":
        return _with_sparta(classifier, words, about, folder, allow_pickle=False)
    precision = Precision(DTYPES[about.dtypes["model"]], DTYPES[about.dtypes["trained"]])
    if about.method["name"] == "lora":
        trained = train_lora(classifier, lora_settings(about, folder), precision, seed=0)
    else:
        trained = train_head(classifier)
    tensors = store.read_tensors(folder, config)
    check_shapes(tensors, trained.values, folder)
    trained.restore(tensors)
    classifier.requires_grad_(False).eval()
    return Loaded(classifier, words, about, None, trained.merge_for_good)


def check_base(
    about: Description, backbone: nn.Module, tokenizer: Any, folder: Path, shown: str
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


def lora_settings(about: Description, folder: Path) -> LoraConfig:
    """Those of a LoRA adapter. Raises InputError if they are none."""
    try:
        settings = method_of(about.method)
    except InputError as error:
        raise InputError(*(f"{folder / store.CONFIG}: {line}" for line in error.lines)) from None
    assert isinstance(settings, LoraConfig)
    return settings


def _with_sparta(
    classifier: Classifier, tokenizer: Any, about: Description, folder: Path, allow_pickle: bool
) -> Loaded:
    adapter = SpartaAdapter.load(
        classifier, folder, merge_after_step=False, allow_pickle=allow_pickle
    )
    classifier.requires_grad_(False).eval()
    return Loaded(classifier, tokenizer, about, adapter, adapter.bake)


def load_base(
    about: Description, model: ModelConfig, told_as: str = "--base "
) -> tuple[Classifier, Any]:
    """The base with a head of zeros, and its tokenizer. Faults of its folder are told of as the
    user gave it: with an option, or as the folder of a whole model."""
    try:
        tokenizer = load_tokenizer(model, about)
        backbone = load_backbone(model, DTYPES[about.dtypes["model"]], dropout=0.0)
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


def base_of(
    about: Description, base: str | None, tokenizer: str | None, folder: Path
) -> ModelConfig:
    """The base as it is to be loaded."""
    model = about.model
    if base is not None:
        model = _named(base, "--base", model)
    elif model.path is not None:
        raise InputError(
            f"{folder}: was trained on a base model in a folder, called {model.path} then; say "
            "with --base DIR where it is"
        )
    elif model.embedded and model.name not in [path.name for path in EMBEDDED.iterdir()]:
        raise InputError(f"{folder}: this version has no embedded model {model.name}")
    if tokenizer is not None:
        _named(tokenizer, "--tokenizer", model)
        return changed(model, tokenizer=tokenizer)
    if about.model.tokenizer is not None:
        raise InputError(
            f"{folder}: was trained with a tokenizer in a folder of its own, called "
            f"{about.model.tokenizer} then; say with --tokenizer DIR where it is"
        )
    return changed(model, tokenizer=None)


def _named(name: str, option: str, model: ModelConfig) -> ModelConfig:
    """A folder, or a name on the hub."""
    if is_folder(name):
        return changed(model, path=name, embedded=False)
    if not is_hub_name(name):
        raise InputError(f"{option} {name}: there is no such folder")
    revision = model.revision if name == model.hub_id else "main"
    return changed(model, name=name, hub_id=name, revision=revision, path=None, embedded=False)


def changed(model: ModelConfig, **values: Any) -> ModelConfig:
    """The same with other values."""
    return ModelConfig(**{**asdict(model), **values})


def _shown(about: Description, base: str | None) -> str:
    return f"--base {base}" if base is not None else about.model.name


# ------------------------------------------------------------------ the authors' adapters
def _load_authors(
    folder: Path, base: str | None, tokenizer: str | None, allow_pickle: bool
) -> Loaded:
    config = authors_layout.read_config(folder)
    labels = config.get("id2label")
    if not isinstance(labels, dict) or sorted(labels) != sorted(map(str, range(len(labels)))):
        raise InputError(f"{folder / authors_layout.CONFIG}: no id2label in it")
    named = [labels[str(number)] for number in range(len(labels))]
    if not RULES["task.labels"].check(named):
        rule = RULES["task.labels"].text
        raise InputError(f"{folder / authors_layout.CONFIG}: id2label={show(labels)}: {rule}")
    name = base or config[authors_layout.BASE]
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
    model = _named(name, "--base", any_model)
    if tokenizer is not None:
        model = changed(model, tokenizer=tokenizer)
    elif (folder / "tokenizer_config.json").is_file():
        model = changed(model, tokenizer=str(folder))
    about = Description(
        method={"name": "sparta"},
        density=None,
        seed=None,
        base_model={"name": Path(name).name if is_local(model) else name, "fingerprint": None},
        task=None,
        labels=named,
        columns=["text"],
        prompt=None,
        separator="newline",
        undo_spacing=False,
        model=model,
        # their head is float32 wherever it is used
        dtypes={"model": dtype, "trained": "float32"},
        tokenizer_fingerprint=None,
    )
    classifier, words = load_base(about, model)
    return _with_sparta(classifier, words, about, folder, allow_pickle)


# ---------------------------------------------------------------------------- whole models
def write_whole(classifier: Classifier, tokenizer: Any, about: Description, folder: Path) -> str:
    """Write a classifier whose backbone is plain as a folder that transformers alone can use.

    The head stays in its own dtype in the file. transformers loads everything in the dtype of
    `config.json`, the backbone's, unless it is told otherwise.

    Returns
    -------
    The padding token: inputs are padded with it on the right, and transformers takes a row's last
    token that is not it for the row's last.

    Raises
    ------
    InputError
        If transformers has no classifier of this architecture, or no token can pad.
    """
    words = copy.deepcopy(tokenizer)
    words.pad_token = padding_token(words)
    words.padding_side = "right"
    model = _empty_classifier(classifier, about.labels, words.pad_token_id)
    setattr(model, model.base_model_prefix, classifier.backbone)
    model.score.weight = classifier.head_weight
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    write_json(folder / WHOLE, {"format": store.FORMAT, **portable(about)})
    return str(words.pad_token)


def check_whole(classifier: Classifier, tokenizer: Any, labels: list[str]) -> None:
    """Raise InputError where `write_whole` would, which is better known before the training."""
    pad = tokenizer.convert_tokens_to_ids(padding_token(tokenizer))
    _empty_classifier(classifier, labels, pad)


def portable(about: Description) -> dict[str, Any]:
    """The description as it stands beside a backbone and a tokenizer of its own."""
    known = about.as_dict()
    known["model"] |= {"path": about.model.path and Path(about.model.path).name, "tokenizer": None}
    return known


def padding_token(tokenizer: Any) -> str:
    """A token that never ends an input, so that "the last that is not padding" is the last token.

    The tokenizer's own, unless that is its end or unknown token as well; else BOS, which ends only
    an input without any text, and then stands at place 0, where transformers looks if all is
    padding. (A text that spells BOS out at its end is the exception.)

    Raises
    ------
    InputError
        If there is neither.
    """
    own = tokenizer.pad_token
    if own is not None and own not in (tokenizer.eos_token, tokenizer.unk_token):
        return str(own)
    if tokenizer.bos_token is None:
        raise InputError("the tokenizer has neither a padding token of its own nor BOS to pad with")
    return str(tokenizer.bos_token)


def _empty_classifier(classifier: Classifier, labels: list[str], pad: int) -> Any:
    """transformers' classifier of the same architecture, without memory."""
    config = copy.deepcopy(classifier.backbone.config)
    config.id2label = dict(enumerate(labels))  # type: ignore[union-attr]
    config.label2id = {label: number for number, label in enumerate(labels)}  # type: ignore[union-attr]
    config.problem_type = "single_label_classification"  # type: ignore[union-attr]
    config.pad_token_id = pad  # type: ignore[union-attr]
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise InputError(f"transformers has no such classifier: {reason_of(error)}") from None
    if not isinstance(getattr(model, "score", None), nn.Linear) or model.score.bias is not None:
        raise InputError(
            f"{type(model).__name__}: its head is not one linear layer without bias, named score"
        )
    return model


def read_whole(folder: Path) -> Description:
    """What a whole classifier says of itself. Raises InputError if it cannot be read."""
    path = folder / WHOLE
    try:
        values = json_of(path)
    except (OSError, ValueError):
        raise InputError(f"{path}: cannot be read, is not JSON, or cut short") from None
    if not isinstance(values, dict) or values.get("format") != store.FORMAT:
        raise InputError(f"{path}: not of the format {store.FORMAT}, which this version reads")
    return Description.from_dict(values, path)


def _load_whole(folder: Path) -> Loaded:
    about = read_whole(folder)
    model = changed(about.model, path=str(folder), embedded=False, tokenizer=None)
    classifier, tokenizer = load_base(about, model, told_as="")
    with safe_open(file_of(SCORE, str(folder), None), framework="pt") as file:
        if SCORE not in file.keys():
            raise InputError(f"{folder}: the checkpoint has no {SCORE}")
        head = file.get_tensor(SCORE)
    if head.shape != classifier.head_weight.shape:
        raise InputError(f"{folder}: {SCORE} has the shape {tuple(head.shape)}")
    classifier.head.weight = nn.Parameter(head, requires_grad=False)
    return Loaded(classifier, tokenizer, about, None, lambda: None)
