"""What of a model is the backbone, and what stands on top of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparta_bench.sparta.sharded import fill, is_sharded


def backbone_of(model: nn.Module) -> nn.Module:
    """A Hugging Face model without its head; any other module is a backbone itself."""
    backbone = getattr(model, "base_model", model)
    return backbone if isinstance(backbone, nn.Module) else model


def head_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters outside the backbone, by name in the model, but no vocabulary head: the paper
    trains classification heads in full and replaces vocabulary heads (section 6.3)."""
    below = {id(parameter) for parameter in backbone_of(model).parameters()}
    find = getattr(model, "get_output_embeddings", None)
    vocabulary = find() if find is not None else None
    if isinstance(vocabulary, nn.Module):
        below |= {id(parameter) for parameter in vocabulary.parameters()}
    return {
        name: p
        for name, p in model.named_parameters()
        if id(p) not in below and p.is_floating_point()
    }


class Head:
    """A head that trains in full, in at least `dtype`: a 16-bit one is widened, and its inputs
    with it, since it would swallow small updates."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._where: dict[str, tuple[nn.Module, str]] = {}
        self._originals: dict[str, Tensor] = {}
        self._backbone = backbone = backbone_of(model)
        self._dtype = _dtype_of(backbone)
        for name, parameter in head_of(model).items():
            path, _, own_name = name.rpartition(".")
            module = model.get_submodule(path)
            self._where[name] = module, own_name
            self._originals[name] = parameter.detach().clone()
            wide = torch.promote_types(parameter.dtype, dtype)
            # what lies around the backbone would widen the backbone's inputs
            if wide != parameter.dtype and not any(part is backbone for part in module.modules()):
                parameter.data = parameter.data.to(wide)
                module.register_forward_pre_hook(_widen_inputs)
            parameter.requires_grad_(True)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """By name in the model."""
        found = {}
        for name, (module, own_name) in self._where.items():
            parameter = module._parameters[own_name]
            assert parameter is not None
            found[name] = parameter
        return found

    @staticmethod
    def saved_names(parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Parameters by their names on disk: `head.weight`, whatever the model calls its head;
        where there are several modules, `head.<module>.weight`."""
        modules = {name.rpartition(".")[0] for name in parameters}
        if len(modules) == 1:
            return {f"head.{name.rpartition('.')[2]}": p for name, p in parameters.items()}
        return {f"head.{name}": p for name, p in parameters.items()}

    @torch.no_grad()
    def swap_in_originals(self) -> dict[str, Tensor]:
        """Put the values from before in, in the dtype that the head trains in; returns the trained
        ones, for `swap_back`."""
        trained = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.swap_back(self._originals)
        return trained

    @torch.no_grad()
    def swap_back(self, values: dict[str, Tensor]) -> None:
        """Put these values in, by name in the model."""
        for name, parameter in self.parameters.items():
            fill(parameter, values[name])

    @torch.no_grad()
    def restore(self) -> None:
        """The values and dtype from before."""
        for name, parameter in self.parameters.items():
            dtype = self._dtype_from_before(name)
            if is_sharded(parameter):  # FSDP keeps hold of its memory
                fill(parameter, self._originals[name])
            else:
                parameter.data = self._originals[name].to(parameter.device, dtype)
        self._let_go()

    def keep(self) -> None:
        """The trained values, in the dtype from before."""
        for name, parameter in self.parameters.items():
            if is_sharded(parameter):  # was never widened
                continue
            parameter.data = parameter.data.to(self._dtype_from_before(name))
        self._let_go()

    def _dtype_from_before(self, name: str) -> torch.dtype:
        """Or, where the whole model has been converted since, the dtype it has now."""
        now = _dtype_of(self._backbone)
        return self._originals[name].dtype if now is None or now == self._dtype else now

    def _let_go(self) -> None:
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and parameter.grad.dtype != parameter.dtype:
                parameter.grad = None
            hooks = self._where[name][0]._forward_pre_hooks
            for number, hook in list(hooks.items()):
                if hook is _widen_inputs:
                    del hooks[number]


def _dtype_of(module: nn.Module) -> torch.dtype | None:
    dtypes = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(dtypes, None)


def _widen_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(
        x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs
    )
