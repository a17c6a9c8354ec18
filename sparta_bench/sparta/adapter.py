"""SpaRTA on a model: attach, write the merged values, save, load, detach (section 4, Algorithm 1).

Algorithm 1 adds the deltas before the forward pass and subtracts them after it; in bfloat16 that
makes the base drift. Here the original values of the chosen scalars are kept, and the model's own
weight always holds round(original + delta): forward and inference are the plain model's, and
detaching gives back every bit.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import barrier, get_rank
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from sparta_bench.sparta import peft_sparta, store
from sparta_bench.sparta.backbone import Head, backbone_of, head_of
from sparta_bench.sparta.flat import FlatDeltas, SampledTensor
from sparta_bench.sparta.gradient import WAYS, takes_kernel
from sparta_bench.sparta.kernel_check import usable
from sparta_bench.sparta.layer import (
    DELTAS,
    ChosenEntries,
    is_patched,
    make_plain,
    patch,
    unpatch,
    write_entries,
)
from sparta_bench.sparta.merge import write_at
from sparta_bench.sparta.sample import sample_all, sampled_tensors
from sparta_bench.sparta.sharded import (
    fill,
    is_sharded,
    local,
    mesh_of,
    own_entries,
    reshard,
    rows_of,
    sharded,
    values_at,
    whole,
)

Holder = tuple[nn.Module, str]  # of a tensor: a module, and the tensor's name there


class SpartaAdapter:
    """Trainable deltas at fixed random entries of a model's tensors.

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
        Of the choice: the same seed, tensor names and sizes give the same indices on any device.
    targets, density_of
        Which tensors are chosen from, and what the density counts: see `sample.sampled_tensors`.
    pattern
        What is drawn together: `scalars` (each for itself, as in the paper), `rows` or `block`: see
        `sample.sample_all`.
    dtype
        Of the deltas, and at least of the head: float32, which keeps every update of a bfloat16
        model, float64, bfloat16 or float16.
    gradient
        How chosen entries of a weight's gradient are computed: `auto`, `dense` or `sampled`
        (see `gradient.weight_gradient_at`).
    merge_after_step
        Whether to write the weights after an optimizer's step without being asked.

    Attributes
    ----------
    base_fingerprint
        What tells the base from others (see `store.fingerprint_of`).
    draw
        How the indices were drawn; None for an adapter of peft-sparta.
    kernels
        On CUDA, what writes the weights (`merge`) and what computes sampled gradients
        (`gradient`): `triton`, or `torch` where the kernel does not work here or no layer takes
        it. None on other devices.

    Raises
    ------
    ValueError
        If a parameter has no such value, the model carries an adapter already or is wrapped by
        peft, or nothing can be chosen as asked; the model is untouched then.
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
        pattern: str = "scalars",
    ) -> None:
        draw = store.Draw(density, seed, targets, density_of, pattern)
        indices = _drawn(backbone_of(model), draw)
        self._attach(model, indices, draw, dtype, gradient, merge_after_step)

    def _attach(
        self,
        model: nn.Module,
        indices: Mapping[str, Tensor],
        draw: store.Draw | None,
        dtype: torch.dtype,
        gradient: str,
        merge_after_step: bool,
    ) -> None:
        if gradient not in WAYS:
            raise ValueError(f"gradient={gradient}: must be one of {', '.join(WAYS)}")
        if dtype not in store.DTYPES.values():
            raise ValueError(f"dtype={dtype}: must be one of {', '.join(store.DTYPES)}")
        reshard(model)
        _refuse(model, dtype)
        self.model, self.draw, self.dtype = model, draw, dtype
        self.backbone = backbone_of(model)
        self.base_fingerprint = store.fingerprint_of(self.backbone)
        self._holders = _holders_of(self.backbone, [name for name in indices if len(indices[name])])
        self._dtypes = {name: _tensor(holders[0]).dtype for name, holders in self._holders.items()}
        deltas: dict[nn.Module, dict[str, nn.Parameter]] = {}  # by module, and by name there
        entries: dict[nn.Module, dict[str, ChosenEntries]] = {}
        for name, holders in self._holders.items():
            tensor = _tensor(holders[0])
            chosen = _entries_at(tensor, indices[name].to(tensor.device))
            zeros = nn.Parameter(_zeros(len(chosen.indices), dtype, tensor))
            for module, own_name in holders:
                deltas.setdefault(module, {})[own_name] = zeros
                entries.setdefault(module, {})[own_name] = chosen
        self.kernels = _kernels(self._holders, indices, dtype, gradient)
        # nothing of the model is changed before here
        self._patched = list(deltas)
        self._were_trainable = [(p, p.requires_grad) for p in model.parameters()]
        model.requires_grad_(False)
        self._head = Head(model, dtype)
        for module in self._patched:
            patch(module, deltas[module], entries[module], gradient)
        # as long-lived as the model, also where nobody keeps the adapter
        object.__setattr__(model, "sparta_adapter", self)
        self._ignored_before = getattr(model, "_keys_to_ignore_on_save", None)
        if hasattr(model, "save_pretrained"):  # writes the sums, which are the whole model
            names = set(self._ignored_before or ()) | set(self.delta_names)
            object.__setattr__(model, "_keys_to_ignore_on_save", names)
        model.register_load_state_dict_post_hook(_after_load)  # type: ignore[no-untyped-call]
        self._attached, self._is_off = True, False
        self._flat: FlatDeltas | None = None
        self._merges_after_step = merge_after_step
        if merge_after_step:
            _watch(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy of a model, or one from a pickle, comes with an adapter of its own."""
        self.__dict__.update(state)
        if self._attached and self._merges_after_step:
            _watch(self)

    def __repr__(self) -> str:
        head = sum(value.numel() for value in self.head.values())
        return (
            f"SpartaAdapter({self.chosen:,} scalars in {len(self.deltas)} tensors, "
            f"{head:,} in the head, {'attached' if self._attached else 'detached'})"
        )

    # ------------------------------------------------------------------------ what trains
    @property
    def head(self) -> dict[str, nn.Parameter]:
        """Parameters on top of the backbone, which train in full, by name in the model."""
        return self._head.parameters

    @property
    def deltas(self) -> dict[str, nn.Parameter]:
        """Per tensor name of the backbone: the trainable changes, 1-d, in `dtype`."""
        return {name: _deltas(holders[0]) for name, holders in self._holders.items()}

    @property
    def delta_names(self) -> list[str]:
        """Names of the deltas in the model's `state_dict`; tied ones have several."""
        own = {id(deltas) for deltas in self.deltas.values()}
        named = self.model.named_parameters(remove_duplicate=False)
        return [name for name, value in named if id(value) in own]

    def parameters(self) -> list[nn.Parameter]:
        """Deltas and head, for an optimizer."""
        return [*self.deltas.values(), *self.head.values()]

    @property
    def chosen(self) -> int:
        """How many scalars of the backbone train."""
        return sum(deltas.numel() for deltas in self.deltas.values())

    @property
    def indices(self) -> dict[str, Tensor]:
        """Per tensor name: flat indices, int32, sorted, on the tensor's device."""
        return {name: self._entries(name).indices for name in self._holders}

    @property
    def originals(self) -> dict[str, Tensor]:
        """Per tensor name: the values at these indices before training, in the tensor's dtype."""
        return {name: _all_originals(self._entries(name)) for name in self._holders}

    def _entries(self, name: str) -> ChosenEntries:
        module, own_name = self._holders[name][0]
        entries: ChosenEntries = module.sparta_entries[own_name]  # type: ignore[index, union-attr, assignment]
        return entries

    def flatten(self) -> FlatDeltas:
        """Make all deltas one tensor, which is what an optimizer gets then, with the head: for a
        training loop of one's own on one device, which calls `merge` itself. See `FlatDeltas` for
        what must not be done with the model from then on. Twice is once."""
        if self._flat is None:
            if self._merges_after_step:
                raise ValueError("flatten: needs an adapter with merge_after_step=False")
            if self.is_sharded:
                raise ValueError("flatten: the model is sharded, and so are its deltas")
            tensors = [
                SampledTensor(name, _tensor(holders[0]), _deltas(holders[0]), self._entries(name))
                for name, holders in self._holders.items()
            ]
            self._flat = FlatDeltas(tensors)
            for module in self._patched:
                make_plain(module)
            if self.kernels is not None:
                self.kernels["merge"] = "triton" if self._flat.uses_kernel() else "torch"
        return self._flat

    # --------------------------------------------------------------------- into the weights
    @torch.no_grad()
    def merge(self, names: Iterable[str] | None = None) -> None:
        """Write round(original + delta) into the weights: all, or the tensors of these names."""
        if self._flat is not None and names is None:
            self._flat.merge()
            return
        if names is None or self.is_sharded:
            self._follow_sharding()
        for name in self._holders if names is None else names:
            holder = self._holders[name][0]
            write_entries(_tensor(holder), self._entries(name), _deltas(holder))

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP has sharded the model: each process then has its own rows of weights and its
        own part of the deltas, and what this class does is for all processes together."""
        return any(is_sharded(_deltas(holders[0])) for holders in self._holders.values())

    def _follow_sharding(self) -> None:
        """Keep this process's originals alone if the model was sharded after the adapter came."""
        reshard(self.model)
        for module in self._patched:
            for own_name, entries in module.sparta_entries.items():  # type: ignore[union-attr, operator]
                weight = _tensor((module, own_name))
                if entries.own is None and is_sharded(weight):
                    entries.own = own_entries(weight, entries.indices)
                    entries.originals = entries.originals[entries.own.slice].clone()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Make the model the base model inside the block, head included, and the trained one again
        after it, both bit for bit: a reference model, such as DPO's, without a second copy.

        Deltas stay as they are. Raises ValueError if the adapter is detached.
        """
        if not self._attached:
            raise ValueError("off: the adapter is detached, so that the model is the base already")
        if self._is_off:  # a block within a block
            yield
            return
        trained = self._head.swap_in_originals()
        self._write_originals()
        self._is_off = True
        try:
            yield
        finally:
            self._is_off = False
            self._head.swap_back(trained)
            self.merge()

    @torch.no_grad()
    def _write_originals(self) -> None:
        self._follow_sharding()
        for name, holders in self._holders.items():
            entries = self._entries(name)
            write_at(local(_tensor(holders[0])), _own_indices(entries), entries.originals)

    @torch.no_grad()
    def _take_loaded(self, missing: list[str]) -> None:
        """Bring weights and deltas together after `load_state_dict`, which did not find the keys
        `missing`. Deltas that were loaded are written into the weights; where only weights were
        (a checkpoint without deltas), deltas become their difference to the originals."""
        names = {id(value): key for key, value in self.model.named_parameters()}

        def was_loaded(value: Tensor) -> bool:
            key = names[id(value)]
            return not any(f".{gone}".endswith(f".{key}") for gone in missing)

        for name, holders in self._holders.items():
            weight, deltas = _tensor(holders[0]), _deltas(holders[0])
            if not was_loaded(deltas) and was_loaded(weight):
                if is_sharded(weight):
                    raise ValueError(
                        "load the deltas of a sharded model as well, not weights alone"
                    )
                entries = self._entries(name)
                now = values_at(weight, entries.indices)
                deltas.copy_(now.to(deltas.dtype) - entries.originals.to(deltas.dtype))
            self.merge([name])
        filled = set(self.delta_names)
        missing[:] = [key for key in missing if key not in filled]

    @torch.no_grad()
    def detach(self) -> None:
        """Give the model back as it was, every parameter bit for bit, head included. Buffers, such
        as running statistics, stay as training left them. Twice is once."""
        if not self._attached:
            return
        self._refuse_to_leave()
        try:
            self._write_originals()
            self._head.restore()
        finally:
            self._let_go()

    def bake(self) -> None:
        """Make the model plain, with the trained values as its own weights. The head takes the
        dtype again that it had."""
        if not self._attached:
            return
        self._refuse_to_leave()
        self.merge()
        self._head.keep()
        self._let_go()

    def _refuse_to_leave(self) -> None:
        if any(
            module.sparta_mesh is None and is_sharded(_deltas((module, name)))
            for module in self._patched
            for name in module.sparta_entries  # type: ignore[union-attr]
        ):
            raise ValueError(
                "load the base model anew: fully_shard came after the adapter and keeps its deltas "
                "in the model (before it, an adapter can be detached)"
            )

    def _let_go(self) -> None:
        self._attached = False
        _forget(self)
        if self._flat is not None:
            self._flat.let_go()
        for module in self._patched:
            unpatch(module)
        for parameter, trainable in self._were_trainable:
            parameter.requires_grad_(trainable)
        del self.model.sparta_adapter
        if hasattr(self.model, "save_pretrained"):
            object.__setattr__(self.model, "_keys_to_ignore_on_save", self._ignored_before)
        hooks = self.model._load_state_dict_post_hooks
        for number, hook in list(hooks.items()):
            if hook is _after_load:
                del hooks[number]
        self._holders, self._patched = {}, []

    def __enter__(self) -> SpartaAdapter:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    @torch.no_grad()
    def lost_to_rounding(self) -> float:
        """Share of the deltas that are not zero and yet leave their weight as it was."""
        self._follow_sharding()
        lost = changed = 0
        for name, holders in self._holders.items():
            entries, deltas = self._entries(name), whole(_deltas(holders[0]))
            now = values_at(_tensor(holders[0]), entries.indices)
            moved = deltas != 0
            lost += int((moved & (now == _all_originals(entries))).sum())
            changed += int(moved.sum())
        return lost / changed if changed else 0.0

    def checksum(self) -> str:
        """A hash of the indices, to see that two draws are the same."""
        return store.checksum_of(self.indices)

    # ---------------------------------------------------------------------------- to disk
    def saved(self, compact: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What goes to disk: tensors (on the CPU), and what describes and checks them.

        `<name>.indices` (int32) and `<name>.deltas` per tensor, `head...` for the head. `compact`
        leaves the indices out: loading draws them again from the seed, and checks them. Raises
        ValueError if the adapter is detached, the model was converted since, or `compact` is asked
        for and the indices were not drawn from a seed.
        """
        if not self._attached:
            raise ValueError("the adapter is detached from its model; save it before that")
        self._follow_sharding()
        for name, dtype in self._dtypes.items():
            now = _tensor(self._holders[name][0]).dtype
            if now != dtype:
                raise ValueError(
                    f"the model was {dtype} when the adapter was attached and is {now} now, so "
                    "that no base would fit; convert the model first, and attach then"
                )
        if compact and self.draw is None:
            raise ValueError("compact: this adapter's indices were not drawn from a seed")
        tensors: dict[str, Tensor] = {}
        for name, deltas in self.deltas.items():
            if not compact:
                tensors[f"{name}{store.INDICES}"] = self._entries(name).indices.cpu()
            tensors[f"{name}{store.DELTAS}"] = whole(deltas).cpu()
        heads = Head.saved_names(self.head)
        tensors |= {name: whole(value).cpu() for name, value in heads.items()}
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

        What a Hugging Face model's `config` knows goes along (`script`: base, labels), so that
        `sparta-bench predict` serves the adapter. Where the base came from a folder, the user's
        cache remembers which, for this machine alone. `about` is added to the configuration. See
        `saved`. Of a sharded model the first process writes, and all return when it has.
        """
        tensors, description = self.saved(compact)
        script, path = store.known_of(self.model, self.backbone)
        try:
            if not self.is_sharded or get_rank() == 0:
                described = {**description, **script, **(about or {})}
                store.write(Path(folder), tensors, described, path)
        finally:  # also where it cannot: the others would wait for ever
            if self.is_sharded:
                barrier()

    def print_trainable_parameters(self) -> None:
        """Print how many scalars train, as peft does."""
        trained = sum(value.numel() for value in self.parameters())
        deltas = {id(value) for value in self.deltas.values()}
        total = sum(value.numel() for value in self.model.parameters() if id(value) not in deltas)
        print(
            f"trainable params: {trained:,} || all params: {total:,} || "
            f"trainable%: {100 * trained / total:.4f}"
        )

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
        touched: files whole and as written, shapes, indices, and that the base is the same (by
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
        reshard(model)
        _refuse(model)
        backbone = backbone_of(model)
        if peft_sparta.is_in(folder):
            saved = peft_sparta.read(folder, backbone, allow_pickle)
        else:
            saved = store.read(folder)
        indices = _redraw(backbone, saved, folder) if saved.indices is None else saved.indices
        store.check(saved, indices, backbone, folder)
        heads = Head.saved_names(head_of(model)) if head else {}
        store.check_head(saved.head if head else {}, heads, folder)
        adapter = cls.__new__(cls)
        adapter._attach(model, indices, saved.draw, saved.dtype, gradient, merge_after_step)
        try:
            with torch.no_grad():
                for name, deltas in adapter.deltas.items():
                    fill(deltas, saved.deltas[name])
                for saved_name, parameter in heads.items():
                    fill(parameter, saved.head[saved_name])
            adapter.merge()
        except BaseException:
            adapter.detach()
            raise
        return adapter


def _refuse(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    if any(is_patched(module) for module in model.modules()):
        raise ValueError("the model carries a SpaRTA adapter already; detach that first")
    if type(model).__module__.startswith("peft."):
        raise ValueError(
            f"the model is wrapped by peft ({type(model).__name__}); attach to the model itself"
        )
    for name, parameter in head_of(model).items():
        if is_sharded(parameter) and torch.promote_types(parameter.dtype, dtype) != parameter.dtype:
            raise ValueError(
                f"call fully_shard after the adapter: {name} is {parameter.dtype}, is to train in "
                f"{dtype}, and is sharded already"
            )


def _after_load(model: nn.Module, keys: Any) -> None:
    """A hook of `load_state_dict`."""
    adapter: SpartaAdapter = model.sparta_adapter  # type: ignore[assignment]
    adapter._take_loaded(keys.missing_keys)


def _redraw(backbone: nn.Module, saved: store.Saved, folder: Path) -> dict[str, Tensor]:
    draw = saved.draw
    if draw is None:
        raise ValueError(f"{folder}: a compact adapter without density and seed")
    try:
        return _drawn(backbone, draw)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _drawn(backbone: nn.Module, draw: store.Draw) -> dict[str, Tensor]:
    """Flat indices (int32, sorted) by name of the tensors in which any are chosen."""
    chances = sampled_tensors(backbone, draw.density, draw.targets, draw.density_of)
    shapes = {name: tensor.shape for name, tensor in backbone.named_parameters()}
    drawn = sample_all(shapes, chances, draw.seed, draw.pattern)
    if not any(len(indices) for indices in drawn.values()):
        total = sum(shapes[name].numel() for name in chances)
        raise ValueError(f"density={draw.density}: chose none of {total:,} scalars")
    return {name: indices for name, indices in drawn.items() if len(indices)}


def _kernels(
    holders_of_all: Mapping[str, list[Holder]],
    indices: Mapping[str, Tensor],
    deltas_dtype: torch.dtype,
    way: str,
) -> dict[str, str] | None:
    """What does the work on CUDA (see `SpartaAdapter.kernels`). The kernels are tried here, since
    a backward pass, a compiled one above all, is no place for it."""
    merges, gradients = [], []
    for name, holders in holders_of_all.items():
        tensor = _tensor(holders[0])
        device, dtype = tensor.device, tensor.dtype
        if device.type != "cuda":
            continue
        merges.append(tensor.is_contiguous() and usable("merge", device, dtype, deltas_dtype))
        linear = any(type(module) is nn.Linear and own == "weight" for module, own in holders)
        if linear and takes_kernel(way, tensor.shape, len(indices[name]), device):
            gradients.append(usable("gradient", device, dtype))
    if not merges:
        return None
    used = {"merge": merges, "gradient": gradients}
    return {kernel: "triton" if works and all(works) else "torch" for kernel, works in used.items()}


def _entries_at(tensor: Tensor, indices: Tensor) -> ChosenEntries:
    """The entries at these flat indices, with the values that are there."""
    own = own_entries(tensor, indices)
    if own is None:
        return ChosenEntries(indices, values_at(tensor, indices))
    flat = local(tensor).reshape(-1)
    return ChosenEntries(indices, flat.index_select(0, own.local(indices)), own)


def _all_originals(entries: ChosenEntries) -> Tensor:
    return entries.originals if entries.own is None else entries.own.gather(entries.originals)


def _own_indices(entries: ChosenEntries) -> Tensor:
    return entries.indices if entries.own is None else entries.own.local(entries.indices)


def _zeros(count: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """Where `like` is, and sharded as it is."""
    mesh = mesh_of(like)
    if mesh is None:
        return torch.zeros(count, dtype=dtype, device=like.device)
    first, last = rows_of(count, mesh)
    return sharded(torch.zeros(last - first, dtype=dtype, device=like.device), mesh, (count,))


def _tensor(holder: Holder) -> nn.Parameter:
    module, name = holder
    tensor = module._parameters[name]
    assert tensor is not None
    return tensor


def _deltas(holder: Holder) -> nn.Parameter:
    module, name = holder
    return _tensor((module, DELTAS.format(name)))


def _holders_of(backbone: nn.Module, names: Iterable[str]) -> dict[str, list[Holder]]:
    """All modules that hold each tensor: a tied one is held by several."""
    holders: dict[int, list[Holder]] = {}
    for module in backbone.modules():
        for own_name, tensor in module._parameters.items():
            if tensor is not None:
                holders.setdefault(id(tensor), []).append((module, own_name))
    tensors = dict(backbone.named_parameters())
    return {name: holders[id(tensors[name])] for name in names}


# Adapters whose weights are written after optimizers' steps. Two hooks for all of them, and for
# good: torch walks its hooks while other threads may add some.
_WATCHED: weakref.WeakSet[SpartaAdapter] = weakref.WeakSet()
_LOCK = threading.Lock()
_hooked = False


def _watch(adapter: SpartaAdapter) -> None:
    global _hooked
    with _LOCK:
        if not _hooked:
            register_optimizer_step_pre_hook(_merge_before_closures)
            register_optimizer_step_post_hook(_merge_after_step)
            _hooked = True
        _WATCHED.add(adapter)


def _forget(adapter: SpartaAdapter) -> None:
    with _LOCK:
        _WATCHED.discard(adapter)


def _held_by(optimizer: Optimizer) -> list[tuple[SpartaAdapter, list[str]]]:
    """Adapters with deltas in the optimizer, and the names of these. Raises RuntimeError if it
    holds frozen weights of a model and none of its deltas: it was built too early, and the deltas
    would silently stay what they are."""
    with _LOCK:
        adapters = list(_WATCHED)
    if not adapters:
        return []
    held = {id(value) for group in optimizer.param_groups for value in group["params"]}
    holding = []
    for adapter in adapters:
        names = [name for name, deltas in adapter.deltas.items() if id(deltas) in held]
        frozen = (id(_tensor(holders[0])) for holders in adapter._holders.values())
        if not names and any(weight in held for weight in frozen):
            raise RuntimeError(
                "the optimizer holds frozen weights of a model and none of the deltas of its "
                "SpartaAdapter; build it after the adapter"
            )
        if not names and _is_frozen_by_peft(adapter):
            raise RuntimeError(
                "peft was put over a model that carries a SpartaAdapter, and has frozen its "
                "deltas; detach the adapter first, or leave peft out"
            )
        if names:
            holding.append((adapter, names))
    return holding


def _is_frozen_by_peft(adapter: SpartaAdapter) -> bool:
    if any(deltas.requires_grad for deltas in adapter.deltas.values()):
        return False
    return any(type(module).__module__.startswith("peft.") for module in adapter.model.modules())


def _merge_after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Write what an optimizer has just changed, whichever optimizer of torch it is. (Version
    counters would not tell: fused ones do not raise them.)"""
    for adapter, names in _held_by(optimizer):
        adapter.merge(names)


def _merge_before_closures(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
    """An optimizer that evaluates the loss several times in a step, such as LBFGS, changes the
    deltas in between."""
    given = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
    holding = [] if given is None else _held_by(optimizer)
    if given is None or not holding:
        return None

    def closure() -> Any:
        for adapter, names in holding:
            adapter.merge(names)
        return given()

    if len(args) > 1:
        return (args[0], closure, *args[2:]), kwargs
    return args, {**kwargs, "closure": closure}
