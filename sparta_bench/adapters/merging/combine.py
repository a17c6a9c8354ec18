"""Several trained models in one backbone, each with its own head on top (section 8)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparta_bench.adapters import multi_head
from sparta_bench.adapters.load_adapter import lora_settings
from sparta_bench.adapters.merging.merge_methods import Rule, SparseDelta, combine, thin
from sparta_bench.adapters.merging.overlap import Overlap, overlaps_of
from sparta_bench.adapters.merging.task_vectors import Base, TaskVector, open_task_vectors
from sparta_bench.adapters.multi_head import MultiHead
from sparta_bench.adapters.output_folder import refuse_to_replace, written
from sparta_bench.errors import InputError
from sparta_bench.methods.lora import peft_settings

MERGED = "merged"  # peft's name of what it makes


def multi_head_of(
    folders: Sequence[Path],
    out: Path,
    rule: Rule,
    base: str | None = None,
    tokenizer: str | None = None,
    names: Sequence[str] | None = None,
    force: bool = False,
) -> tuple[str, list[str]]:
    """Merge what lies in the folders and write it (see `multi_head.write`).

    Returns a line that says what is there now, and warnings.

    Raises
    ------
    InputError
        If they do not fit together, or `out` is not empty and `force` not given.
    """
    _refuse_twice(folders)
    for folder in folders:
        refuse_to_replace(folder, out, force)
    found, sources = open_task_vectors(folders, base, tokenizer, names)
    overlaps = overlaps_of(sources, found)
    merge_into(found, sources, rule)
    heads = {source.name: source.head for source in sources}
    about = {source.name: source.about for source in sources}
    with written(out) as temporary:
        model = MultiHead(found.backbone, heads)
        multi_head.write(model, found.tokenizer, about, _origin(sources, rule, overlaps), temporary)
    scalars = sum(value.numel() for value in found.values.values())
    line = (
        f"{out}: {scalars:,} scalars in {found.dtype} ({rule.name}), with "
        f"{len(sources)} head{'s' * (len(sources) > 1)}: {', '.join(heads)}"
    )
    return line, same_places(sources, overlaps)


def _refuse_twice(folders: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {}
    for folder in folders:
        first = seen.setdefault(folder.resolve(), folder)
        if first is not folder:
            raise InputError(f"{folder}: is given twice; combine --weights 2,… adds one up twice")


def _origin(
    sources: Sequence[TaskVector], rule: Rule, overlaps: Sequence[Overlap]
) -> dict[str, Any]:
    """What the merged model was made of, without paths."""
    return {
        "rule": rule.as_dict(),
        "models": [
            {
                "head": source.name,
                "folder": source.folder.resolve().name,
                "task": source.about.task,
                "method": source.about.method,
                "density": source.about.density,
                "seed": source.about.seed,
                "weight": weight,
            }
            for source, weight in zip(sources, rule.weights_of(len(sources)), strict=True)
        ],
        "overlap": [overlap.as_dict() for overlap in overlaps],
    }


def same_places(sources: Sequence[TaskVector], overlaps: Sequence[Overlap]) -> list[str]:
    """A warning for each two SpaRTA adapters of one seed: their places are the same draw, or one's
    are among the other's."""
    by_name = {source.name: source for source in sources}
    lines = []
    for overlap in overlaps:
        one, other = (by_name[name] for name in overlap.names)
        if one.draw is None or other.draw is None:
            continue
        # targets of which none is the other's share nothing, whatever the seed
        if one.draw.seed == other.draw.seed and overlap.shared:
            lines.append(
                f"{one.name} and {other.name} were both drawn with seed {one.draw.seed}, so their "
                f"places coincide: {overlap.shared:,} are shared, where independent draws would "
                f"share about {overlap.shared_by_chance:,.0f}"
            )
    return lines


@torch.no_grad()
def merge_into(base: Base, sources: Sequence[TaskVector], rule: Rule) -> None:
    """Write the combined changes into the backbone, which must hold the base's values.

    Raises
    ------
    InputError
        If LoRA adapters stand beside others, or DARE is asked of a single one.
    """
    of_lora = [source for source in sources if source.factors is not None]
    if of_lora and len(of_lora) < len(sources):
        raise InputError(
            f"{of_lora[0].folder}: is LoRA's and the others are not; LoRA adapters are merged by "
            "peft, with each other alone (merge bake makes a whole model of one)"
        )
    if len(of_lora) == 1 and rule.keep is not None:
        raise InputError(
            f"{of_lora[0].folder}: peft drops nothing of a single LoRA adapter (--dare)"
        )
    if of_lora:
        base.backbone = _merged_by_peft(base, sources, rule)
        return
    for name, parameter in base.backbone.named_parameters():
        changes = [_entries(source, name, base.values[name], rule) for source in sources]
        parameter.copy_(combine(base.values[name], changes, rule))


def _entries(source: TaskVector, name: str, base: Tensor, rule: Rule) -> SparseDelta:
    """What one model changed in a tensor of the base, after DARE where the rule asks for that."""
    entries = source.entries(name, base)
    if rule.keep is None:
        return entries
    return thin(entries, rule.keep, rule.seed, f"{source.name}/{name}")


def _merged_by_peft(base: Base, sources: Sequence[TaskVector], rule: Rule) -> Any:
    """The backbone with LoRA adapters in it as peft combines them: the sum exactly, by putting
    their matrices side by side; TIES and DARE on the products, of which as many singular
    directions are kept as all adapters have together. Weights go into the matrices, since peft's
    own would not count in TIES' election."""
    from peft import get_peft_model

    names, ranks = [f"model-{number}" for number in range(len(sources))], 0
    wrapped: Any = None
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # of a density of 1, and that nobody named a task type
        torch.manual_seed(rule.seed)
        weights = rule.weights_of(len(sources))
        for name, source, weight in zip(names, sources, weights, strict=True):
            method = lora_settings(source.about, source.folder)
            ranks += method.r
            if wrapped is None:
                wrapped = get_peft_model(base.backbone, peft_settings(method), adapter_name=name)
            else:
                wrapped.add_adapter(name, peft_settings(method))
            _fill(wrapped, name, source, weight)
        wrapped.add_weighted_adapter(
            names,
            [1.0] * len(names),
            MERGED,
            combination_type=_kind(rule),
            svd_rank=ranks,
            density=1.0 if rule.keep is None else rule.keep,
        )
        return wrapped.merge_and_unload(adapter_names=[MERGED])


def _kind(rule: Rule) -> str:
    """peft's name of the rule."""
    if rule.keep is None:
        return "cat" if rule.how == "sum" else "ties_svd"
    return "dare_linear_svd" if rule.how == "sum" else "dare_ties_svd"


def _fill(wrapped: Any, name: str, source: TaskVector, weight: float) -> None:
    """Put an adapter's matrices in their places, one of each two multiplied by the weight."""
    assert source.factors is not None
    for own, parameter in wrapped.named_parameters():
        if f".{name}." in own:
            stored = own.removeprefix("base_model.model.").replace(f".{name}.", ".default.")
            parameter.copy_(source.factors[stored] * (weight if ".lora_B." in stored else 1.0))
