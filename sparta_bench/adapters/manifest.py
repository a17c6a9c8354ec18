"""What one must know to use what was trained, as it stands in a JSON file beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparta_bench.config.rules import (
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


@dataclass(frozen=True)
class Manifest:
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
    def from_dict(cls, values: Mapping[str, Any], source: Path) -> Manifest:
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


def portable(about: Manifest) -> dict[str, Any]:
    """The description as it stands beside a backbone and a tokenizer of its own."""
    known = about.as_dict()
    known["model"] |= {"path": about.model.path and Path(about.model.path).name, "tokenizer": None}
    return known


def read_object(path: Path, format_number: int) -> dict[str, Any]:
    """The JSON object in a file of this format.

    Raises
    ------
    InputError
        If it cannot be read, is none, or of another format.
    """
    try:
        values = json_of(path)
    except (OSError, ValueError):
        raise InputError(f"{path}: cannot be read, is not JSON, or cut short") from None
    if not isinstance(values, dict) or values.get("format") != format_number:
        raise InputError(f"{path}: not of the format {format_number}, which this version reads")
    return values
