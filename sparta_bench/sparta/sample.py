"""Which scalars train: a Bernoulli draw for each (section 4), with work in the number chosen."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn

DENSITY_OF = ("sampled", "backbone")  # what a density is a share of
_BLOCK = 1 << 16  # draws at a time


def sampled_tensors(
    model: nn.Module,
    density: float,
    targets: str | Sequence[str] = "all",
    density_of: str = "sampled",
) -> dict[str, float]:
    """The names of the tensors to choose from, with the probability for each of their scalars.

    Parameters
    ----------
    model
        A backbone without its head.
    density
        Inside (0, 1).
    targets
        `all`: every tensor but embeddings, norm vectors and biases included (section 5); or the
        names of modules, such as `["v_proj", "o_proj"]`, whose weights are sampled.
    density_of
        `sampled`: the density is that probability; `backbone`: the share of the whole backbone,
        embeddings included, that is to be chosen, as in the authors' released code.

    Raises
    ------
    ValueError
        If no tensor fits, one that does cannot be chosen from (quantized, not contiguous), the
        tensors hold too few scalars for the density, or `density_of` is neither.
    """
    if density_of not in DENSITY_OF:
        raise ValueError(f"density_of={density_of}: must be {' or '.join(DENSITY_OF)}")
    tensors = _targeted(model, targets)
    chance = density
    if density_of == "backbone":
        backbone = sum(tensor.numel() for tensor in model.parameters())
        scalars = sum(tensor.numel() for tensor in tensors.values())
        chance = density * backbone / scalars
        if chance > 1:
            raise ValueError(
                f"density={density}: the sampled tensors hold {scalars:,} scalars, "
                f"which is {scalars / backbone:.2%} of the backbone's {backbone:,}"
            )
    return dict.fromkeys(tensors, chance)


def _targeted(model: nn.Module, targets: str | Sequence[str]) -> dict[str, Tensor]:
    """By name the tensors that `targets` means (see `sampled_tensors`), all of which can be chosen
    from."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tensors: dict[str, Tensor] = {
        name: tensor for name, tensor in model.named_parameters() if id(tensor) not in embeddings
    }
    if targets == "all":
        if not tensors:
            raise ValueError(f"targets={targets}: the model has nothing but embeddings")
    else:
        targets = targets if isinstance(targets, str) else list(targets)  # as messages show it
        wanted = {targets} if isinstance(targets, str) else set(targets)
        tensors = {name: t for name, t in tensors.items() if _module_of_weight(name) in wanted}
        missing = sorted(wanted - set(map(_module_of_weight, tensors)))
        if missing or not wanted:
            called = ", ".join(missing) or "nothing"
            raise ValueError(f"targets={targets}: no module of the model is called {called}")
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() and tensor.is_contiguous()):
            raise ValueError(
                f"targets={targets}: {name} is {tensor.dtype} and "
                f"{'' if tensor.is_contiguous() else 'not '}contiguous; only contiguous "
                "floating-point tensors can be chosen from (no quantized ones)"
            )
    return tensors


def _module_of_weight(name: str) -> str | None:
    """`v_proj` of `layers.0.self_attn.v_proj.weight`; None where it is no module's weight."""
    path, _, own_name = name.rpartition(".")
    return path.rpartition(".")[2] if path and own_name == "weight" else None


def sample_indices(count: int, chance: float, seed: int, name: str) -> Tensor:
    """Flat indices (int32, sorted) chosen from `count` scalars, each with probability `chance`.

    Draws the gaps between chosen scalars, which are geometric, so time and memory are in the
    number chosen. The same count, chance, seed and name give the same indices on every device, in
    any process, with any number of threads; the name is mixed in so that two tensors of one shape
    get different ones.

    Raises ValueError if `count` does not fit 32 bits or `chance` lies outside (0, 1].
    """
    if not 0 < chance <= 1:
        raise ValueError(f"chance={chance}: must lie inside (0, 1]")
    if count >= 2**31:
        raise ValueError(f"{name} holds {count} scalars, more than 32-bit indices can tell apart")
    if chance == 1:
        return torch.arange(count, dtype=torch.int32)
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
    bits = np.random.PCG64(key)
    scale = math.log1p(-chance)
    last, parts = -1, []
    while last < count:
        # about what is left, and in pieces that stay in the processor's cache
        block = min(int((count - last) * chance) + 64, _BLOCK)
        # 53 random bits as a number in [0, 1); only the raw stream is promised to stay the same
        uniform = (bits.random_raw(block) >> np.uint64(11)) * 2.0**-53
        gaps = np.log1p(np.negative(uniform, out=uniform), out=uniform)
        gaps /= scale
        np.minimum(gaps, count, out=gaps)  # so that the sum below cannot overflow
        indices = gaps.astype(np.int64)
        indices += 1
        np.cumsum(indices, out=indices)
        indices += last
        last = int(indices[-1])
        if last >= count:
            indices = indices[: np.searchsorted(indices, count)]
        parts.append(indices.astype(np.int32))
    return torch.from_numpy(np.concatenate(parts))


def sample_all(
    sizes: Mapping[str, int], chances: Mapping[str, float], seed: int
) -> dict[str, Tensor]:
    """`sample_indices` for each tensor of `chances`, on at most 16 processors; the number of
    threads changes nothing of the outcome. `sizes` are counts of scalars, by name too."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        draws = pool.map(
            lambda name: sample_indices(sizes[name], chances[name], seed, name), chances
        )
        return dict(zip(chances, draws, strict=True))
