"""The layout of the authors' package peft-sparta (0.0.3), read and written.

`sparse_deltas.safetensors` has `indices.<name>` (int32, one row of coordinates per entry) and
`deltas.<name>` for every parameter, untouched ones included, named as in the model with a head;
`head_init.safetensors` has the head before training, whose deltas are dense; `config.json` is the
model's with the base's name in `sparta_pretrained_model`. Their trainer writes the head's start
as a pickle, `head_init.pt`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sparta_bench.files import json_of, write_json, write_tensors
from sparta_bench.sparta import store

TENSORS, HEAD, CONFIG = "sparse_deltas", "head_init", "config.json"
BASE = "sparta_pretrained_model"
SCORE = "score.weight"


def is_in(folder: Path) -> bool:
    """Whether the folder is in this layout."""
    return any((folder / f"{TENSORS}{end}").is_file() for end in (".safetensors", ".pt"))


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`. Raises ValueError if it cannot be read, or names no base model."""
    try:
        config = json_of(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG}: cannot be read: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get(BASE), str):
        raise ValueError(f"{folder / CONFIG}: no {BASE} in it, the name of the base model")
    return config


def read(folder: Path, backbone: nn.Module, allow_pickle: bool) -> store.Saved:
    """An adapter in this layout, for a backbone of the architecture that it was trained on. Raises
    ValueError if a file is missing, broken, a pickle that is not allowed, or of other tensors."""
    read_config(folder)
    if any(path.name.startswith("new_embeddings_init.") for path in folder.iterdir()):
        raise ValueError(f"{folder}: trained embeddings of added tokens are not supported")
    raw = _load(folder, TENSORS, allow_pickle)
    tensors = dict(backbone.named_parameters())
    prefix = _prefix_of(backbone)
    indices: dict[str, Tensor] = {}
    deltas: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for name, (coordinates, values) in _trained(raw, folder).items():
        what = f"{folder}: {name}"
        if name == SCORE:
            head["head.weight"] = _sum_at(
                _head_start(folder, allow_pickle), coordinates, values, what
            )
            continue
        own_name = name.removeprefix(prefix)
        if own_name not in tensors:
            raise ValueError(f"{folder}: the adapter trains {name}, which this model has not")
        flat = _flat(coordinates, tensors[own_name].shape, what)
        order = flat.argsort()
        indices[own_name] = flat[order].to(torch.int32)
        deltas[own_name] = values[order].float()
    return store.Saved(None, torch.float32, indices, deltas, head, None, None, None)


def _prefix_of(backbone: nn.Module) -> str:
    """What stands before a backbone's names in the model with a head."""
    return f"{getattr(backbone, 'base_model_prefix', 'model')}."


def _trained(raw: dict[str, Tensor], folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Rows of coordinates, and a delta for each, by name of the tensors that have any."""
    trained = {}
    for name in sorted({key.partition(".")[2] for key in raw}):
        coordinates, values = raw.get(f"indices.{name}"), raw.get(f"deltas.{name}")
        if coordinates is None or coordinates.numel() == 0:
            if values is not None and values.numel():
                raise ValueError(f"{folder}: {name} has deltas and no indices")
            continue
        if coordinates.dim() != 2 or values is None or values.shape != coordinates.shape[:1]:
            raise ValueError(f"{folder}: {name} has not one delta for each index")
        trained[name] = coordinates, values
    return trained


def _head_start(folder: Path, allow_pickle: bool) -> Tensor:
    """The head before training, classes x hidden, float32."""
    start = _load(folder, HEAD, allow_pickle).get("head")
    if start is None:
        raise ValueError(f"{folder}: no head in {HEAD}")
    return start.float()


def _sum_at(start: Tensor, coordinates: Tensor, deltas: Tensor, what: str) -> Tensor:
    """The start with the deltas added at their coordinates."""
    flat = _flat(coordinates, start.shape, what)
    # a pickle's tensor may lie in memory in another order
    total = start.reshape(-1).index_add(0, flat, deltas.float())
    return total.view(start.shape)


def _load(folder: Path, name: str, allow_pickle: bool) -> dict[str, Tensor]:
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        path = folder / f"{name}.pt"
    if path.suffix == ".pt" and path.is_file() and not allow_pickle:
        raise ValueError(
            f"{path}: a pickle, which is read only where that is allowed "
            "(allow_pickle=True, --allow-pickle)"
        )
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # torch raises many kinds for a broken file
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: cannot be read: {first}") from None
    return content if path.suffix == ".safetensors" else _flattened(content, path)


def _flattened(content: Any, path: Path) -> dict[str, Tensor]:
    """Their pickles as their safetensors files: a bare tensor gets its name, nested ones a path."""
    if isinstance(content, Tensor):
        return {path.stem.removesuffix("_init"): content}
    if isinstance(content, dict) and all(isinstance(part, dict) for part in content.values()):
        flat = {f"{kind}.{name}": t for kind, part in content.items() for name, t in part.items()}
        if all(isinstance(tensor, Tensor) for tensor in flat.values()):
            return flat
    raise ValueError(f"{path}: holds something else than tensors by name")


def _flat(coordinates: Tensor, shape: Sequence[int], what: str) -> Tensor:
    """Flat indices (int64) of rows of coordinates in a tensor of this shape."""
    rows = coordinates.long()
    inside = rows.dim() == 2 and rows.shape[1] == len(shape)
    if not inside or not ((rows >= 0) & (rows < torch.tensor(shape))).all():
        raise ValueError(f"{what}: its coordinates do not lie in its shape {tuple(shape)}")
    flat = torch.zeros(len(rows), dtype=torch.int64)
    for axis, size in enumerate(shape):
        flat = flat * size + rows[:, axis]
    return flat


def write(
    backbone: nn.Module,
    indices: Mapping[str, Tensor],
    deltas: Mapping[str, Tensor],
    head: Tensor,
    folder: Path,
    base_model: str,
    labels: Sequence[str],
) -> None:
    """Write an adapter so that `peft_sparta.SpaRTAforSequenceClassification` loads it.

    Parameters
    ----------
    backbone
        The model without its head, with the adapter attached or not.
    indices, deltas
        By name in the backbone: flat indices (int32), and a value for each.
    head
        The trained head, classes x hidden. It is written as the head's start, with deltas of
        zero, so that their sum is exact.
    base_model
        What their loader gives to `from_pretrained`: a hub name or a folder.
    labels
        Names of the classes, in order.

    Raises
    ------
    ValueError
        If there are no deltas, as after `detach`.
    """
    if not deltas:
        raise ValueError("the adapter is detached from its model; export it before that")
    tensors = _tensors_of(backbone, indices, deltas)
    tensors[f"indices.{SCORE}"] = torch.ones(head.shape).nonzero().to(torch.int32).contiguous()
    tensors[f"deltas.{SCORE}"] = torch.zeros(head.numel())
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / f"{TENSORS}.safetensors", tensors)
    write_tensors(folder / f"{HEAD}.safetensors", {"head": head.detach().cpu().float()})
    config: dict[str, Any] = backbone.config.to_dict()  # type: ignore[operator, union-attr]
    config |= {
        BASE: base_model,
        "problem_type": "single_label_classification",
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    config.pop("_name_or_path", None)
    write_json(folder / CONFIG, config)


def _tensors_of(
    backbone: nn.Module, indices: Mapping[str, Tensor], deltas: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Coordinates (entries x dimensions, int32) and deltas (float32) of every tensor of the
    backbone; empty ones where no entry of a tensor trains."""
    prefix = _prefix_of(backbone)
    of_adapter = {id(values) for values in deltas.values()}  # parameters of patched modules too
    tensors: dict[str, Tensor] = {}
    for name, tensor in backbone.named_parameters():
        if id(tensor) in of_adapter:
            continue
        own_indices = indices.get(name, torch.empty(0, dtype=torch.int32)).cpu()
        coordinates = torch.unravel_index(own_indices.long(), tensor.shape)
        tensors[f"indices.{prefix}{name}"] = torch.stack(coordinates, dim=1).to(torch.int32)
        values = deltas.get(name, torch.empty(0))
        tensors[f"deltas.{prefix}{name}"] = values.detach().cpu().float()
    return tensors
