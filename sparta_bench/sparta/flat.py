"""All deltas of an adapter as one tensor, for a training loop of one's own.

An optimizer then has one tensor to step, a norm one to sum and processes one to exchange, and all
weights are written in one pass. The weights themselves are plain parameters that ask for a
gradient: as soon as one's is there, a hook takes what was chosen of it and frees it. That costs
less than an autograd function for each layer, and whoever reads a weight needs nothing special.

It is for a loop that gives its optimizer `FlatDeltas.values` and no other parameter of the
backbone. Whoever asks the model for parameters that need a gradient, as Trainer, DDP and
`torch.autograd.grad` do, would get dense weights: for them each layer has deltas of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparta_bench.sparta.kernel_check import usable
from sparta_bench.sparta.layer import ChosenEntries
from sparta_bench.sparta.merge import rounded_sum, write_at

# Entries whose sums are rounded at once, where no kernel does it, by device: a GPU starts few
# kernels, on a CPU each weight is by itself. Rounding takes up to 22 bytes an entry.
_PIECE = {"cpu": 1, "cuda": 1 << 22}


class SampledTensor(NamedTuple):
    """A tensor some of whose entries train: its name, itself, the deltas and what is chosen."""

    name: str
    weight: nn.Parameter
    deltas: nn.Parameter
    entries: ChosenEntries


class FlatDeltas:
    """The deltas of `tensors`, which must lie on one device, as one tensor: each is a slice.

    Attributes
    ----------
    values
        All deltas; for the optimizer. Its gradient is made by the first backward pass of a step.
    reached
        Names of the tensors that have had a gradient so far.
    """

    def __init__(self, tensors: Sequence[SampledTensor]) -> None:
        # those of one dtype stand together, so that their originals are one tensor too
        dtypes = dict.fromkeys(tensor.weight.dtype for tensor in tensors)
        ordered = [t for dtype in dtypes for t in tensors if t.weight.dtype == dtype]
        self.names = [tensor.name for tensor in ordered]
        self.values = nn.Parameter(torch.cat([tensor.deltas.detach() for tensor in ordered]))
        self.reached: set[str] = set()
        self._groups: list[_OneDtype] = []
        self._handles: list[RemovableHandle] = []
        start = 0
        for dtype in dtypes:
            group = [tensor for tensor in ordered if tensor.weight.dtype == dtype]
            count = sum(len(tensor.deltas) for tensor in group)
            deltas = self.values.detach()[start : start + count]
            self._groups.append(_OneDtype(group, deltas))
            for tensor, own in zip(group, _split(deltas, group), strict=True):
                tensor.deltas.data = own
                self._handles += self._hooks(tensor, slice(start, start + len(own)))
                start += len(own)

    def _hooks(self, tensor: SampledTensor, part: slice) -> list[RemovableHandle]:
        """Of the weight, and of the deltas, which layers that compute chosen entries alone give a
        gradient."""
        name, weight, deltas, entries = tensor
        weight.requires_grad_(True)

        def gather(weight: Tensor) -> None:
            if weight.grad is None:  # a layer computed the chosen entries alone
                return
            self._add(name, part, weight.grad.reshape(-1).index_select(0, entries.indices))
            weight.grad = None  # at once, so that one dense gradient is alive at a time

        def move(deltas: Tensor) -> None:
            assert deltas.grad is not None
            self._add(name, part, deltas.grad)
            deltas.grad = None

        return [
            weight.register_post_accumulate_grad_hook(gather),  # type: ignore[no-untyped-call]
            deltas.register_post_accumulate_grad_hook(move),  # type: ignore[no-untyped-call]
        ]

    def _add(self, name: str, part: slice, gradient: Tensor) -> None:
        if self.values.grad is None:
            self.values.grad = torch.zeros_like(self.values)
        self.values.grad[part].add_(gradient)
        self.reached.add(name)

    def uses_kernel(self) -> bool:
        """Whether Triton's kernel writes all weights."""
        return all(group.uses_kernel for group in self._groups)

    @torch.no_grad()
    def merge(self) -> None:
        """Write round(original + delta) into all weights."""
        for group in self._groups:
            group.merge()

    def let_go(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()


class _OneDtype:
    """Tensors whose weights have one dtype; `deltas` are theirs, in one run."""

    def __init__(self, tensors: Sequence[SampledTensor], deltas: Tensor) -> None:
        self.weights = [tensor.weight for tensor in tensors]
        self.deltas = deltas
        self.indices = torch.cat([tensor.entries.indices for tensor in tensors])
        self.originals = torch.cat([tensor.entries.originals for tensor in tensors])
        self.counts = [len(tensor.deltas) for tensor in tensors]
        parts = (_split(whole, tensors) for whole in (self.indices, self.originals))
        for tensor, indices, originals in zip(tensors, *parts, strict=True):
            tensor.entries.indices, tensor.entries.originals = indices, originals
        self.addresses: list[int] = []
        contiguous = all(weight.is_contiguous() for weight in self.weights)
        dtypes = self.originals.dtype, deltas.dtype
        device = deltas.device
        self.uses_kernel = (
            device.type == "cuda" and contiguous and usable("merge_all", device, *dtypes)
        )

    def merge(self) -> None:
        if self.uses_kernel:
            from sparta_bench.sparta import kernels  # imports Triton

            addresses = [weight.data_ptr() for weight in self.weights]
            if addresses != self.addresses:  # at first, and where somebody has moved the weights
                self.addresses = addresses
                self.kernel_pieces = kernels.pieces_of(self.weights, self.counts)
            kernels.merge_all(self.kernel_pieces, self.indices, self.originals, self.deltas)
            return
        for weights, counts, part in self._pieces():
            sums = rounded_sum(self.originals[part], self.deltas[part])
            parts = (torch.split(whole, counts) for whole in (self.indices[part], sums))
            for weight, indices, values in zip(weights, *parts, strict=True):
                write_at(weight, indices, values)

    def _pieces(self) -> Iterator[tuple[list[nn.Parameter], list[int], slice]]:
        """Weights that follow each other, their counts, and where they stand."""
        weights: list[nn.Parameter] = []
        counts: list[int] = []
        start = 0
        for weight, count in zip(self.weights, self.counts, strict=True):
            weights.append(weight)
            counts.append(count)
            if sum(counts) >= _PIECE.get(self.deltas.device.type, 1) or weight is self.weights[-1]:
                stop = start + sum(counts)
                yield weights, counts, slice(start, stop)
                weights, counts, start = [], [], stop


def _split(whole: Tensor, tensors: Sequence[SampledTensor]) -> Sequence[Tensor]:
    return torch.split(whole, [len(tensor.deltas) for tensor in tensors])
