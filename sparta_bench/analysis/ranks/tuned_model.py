"""What a tuned model's matrices are beside its base's: of another checkpoint, or an adapter's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sparta_bench.adapters import read_folder
from sparta_bench.adapters.load_adapter import refuse_other_base
from sparta_bench.adapters.read_folder import Change, Tuned
from sparta_bench.errors import InputError
from sparta_bench.models.dtypes import DTYPES
from sparta_bench.models.stored_tensors import Checkpoint, is_head, open_checkpoint


class TunedModel:
    """A whole checkpoint, or an adapter on its base as it was in training: in the model's dtype
    then.

    `source` is what the user called it; `label` a short name, and `method` what trained it (None:
    not known). `shapes` are those of its tensors, by name in the backbone; `notes` is what a
    reader must know beside the numbers. `began_at_base`: whether training began with the very
    values of the base's file, so that these carry no error of rounding; of a whole model a run
    wrote down the base's name, of any other this is not known.
    """

    label: str
    method: str | None
    began_at_base: bool
    changes: Mapping[str, Change]
    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype | None = None  # of the model in training, where that is known

    def __init__(self, source: str, base: Checkpoint) -> None:
        self.source, self.base = source, base
        self.notes: list[str] = []
        if read_folder.kind_of(Path(source)) == read_folder.AUTHORS:
            raise InputError(read_folder.why_unreadable(Path(source)))
        if read_folder.kind_of(Path(source)) == read_folder.ADAPTER:
            self._read_adapter()
        else:
            self._read_whole()

    def _read_whole(self) -> None:
        tuned = open_checkpoint(self.source)
        self.method, trained_on = None, None
        if read_folder.kind_of(Path(self.source)) == read_folder.WHOLE:
            about = read_folder.read_manifest(Path(self.source))
            self.method, trained_on = about.method["name"], about.base_model["name"]
        self.began_at_base = trained_on == self.base.name
        self.label = self.method or tuned.name
        self.shapes = {name: stored.shape for name, stored in tuned.tensors.items()}
        self.changes = {name: Tuned(tuned, name) for name in tuned.tensors}
        if trained_on is not None and not self.began_at_base:
            self.notes.append(f"was trained on {trained_on}, by its {read_folder.WHOLE}")

    def _read_adapter(self) -> None:
        config = read_folder.read_config(Path(self.source))
        if "labels" in config:  # of what a script saved, the dtype of the model is not known
            self.dtype = DTYPES[read_folder.read_manifest(Path(self.source)).dtypes["model"]]
        own, expected = self.base.fingerprint(self.dtype), config.get("base_fingerprint")
        if own != expected and config.get("separator") == "sep_token":
            self.notes.append(
                "the run may have added a token's row to the embedding, so that its base cannot "
                "be checked"
            )
        else:
            refuse_other_base(expected, own, self.source, self.base.label)
        tensors = self.base.tensors.items()
        shapes = {name: stored.shape for name, stored in tensors if not is_head(name)}
        vector = read_folder.read_changes(Path(self.source), shapes)
        self.began_at_base, self.changes = True, vector.changes
        self.shapes = shapes | {name: tuple(head.shape) for name, head in vector.heads.items()}
        self.method = self.label = config["method"]["name"]
        if self.method == "lora":
            self.label += f" r={config['method']['r']}"
        elif isinstance(density := config.get("density"), float):
            self.label += f" {density:g}"

    def pair(self, name: str, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return rows of the base and of the tuned matrix, as they are compared (each at most
        stop - start x columns), in dtypes of their own."""
        base = self.base.rows(name, start, stop)
        base = base if self.dtype is None else base.to(self.dtype)
        change = self.changes.get(name)
        return base, base if change is None else change.tuned(base, start)

    def dtypes(self, name: str) -> tuple[torch.dtype | None, torch.dtype | None]:
        """Return those of the two matrices: the base's in its file, and the tuned one's; None where
        one is no plain floating-point one."""
        stored, change = self.base.tensors[name].dtype, self.changes.get(name)
        if isinstance(change, Tuned):
            return stored, change.checkpoint.tensors[name].dtype
        return stored, None if stored is None else self.dtype or stored
