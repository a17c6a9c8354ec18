"""What one must know to use what was trained, as it stands in a JSON file beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparta_bench.config.rules import (
    COLUMNS,
    LABELS,
    NUMBER_OR_NULL,
    RULES,
    TEXT_OR_NULL,
    Rule,
    faults_by,
    or_null,
    show,
)
from sparta_bench.config.schema import ModelConfig, Prompt
from sparta_bench.errors import InputError
from sparta_bench.files import json_of

# of what nothing but a base and labels is known: a text a row, as the base's tokenizer encodes it
OF_TEXTS: dict[str, Any] = {
    "method": {"name": "sparta"},
    "density": None,
    "seed": None,
    "task": None,
    "columns": ["text"],
    "prompt": None,
    "separator": "newline",
    "undo_spacing": False,
    "tokenizer_fingerprint": None,
}


@dataclass(frozen=True)
class Manifest:
    """What one must know to use what was trained; the part of `adapter_config.json` and
    `classifier_config.json` that all methods share.

    `dtypes` are those of model and trained values in training. A `model.path` is the folder's own
    name, since other machines have other paths; a `model.revision` is the hub's commit.
    `base_fingerprint` is that of the base's values (`store.fingerprint_of`); None in the layout of
    the authors and in whole models of an earlier version. `tokens_once` is what of a batch the run
    computed (`TokensOnce.as_dict`); None where that was all of it.
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
    tokens_once: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it for the file."""
        values = asdict(self)
        del values["model"]["shape"], values["model"]["dtype"]  # not needed, or in `dtypes`
        return values

    @classmethod
    def from_dict(cls, values: Any, source: Path) -> Manifest:
        """Read it from the JSON of `source`; other keys are left alone. Raises InputError with a
        line for each key that is missing, or has another value than it may."""
        if not isinstance(values, dict) or "labels" not in values:
            values = _of_script(values, source)
        # not in older ones
        values = {"base_fingerprint": None, "tokens_once": None, **values}
        lines = faults_by(_RULES, values)
        if values.get("prompt") is not None:
            lines += faults_by(_PROMPT_RULES, values)
        lines = lines or _relation_faults(values)
        if lines:
            raise InputError(*(f"{source}: {line}" for line in lines))
        own = {name: values[name] for name in cls.__dataclass_fields__}
        of_model = {name: values["model"][name] for name in _MODEL}
        own["model"] = ModelConfig(**of_model, shape=None, dtype=own["dtypes"]["model"])
        if own["prompt"] is not None:
            own["prompt"] = Prompt(**{name: own["prompt"][name] for name in _PROMPT})
        return cls(**own)


def _of_script(values: Any, source: Path) -> dict[str, Any]:
    """The values of an adapter that `SpartaAdapter.save` wrote in a script: a text a row, as the
    tokenizer of its base encodes it. Raises InputError where it is no classifier's."""
    found = values.get("script") if isinstance(values, dict) else None
    script: dict[str, Any] = found if isinstance(found, dict) else {}
    labels, problem = script.get("labels"), script.get("problem_type")
    if not labels or problem not in (None, "single_label_classification"):
        raise InputError(
            f"{source}: was saved by a script, without labels, prompt and base model; "
            "SpartaAdapter.load(model, folder) puts it on its model"
        )
    name, is_folder = script.get("base"), script.get("is_folder") is True
    model = {
        "name": name,
        "hub_id": None if is_folder else name,
        "revision": script.get("revision") or "main",
        "path": name if is_folder else None,
        "tokenizer": None,
        "kind": "base",
        "embedded": False,
    }
    return {
        **OF_TEXTS,
        **values,
        "base_model": {"name": name, "fingerprint": None},
        "labels": labels,
        "model": model,
        "dtypes": {"model": script.get("dtype"), "trained": values.get("dtype")},
    }


def _relation_faults(values: Mapping[str, Any]) -> list[str]:
    model, prompt, columns = values["model"], values["prompt"], values["columns"]
    lines = []
    if (model["kind"] == "instruct") != (prompt is not None):
        lines.append("prompt: must be there for model.kind=instruct, and for no other")
    elif prompt is not None and len(prompt["fields"]) != len(columns):
        fields = show(prompt["fields"])
        lines.append(f"prompt.fields={fields}: must name each of columns={show(columns)}")
    if not (model["hub_id"] or model["path"] or model["embedded"]):
        lines.append("model.hub_id=null: the base model has no name, and was in no folder")
    try:
        # it is written again beside a merged model
        json.dumps({key: values[key] for key in Manifest.__dataclass_fields__}, allow_nan=False)
    except ValueError:
        lines.append("holds a number that is not finite")
    return lines


def _is_tokens_once(values: dict[str, Any]) -> bool:
    tokens, ways = values.get("prefix_tokens"), ("last_layer", "in_training")
    return type(tokens) is int and tokens >= 0 and all(type(values.get(w)) is bool for w in ways)


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
    "labels": LABELS,
    "columns": COLUMNS,
    **{key: RULES[f"task.{key}"] for key in ("separator", "undo_spacing")},
    "prompt": Rule(lambda v: v is None or isinstance(v, dict), "must be null or have keys"),
    **{f"model.{key}": RULES[f"model.{key}"] for key in _MODEL if key != "name"},
    "model.name": TEXT_OR_NULL,  # the hub's names have a slash
    "dtypes.model": RULES["train.trained_dtype"],
    "dtypes.trained": RULES["train.trained_dtype"],
    "tokenizer_fingerprint": TEXT_OR_NULL,
    "tokens_once": Rule(
        lambda v: v is None or (isinstance(v, dict) and _is_tokens_once(v)),
        "must be null, or have prefix_tokens, last_layer and in_training",
    ),
}
_PROMPT_RULES = {f"prompt.{key}": RULES[f"task.prompt.{key}"] for key in _PROMPT}


def portable(about: Manifest) -> dict[str, Any]:
    """Return the description as it stands beside a backbone and a tokenizer of its own."""
    known = about.as_dict()
    known["model"] |= {"path": about.model.path and Path(about.model.path).name, "tokenizer": None}
    return known


def read_object(path: Path, format_number: int) -> dict[str, Any]:
    """Return the JSON object in a file of this format; raises InputError if there is none."""
    try:
        values = json_of(path)
    except (OSError, ValueError):
        raise InputError(f"{path}: cannot be read, is not JSON, or cut short") from None
    if not isinstance(values, dict) or values.get("format") != format_number:
        raise InputError(f"{path}: not of the format {format_number}, which this version reads")
    return values
