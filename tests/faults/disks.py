"""A small disk that is full or may only be read.

Where one may mount, it is a tmpfs of its own. Elsewhere the system's limit on the size of a file
stands for a full disk (each file is refused at that size, instead of all of them together), and
permissions without a right to override them for a read-only one.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

LIMIT = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))
"""
# the owner, root too, keeps to the permissions then
NO_OVERRIDE = """
import ctypes
header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capset(header, nothing) == 0
"""
REASONS = ("No space left on device", "File too large")
READ_ONLY = ("Read-only file system", "Permission denied")
ENOUGH = 64 << 20  # bytes


class Disk:
    """A folder to be filled; `prelude` must go before every command that writes there."""

    def __init__(self, folder: Path, may_mount: bool) -> None:
        self.folder = folder
        self.prelude = ""
        folder.mkdir()
        self.mounted = may_mount and self._mount(f"size={ENOUGH}", "tmpfs")

    def _mount(self, options: str, *what: str) -> bool:
        kind = ["-t", "tmpfs"] if what else []
        command = ["mount", *kind, "-o", options, *what, str(self.folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def resize(self, size: int) -> None:
        """How many bytes there are, or how large a file may be."""
        if self.mounted:
            assert self._mount(f"remount,size={size}")
        else:
            self.prelude = "" if size == ENOUGH else LIMIT.format(size=size)

    def only_to_be_read(self) -> None:
        """Nothing can be written from now on."""
        if self.mounted:
            assert self._mount("remount,ro")
        else:
            subprocess.run(["chmod", "-R", "a-w", str(self.folder)], check=True)
            self.prelude = NO_OVERRIDE

    def close(self) -> None:
        """Unmount."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)
        else:
            subprocess.run(["chmod", "-R", "u+w", str(self.folder)], check=True)
