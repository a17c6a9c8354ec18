"""An adapter on disk: written whole, and believed only after every check.

A folder with `adapter.safetensors` (per tensor of the backbone: `<name>.indices`, flat, int32,
sorted, and `<name>.deltas`; `head...` tensors) and `adapter_config.json`. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sparta_bench.files import json_of, sha256_of, whole_file, write_json, write_tensors
from sparta_bench.sparta.sharded import is_sharded, values_at
from sparta_bench.sparta.targets import DENSITY_OF, PATTERNS

TENSORS, CONFIG = "adapter.safetensors", "adapter_config.json"
INDICES, DELTAS = ".indices", ".deltas"  # endings of tensors' names
FORMAT = 2  # counted up when a reader of the last one would read wrongly
SAMPLING = 1  # the same for how indices follow from a seed
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_PROBES = 4096  # values per tensor that the base's fingerprint looks at


@dataclass(frozen=True)
class Draw:
    """How the indices were drawn (see `sample.sampled_tensors`). Raises ValueError for a value that
    cannot be."""

    density: float
    seed: int
    targets: str | Sequence[str]
    density_of: str
    pattern: str = "scalars"

    def __post_init__(self) -> None:
        density, seed, targets = self.density, self.seed, self.targets
        if not isinstance(density, int | float) or not 0 < density < 1:
            raise ValueError(f"density={density!r}: must be a number inside (0, 1)")
        if not isinstance(seed, Integral) or not 0 <= seed < 2**63:
            raise ValueError(f"seed={seed!r}: must be a whole number from 0 to 2^63 - 1")
        if not isinstance(targets, Sequence) or not all(isinstance(name, str) for name in targets):
            raise ValueError(f"targets={targets}: must be all, or names of modules")
        if self.density_of not in DENSITY_OF:
            raise ValueError(f"density_of={self.density_of}: must be {' or '.join(DENSITY_OF)}")
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern={self.pattern}: must be {', '.join(PATTERNS)}")


@dataclass(frozen=True)
class Saved:
    """What a folder holds. `indices` is None in a compact one, and a checksum or fingerprint where
    the layout has none."""

    draw: Draw | None
    dtype: torch.dtype
    indices: dict[str, Tensor] | None
    deltas: dict[str, Tensor]
    head: dict[str, Tensor]
    base_fingerprint: str | None
    indices_checksum: str | None
    originals_checksum: str | None


# -------------------------------------------------------------------------------- identity
def checksum_of(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names and values; of floating-point values as float32, so that a model loaded in
    a wider dtype counts as the same."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu()
        kind = plain.float().numpy().astype("<f4") if plain.is_floating_point() else plain.numpy()
        digest.update(name.encode() + kind.tobytes())
    return digest.hexdigest()[:16]


def fingerprint_of(backbone: nn.Module, dtype: torch.dtype | None = None) -> str:
    """What tells one base from another, whatever file it came from: names, shapes and up to
    4,096 evenly spaced values of every tensor, as float32; with `dtype` as after a conversion. Of a
    sharded backbone it is the same; all processes ask for it together."""
    return fingerprint_of_tensors(backbone.named_parameters(), dtype)


def fingerprint_of_tensors(
    named: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None = None
) -> str:
    """The same without a model: of the backbone's parameters, in any order."""
    probes = {}
    for name, tensor in named:
        every = max(tensor.numel() // _PROBES, 1)
        shape = "x".join(map(str, tensor.shape))
        if is_sharded(tensor):
            probe = values_at(
                tensor, torch.arange(0, tensor.numel(), every)[:_PROBES].to(tensor.device)
            )
        else:
            probe = tensor.detach().reshape(-1)[::every][:_PROBES]
        probes[f"{name} {shape} "] = probe if dtype is None else probe.to(dtype)
    return checksum_of(probes)


# --------------------------------------------------------------------------------- writing
def describe(draw: Draw | None, dtype: torch.dtype, compact: bool) -> dict[str, Any]:
    """The part of the configuration that says how to read the tensors."""
    method: dict[str, Any] = {"name": "sparta"}
    if draw is not None:
        targets = draw.targets if isinstance(draw.targets, str) else list(draw.targets)
        method |= {
            "density": float(draw.density),
            "targets": targets,
            "density_of": draw.density_of,
            "pattern": draw.pattern,
        }
    return {
        "method": method,
        "density": None if draw is None else float(draw.density),
        "seed": None if draw is None else int(draw.seed),
        "sampling": SAMPLING,
        "dtype": str(dtype).removeprefix("torch."),
        "compact": compact,
    }


def known_of(model: nn.Module, backbone: nn.Module) -> tuple[dict[str, Any], str | None]:
    """What a Hugging Face model's `config` says that who uses its adapter must know: `{"script":
    …}`, empty for other models; and the folder that it was loaded from, if it was one."""
    config = getattr(model, "config", None)
    name = getattr(config, "_name_or_path", None)
    if not name:
        return {}, None
    dtype = next(p.dtype for p in backbone.parameters() if p.is_floating_point())
    folder = Path(name).resolve() if Path(name).is_dir() else None
    known = {
        "base": folder.name if folder else name,
        "is_folder": folder is not None,
        "revision": getattr(config, "_commit_hash", None),
        "labels": list((getattr(config, "id2label", None) or {}).values()),
        "problem_type": getattr(config, "problem_type", None),
        "dtype": str(dtype).removeprefix("torch."),
    }
    return {"script": known}, None if folder is None else str(folder)


def write(
    folder: Path,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    base_path: str | None = None,
) -> None:
    """Write an adapter's two files. Each is whole or not there; the configuration comes last and
    holds the hash of the other. Where the base lies on this machine, `base_path`, is remembered in
    the user's cache, by the base's fingerprint: the two files travel, and name no folder."""
    json.dumps(about, allow_nan=False)  # raises before anything is written
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written to: {error.strerror}") from None
    write_tensors(folder / TENSORS, {name: t.contiguous() for name, t in tensors.items()})
    config = {"format": FORMAT, **about, "tensors_sha256": sha256_of(folder / TENSORS)}
    write_json(folder / CONFIG, config)
    if base_path is not None:
        with suppress(OSError), whole_file(_note_of(about["base_fingerprint"])) as temporary:
            temporary.write_text(base_path, encoding="utf-8")


def base_path_of(fingerprint: str | None) -> str | None:
    """Where a base of this fingerprint lay when something was trained on it on this machine, if a
    folder is there still."""
    try:
        path = _note_of(fingerprint).read_text(encoding="utf-8") if fingerprint else ""
    except (OSError, UnicodeDecodeError):
        return None
    return path if path and Path(path).is_dir() else None


def _note_of(fingerprint: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(fingerprint.encode()).hexdigest()[:32]  # a manifest may hold anything
    return Path(home, "sparta-bench", "bases", f"{name}.txt")


# --------------------------------------------------------------------------------- reading
def read_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json`. Raises ValueError if it is not there, no JSON or of another format."""
    path = folder / CONFIG
    try:
        config = json_of(path)
    except OSError as error:
        inner = folder / "adapter"
        hint = f" (what a run trained is in {inner})" if (inner / CONFIG).is_file() else ""
        raise ValueError(f"{path}: cannot be read: {error.strerror}{hint}") from None
    except ValueError:
        raise ValueError(f"{path}: is not JSON, or cut short") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        written = config.get("format") if isinstance(config, dict) else None
        raise ValueError(f"{path}: format is {written}, and this version reads {FORMAT}")
    return config


def read_tensors(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors; raises ValueError unless the file is the one that the configuration names."""
    path = folder / TENSORS
    try:
        if sha256_of(path) != config.get("tensors_sha256"):
            raise ValueError(f"{path}: cut short or changed since {CONFIG} was written")
        tensors: dict[str, Tensor] = load_file(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from None
    return tensors


def read(folder: Path) -> Saved:
    """What a folder in this project's layout holds. Raises ValueError with one line that names the
    file and what is wrong."""
    config = read_config(folder)
    tensors = read_tensors(folder, config)
    try:
        return _saved(config, tensors, folder)
    except (KeyError, TypeError) as error:
        fault = error.args[0]
        raise ValueError(f"{folder / CONFIG}: {fault} is missing or of another kind") from None


def _saved(config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> Saved:
    """Raises KeyError or TypeError with a key, and its value, that is not as it must be."""
    method, compact, dtype = config["method"], config["compact"], config["dtype"]
    if not isinstance(method, dict):
        raise TypeError("method")
    if method["name"] != "sparta":
        raise ValueError(f"{folder}: an adapter of {method['name']}, not of SpaRTA")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise TypeError(f"dtype={dtype}")
    if compact and config["sampling"] != SAMPLING:
        raise ValueError(
            f"{folder / CONFIG}: sampling is {config['sampling']}, and this version draws "
            f"indices in way {SAMPLING}"
        )
    draw = None
    if config["density"] is not None:
        asked = method["density"], config["seed"], method["targets"], method["density_of"]
        try:
            draw = Draw(*asked, method.get("pattern", "scalars"))
        except ValueError as error:
            raise ValueError(f"{folder / CONFIG}: {error}") from None
    return Saved(
        draw=draw,
        dtype=DTYPES[dtype],
        indices=None if compact else ending(tensors, INDICES),
        deltas=ending(tensors, DELTAS),
        head={name: tensor for name, tensor in tensors.items() if is_of_head(name)},
        base_fingerprint=config["base_fingerprint"],
        indices_checksum=config["indices_checksum"],
        originals_checksum=config["originals_checksum"],
    )


def is_of_head(name: str) -> bool:
    """Whether a tensor's name in `adapter.safetensors` is that of one of the head's. A part of the
    backbone may be called `head` too; its tensors have the endings of chosen entries."""
    return name.startswith("head.") and not name.endswith((INDICES, DELTAS))


def ending(tensors: Mapping[str, Tensor], end: str) -> dict[str, Tensor]:
    """Those whose names have this ending, by their names without it."""
    return {
        name.removesuffix(end): tensor for name, tensor in tensors.items() if name.endswith(end)
    }


# -------------------------------------------------------------------------------- checking
def check(saved: Saved, indices: Mapping[str, Tensor], backbone: nn.Module, folder: Path) -> None:
    """Raise ValueError unless the adapter belongs on this backbone."""
    tensors = dict(backbone.named_parameters())
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_deltas(indices, saved.deltas, shapes, folder)
    if saved.indices_checksum not in (None, checksum_of(indices)):
        raise ValueError(
            f"{folder}: these are not the indices that the adapter was trained at (checksum "
            f"{checksum_of(indices)}, not {saved.indices_checksum})"
        )
    if saved.base_fingerprint not in (None, fingerprint_of(backbone)):
        for dtype in (torch.bfloat16, torch.float16):
            if saved.base_fingerprint == fingerprint_of(backbone, dtype):
                raise ValueError(
                    f"{folder}: the adapter was trained on this base model in {dtype}; convert it "
                    f"first with model.to({dtype}), which gives exactly the weights of training"
                )
        raise ValueError(
            f"{folder}: the adapter was trained on another base model (fingerprint "
            f"{saved.base_fingerprint}, this one has {fingerprint_of(backbone)})"
        )
    if saved.originals_checksum is not None:
        originals = {}
        for name, own_indices in indices.items():
            tensor = tensors[name]
            originals[name] = values_at(tensor, own_indices.to(tensor.device))
        if checksum_of(originals) != saved.originals_checksum:
            raise ValueError(
                f"{folder}: the values at the adapter's indices differ from the base's"
            )


def check_deltas(
    all_indices: Mapping[str, Tensor],
    deltas: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    folder: Path,
) -> None:
    """Raise ValueError unless every delta has its index, in tensors of these shapes."""
    for name, indices in sorted(all_indices.items()):
        if name not in shapes:
            raise ValueError(f"{folder}: the adapter trains {name}, which this model has not")
        shape = shapes[name]
        if indices.dtype != torch.int32 or indices.dim() != 1 or not _inside(indices, shape):
            raise ValueError(f"{folder}: the indices of {name} do not lie in its shape {shape}")
        own_deltas = deltas.get(name)
        if own_deltas is None or own_deltas.shape != indices.shape:
            raise ValueError(f"{folder}: {name} has not one delta for each index")
        if not is_finite(own_deltas):
            raise ValueError(f"{folder}: the deltas of {name} are not finite numbers")
    stray = sorted(set(deltas) - set(all_indices))
    if stray:
        raise ValueError(f"{folder}: {stray[0]} has deltas and no indices")


def is_finite(tensor: Tensor) -> bool:
    """Whether it holds finite floating-point numbers and nothing else."""
    return tensor.is_floating_point() and bool(tensor.isfinite().all())


def _inside(indices: Tensor, shape: tuple[int, ...]) -> bool:
    if len(indices) == 0:
        return True
    rising = bool((indices.diff() > 0).all())
    return rising and int(indices[0]) >= 0 and int(indices[-1]) < math.prod(shape)


def check_head(
    saved: Mapping[str, Tensor], heads: Mapping[str, nn.Parameter], folder: Path
) -> None:
    """Raise ValueError unless the saved head has the names and shapes of the model's, and finite
    numbers."""
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in heads.items()}
    if shapes != wanted:
        raise ValueError(
            f"{folder}: the adapter's head is {shapes or 'none'}, the model's {wanted or 'none'} "
            "(head=False leaves the model's alone)"
        )
    if not all(map(is_finite, saved.values())):
        raise ValueError(f"{folder}: the adapter's head does not hold finite numbers")
