"""Several trained models of one base as one, each with its own head (section 8 and beyond)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparta_bench.adapters import multi_head
from sparta_bench.adapters.export import refuse_to_replace, written
from sparta_bench.adapters.load_adapter import base_of, check_base, load_base
from sparta_bench.adapters.manifest import Manifest
from sparta_bench.adapters.read_folder import SparseDelta, TaskVector, read_changes, read_manifest
from sparta_bench.errors import InputError
from sparta_bench.methods.trained import HEAD
from sparta_bench.models.source import load_architecture
from sparta_bench.sparta.merge import rounded_sum
from sparta_bench.sparta.sample import sample_indices

_BLOCK = 1 << 22  # entries of a tensor that are combined at a time, where all of them changed


# ------------------------------------------------------------------------- what is to be merged
class Base:
    """The model that all were trained on, with its tokenizer; `manifest` is that of the `folder`
    that says which it is. `values` are its parameters by name; `has_added_rows` says whether the
    embeddings grew for the tokenizer."""

    def __init__(
        self, folder: Path, manifest: Manifest, base: str | None, tokenizer: str | None
    ) -> None:
        model = base_of(manifest, base, tokenizer, folder)
        classifier, self.tokenizer = load_base(manifest, model)
        vocabulary: int = load_architecture(model).get_text_config().vocab_size
        self.has_added_rows = len(self.tokenizer) > vocabulary
        self.backbone: Any = classifier.backbone
        self.dtype = manifest.dtypes["model"]
        self.shown = str(manifest.model.name) if base is None else f"--base {base}"
        self.values = {name: value.detach() for name, value in self.backbone.named_parameters()}

    def keep(self) -> None:
        """Make `values` copies, so that `restore` can give them back."""
        self.values = {name: value.clone() for name, value in self.values.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Give the backbone its values back."""
        for name, parameter in self.backbone.named_parameters():
            parameter.copy_(self.values[name])

    def open(self, name: str, folder: Path) -> TaskVector:
        """Return what was trained on this base, which must hold its own values; raises InputError
        if it was trained on another, or a file is broken."""
        check_base(read_manifest(folder), self.backbone, self.tokenizer, folder, self.shown)
        shapes = {name: tuple(value.shape) for name, value in self.values.items()}
        vector = read_changes(folder, shapes, self.backbone)
        vector.name = name
        wanted = (len(vector.manifest.labels), self.backbone.config.hidden_size)
        if vector.heads.keys() != {HEAD} or vector.heads[HEAD].shape != wanted:
            own = {name: tuple(head.shape) for name, head in vector.heads.items()}
            raise InputError(f"{folder}: its head is {own or 'none'}, where {wanted} belongs")
        return vector


def open_task_vectors(
    folders: Sequence[Path],
    base: str | None = None,
    tokenizer: str | None = None,
    names: Sequence[str] | None = None,
) -> tuple[Base, list[TaskVector]]:
    """Open adapters and whole classifiers of one base, checked, and that base. `base` and
    `tokenizer` say where these are, if not where the first says. `names` are those of the heads;
    None: each task's own, numbered where one stands twice."""
    manifests = [read_manifest(folder) for folder in folders]
    refuse_mixed(folders, manifests)
    if not names:
        names = []
        for about, folder in zip(manifests, folders, strict=True):
            task = about.task or folder.resolve().name
            numbered = (task if number == 1 else f"{task}-{number}" for number in count(1))
            names.append(next(name for name in numbered if name not in names))
    for name in names:
        # a line of predictions has tabs between its parts; safetensors keeps the other for itself
        if not name.isprintable() or name == "__metadata__":
            raise InputError(f"{name!r}: no name for a head; --names gives others, one for each")
    opened = Base(folders[0], manifests[0], base, tokenizer)
    if opened.has_added_rows:
        refuse_other_rows(folders, manifests)
    return opened, [opened.open(*each) for each in zip(names, folders, strict=True)]


def refuse_mixed(folders: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    """Raise InputError if one is of another base, vocabulary or dtype than the first: before any
    weights are read."""
    first = manifests[0]
    for folder, about in zip(folders, manifests, strict=True):
        compared = {
            "base model": (first.base_model["fingerprint"], about.base_model["fingerprint"]),
            "vocabulary (tokenizer)": (first.tokenizer_fingerprint, about.tokenizer_fingerprint),
            "dtype": (first.dtypes["model"], about.dtypes["model"]),
            "set of base weights": (first.base_fingerprint, about.base_fingerprint),
        }
        for what, (one, other) in compared.items():
            if one != other:
                raise InputError(
                    f"{folder}: was trained with another {what} than {folders[0]}: {other}, not "
                    f"{one}; only changes of one and the same base can be added up"
                )


def refuse_other_rows(folders: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    """Raise InputError for different seeds on a base that was given rows for added tokens: they
    are drawn from the run's seed."""
    for folder, about in zip(folders, manifests, strict=True):
        if about.seed != manifests[0].seed:
            raise InputError(
                f"{folder}: was trained with task.separator=sep_token, whose embedding is drawn "
                f"from the seed: {about.seed}, and {manifests[0].seed} of {folders[0]}; so their "
                "bases differ"
            )


# ------------------------------------------------------------------- how changes become one change
@dataclass(frozen=True)
class Rule:
    """How to combine, entry by entry.

    `how`: `sum`, or `ties`: of each entry the mean of the changes that have the sign of their sum
    (Yadav et al., 2023; nothing is trimmed first). `weights` multiply each model's changes before
    all else; None: 1. `keep` is DARE's (Yu et al., 2024): each changed entry is kept with this
    probability, drawn from `seed`, and divided by it; None: all are kept.
    """

    how: str = "sum"
    weights: tuple[float, ...] | None = None
    keep: float | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """For people."""
        kept = "" if self.keep is None else f"dare {self.keep:g}, "
        weights = "" if self.weights is None else f" of {', '.join(f'{w:g}' for w in self.weights)}"
        return f"{kept}{self.how}{weights}"

    def as_dict(self) -> dict[str, Any]:
        """For records."""
        return asdict(self)

    def weights_of(self, count: int) -> list[float]:
        """Return a weight for each of so many models."""
        return [1.0] * count if self.weights is None else list(self.weights)


def thin(delta: SparseDelta, keep: float, seed: int, name: str) -> SparseDelta:
    """Apply DARE's drop and rescale. `name` tells one model's tensor from all others."""
    chosen = sample_indices(delta.values.numel(), keep, seed, name).long()
    values = delta.values.view(-1)[chosen].double() / keep
    return SparseDelta(chosen if delta.indices is None else delta.indices[chosen], values)


def combine(base: Tensor, deltas: Sequence[SparseDelta], rule: Rule) -> Tensor:
    """Return the tensor with the combined change: round(base + change), rounded once, where it is
    not zero; everything else keeps its bits. Shape and dtype are the base's."""
    from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge

    out = base.detach().reshape(-1).clone()
    weights = torch.tensor(rule.weights_of(len(deltas)), dtype=torch.float64)
    for indices in _changed_indices(deltas, base.numel()):
        weighted = torch.stack([delta.at(indices) for delta in deltas]) * weights[:, None]
        if rule.how == "sum":
            change = weighted.sum(dim=0)
        else:
            change = disjoint_merge(weighted, calculate_majority_sign_mask(weighted))
        moved = change != 0
        own = indices[moved]
        out[own] = rounded_sum(out[own], change[moved])
    return out.view_as(base)


def _changed_indices(deltas: Sequence[SparseDelta], size: int) -> Iterator[Tensor]:
    """Yield the flat indices that any of them may change in a tensor of that many entries: at once
    where these are few, else block by block."""
    sparse = [delta.indices for delta in deltas if delta.indices is not None]
    if len(sparse) == len(deltas):
        yield torch.unique(torch.cat(sparse)) if sparse else torch.empty(0, dtype=torch.int64)
        return
    for start in range(0, size, _BLOCK):
        yield torch.arange(start, min(start + _BLOCK, size))


@torch.no_grad()
def merge_into(base: Base, vectors: Sequence[TaskVector], rule: Rule) -> None:
    """Write the combined changes into the backbone, which must hold the base's values."""
    for name, parameter in base.backbone.named_parameters():
        deltas = [vector.delta(name, base.values[name]) for vector in vectors]
        if rule.keep is not None:
            deltas = [
                thin(delta, rule.keep, rule.seed, f"{vector.name}/{name}")
                for vector, delta in zip(vectors, deltas, strict=True)
            ]
        parameter.copy_(combine(base.values[name], deltas, rule))


def multi_head_of(
    folders: Sequence[Path],
    out: Path,
    rule: Rule,
    base: str | None = None,
    tokenizer: str | None = None,
    names: Sequence[str] | None = None,
    force: bool = False,
) -> tuple[str, list[str]]:
    """Merge what lies in the folders and write it (see `multi_head.write`); returns a line that
    says what was written, and a warning for each two SpaRTA adapters of one seed: their indices are
    the same draw, or one's are among the other's."""
    for number, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:number]]:
            raise InputError(f"{folder}: is given twice; combine --weights 2,… adds one up twice")
        refuse_to_replace(folder, out, force)
    merged, vectors = open_task_vectors(folders, base, tokenizer, names)
    overlaps = overlaps_of(vectors, merged)
    merge_into(merged, vectors, rule)
    heads = {vector.name: vector.heads[HEAD] for vector in vectors}
    keys = ("task", "method", "density", "seed")
    origin = {  # without paths
        "rule": rule.as_dict(),
        "models": [
            {"head": vector.name, "folder": vector.folder.resolve().name}
            | {key: getattr(vector.manifest, key) for key in keys}
            | {"weight": weight}
            for vector, weight in zip(vectors, rule.weights_of(len(vectors)), strict=True)
        ],
        "overlap": [overlap.as_dict() for overlap in overlaps],
    }
    about = {vector.name: vector.manifest for vector in vectors}
    with written(out) as temporary:
        model = multi_head.MultiHead(merged.backbone, heads)
        multi_head.write(model, merged.tokenizer, about, origin, temporary)
    scalars = sum(value.numel() for value in merged.values.values())
    line = (
        f"{out}: {scalars:,} scalars in {merged.dtype} ({rule.name}), with "
        f"{len(heads)} head{'s' * (len(heads) > 1)}: {', '.join(heads)}"
    )
    seeds = {vector.name: vector.seed for vector in vectors}
    warnings = [
        f"{one} and {other} were both drawn with seed {seeds[one]}, so their "
        f"indices coincide: {overlap.shared:,} are shared, where independent draws would "
        f"share about {overlap.shared_by_chance:,.0f}"
        for overlap in overlaps
        for one, other in [overlap.names]
        # targets of which none is the other's share nothing, whatever the seed
        if seeds[one] is not None and seeds[one] == seeds[other] and overlap.shared
    ]
    return line, warnings


# -------------------------------------------------------------------------------- the overlap
@dataclass
class Overlap:
    """Where two models changed the same entries of their base, over all tensors of the backbone.

    `changed` counts the entries that each changed, `shared` those that both did, and `conflicts`
    the shared ones with opposite signs; `shared_by_chance` is what independent choices of as many
    entries in each tensor would share. Of shared entries with random signs half conflict.
    """

    names: tuple[str, str]
    changed: list[int]
    shared: int = 0
    shared_by_chance: float = 0.0
    conflicts: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For records."""
        conflicts = self.shared / 2
        return asdict(self) | {"names": list(self.names), "conflicts_by_chance": conflicts}


def overlaps_of(sources: Sequence[TaskVector], base: Base) -> list[Overlap]:
    """Return the overlap of each two."""
    overlaps = []
    for pair in combinations(sources, 2):
        overlap = Overlap((pair[0].name, pair[1].name), [0, 0])
        for name, value in base.values.items():
            deltas = [one.delta(name, value) for one in pair]
            counts = [0, 0]
            for indices in _changed_indices(deltas, value.numel()):
                signs = [delta.at(indices).sign() for delta in deltas]
                counts = [n + int(s.count_nonzero()) for n, s in zip(counts, signs, strict=True)]
                product = signs[0] * signs[1]
                overlap.shared += int(product.count_nonzero())
                overlap.conflicts += int((product < 0).sum())
            overlap.changed = [a + b for a, b in zip(overlap.changed, counts, strict=True)]
            overlap.shared_by_chance += counts[0] * counts[1] / value.numel()
        overlaps.append(overlap)
    return overlaps


def as_text(overlaps: Sequence[Overlap]) -> str:
    """A line for each two models."""
    return "\n".join(
        f"{one.names[0]} ({one.changed[0]:,} changed) and {one.names[1]} ({one.changed[1]:,}): "
        f"{one.shared:,} shared, {one.shared_by_chance:,.0f} by chance; "
        f"{one.conflicts:,} with opposite signs, {one.shared / 2:,.0f} by chance"
        for one in overlaps
    )
