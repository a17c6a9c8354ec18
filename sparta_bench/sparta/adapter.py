"""SpaRTA on a model: attach, write the merged values, save, load, detach (section 4, Algorithm 1).

Algorithm 1 adds the deltas before the forward pass and subtracts them after it; in bfloat16 that
makes the base drift. Here the original values of the chosen scalars are kept, and the model's own
weight always holds round(original + delta): forward and inference are the plain model's, and
detaching gives back every bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import TracebackType

import torch
from torch import Tensor, nn

from sparta_bench.sparta.layer import train_linear, train_tensor
from sparta_bench.sparta.sample import sample_indices, sampled_tensors


class SpartaAdapter:
    """Trainable deltas at fixed random places of a model's tensors.

        adapter = SpartaAdapter(model, density=0.05, seed=0)
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-4)
        ...loss.backward(); optimizer.step(); adapter.merge()
        adapter.detach()

    Parameters
    ----------
    model
        A backbone without its head. It is changed in place: all its parameters are frozen, and
        the chosen scalars hold original + delta.
    density, targets, density_of, seed
        See `sampled_tensors` and `sample_indices`.
    dtype
        Of the deltas; float32 keeps every update of a bfloat16 model.

    Attributes
    ----------
    indices
        Per tensor name: flat places, int32, sorted.
    originals
        Per tensor name: the values at these places before training, in the tensor's dtype.
    deltas
        Per tensor name: the trainable changes, in `dtype`.
    """

    def __init__(
        self,
        model: nn.Module,
        density: float,
        seed: int,
        targets: str | Sequence[str] = "all",
        density_of: str = "sampled",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        chances = sampled_tensors(model, density, targets, density_of)
        tensors = dict(model.named_parameters())
        for tensor in tensors.values():
            tensor.requires_grad_(False)
        self._tensors: dict[str, nn.Parameter] = {}
        self.indices: dict[str, Tensor] = {}
        self.originals: dict[str, Tensor] = {}
        self.deltas: dict[str, nn.Parameter] = {}
        for name, chance in chances.items():
            tensor = tensors[name]
            places = sample_indices(tensor.numel(), chance, seed, name).to(tensor.device)
            if len(places) == 0:
                continue  # a short vector at a low density
            self._tensors[name] = tensor
            self.indices[name] = places
            self.originals[name] = tensor.detach().view(-1)[places]
            zeros = torch.zeros(len(places), dtype=dtype, device=tensor.device)
            self.deltas[name] = nn.Parameter(zeros)
        self.sampled_from = sum(tensors[name].numel() for name in chances)
        self._undo = [self._route_gradient(model, name) for name in self._tensors]

    def _route_gradient(self, model: nn.Module, name: str):  # type: ignore[no-untyped-def]
        module = model.get_submodule(name.rpartition(".")[0])
        if type(module) is nn.Linear and name.endswith(".weight"):
            return train_linear(module, self.deltas[name], self.indices[name])
        return train_tensor(self._tensors[name], self.deltas[name], self.indices[name])

    def parameters(self) -> list[nn.Parameter]:
        """The deltas, for an optimizer."""
        return list(self.deltas.values())

    @property
    def chosen(self) -> int:
        """How many scalars train."""
        return sum(len(places) for places in self.indices.values())

    @torch.no_grad()
    def merge(self) -> None:
        """Write round(original + delta) into the weights; call it after each optimizer step."""
        for name, tensor in self._tensors.items():
            wide = torch.promote_types(tensor.dtype, self.deltas[name].dtype)
            total = self.originals[name].to(wide) + self.deltas[name]
            tensor.view(-1)[self.indices[name]] = total.to(tensor.dtype)

    @torch.no_grad()
    def detach(self) -> None:
        """Give the model back as it was, bit for bit; its parameters stay frozen."""
        for undo in self._undo:
            undo()
        self._undo = []
        for name, tensor in self._tensors.items():
            tensor.view(-1)[self.indices[name]] = self.originals[name]

    def __enter__(self) -> SpartaAdapter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    @torch.no_grad()
    def lost_to_rounding(self) -> float:
        """Share of the deltas that are not zero and yet leave their weight as it was."""
        lost = changed = 0
        for name, tensor in self._tensors.items():
            moved = self.deltas[name] != 0
            same = tensor.view(-1)[self.indices[name]] == self.originals[name]
            lost += int((moved & same).sum())
            changed += int(moved.sum())
        return lost / changed if changed else 0.0

    def checksum(self) -> str:
        """A hash of the chosen places, to see that two draws are the same."""
        digest = hashlib.sha256()
        for name, places in sorted(self.indices.items()):
            digest.update(name.encode() + places.cpu().numpy().astype("<i4").tobytes())
        return digest.hexdigest()[:16]

    def tensors(self) -> dict[str, Tensor]:
        """What goes to disk: `<name>.indices` (int32) and `<name>.deltas` per tensor."""
        saved: dict[str, Tensor] = {}
        for name in self._tensors:
            saved[f"{name}.indices"] = self.indices[name].cpu()
            saved[f"{name}.deltas"] = self.deltas[name].detach().cpu()
        return saved

    @torch.no_grad()
    def load_deltas(self, saved: Mapping[str, Tensor]) -> None:
        """Take the deltas of `tensors()` of an adapter with the same places, and merge them.

        Raises
        ------
        ValueError
            If the places are not the same.
        """
        names = {key.removesuffix(".indices") for key in saved if key.endswith(".indices")}
        for name in sorted(names | set(self.deltas)):
            places = saved.get(f"{name}.indices")
            if name not in self.indices or places is None:
                raise ValueError(f"the adapters do not train the same tensors: {name}")
            if not torch.equal(places, self.indices[name].cpu()):
                raise ValueError(f"the adapters do not train the same places of {name}")
        for name, deltas in self.deltas.items():
            deltas.copy_(saved[f"{name}.deltas"])
        self.merge()
