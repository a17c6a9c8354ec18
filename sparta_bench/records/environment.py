"""What a record says of the machine and the code: versions, device, dtypes, git revision."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparta_bench import __version__

if TYPE_CHECKING:
    from sparta_bench.models.dtypes import Precision

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy")


def environment(device: torch.device, precision: Precision, processes: int) -> dict[str, Any]:
    """Versions, device, dtypes and the code's revision."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "versions": {
            "sparta_bench": __version__,
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in PACKAGES},
        },
        "platform": f"{sys.platform} {platform.machine()}",
        "device": {"type": device.type, "name": name, "threads": torch.get_num_threads()},
        "processes": processes,
        "dtypes": precision.as_dict(),
        **_revision(),
    }


def processor_name() -> str:
    """The CPU's name as the system tells it; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _revision() -> dict[str, Any]:
    """The code's git revision and whether tracked files differ from it; None in no checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # an installed package may lie inside somebody else's repository
        git("ls-files", "--error-unmatch", Path(__file__).name)
        changes = git("status", "--porcelain", "--untracked-files=no")
        return {"git_revision": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git, no repository
        return {"git_revision": None, "dirty": None}
