"""Where the verbs of `merge` write to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparta_bench.errors import InputError
from sparta_bench.files import whole_folder


def refuse_to_replace(folder: Path, out: Path, force: bool) -> None:
    """Raise InputError if `out` may not be written while `folder` is read, or is not empty."""
    if out.is_file():
        raise InputError(f"--out {out}: is a file")
    if out.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise InputError(f"--out {out}: holds the adapter that is to be read")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise InputError(f"--out {out}: is not empty (--force replaces the whole folder)")


@contextmanager
def written(out: Path) -> Iterator[Path]:
    """A temporary folder to fill, in the place of `out` when the block ends well. Raises InputError
    if it cannot be written."""
    try:
        with whole_folder(out) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written: {error.strerror}") from None
