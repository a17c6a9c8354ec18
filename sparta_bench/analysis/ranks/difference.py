"""What a tuned model's matrices are beside its base's: of another checkpoint, or an adapter's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparta_bench.adapters.whole_model import WHOLE
from sparta_bench.errors import InputError, reason_of
from sparta_bench.models.stored_tensors import Checkpoint, open_checkpoint
from sparta_bench.models.weight_files import is_head
from sparta_bench.sparta import peft_sparta, store
from sparta_bench.sparta.merge import rounded_sum

HALF = (torch.float16, torch.bfloat16)
_LORA = re.compile(r"(.+)\.lora_([AB])\.default\.weight")


class Tuned:
    """A tuned model: this class serves a whole checkpoint, its children adapters.

    `source` is what the user called it; `label` a short name, and `method` what trained it (null:
    not known). `shapes` are those of its tensors, by name in the backbone; `notes` is what a
    reader must know beside the numbers. `began_at_base`: whether training began with the very
    values of the base's file, so that these carry no error of rounding; of a whole model a run
    wrote down the base's name, of any other this is not known.
    """

    def __init__(self, source: str, base: Checkpoint, tuned: Checkpoint) -> None:
        self.source = source
        self.base = base
        self.tuned = tuned
        self.method, trained_on = _origin_of(Path(source) / WHOLE)
        self.began_at_base = trained_on == base.name
        self.label = self.method or tuned.name
        self.shapes = {name: stored.shape for name, stored in tuned.tensors.items()}
        self.notes: list[str] = []
        if trained_on is not None and not self.began_at_base:
            self.notes.append(f"was trained on {trained_on}, by its {WHOLE}")

    def pair(self, name: str, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Rows of the base and of the tuned matrix, as they are compared (each at most
        stop - start x columns), in dtypes of their own."""
        return self.base.rows(name, start, stop), self.tuned.rows(name, start, stop)

    def dtypes(self, name: str) -> tuple[torch.dtype | None, torch.dtype | None]:
        """Those of the two matrices; null where one is no plain floating-point one."""
        return self.base.tensors[name].dtype, self.tuned.tensors[name].dtype


class StoredAdapter(Tuned):
    """What a run left of a SpaRTA, LoRA or Head training, on its base as it was in training: in
    the model's dtype then.

    Raises
    ------
    InputError
        If it was trained on another base.
    """

    def __init__(
        self, source: str, base: Checkpoint, config: Mapping[str, Any], tensors: dict[str, Tensor]
    ) -> None:
        self.source = source
        self.base = base
        self.began_at_base = True
        self.method = self.label = config["method"]["name"]
        # of an adapter that a script saved, the dtype of the model is not known
        known = config.get("dtypes", {}).get("model")
        self.dtype = None if known is None else store.DTYPES[known]
        self.notes = []
        self.shapes = {
            name: stored.shape for name, stored in base.tensors.items() if not is_head(name)
        }
        self.shapes |= {
            name: tuple(tensor.shape) for name, tensor in tensors.items() if store.is_of_head(name)
        }
        self._check_base(config)

    def _check_base(self, config: Mapping[str, Any]) -> None:
        expected = config["base_fingerprint"]
        found = self.base.fingerprint(self.dtype)
        if found == expected:
            return
        if config.get("separator") == "sep_token":
            self.notes.append(
                "the run may have added a token's row to the embedding, so that its base cannot "
                "be checked"
            )
            return
        raise InputError(
            f"{self.source}: was trained on another base model: the fingerprint of its weights is "
            f"{expected}, and {self.base.label} has {found}"
        )

    def pair(self, name: str, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """As `Tuned.pair`, the base in the dtype that the model had in training."""
        base = self.base.rows(name, start, stop)
        base = base if self.dtype is None else base.to(self.dtype)
        return base, self.merged(name, base, start)

    def dtypes(self, name: str) -> tuple[torch.dtype | None, torch.dtype | None]:
        """As `Tuned.dtypes`: the base's in its file, and the model's in training."""
        stored = self.base.tensors[name].dtype
        return stored, None if stored is None else self.dtype or stored

    def merged(self, name: str, base: Tensor, start: int) -> Tensor:
        """These rows of the base, the first of which is row `start`, with the change in them. Of
        a method that trains nothing but a head they are the base's."""
        return base


class StoredSparta(StoredAdapter):
    """round(original + delta) at the chosen places, as `sparta.merge` writes it."""

    def __init__(
        self, source: str, base: Checkpoint, config: Mapping[str, Any], tensors: dict[str, Tensor]
    ) -> None:
        super().__init__(source, base, config, tensors)
        if config["compact"]:
            raise InputError(
                f"{source}: is compact: it holds the seed of its places, which are drawn on a "
                f"model; `sparta-bench merge bake {source} --out DIR` makes a whole model of it"
            )
        if config["density"] is not None:
            self.label = f"sparta {config['density']:g}"
        places = store.ending(tensors, store.INDICES)
        self.deltas = store.ending(tensors, store.DELTAS)
        store.check_deltas(places, self.deltas, self.shapes, Path(source))
        self.places = {name: indices.long() for name, indices in places.items()}

    def merged(self, name: str, base: Tensor, start: int) -> Tensor:
        """As `StoredAdapter.merged`."""
        if name not in self.places:
            return base
        first = start * base.shape[1]
        ends = torch.tensor([first, first + base.numel()])
        low, high = torch.searchsorted(self.places[name], ends).tolist()
        here = self.places[name][low:high] - first
        flat = base.reshape(-1).clone()
        flat[here] = rounded_sum(flat[here], self.deltas[name][low:high])
        return flat.view_as(base)


class StoredLora(StoredAdapter):
    """W + alpha / r · B A, rounded as peft rounds it on a CPU (of a block of rows, the product's
    last bit may differ from that in the whole)."""

    def __init__(
        self, source: str, base: Checkpoint, config: Mapping[str, Any], tensors: dict[str, Tensor]
    ) -> None:
        super().__init__(source, base, config, tensors)
        method = config["method"]
        self.label = f"lora r={method['r']}"
        self.alpha = method["alpha"]
        if not isinstance(self.alpha, int | float):
            raise TypeError(f"method.alpha={self.alpha}")
        self.factors: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if match := _LORA.fullmatch(key):
                self.factors.setdefault(f"{match[1]}.weight", {})[match[2]] = tensor
            elif not store.is_of_head(key):
                raise InputError(f"{source}: {key} is no factor of a linear layer's change")
        for name, factor in self.factors.items():
            self._check_factors(name, factor)

    def _check_factors(self, name: str, factor: Mapping[str, Tensor]) -> None:
        a, b = factor.get("A"), factor.get("B")
        if a is None or b is None or a.dim() != 2 or b.dim() != 2 or not len(a) == b.shape[1] > 0:
            raise InputError(f"{self.source}: {name} has no two factors that can be multiplied")
        product = (len(b), a.shape[1])
        if product != self.shapes.get(name):
            there = self.shapes.get(name, "no such matrix")
            raise InputError(
                f"{self.source}: changes {name} of shape {product}, and {self.base.label} has "
                f"{there}"
            )

    def merged(self, name: str, base: Tensor, start: int) -> Tensor:
        """As `StoredAdapter.merged`."""
        if name not in self.factors:
            return base
        a, b = self.factors[name]["A"], self.factors[name]["B"][start : start + len(base)]
        wide = torch.float32 if a.dtype in HALF else a.dtype
        change = (b.to(wide) @ a.to(wide) * (self.alpha / len(a))).to(a.dtype)
        total = base.clone()
        total += change  # rounds once where the change is wider than the weight
        return total


def _origin_of(path: Path) -> tuple[str | None, str | None]:
    """Of a whole model that a run saved, the method and the base's name; of another, null."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return str(about["method"]["name"]), str(about["base_model"]["name"])
    except OSError:
        return None, None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: no method or base in it, is not JSON, or cut short") from None


def open_tuned(source: str, base: Checkpoint) -> Tuned:
    """An adapter folder of this project, or whatever `open_checkpoint` opens.

    Raises
    ------
    InputError
        If there is nothing to read, or an adapter is of another base.
    """
    folder = Path(source)
    if peft_sparta.is_in(folder):
        raise InputError(
            f"{source}: an adapter of peft-sparta; `sparta-bench merge bake {source} --out DIR` "
            "makes a whole model of it, which can be compared"
        )
    if not (folder / store.CONFIG).is_file():
        return Tuned(source, base, open_checkpoint(source))
    kinds = {"sparta": StoredSparta, "lora": StoredLora, "head": StoredAdapter}
    try:
        config = store.read_config(folder)
        kind = kinds[config["method"]["name"]]
        return kind(source, base, config, store.read_tensors(folder, config))
    except ValueError as error:
        raise InputError(reason_of(error)) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder / store.CONFIG}: {error} is missing or of another kind"
        ) from None
