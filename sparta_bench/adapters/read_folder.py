"""Read what a run or `merge` left in a folder: what it says of itself, its head, and what training
changed in each tensor of its base: chosen entries, a low-rank product, or all."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparta_bench.adapters.manifest import Manifest, read_object
from sparta_bench.config.check import method_of
from sparta_bench.config.schema import LoraConfig
from sparta_bench.errors import InputError, reason_of
from sparta_bench.files import why_no_folder
from sparta_bench.methods.trained import HEAD
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.dtypes import DTYPES
from sparta_bench.models.stored_tensors import Checkpoint, open_checkpoint
from sparta_bench.sparta import SpartaAdapter, peft_sparta, store
from sparta_bench.sparta.merge import rounded_sum

# the file that tells each kind of folder; of peft-sparta's a function tells
ADAPTER, WHOLE, MULTI_HEAD = store.CONFIG, "classifier_config.json", "multi_head_config.json"
AUTHORS = "peft-sparta"
SCORE = "score.weight"  # transformers' name of the head
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.default\.weight")

Shapes = Mapping[str, tuple[int, ...]]


class SparseDelta(NamedTuple):
    """A change entry by entry: `values` at flat, sorted `indices`; None: at all of them."""

    indices: Tensor | None
    values: Tensor

    def at(self, indices: Tensor) -> Tensor:
        """Return the change (float64) at flat indices; zero where there is none."""
        if self.indices is None:
            return self.values.view(-1)[indices].double()
        change = torch.zeros(len(indices), dtype=torch.float64)
        if len(self.indices):
            nearest = torch.searchsorted(self.indices, indices)
            nearest.clamp_(max=len(self.indices) - 1)
            hit = self.indices[nearest] == indices
            change[hit] = self.values[nearest[hit]].double()
        return change

    def delta(self, base: Tensor) -> SparseDelta:
        """Return the change of the whole tensor, of which the base holds these values."""
        return self

    def tuned(self, base: Tensor, start: int) -> Tensor:
        """Return rows with the change in them; `base` holds the base's, the first of which is row
        `start`. Entries are round(original + delta), as `sparta.merge` writes them."""
        assert self.indices is not None
        first = start * base.shape[1]
        ends = torch.tensor([first, first + base.numel()])
        low, high = torch.searchsorted(self.indices, ends).tolist()
        own = self.indices[low:high] - first
        flat = base.reshape(-1).clone()
        flat[own] = rounded_sum(flat[own], self.values[low:high])
        return flat.view_as(base)


NO_CHANGE = SparseDelta(torch.empty(0, dtype=torch.int64), torch.empty(0))


class LowRank(NamedTuple):
    """LoRA's change: scale · B A."""

    a: Tensor
    b: Tensor
    scale: float

    def delta(self, base: Tensor) -> SparseDelta:
        """As `SparseDelta.delta`, at least in float32."""
        return SparseDelta(None, self._product(self.b))

    def tuned(self, base: Tensor, start: int) -> Tensor:
        """As `SparseDelta.tuned`, rounded as peft rounds on a CPU (of a block of rows the product's
        last bit may differ from that in the whole)."""
        change = self._product(self.b[start : start + len(base)]).to(self.a.dtype)
        rows = base.clone()
        rows += change  # rounds once where the change is wider than the weight
        return rows

    def _product(self, b: Tensor) -> Tensor:
        wide = torch.promote_types(self.a.dtype, torch.float32)
        return self.scale * (b.to(wide) @ self.a.to(wide))


class Tuned(NamedTuple):
    """A tensor of a whole model, read from its file when it is asked for."""

    checkpoint: Checkpoint
    name: str

    def delta(self, base: Tensor) -> SparseDelta:
        """As `SparseDelta.delta`; raises InputError if a value is not finite."""
        tuned = self.tuned(base, 0)
        if not store.is_finite(tuned):
            raise InputError(f"{self.checkpoint.label}: {self.name} does not hold finite numbers")
        # of float32 in float64, so that base + difference is the tuned value again
        wide = torch.float64 if base.dtype == torch.float32 else torch.float32
        return SparseDelta(None, tuned.to(wide).sub_(base))

    def tuned(self, base: Tensor, start: int) -> Tensor:
        """As `SparseDelta.tuned`: what the file holds."""
        return self.checkpoint.rows(self.name, start, start + len(base))


Change = SparseDelta | LowRank | Tuned


@dataclass
class TaskVector:
    """What training changed in a base: `changes` of its tensors by name (no others changed), and
    the `heads` (`head.weight`; a script may save others). `about` is None where a script saved it;
    `name` is that of the head in a merged model."""

    folder: Path
    about: Manifest | None
    heads: dict[str, Tensor]
    changes: Mapping[str, Change]
    name: str = ""

    @property
    def manifest(self) -> Manifest:
        """`about` of what a run left."""
        assert self.about is not None
        return self.about

    @property
    def seed(self) -> int | None:
        """Of the draw of SpaRTA's indices; None of all else."""
        drawn = any(isinstance(change, SparseDelta) for change in self.changes.values())
        return self.manifest.seed if drawn else None

    def delta(self, name: str, base: Tensor) -> SparseDelta:
        """Return the change of a tensor of the base, which holds these values."""
        return self.changes.get(name, NO_CHANGE).delta(base)


def kind_of(folder: Path) -> str | None:
    """Return `ADAPTER`, `WHOLE`, `MULTI_HEAD` or `AUTHORS`; None where nothing can be read."""
    for name in (ADAPTER, WHOLE, MULTI_HEAD):
        if (folder / name).is_file():
            return name
    return AUTHORS if peft_sparta.is_in(folder) else None


def why_unreadable(folder: Path) -> str:
    """Say why a folder holds no single trained model."""
    if problem := why_no_folder(folder):
        return f"{folder}: {problem}"
    if kind_of(folder) == MULTI_HEAD:
        return f"{folder}: a multi-head model, merged already; give what it was merged from"
    if kind_of(folder) == AUTHORS:
        return (
            f"{folder}: an adapter of peft-sparta, which does not say what its base was; "
            f"`sparta-bench merge bake {folder} --out DIR` makes a whole model of it"
        )
    for inner in (folder / "adapter", folder / "model"):
        if kind_of(inner) is not None:
            return f"{folder}: a run's folder; what it trained is in {inner}"
    return f"{folder}: neither an adapter ({ADAPTER}) nor a whole classifier ({WHOLE}) is there"


@contextmanager
def errors_of_input() -> Iterator[None]:
    """Turn the errors of `sparta/`, which knows nothing of this project's, into InputError."""
    try:
        yield
    except ValueError as error:
        raise InputError(reason_of(error)) from None


def read_manifest(folder: Path) -> Manifest:
    """Return what an adapter or a whole classifier says of itself; raises InputError if there is
    neither, or its description is broken."""
    kind = kind_of(folder)
    if kind == WHOLE:
        return Manifest.from_dict(read_object(folder / WHOLE, store.FORMAT), folder / WHOLE)
    if kind != ADAPTER:
        raise InputError(why_unreadable(folder))
    return Manifest.from_dict(read_config(folder), folder / ADAPTER)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the description of an adapter, unchecked; raises InputError if it is no JSON."""
    with errors_of_input():
        return store.read_config(folder)


def read_changes(folder: Path, shapes: Shapes, backbone: nn.Module | None = None) -> TaskVector:
    """Return what an adapter or a whole classifier changed in a base; raises InputError if a file
    is missing, broken, or of tensors that the base has not.

    A whole model's tensors are read one by one, when a change is asked for. `shapes` are those of
    the base's tensors, by name in the backbone. The `backbone`, where there is one, is for SpaRTA:
    compact adapters draw their indices on it, and its values at the indices are checked.
    """
    if kind_of(folder) == WHOLE:
        return _whole(folder, shapes)
    config = read_config(folder)
    with errors_of_input():
        try:
            about = Manifest.from_dict(config, folder / ADAPTER) if "labels" in config else None
            method = config["method"]["name"]
            if method == "sparta" and about is not None and backbone is not None:
                return _sparta_on(backbone, folder, about)
            tensors = store.read_tensors(folder, config)
            changes: Mapping[str, Change] = {}
            if method == "sparta":
                if config["compact"]:
                    raise InputError(
                        f"{folder}: is compact: it holds the seed of its indices, which are drawn "
                        f"on a model; `sparta-bench merge bake {folder} --out DIR` makes a whole "
                        "model of it"
                    )
                indices = store.ending(tensors, store.INDICES)
                deltas = store.ending(tensors, store.DELTAS)
                store.check_deltas(indices, deltas, shapes, folder)
                changes = {n: SparseDelta(indices[n].long(), deltas[n]) for n in indices}
            elif method == "lora" and about is not None:
                changes = _lora(folder, lora_settings(about, folder), tensors, shapes)
            elif method != "head":
                raise KeyError(method)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / ADAPTER}: {error} is missing or of another kind") from None
    heads = {name: tensor for name, tensor in tensors.items() if store.is_of_head(name)}
    for name, tensor in heads.items():
        refuse_not_finite(folder / store.TENSORS, name, tensor)
    return TaskVector(folder, about, heads, changes)


def _sparta_on(backbone: nn.Module, folder: Path, about: Manifest) -> TaskVector:
    """Read a SpaRTA adapter with all checks, those against the base's values too."""
    hidden: int = backbone.config.hidden_size  # type: ignore[union-attr, assignment]
    head = torch.zeros(len(about.labels), hidden, dtype=DTYPES[about.dtypes["trained"]])
    classifier = Classifier(backbone, head)
    with SpartaAdapter.load(classifier, folder, merge_after_step=False) as adapter:
        indices = adapter.indices
        changes = {
            name: SparseDelta(indices[name].long(), deltas.detach().clone())
            for name, deltas in adapter.deltas.items()
        }
        heads = {HEAD: classifier.head_weight.detach().clone()}
    return TaskVector(folder, about, heads, changes)


def lora_settings(about: Manifest, folder: Path) -> LoraConfig:
    """Return the settings of a LoRA adapter; raises InputError if they are none."""
    try:
        settings = method_of(about.method)
    except InputError as error:
        raise InputError(*(f"{folder / ADAPTER}: {line}" for line in error.lines)) from None
    assert isinstance(settings, LoraConfig)
    return settings


def _lora(
    folder: Path, settings: LoraConfig, tensors: Mapping[str, Tensor], shapes: Shapes
) -> dict[str, Change]:
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        refuse_not_finite(folder / store.TENSORS, key, tensor)
        if match := _FACTOR.fullmatch(key):
            factors.setdefault(f"{match[1]}.weight", {})[match[2]] = tensor
        elif not store.is_of_head(key):
            raise InputError(f"{folder}: {key} is no factor of a linear layer's change")
    changes: dict[str, Change] = {}
    for name, pair in factors.items():
        if (
            pair.keys() != {"A", "B"}
            or any(factor.dim() != 2 for factor in pair.values())
            or not len(pair["A"]) == pair["B"].shape[1] == settings.r
        ):
            raise InputError(f"{folder}: {name} has no two factors of rank {settings.r}")
        shape = (len(pair["B"]), pair["A"].shape[1])
        if shape != shapes.get(name):
            own = shapes.get(name, "no such matrix")
            raise InputError(f"{folder}: changes {name} of shape {shape}, and the base has {own}")
        changes[name] = LowRank(pair["A"], pair["B"], settings.alpha / settings.r)
    return changes


def _whole(folder: Path, shapes: Shapes) -> TaskVector:
    about = read_manifest(folder)
    checkpoint = open_checkpoint(str(folder))
    for name, shape in shapes.items():
        stored = checkpoint.shape_of(name)
        if stored != shape:
            own = "missing" if stored is None else f"of shape {stored}"
            raise InputError(f"{folder}: {name} is {own}, where {shape} belongs")
    heads = {HEAD: whole_head(checkpoint)}
    changes = {name: Tuned(checkpoint, name) for name in shapes}
    return TaskVector(folder, about, heads, changes)


def whole_head(checkpoint: Checkpoint) -> Tensor:
    """Return the head of a whole classifier; raises InputError if it has none of finite numbers."""
    shape = checkpoint.shape_of(SCORE)
    if shape is None or len(shape) != 2:
        raise InputError(f"{checkpoint.label}: the checkpoint has no matrix {SCORE}")
    head = checkpoint.rows(SCORE, 0, shape[0])
    refuse_not_finite(Path(checkpoint.label), SCORE, head)
    return head


def refuse_not_finite(file: Path, name: str, tensor: Tensor) -> None:
    """Raise InputError if a tensor of a file holds anything but finite floating-point numbers."""
    if not store.is_finite(tensor):
        raise InputError(f"{file}: {name} does not hold finite numbers")
