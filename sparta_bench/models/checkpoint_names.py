"""What a checkpoint is called on the command line: looked at before torch is loaded."""

from __future__ import annotations

from pathlib import Path

from sparta_bench.config.conf_folder import named_models
from sparta_bench.errors import InputError, did_you_mean


def check_source(source: str) -> None:
    """Raise InputError unless a name can be that of a file, a folder, a model of `conf/model`, or a
    repository on the hub."""
    path = Path(source)
    if path.is_file() or path.is_dir():
        return
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or path.suffix:
        raise InputError(f"{source}: there is no such file or folder")
    known = named_models()
    if "/" not in source and source not in known:
        near = did_you_mean(source, known)
        raise InputError(f"{source}: neither a file, a folder, nor a model of conf/model{near}")
