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

from sparta_bench.sparta.targets import chances_of

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
    tensors = dict(model.named_parameters())
    looked_up = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    embeddings = {name for name, tensor in tensors.items() if id(tensor) in looked_up}
    sizes = {name: tensor.numel() for name, tensor in tensors.items()}
    chances = chances_of(sizes, embeddings, density, targets, density_of)
    for name in chances:
        tensor = tensors[name]
        if not (tensor.is_floating_point() and tensor.is_contiguous()):
            shown = targets if isinstance(targets, str) else list(targets)
            raise ValueError(
                f"targets={shown}: {name} is {tensor.dtype} and "
                f"{'' if tensor.is_contiguous() else 'not '}contiguous; only contiguous "
                "floating-point tensors can be chosen from (no quantized ones)"
            )
    return chances


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
    _check_size(count, name)
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


def _check_size(count: int, name: str) -> None:
    if count >= 2**31:
        raise ValueError(f"{name} holds {count} scalars, more than 32-bit indices can tell apart")


def sample_all(
    shapes: Mapping[str, Sequence[int]],
    chances: Mapping[str, float],
    seed: int,
    pattern: str = "scalars",
) -> dict[str, Tensor]:
    """Flat indices (int32, sorted) for each tensor of `chances`; `shapes` has at least these.

    `scalars` draws each scalar by `sample_indices`, on at most 16 processors, whose number changes
    nothing of the outcome. `rows` draws whole rows of a matrix, or of each matrix of a stack (the
    scalars of a vector), with the same probability. `block` is one rectangle, with as many scalars
    as are expected in all and the proportions of the one matrix that it lies in.

    Raises ValueError if no matrix is large enough for the block, or one is too large for indices of
    32 bits.
    """
    for name in chances:
        _check_size(math.prod(shapes[name]), name)
    if pattern == "block":
        return _sample_block(shapes, chances, seed)

    def draw(name: str) -> Tensor:
        *others, width = shapes[name] or (1,)
        if pattern == "scalars" or not others:
            return sample_indices(math.prod(shapes[name]), chances[name], seed, name)
        rows = sample_indices(math.prod(others), chances[name], seed, name)
        return (rows[:, None] * width + torch.arange(width, dtype=torch.int32)).reshape(-1)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        return dict(zip(chances, pool.map(draw, chances), strict=True))


def _sample_block(
    shapes: Mapping[str, Sequence[int]], chances: Mapping[str, float], seed: int
) -> dict[str, Tensor]:
    wanted = math.fsum(math.prod(shapes[name]) * chance for name, chance in chances.items())
    matrices = sorted(name for name in chances if len(shapes[name]) == 2)
    fitting = [name for name in matrices if math.prod(shapes[name]) >= wanted]
    if not fitting:
        largest = max((math.prod(shapes[name]) for name in matrices), default=0)
        raise ValueError(
            f"pattern=block: {round(wanted):,} scalars are more than the largest matrix has "
            f"({largest:,}); lower the density"
        )
    key = int.from_bytes(hashlib.sha256(f"{seed}:block".encode()).digest()[:16], "little")
    bits = np.random.PCG64(key)
    name = fitting[int(bits.random_raw()) % len(fitting)]
    height, width = shapes[name]
    rows = min(max(round(math.sqrt(wanted * height / width)), 1), height)
    columns = min(max(round(wanted / rows), 1), width)
    top = int(bits.random_raw()) % (height - rows + 1)
    left = int(bits.random_raw()) % (width - columns + 1)
    first = torch.arange(top, top + rows, dtype=torch.int32)[:, None] * width
    block = (first + torch.arange(left, left + columns, dtype=torch.int32)).reshape(-1)
    return {other: block if other == name else block[:0] for other in chances}
