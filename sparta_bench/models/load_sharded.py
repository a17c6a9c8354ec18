"""A backbone that FSDP2 (`fully_shard`) cuts into rows: each process reads and holds its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparta_bench.errors import InputError, log
from sparta_bench.models.stored_tensors import Checkpoint, checkpoint_files, is_head
from sparta_bench.sparta.sharded import mesh_of, rows_of, sharded


def build_sharded(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    processes: int,
    attention: str = "sdpa",
) -> Any:
    """Build the decoder of a folder on the meta device, cut over all processes of the run; it has
    no weights yet."""
    from accelerate import init_empty_weights
    from torch.distributed.device_mesh import init_device_mesh
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):  # buffers are computed, not stored
        backbone = AutoModel.from_config(config, dtype=dtype, attn_implementation=attention)
    cut(backbone, init_device_mesh(device.type, (processes,)))
    return backbone


def cut(backbone: nn.Module, mesh: Any) -> None:
    """Let FSDP2 cut a transformers model over the processes of `mesh`, layer by layer.

    Gradients are summed in float32. Weights are freed after each forward pass, also those around
    the layers, since the loop writes into the rows between any two passes.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    how: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": True,
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32),
    }
    modules = parts_to_cut(backbone)
    if len(modules) < 3:
        log(
            f"train.sharding=fsdp: {type(backbone).__name__} does not name its layers, so that all "
            "its weights are gathered at once"
        )
    for module in modules:
        fully_shard(module, **how)
    for module in backbone.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo takes no means


def parts_to_cut(backbone: Any) -> list[nn.Module]:
    """The modules whose weights are gathered at once, in the order in which FSDP wants them: the
    layers, the embeddings (only their lookup needs them all), and what is left."""
    layers = set(getattr(backbone, "_no_split_modules", None) or ())
    cut_layers = [module for module in backbone.modules() if type(module).__name__ in layers]
    return [*cut_layers, backbone.get_input_embeddings(), backbone]


def read_rows(
    backbone: Any, label: str, folder: Path, dtype: torch.dtype, device: torch.device
) -> None:
    """Read this process's rows of each weight from the safetensors files of a folder; no other row
    is read. Raises InputError if the files do not have the tensors of the architecture under its
    own names and shapes."""
    checkpoint = Checkpoint(label, checkpoint_files(label, folder))
    wanted = dict(backbone.named_parameters())
    stored = {name: _stored_name(checkpoint, name, backbone.base_model_prefix) for name in wanted}
    if missing := sorted(name for name, own in stored.items() if own is None):
        raise InputError(
            f"{label}: train.sharding=fsdp reads weights as they are stored, and {len(missing)} "
            f"tensors are not there under their names, the first is {missing[0]}"
        )
    known = {own for own in stored.values() if own is not None}
    unknown = [name for name in sorted(checkpoint.tensors) if name not in known]
    unknown = [n for n in unknown if not (is_head(n) or n.endswith("inv_freq"))]
    if unknown:
        raise InputError(
            f"{label}: {len(unknown)} tensors of the checkpoint have no place in the architecture "
            f"of config.json, the first is {unknown[0]}"
        )
    rows: dict[str, Tensor] = {}
    for name, parameter in wanted.items():
        own = stored[name]
        assert own is not None
        shape, stored_shape = tuple(parameter.shape), checkpoint.shape_of(own)
        if stored_shape != shape:
            raise InputError(
                f"{label}: the checkpoint's {name} has the shape {stored_shape}, where {shape} "
                "follows from config.json"
            )
        mesh = mesh_of(parameter)
        first, last = rows_of(len(parameter), mesh)
        read = checkpoint.rows(own, first, last) if first < last else torch.empty(0, *shape[1:])
        # a copy: on a CPU what was read is a part of the whole tensor, mapped from its file
        rows[name] = sharded(read.to(device, dtype, copy=True), mesh, shape)
    backbone.load_state_dict(rows, strict=False, assign=True)


def _stored_name(checkpoint: Checkpoint, name: str, prefix: str) -> str | None:
    names = (name, f"{prefix}.{name}")
    return next((one for one in names if one in checkpoint.tensors), None)
