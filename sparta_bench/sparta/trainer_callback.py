"""Checkpoints of transformers' `Trainer` that hold what trains, and nothing of the base model."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback

from sparta_bench.sparta.adapter import SpartaAdapter


class AdapterCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Let a Trainer's checkpoints hold deltas and head alone.

        trainer = Trainer(model, ..., callbacks=[AdapterCheckpoints(adapter)])

    `model.safetensors` of a checkpoint then has the size of the adapter (for 7 billion parameters
    14 GB less), and `resume_from_checkpoint` and `load_best_model_at_end` read it as it is. From
    the end of `train` on, `save_model` and `save_pretrained` write the whole model again.
    """

    def __init__(self, adapter: SpartaAdapter) -> None:
        self._model: nn.Module = adapter.model
        self._before = getattr(self._model, "_keys_to_ignore_on_save", None)
        trained = {id(parameter) for parameter in adapter.parameters()}
        named = self._model.named_parameters(remove_duplicate=False)
        kept = {name for name, parameter in named if id(parameter) in trained}
        self._frozen = {key for key in self._model.state_dict() if key not in kept}
        self._leave_out(self._frozen)  # before `train`, which reads the checkpoint to resume from

    def _leave_out(self, keys: Any) -> None:
        object.__setattr__(self._model, "_keys_to_ignore_on_save", keys)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Another `train` with the same callback."""
        self._leave_out(self._frozen)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Whoever saves the model now wants all of it."""
        self._leave_out(self._before)
