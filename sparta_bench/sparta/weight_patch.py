"""A trained model as a patch of its base: which entries change, to what, and from what.

One safetensors file with three vectors per changed tensor: flat indices, the values that go there,
and those that were there before, both in the model's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparta_bench.files import write_tensors
from sparta_bench.sparta.merge import rounded_sum, write_at

if TYPE_CHECKING:
    from sparta_bench.sparta.adapter import SpartaAdapter

INDICES, VALUES, BEFORE = ".indices", ".values", ".before"  # endings of tensors' names
FORMAT = "sparta-bench patch 1"


def write_patch(
    adapter: SpartaAdapter, path: Path, whole: Mapping[str, Tensor], about: Mapping[str, str]
) -> None:
    """Write an attached adapter as a patch. `whole` are tensors that the base has not, such as a
    classifier's head; `about` is added to the metadata."""
    prefix = getattr(adapter.backbone, "base_model_prefix", "")  # as checkpoints name the tensors
    prefix = f"{prefix}." if prefix else ""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in whole.items()}
    for name, indices in adapter.indices.items():
        before = adapter.originals[name]
        parts = {
            INDICES: indices,
            VALUES: rounded_sum(before, adapter.deltas[name].detach()),
            BEFORE: before,
        }
        tensors |= {f"{prefix}{name}{end}": part.cpu() for end, part in parts.items()}
    metadata = {
        "format": FORMAT,
        "prefix": prefix,
        "base_fingerprint": adapter.base_fingerprint,
        **about,
    }
    write_tensors(path, tensors, metadata)


@torch.no_grad()
def apply_patch(state_dict: Mapping[str, Tensor], file: str | Path, revert: bool = False) -> int:
    """Write a patch's values into the tensors of its base, in place; return how many.

    Parameters
    ----------
    state_dict
        The tensors of the base by their names in its checkpoint, or in the backbone alone (without
        `model.`). Others that are there, and those that the patch holds whole, are left alone.
    revert
        Whether to write back what was there before.

    Raises
    ------
    ValueError
        If the file is no patch, or the tensors do not hold the values that it replaces, bit for
        bit: they are of another base or dtype, or patched already. Nothing is written then.
    """
    prefix, tensors = _read(Path(file))
    changes: list[tuple[Tensor, Tensor, Tensor]] = []
    for key, indices in tensors.items():
        if not key.endswith(INDICES):
            continue
        name = key.removesuffix(INDICES)
        ends = (VALUES, BEFORE) if revert else (BEFORE, VALUES)
        old, new = (tensors.get(f"{name}{end}") for end in ends)
        tensor = state_dict.get(name, state_dict.get(name.removeprefix(prefix)))
        if tensor is None:
            raise ValueError(f"{file}: changes {name}, which is not among the tensors given")
        if old is None or new is None or not _fit(indices, old, new, tensor.numel()):
            raise ValueError(f"{file}: the entries of {name} do not fit together, or its tensor")
        if new.dtype != tensor.dtype:
            raise ValueError(
                f"{file}: convert the model to {new.dtype} first: {name} is {tensor.dtype}"
            )
        indices, old, new = (part.to(tensor.device) for part in (indices, old, new))
        if not torch.equal(tensor.reshape(-1)[indices.long()], old):
            state = "with the patch" if revert else "without it"
            raise ValueError(
                f"{file}: {name} does not hold the values of its base {state}: this is another "
                f"base, or the patch is {'not applied' if revert else 'applied already'}"
            )
        changes.append((tensor, indices, new))
    for tensor, indices, new in changes:
        write_at(tensor, indices, new)
    return sum(len(new) for _, _, new in changes)


def _read(file: Path) -> tuple[str, dict[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") == FORMAT:
                return metadata["prefix"], {key: opened.get_tensor(key) for key in opened.keys()}
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from None
    raise ValueError(f"{file}: is no patch (format {metadata.get('format')}, not {FORMAT})")


def _fit(indices: Tensor, old: Tensor, new: Tensor, size: int) -> bool:
    """Whether the indices rise inside a tensor of this size, and each has both its values."""
    if indices.dtype not in (torch.int32, torch.int64) or indices.dim() != 1 or not len(indices):
        return False
    alike = old.shape == new.shape == indices.shape and old.dtype == new.dtype
    rising = bool((indices.diff() > 0).all())
    return alike and rising and int(indices[0]) >= 0 and int(indices[-1]) < size
