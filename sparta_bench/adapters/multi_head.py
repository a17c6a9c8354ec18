"""One backbone under the heads of several tasks (section 8): the class, and its folder on disk.

A folder of transformers' own with the backbone and the tokenizer, and beside it `heads.safetensors`
(per head `<name>`: classes x hidden) and `multi_head_config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sparta_bench.adapters.base import load_base
from sparta_bench.adapters.load_adapter import MULTI_HEAD, Loaded
from sparta_bench.adapters.manifest import Manifest, portable, read_object
from sparta_bench.adapters.whole_model import padding_on_the_right
from sparta_bench.errors import InputError, reason_of, shown
from sparta_bench.files import sha256_of, write_json, write_tensors
from sparta_bench.models.classifier import Classifier, logits_of, pooled
from sparta_bench.sparta.store import fingerprint_of, is_finite

CONFIG, HEADS = MULTI_HEAD, "heads.safetensors"
BACKBONE = "backbone_fingerprint"  # of the merged values, by `store.fingerprint_of`
FORMAT = 1  # counted up when a reader of the last one would read wrongly


class MultiHead(nn.Module):
    """A decoder with several linear heads without bias, by name: one forward pass gives the logits
    of all tasks.

        model = MultiHead.load("merged")
        words = model.tokenizer(["The plot is stale."], return_tensors="pt", padding=True)
        model(**words)["sst2"]                            # logits, rows x classes

    Parameters
    ----------
    backbone
        A Hugging Face decoder without its vocabulary head.
    heads
        Per name: weights, classes x hidden.
    """

    def __init__(self, backbone: nn.Module, heads: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.backbone = backbone
        self.names = list(heads)
        # a list, because a module's name may hold no dot, and a head's may
        self.heads = nn.ParameterList(heads.values())
        self.tokenizer: Any = None
        self.about: dict[str, Manifest] = {}

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, **ignored: Any
    ) -> dict[str, Tensor]:
        """Per head: logits (rows x classes, at least float32) of ids and mask (rows x longest)."""
        states = pooled(self.backbone, input_ids, attention_mask)
        return {
            name: logits_of(states, head) for name, head in zip(self.names, self.heads, strict=True)
        }

    def classifier(self, name: str) -> Classifier:
        """The backbone under one of the heads alone; they share their memory."""
        return Classifier(self.backbone, self.heads[self.names.index(name)])

    @classmethod
    def load(cls, folder: str | Path) -> MultiHead:
        """What `sparta-bench merge multi-head` wrote, on the CPU, frozen, in evaluation mode.

        Raises
        ------
        InputError
            If a file is missing, broken, or not the one that was written.
        """
        return load(Path(folder)).model


@dataclass
class LoadedHeads:
    """A multi-head classifier from disk with what each head was trained for."""

    model: MultiHead
    tokenizer: Any
    about: dict[str, Manifest]

    def one(self, name: str) -> Loaded:
        """One head of it, as a classifier of its own."""
        return Loaded(
            self.model.classifier(name), self.tokenizer, self.about[name], None, lambda: None
        )


def is_in(folder: Path) -> bool:
    """Whether the folder holds a multi-head classifier."""
    return (folder / CONFIG).is_file()


def write(
    model: MultiHead,
    tokenizer: Any,
    about: Mapping[str, Manifest],
    merged: Mapping[str, Any],
    folder: Path,
) -> None:
    """Write the backbone as a plain folder, and the heads beside it. `merged` says of what it was
    made; it holds no path."""
    padding = padding_on_the_right(tokenizer)
    model.backbone.save_pretrained(folder)  # type: ignore[operator]
    padding.save_pretrained(folder)
    heads = {
        name: head.detach().cpu().contiguous()
        for name, head in zip(model.names, model.heads, strict=True)
    }
    write_tensors(folder / HEADS, heads)
    described = {name: portable(about[name]) for name in model.names}
    write_json(
        folder / CONFIG,
        {
            "format": FORMAT,
            "heads": described,
            "merged": dict(merged),
            BACKBONE: fingerprint_of(model.backbone),
            "heads_sha256": sha256_of(folder / HEADS),
        },
    )


def load(folder: Path) -> LoadedHeads:
    """Read what `write` wrote.

    Raises
    ------
    InputError
        If a file is missing, broken, or not the one that was written.
    """
    values = _read_config(folder)
    about = {
        name: Manifest.from_dict(one, folder / CONFIG) for name, one in values["heads"].items()
    }
    heads = _read_heads(folder, values.get("heads_sha256"))
    if sorted(heads) != sorted(about):
        raise InputError(f"{folder / HEADS}: holds {sorted(heads)}, where {sorted(about)} belong")
    first = next(iter(about.values()))
    base = replace(first.model, path=str(folder), embedded=False, tokenizer=None)
    classifier, tokenizer = load_base(first, base, told_as="")
    _check_backbone(folder, values, classifier.backbone)
    hidden = classifier.head_weight.shape[1]
    for name, one in about.items():
        if heads[name].shape != (len(one.labels), hidden):
            raise InputError(
                f"{folder / HEADS}: {name} has the shape {tuple(heads[name].shape)}, where "
                f"{(len(one.labels), hidden)} belongs"
            )
    model = MultiHead(classifier.backbone, {name: heads[name] for name in about})
    model.tokenizer, model.about = tokenizer, about
    return LoadedHeads(model.requires_grad_(False).eval(), tokenizer, about)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    values = read_object(path, FORMAT)
    heads = values.get("heads")
    if (
        not isinstance(heads, dict)
        or not heads
        or not all(isinstance(one, dict) for one in heads.values())
    ):
        raise InputError(f"{path}: heads is missing or of another kind")
    return values


def _check_backbone(folder: Path, values: Mapping[str, Any], backbone: nn.Module) -> None:
    """The heads say nothing of use on another one. Folders of earlier versions do not say which
    theirs was, and are believed."""
    if BACKBONE not in values:
        return
    found = fingerprint_of(backbone)
    if values[BACKBONE] != found:
        raise InputError(
            f"{folder}: the backbone's weights are not those that were merged: their fingerprint "
            f"is {found}, and {CONFIG} says {shown(str(values[BACKBONE]))} ({BACKBONE})"
        )


def _read_heads(folder: Path, expected: Any) -> dict[str, Tensor]:
    path = folder / HEADS
    try:
        if sha256_of(path) != expected:
            raise InputError(f"{path}: cut short or changed since {CONFIG} was written")
        heads: dict[str, Tensor] = load_file(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except SafetensorError as error:
        raise InputError(f"{path}: {reason_of(error)}") from None
    for name, tensor in heads.items():
        if tensor.dim() != 2 or not is_finite(tensor):
            raise InputError(f"{path}: {name} is no matrix of finite numbers")
    return heads
