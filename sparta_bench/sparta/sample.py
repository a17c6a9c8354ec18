"""Which scalars train: a Bernoulli draw for each (section 4), with work in the number chosen."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


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
        If no tensor fits, or the tensors hold too few scalars for the density.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    names = {
        name: tensor.numel()
        for name, tensor in model.named_parameters()
        if id(tensor) not in embeddings
        and (targets == "all" or (name.endswith(".weight") and name.split(".")[-2] in targets))
    }
    if not names:
        raise ValueError(f"targets={targets}: no tensor of the model is called so")
    chance = density
    if density_of == "backbone":
        backbone = sum(tensor.numel() for tensor in model.parameters())
        chance = density * backbone / sum(names.values())
        if chance > 1:
            raise ValueError(
                f"density={density}: the sampled tensors hold {sum(names.values()):,} scalars, "
                f"which is {sum(names.values()) / backbone:.2%} of the backbone's {backbone:,}"
            )
    return dict.fromkeys(names, chance)


def sample_indices(count: int, chance: float, seed: int, name: str) -> Tensor:
    """Flat places (int32, sorted) chosen from `count` scalars, each with probability `chance`.

    Draws the gaps between chosen scalars, which are geometric, so time and memory are in the
    number chosen. The same count, chance, seed and name give the same places on every device, in
    any process, with any number of threads; the name is mixed in so that two tensors of one shape
    get different places.

    Raises
    ------
    ValueError
        If `count` does not fit 32 bits or `chance` lies outside (0, 1].
    """
    if not 0 < chance <= 1:
        raise ValueError(f"chance={chance}: must lie inside (0, 1]")
    if count >= 2**31:
        raise ValueError(f"{name} holds {count} scalars, more than 32-bit indices can tell apart")
    if chance == 1:
        return torch.arange(count, dtype=torch.int32)
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
    bits = np.random.PCG64(key)
    # Four standard deviations over the mean: a second draw is hardly ever needed.
    block = int(count * chance + 4 * math.sqrt(count * chance)) + 16
    last, parts = -1, []
    while last < count:
        # 53 random bits as a number in [0, 1); only the raw stream is promised to stay the same
        uniform = (bits.random_raw(block) >> np.uint64(11)) * 2.0**-53
        gaps = np.log1p(-uniform, out=uniform)
        gaps /= math.log1p(-chance)
        np.minimum(gaps, count, out=gaps)  # so that the sum below cannot overflow
        places = np.cumsum(gaps.astype(np.int64) + 1) + last
        parts.append(places)
        last = int(places[-1])
    places = np.concatenate(parts)
    return torch.from_numpy(places[: np.searchsorted(places, count)].astype(np.int32))
