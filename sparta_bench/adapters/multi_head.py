"""One backbone under the heads of several tasks (section 8): the class, and its folder on disk.

A folder of transformers' own with the backbone and the tokenizer, and beside it `heads.safetensors`
(per head `<name>`: classes x hidden) and `multi_head_config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sparta_bench.adapters.export import padding_on_the_right
from sparta_bench.adapters.load_adapter import Loaded, load_base
from sparta_bench.adapters.manifest import Manifest, portable, read_object
from sparta_bench.adapters.read_folder import MULTI_HEAD, refuse_not_finite
from sparta_bench.errors import InputError, reason_of, shown
from sparta_bench.files import sha256_of, write_json, write_tensors
from sparta_bench.models.classifier import Classifier, logits_of, pooled
from sparta_bench.sparta.store import fingerprint_of

HEADS = "heads.safetensors"
BACKBONE = "backbone_fingerprint"  # of the merged values, by `store.fingerprint_of`
FORMAT = 1  # counted up when a reader of the last one would read wrongly


class MultiHead(nn.Module):
    """A decoder with several linear heads without bias, by name: one forward pass gives the logits
    of all tasks.

        model = MultiHead.load("merged")
        words = model.tokenizer(["The plot is stale."], return_tensors="pt", padding=True)
        model(**words)["sst2"]                            # logits, rows x classes

    `backbone` is a Hugging Face decoder without its vocabulary head; `heads` holds weights by
    name, classes x hidden.
    """

    def __init__(self, backbone: nn.Module, heads: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.backbone = backbone
        self.names = list(heads)
        # a list, because a module's name may hold no dot, and a head's may
        self.heads = nn.ParameterList(heads.values())
        self.tokenizer: Any = None
        self.about: dict[str, Manifest] = {}  # what each head was trained for

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, **ignored: Any
    ) -> dict[str, Tensor]:
        """Per head: logits (rows x classes, at least float32) of ids and mask (rows x longest)."""
        return self.logits(pooled(self.backbone, input_ids, attention_mask))

    def logits(self, states: Tensor) -> dict[str, Tensor]:
        """The same of the last real tokens' final hidden states (rows x hidden)."""
        heads = zip(self.names, self.heads, strict=True)
        return {name: logits_of(states, head) for name, head in heads}

    def classifier(self, name: str) -> Classifier:
        """Return the backbone under one of the heads alone; they share their memory."""
        return Classifier(self.backbone, self.heads[self.names.index(name)])

    def one(self, name: str) -> Loaded:
        """Return one head of a loaded one as a classifier from disk."""
        classifier = self.classifier(name)
        return Loaded(classifier, self.tokenizer, self.about[name], None, lambda: None)

    @staticmethod
    def load(folder: str | Path) -> MultiHead:
        """Load what `sparta-bench merge multi-head` wrote, on the CPU, frozen, in evaluation mode;
        raises InputError if a file is missing, broken, or not the one that was written."""
        folder = Path(folder)
        config = read_object(folder / MULTI_HEAD, FORMAT)
        manifests = config.get("heads")
        if not isinstance(manifests, dict) or not manifests:
            raise InputError(f"{folder / MULTI_HEAD}: heads is missing or of another kind")
        about = {
            name: Manifest.from_dict(one, folder / MULTI_HEAD) for name, one in manifests.items()
        }
        heads = _read_heads(folder / HEADS, config.get("heads_sha256"))
        first = next(iter(about.values()))
        base = replace(first.model, path=str(folder), embedded=False, tokenizer=None)
        classifier, tokenizer = load_base(first, base, option="")
        own = fingerprint_of(classifier.backbone)
        if config.get(BACKBONE, own) != own:  # folders of earlier versions do not name it
            raise InputError(
                f"{folder}: the backbone's weights are not those that were merged: their "
                f"fingerprint is {own}, and {MULTI_HEAD} says {shown(str(config[BACKBONE]))} "
                f"({BACKBONE})"
            )
        hidden = classifier.head_weight.shape[1]
        wanted = {name: (len(one.labels), hidden) for name, one in about.items()}
        shapes = {name: tuple(head.shape) for name, head in heads.items()}
        for name in sorted(shapes.keys() | wanted.keys()):
            if shapes.get(name) != wanted.get(name):
                raise InputError(
                    f"{folder / HEADS}: {name} has the shape {shapes.get(name)}, where "
                    f"{wanted.get(name)} belongs"
                )
        model = MultiHead(classifier.backbone, {name: heads[name] for name in about})
        model.tokenizer, model.about = tokenizer, about
        return model.requires_grad_(False).eval()


def _read_heads(path: Path, expected: Any) -> dict[str, Tensor]:
    try:
        if sha256_of(path) != expected:
            raise InputError(f"{path}: cut short or changed since {MULTI_HEAD} was written")
        heads: dict[str, Tensor] = load_file(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except SafetensorError as error:
        raise InputError(f"{path}: {reason_of(error)}") from None
    for name, tensor in heads.items():
        refuse_not_finite(path, name, tensor)
    return heads


def write(
    model: MultiHead,
    tokenizer: Any,
    about: Mapping[str, Manifest],
    merged: Mapping[str, Any],
    folder: Path,
) -> None:
    """Write the backbone as a plain folder, and the heads beside it. `merged` says of what it was
    made; it holds no path."""
    model.backbone.save_pretrained(folder)  # type: ignore[operator]
    padding_on_the_right(tokenizer).save_pretrained(folder)
    heads = zip(model.names, model.heads, strict=True)
    write_tensors(folder / HEADS, {name: h.detach().cpu().contiguous() for name, h in heads})
    config = {
        "format": FORMAT,
        "heads": {name: portable(about[name]) for name in model.names},
        "merged": dict(merged),
        BACKBONE: fingerprint_of(model.backbone),
        "heads_sha256": sha256_of(folder / HEADS),
    }
    write_json(folder / MULTI_HEAD, config)
