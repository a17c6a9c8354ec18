"""The weights of a sharded model as safetensors files, written tensor by tensor, so that no process
has more than one of them whole. (safetensors itself writes a file from all its tensors at once.)"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.serialization import StateDictSplit, split_state_dict_into_shards_factory
from torch import Tensor

from sparta_bench.models.dtypes import STORED_DTYPES
from sparta_bench.models.stored_tensors import INDEX, SINGLE
from sparta_bench.sparta.sharded import whole

LARGEST_FILE = "5GB"
KINDS = {dtype: kind for kind, dtype in STORED_DTYPES.items()}


def whole_tensors(model: Any) -> Iterator[Tensor]:
    """Each tensor on the CPU, in the order in which `write_weights` takes them. All processes go
    through all of them together."""
    tensors = dict(model.named_parameters())
    for names in _files_of(model).filename_to_tensors.values():
        for name in _in_order(names, tensors):
            yield whole(tensors[name]).cpu()


def write_weights(model: Any, values: Iterator[Tensor], folder: Path) -> None:
    """Write the files, and their index, as transformers does; `values` are `whole_tensors`."""
    tensors, files = dict(model.named_parameters()), _files_of(model)
    for file_name, names in files.filename_to_tensors.items():
        _write_file(folder / file_name, {name: tensors[name] for name in names}, values)
    if files.is_sharded:
        about = {"total_parameters": model.num_parameters(), **files.metadata}
        index = {"metadata": about, "weight_map": files.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _files_of(model: Any) -> StateDictSplit:
    return split_state_dict_into_shards_factory(
        dict(model.named_parameters()),
        get_storage_size=_size_of,
        filename_pattern=SINGLE.replace(".", "{suffix}."),
        max_shard_size=LARGEST_FILE,
    )


def _size_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _in_order(names: Iterable[str], tensors: dict[str, Tensor]) -> list[str]:
    """As safetensors has them in a file: the widest first, so that all lie at multiples of their
    size."""
    return sorted(names, key=lambda name: (-tensors[name].element_size(), name))


def _write_file(path: Path, tensors: dict[str, Tensor], values: Iterator[Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    names, end = _in_order(tensors, tensors), 0
    for name in names:
        start, end = end, end + _size_of(tensors[name])
        header[name] = {
            "dtype": KINDS[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in names:
            # no name holds it, or it would be there beside the next one
            file.write(_bytes_of(next(values)))


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
