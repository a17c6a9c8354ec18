"""A learning rate for a model that no row of `conf/presets.csv` names: a guess from its size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sparta_bench.config.rules import is_hub_name
from sparta_bench.errors import InputError
from sparta_bench.files import json_of

RULE = re.compile(r"(\S+) \* \(1e9/size\)\*\*(\S+)")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTHS = ("hidden_size", "n_embd", "d_model")


class RateRule(NamedTuple):
    """A rate that falls with a power of the model's size, as a cell of the presets writes it."""

    at_1e9: float
    power: float

    def rate(self, size: float) -> float:
        """Return the rate, to two digits."""
        return float(f"{self.at_1e9 * (1e9 / size) ** self.power:.1e}")


def rule_of(cell: str) -> RateRule | None:
    """Return the rule that a cell holds, if it holds one."""
    match = RULE.fullmatch(cell)
    return RateRule(float(match[1]), float(match[2])) if match else None


def size_of(model: Mapping[str, Any]) -> int | None:
    """Return about how many scalars the layers of a model hold: 12 · layers · hidden size².

    None where nothing says it, or where the model cannot be read, which its loading explains.

    Raises
    ------
    InputError
        If its configuration names no layers and no width, or the hub does not give it: the rate
        must then be given.
    """
    shape: Any = model.get("shape")
    if model.get("path") is not None:
        try:
            shape = json_of(Path(str(model["path"])) / "config.json")
        except (OSError, ValueError):
            return None
    elif shape is None and is_hub_name(model.get("hub_id")):
        shape = _on_the_hub(str(model["hub_id"]), str(model.get("revision")))
    if not isinstance(shape, dict) or not shape.get("model_type"):
        return None
    inner = shape.get("text_config")
    shape = {**shape, **inner} if isinstance(inner, dict) else shape
    layers, width = (
        next((shape[key] for key in keys if isinstance(shape.get(key), int)), 0)
        for keys in (LAYERS, WIDTHS)
    )
    if layers < 1 or width < 1:
        raise InputError(_give_one("its configuration names no number of layers or no hidden size"))
    return 12 * layers * width**2


def _on_the_hub(repository: str, revision: str) -> Any:
    from sparta_bench import hub  # its client takes long to import

    try:
        return json_of(hub.snapshot(repository, revision) / "config.json")
    except Exception as error:  # the client raises many kinds
        reason, _ = hub.why(error)
        raise InputError(_give_one(f"{repository} cannot be had from the hub: {reason}")) from None


def _give_one(why: str) -> str:
    return f"train.learning_rate=null: give a rate; none can be guessed for this model: {why}"
