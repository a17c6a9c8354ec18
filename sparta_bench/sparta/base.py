"""What of a model is the backbone, and what stands on top of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


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
    return {name: p for name, p in model.named_parameters() if id(p) not in below}


class Head:
    """A head that trains in full, in at least `dtype`: a 16-bit one is widened, and its inputs
    with it, since it would swallow small updates."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.parameters = head_of(model)
        self._originals = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._hooks = []
        for name, parameter in self.parameters.items():
            wide = torch.promote_types(parameter.dtype, dtype)
            if wide != parameter.dtype:
                parameter.data = parameter.data.to(wide)
                module = model.get_submodule(name.rpartition(".")[0])
                self._hooks.append(module.register_forward_pre_hook(_widen_inputs))
            parameter.requires_grad_(True)

    @staticmethod
    def saved_names(parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Parameters by their names on disk: `head.weight`, whatever the model calls its head;
        where there are several modules, `head.<module>.weight`."""
        modules = {name.rpartition(".")[0] for name in parameters}
        if len(modules) == 1:
            return {f"head.{name.rpartition('.')[2]}": p for name, p in parameters.items()}
        return {f"head.{name}": p for name, p in parameters.items()}

    def restore(self) -> None:
        """The values and dtype from before."""
        for name, parameter in self.parameters.items():
            parameter.data = self._originals[name].to(parameter.device)
        self._remove_hooks()

    def keep(self) -> None:
        """The trained values, in the dtype from before."""
        for name, parameter in self.parameters.items():
            parameter.data = parameter.data.to(self._originals[name].dtype)
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _widen_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(
        x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs
    )
