"""What a tuned model's matrices are beside its base's: of another checkpoint, or an adapter's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparta_bench.errors import InputError, reason_of
from sparta_bench.ranks.checkpoint import Checkpoint, is_head, open_checkpoint
from sparta_bench.saved import WHOLE
from sparta_bench.sparta import authors_layout, store
from sparta_bench.sparta.merge import rounded_sum

HALF = (torch.float16, torch.bfloat16)
EMBEDDING, LM_HEAD = "embed_tokens.weight", "lm_head.weight"
_LORA = re.compile(r"(.+)\.lora_([AB])\.default\.weight")


class Tuned:
    """A tuned model: this class serves a whole checkpoint, its children adapters.

    `source` is what the user called it; `label` a short name, and `method` what trained it (null:
    not known). `shapes` are those of its tensors, by name in the backbone; `notes` is what a
    reader must know beside the numbers. `began_at_base`: whether it is known that training began
    with the very values of the base's file.
    """

    def __init__(self, source: str, base: Checkpoint, tuned: Checkpoint) -> None:
        self.source = source
        self.base = base
        self.tuned = tuned
        self.method = _method_of(Path(source) / WHOLE)
        self.began_at_base = self.method is not None
        self.label = self.method or Path(source).name
        self.shapes = {name: stored.shape for name, stored in tuned.tensors.items()}
        self.notes: list[str] = []

    def pair(self, name: str, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Rows of the base and of the tuned matrix, as they are compared (each at most
        stop - start x columns), in dtypes of their own."""
        return self.base.rows(name, start, stop), self.tuned.rows(name, start, stop)

    def dtypes(self, name: str) -> tuple[torch.dtype | None, torch.dtype | None]:
        """Those of the two matrices; null where one is no plain floating-point one."""
        return self.base.tensors[name].dtype, self.tuned.tensors[name].dtype


class Adapter(Tuned):
    """What a run left of a SpaRTA, LoRA or Head training, on its base as it was in training: in
    the model's dtype then.

    Raises
    ------
    InputError
        If it was trained on another base.
    """

    began_at_base = True

    def __init__(
        self, source: str, base: Checkpoint, config: Mapping[str, Any], tensors: dict[str, Tensor]
    ) -> None:
        self.source = source
        self.base = base
        method = config["method"]
        self.method = method["name"]
        self.label = method["name"]
        # of an adapter that a script saved, the dtype of the model is not known
        known = config.get("dtypes", {}).get("model")
        self.dtype = None if known is None else store.DTYPES[known]
        self.notes = []
        self.shapes = {
            name: stored.shape for name, stored in base.tensors.items() if not is_head(name)
        }
        self.shapes |= {
            name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith("head")
        }
        self._check_base(config)

    def _check_base(self, config: Mapping[str, Any]) -> None:
        expected = config["base_fingerprint"]
        found = self.base.fingerprint(self.dtype)
        if found == expected:
            return
        if config.get("separator") == "sep_token":
            self.notes.append(
                f"{self.label}: the run may have added a token's row to the embedding, so that its "
                "base cannot be checked"
            )
            return
        raise InputError(
            f"{self.source}: was trained on another base model: the fingerprint of its weights is "
            f"{expected}, and {self.base.label} has {found}"
        )

    def pair(self, name: str, start: int, stop: int) -> tuple[Tensor, Tensor]:
        base = self.base.rows(name, start, stop)
        base = base if self.dtype is None else base.to(self.dtype)
        return base, self.merged(name, base, start)

    def dtypes(self, name: str) -> tuple[torch.dtype | None, torch.dtype | None]:
        stored = self.base.tensors[name].dtype
        return stored, None if stored is None else self.dtype or stored

    def merged(self, name: str, base: Tensor, start: int) -> Tensor:
        """These rows of the base, the first of which is row `start`, with the change in them. Of
        a method that trains nothing but a head they are the base's."""
        return base

    def refuse_unknown(self, name: str) -> None:
        """Raise InputError where the base has no tensor of that name."""
        if name not in self.base.tensors:
            raise InputError(f"{self.source}: changes {name}, which {self.base.label} has not")


class SpartaAdapter(Adapter):
    """round(original + delta) at the chosen places, as `sparta.merge` writes it."""

    def __init__(
        self, source: str, base: Checkpoint, config: Mapping[str, Any], tensors: dict[str, Tensor]
    ) -> None:
        super().__init__(source, base, config, tensors)
        if config["compact"]:
            raise InputError(
                f"{source}: is compact, without its places; `merge bake` makes a whole"
            )
        if config["density"] is not None:
            self.label = f"sparta {config['density']:g}"
        self.places = {
            name.removesuffix(".indices"): tensor.long()
            for name, tensor in tensors.items()
            if name.endswith(".indices")
        }
        self.deltas = {name: tensors[f"{name}.deltas"] for name in self.places}
        for name in self.places:
            self.refuse_unknown(name)

    def merged(self, name: str, base: Tensor, start: int) -> Tensor:
        if name not in self.places:
            return base
        first = start * base.shape[1]
        ends = torch.tensor([first, first + base.numel()])
        low, high = torch.searchsorted(self.places[name], ends).tolist()
        here = self.places[name][low:high] - first
        flat = base.reshape(-1).clone()
        flat[here] = rounded_sum(flat[here], self.deltas[name][low:high])
        return flat.view_as(base)


class LoraAdapter(Adapter):
    """W + alpha / r · B A, rounded as peft rounds it on a CPU."""

    def __init__(
        self, source: str, base: Checkpoint, config: Mapping[str, Any], tensors: dict[str, Tensor]
    ) -> None:
        super().__init__(source, base, config, tensors)
        method = config["method"]
        self.label = f"lora r={method['r']}"
        self.scale = method["alpha"] / method["r"]
        self.factors: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if match := _LORA.fullmatch(key):
                self.factors.setdefault(f"{match[1]}.weight", {})[match[2]] = tensor
            elif not key.startswith("head"):
                raise InputError(f"{source}: {key} is no factor of a linear layer's change")
        for name, factor in self.factors.items():
            self.refuse_unknown(name)
            shape = (factor["B"].shape[0], factor["A"].shape[1])
            if shape != base.tensors[name].shape:
                raise InputError(
                    f"{source}: changes {name} of shape {shape}, and {base.label} has "
                    f"{base.tensors[name].shape}"
                )

    def merged(self, name: str, base: Tensor, start: int) -> Tensor:
        if name not in self.factors:
            return base
        a, b = self.factors[name]["A"], self.factors[name]["B"][start : start + len(base)]
        if a.dtype in HALF:
            change = (b.float() @ a.float() * self.scale).to(a.dtype)
        else:
            change = b @ a * self.scale
        total = base.clone()
        total += change  # rounds once where the change is wider than the weight
        return total


def _method_of(path: Path) -> str | None:
    """What trained a whole model that a run saved; null where another program saved it."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return str(about["method"]["name"])
    except OSError:
        return None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: no method in it, is not JSON, or cut short") from None


def open_tuned(source: str, base: Checkpoint) -> Tuned:
    """An adapter folder of this project, or whatever `open_checkpoint` opens.

    Raises
    ------
    InputError
        If there is nothing to read, or an adapter is of another base.
    """
    folder = Path(source)
    if authors_layout.is_in(folder):
        raise InputError(f"{source}: an adapter of peft-sparta; `merge bake` makes a whole of it")
    if not (folder / store.CONFIG).is_file():
        return Tuned(source, base, open_checkpoint(source))
    kinds = {"sparta": SpartaAdapter, "lora": LoraAdapter, "head": Adapter}
    try:
        config = store.read_config(folder)
        return kinds[config["method"]["name"]](
            source, base, config, store.read_tensors(folder, config)
        )
    except ValueError as error:
        raise InputError(reason_of(error)) from None
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder / store.CONFIG}: {error} is missing or of another kind"
        ) from None
