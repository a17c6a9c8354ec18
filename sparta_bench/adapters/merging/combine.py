"""Several trained models in one backbone, each with its own head on top (section 8)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sparta_bench.adapters import multi_head
from sparta_bench.adapters.export import refuse_to_replace, written
from sparta_bench.adapters.merging.merge_methods import Rule, combine, thin
from sparta_bench.adapters.merging.overlap import Overlap, overlaps_of
from sparta_bench.adapters.merging.task_vectors import Base, open_task_vectors
from sparta_bench.adapters.read_folder import TaskVector
from sparta_bench.errors import InputError
from sparta_bench.methods.trained import HEAD


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
    says what was written, and warnings."""
    for number, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:number]]:
            raise InputError(f"{folder}: is given twice; combine --weights 2,… adds one up twice")
        refuse_to_replace(folder, out, force)
    merged, vectors = open_task_vectors(folders, base, tokenizer, names)
    overlaps = overlaps_of(vectors, merged)
    merge_into(merged, vectors, rule)
    heads = {vector.name: vector.heads[HEAD] for vector in vectors}
    about = {vector.name: vector.manifest for vector in vectors}
    with written(out) as temporary:
        model = multi_head.MultiHead(merged.backbone, heads)
        origin = _origin(vectors, rule, overlaps)
        multi_head.write(model, merged.tokenizer, about, origin, temporary)
    scalars = sum(value.numel() for value in merged.values.values())
    line = (
        f"{out}: {scalars:,} scalars in {merged.dtype} ({rule.name}), with "
        f"{len(heads)} head{'s' * (len(heads) > 1)}: {', '.join(heads)}"
    )
    return line, same_draws(vectors, overlaps)


def _origin(
    vectors: Sequence[TaskVector], rule: Rule, overlaps: Sequence[Overlap]
) -> dict[str, Any]:
    """What the merged model was made of, without paths."""
    keys = ("task", "method", "density", "seed")
    return {
        "rule": rule.as_dict(),
        "models": [
            {"head": vector.name, "folder": vector.folder.resolve().name}
            | {key: getattr(vector.manifest, key) for key in keys}
            | {"weight": weight}
            for vector, weight in zip(vectors, rule.weights_of(len(vectors)), strict=True)
        ],
        "overlap": [overlap.as_dict() for overlap in overlaps],
    }


def same_draws(vectors: Sequence[TaskVector], overlaps: Sequence[Overlap]) -> list[str]:
    """Return a warning for each two SpaRTA adapters of one seed: their indices are the same draw,
    or one's are among the other's."""
    seeds = {vector.name: vector.seed for vector in vectors}
    return [
        f"{one} and {other} were both drawn with seed {seeds[one]}, so their "
        f"indices coincide: {overlap.shared:,} are shared, where independent draws would "
        f"share about {overlap.shared_by_chance:,.0f}"
        for overlap in overlaps
        for one, other in [overlap.names]
        # targets of which none is the other's share nothing, whatever the seed
        if seeds[one] is not None and seeds[one] == seeds[other] and overlap.shared
    ]


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
