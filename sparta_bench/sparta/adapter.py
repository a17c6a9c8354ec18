"""SpaRTA on a model: attach, write the merged values, save, load, detach (section 4, Algorithm 1).

Algorithm 1 adds the deltas before the forward pass and subtracts them after it; in bfloat16 that
makes the base drift. Here the original values of the chosen scalars are kept, and the model's own
weight always holds round(original + delta): forward and inference are the plain model's, and
detaching gives back every bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from sparta_bench.sparta import store
from sparta_bench.sparta.base import Head, backbone_of, head_of
from sparta_bench.sparta.gradient import WAYS
from sparta_bench.sparta.layer import Places, is_touched, touch
from sparta_bench.sparta.merge import write_merged
from sparta_bench.sparta.sample import sample_all, sampled_tensors

Where = tuple[nn.Module, str]  # a tensor: the module that holds it, and its name there


class SpartaAdapter:
    """Trainable deltas at fixed random places of a model's tensors.

        adapter = SpartaAdapter(model, density=0.05, seed=0)
        ...train `model` with any optimizer, any loop, or transformers' Trainer...
        adapter.save("my-adapter")
        adapter.detach()                                  # the model as it was, bit for bit

        adapter = SpartaAdapter.load(model, "my-adapter")  # later, on the same base model

    After each step of a torch optimizer that holds deltas, the changed weights are written, so the
    model's forward pass is never stale; who changes deltas otherwise calls `merge`.

    Parameters
    ----------
    model
        A Hugging Face model, with or without a head, or any torch module. It is changed in place:
        its parameters are frozen, the chosen scalars hold original + delta, and what stands on
        top of the backbone (a classification head) trains in full (section 6.3). Embeddings and
        a vocabulary head stay frozen.
    density
        Probability with which each scalar is chosen (section 5); inside (0, 1).
    seed
        Of the choice: same seed, same tensor names and sizes, same places, on any device.
    targets, density_of
        Which tensors are chosen from, and what the density counts: see `sample.sampled_tensors`.
    dtype
        Of the deltas, and at least of the head; float32 keeps every update of a bfloat16 model.
    gradient
        How chosen entries of a weight's gradient are computed: `auto`, `dense` or `sampled`
        (see `gradient.weight_gradient_at`).
    merge_after_step
        Whether to write the weights after an optimizer's step without being asked.

    Attributes
    ----------
    deltas
        Per tensor name of the backbone: the trainable changes, 1-d, in `dtype`.
    head
        Name and tensor of each parameter that trains in full.

    Raises
    ------
    ValueError
        If the model carries an adapter already, or nothing can be chosen as asked.
    """

    def __init__(
        self,
        model: nn.Module,
        density: float,
        seed: int,
        targets: str | Sequence[str] = "all",
        density_of: str = "sampled",
        dtype: torch.dtype = torch.float32,
        gradient: str = "auto",
        merge_after_step: bool = True,
    ) -> None:
        if not 0 < density < 1:
            raise ValueError(f"density={density}: must lie inside (0, 1)")
        backbone = backbone_of(model)
        chances = sampled_tensors(backbone, density, targets, density_of)
        sizes = {name: tensor.numel() for name, tensor in backbone.named_parameters()}
        places = sample_all(sizes, chances, seed)
        draw = store.Draw(density, seed, targets, density_of)
        self._attach(model, places, draw, dtype, gradient, merge_after_step)

    def _attach(
        self,
        model: nn.Module,
        places: Mapping[str, Tensor],
        draw: store.Draw | None,
        dtype: torch.dtype,
        gradient: str,
        merge_after_step: bool,
    ) -> None:
        if gradient not in WAYS:
            raise ValueError(f"gradient={gradient}: must be one of {', '.join(WAYS)}")
        _refuse_second(model)
        self.model, self.draw, self.dtype = model, draw, dtype
        self.backbone = backbone_of(model)
        self.base_fingerprint = store.fingerprint_of(self.backbone)
        self._were_trainable = [(p, p.requires_grad) for p in model.parameters()]
        model.requires_grad_(False)
        self._head = Head(model, dtype)
        self._where = _where(self.backbone, [name for name in places if len(places[name])])
        self.deltas: dict[str, nn.Parameter] = {}
        touched: dict[nn.Module, dict[str, str]] = {}  # module: name there: name in the backbone
        kept: dict[str, Places] = {}
        for name, sites in self._where.items():
            tensor = _tensor(sites[0])
            indices = places[name].to(tensor.device)
            kept[name] = Places(indices, tensor.detach().view(-1).index_select(0, indices))
            zeros = torch.zeros(len(indices), dtype=dtype, device=tensor.device)
            self.deltas[name] = nn.Parameter(zeros)
            for module, own_name in sites:
                touched.setdefault(module, {})[own_name] = name
        self._undo: list[Callable[[], None]] = [
            touch(
                module,
                {own: self.deltas[name] for own, name in names.items()},
                {own: kept[name] for own, name in names.items()},
                gradient,
            )
            for module, names in touched.items()
        ]
        # as long-lived as the model, also where nobody keeps the adapter
        object.__setattr__(model, "sparta_adapter", self)
        self._unhook = _merge_after_steps_of(self) if merge_after_step else lambda: None
        self._attached = True

    # ------------------------------------------------------------------------ what trains
    @property
    def head(self) -> dict[str, nn.Parameter]:
        """Parameters on top of the backbone, which train in full, by name in the model."""
        return self._head.parameters

    def parameters(self) -> list[nn.Parameter]:
        """Deltas and head, for an optimizer."""
        return [*self.deltas.values(), *self.head.values()]

    @property
    def chosen(self) -> int:
        """How many scalars of the backbone train."""
        return sum(deltas.numel() for deltas in self.deltas.values())

    @property
    def indices(self) -> dict[str, Tensor]:
        """Per tensor name: flat places, int32, sorted, on the tensor's device."""
        return {name: self._places(name).indices for name in self._where}

    @property
    def originals(self) -> dict[str, Tensor]:
        """Per tensor name: the values at these places before training, in the tensor's dtype."""
        return {name: self._places(name).originals for name in self._where}

    def _places(self, name: str) -> Places:
        module, own_name = self._where[name][0]
        places: Places = module.sparta_places[own_name]  # type: ignore[index, union-attr, assignment]
        return places

    # --------------------------------------------------------------------- into the weights
    @torch.no_grad()
    def merge(self, names: Iterable[str] | None = None) -> None:
        """Write round(original + delta) into the weights: all, or the tensors of these names."""
        for name in self._where if names is None else names:
            places = self._places(name)
            tensor = _tensor(self._where[name][0])
            write_merged(tensor, places.indices, places.originals, self.deltas[name])

    @torch.no_grad()
    def detach(self) -> None:
        """Give the model back as it was, bit for bit, head included. Twice is once."""
        if not self._attached:
            return
        for name, sites in self._where.items():
            places = self._places(name)
            _tensor(sites[0]).view(-1).scatter_(0, places.indices.long(), places.originals)
        self._head.restore()
        self._let_go()

    def bake(self) -> None:
        """Make the model plain, with the trained values as its own weights. The head takes the
        dtype again that it had."""
        if not self._attached:
            return
        self.merge()
        self._head.keep()
        self._let_go()

    def _let_go(self) -> None:
        self._attached = False
        self._unhook()
        for undo in self._undo:
            undo()
        for parameter, trainable in self._were_trainable:
            parameter.requires_grad_(trainable)
        del self.model.sparta_adapter
        self._where = {}

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
        for name, sites in self._where.items():
            places = self._places(name)
            now = _tensor(sites[0]).view(-1).index_select(0, places.indices)
            moved = self.deltas[name] != 0
            lost += int((moved & (now == places.originals)).sum())
            changed += int(moved.sum())
        return lost / changed if changed else 0.0

    def checksum(self) -> str:
        """A hash of the chosen places, to see that two draws are the same."""
        return store.checksum_of(self.indices)

    # ---------------------------------------------------------------------------- to disk
    def saved(self, compact: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What goes to disk: tensors (on the CPU), and what describes and checks them.

        `<name>.indices` (int32) and `<name>.deltas` per tensor, `head...` for the head. `compact`
        leaves the indices out: loading draws them again from the seed, and checks them.

        Raises
        ------
        ValueError
            If the adapter is detached, or `compact` is asked for and the indices were not drawn
            from a seed.
        """
        if not self._attached:
            raise ValueError("the adapter is detached from its model; save it before that")
        if compact and self.draw is None:
            raise ValueError("compact: this adapter's indices were not drawn from a seed")
        tensors: dict[str, Tensor] = {}
        for name, indices in self.indices.items():
            if not compact:
                tensors[f"{name}.indices"] = indices.cpu()
            tensors[f"{name}.deltas"] = self.deltas[name].detach().cpu()
        heads = Head.saved_names(self.head)
        tensors |= {name: value.detach().cpu() for name, value in heads.items()}
        about = store.describe(self.draw, self.dtype, compact)
        about |= {
            "base_fingerprint": self.base_fingerprint,
            "indices_checksum": self.checksum(),
            "originals_checksum": store.checksum_of(self.originals),
            "chosen": self.chosen,
        }
        return tensors, about

    def save(
        self, folder: str | Path, compact: bool = False, about: Mapping[str, Any] | None = None
    ) -> None:
        """Write `adapter.safetensors` and `adapter_config.json` into `folder`.

        `about` is added to the configuration: labels, prompt and so on. See `saved`.
        """
        tensors, description = self.saved(compact)
        store.write(Path(folder), tensors, {**description, **(about or {})})

    @classmethod
    def load(
        cls,
        model: nn.Module,
        folder: str | Path,
        head: bool = True,
        gradient: str = "auto",
        merge_after_step: bool = True,
        allow_pickle: bool = False,
    ) -> SpartaAdapter:
        """Put a saved adapter on the base model that it was trained on; it can be trained on.

        Reads this project's layout and peft-sparta's. Everything is checked before the model is
        touched: files whole and as written, shapes, places, and that the base is the same (by
        values; peft-sparta's layout has nothing to tell it by).

        Parameters
        ----------
        head
            Whether the adapter's head goes onto the model's; else both are left alone.
        allow_pickle
            Whether to read the `.pt` files of peft-sparta's trainer (tensors only).

        Raises
        ------
        ValueError
            With one line: the file, what is wrong with it, or how the base differs.
        """
        folder = Path(folder)
        _refuse_second(model)
        backbone = backbone_of(model)
        saved = store.read(folder, backbone, allow_pickle)
        places = saved.places
        if places is None:
            places = _redraw(backbone, saved.draw, folder)
        store.check(saved, places, backbone, folder)
        heads = Head.saved_names(head_of(model)) if head else {}
        store.check_head(saved.head if head else {}, heads, folder)
        adapter = cls.__new__(cls)
        adapter._attach(model, places, saved.draw, saved.dtype, gradient, merge_after_step)
        with torch.no_grad():
            for name, deltas in adapter.deltas.items():
                deltas.copy_(saved.deltas[name])
            for saved_name, parameter in heads.items():
                parameter.copy_(saved.head[saved_name])
        adapter.merge()
        return adapter


def _refuse_second(model: nn.Module) -> None:
    if any(is_touched(module) for module in model.modules()):
        raise ValueError("the model carries a SpaRTA adapter already; detach that first")


def _redraw(backbone: nn.Module, draw: store.Draw | None, folder: Path) -> dict[str, Tensor]:
    if draw is None:
        raise ValueError(f"{folder}: a compact adapter without density and seed")
    chances = sampled_tensors(backbone, draw.density, draw.targets, draw.density_of)
    sizes = {name: tensor.numel() for name, tensor in backbone.named_parameters()}
    places = sample_all(sizes, chances, draw.seed)
    return {name: indices for name, indices in places.items() if len(indices)}


def _tensor(where: Where) -> nn.Parameter:
    module, name = where
    tensor = module._parameters[name]
    assert tensor is not None
    return tensor


def _where(backbone: nn.Module, names: Iterable[str]) -> dict[str, list[Where]]:
    """All modules that hold each tensor: a tied one is held by several."""
    holders: dict[int, list[Where]] = {}
    for module in backbone.modules():
        for own_name, tensor in module._parameters.items():
            if tensor is not None:
                holders.setdefault(id(tensor), []).append((module, own_name))
    tensors = dict(backbone.named_parameters())
    return {name: holders[id(tensors[name])] for name in names}


def _merge_after_steps_of(adapter: SpartaAdapter) -> Callable[[], None]:
    """Merge what an optimizer has just changed, whichever optimizer of torch it is."""
    itself = weakref.ref(adapter)

    def merge(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        adapter = itself()
        if adapter is None:
            return
        held = {id(value) for group in optimizer.param_groups for value in group["params"]}
        adapter.merge([name for name, deltas in adapter.deltas.items() if id(deltas) in held])

    return register_optimizer_step_post_hook(merge).remove
