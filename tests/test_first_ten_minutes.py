"""Every command of docs/first-ten-minutes.md, in its order, by a stranger with a fresh copy."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "first-ten-minutes.md").read_text(encoding="utf-8")
LINES = [
    line for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
]  # fmt: skip
EXPECTED = re.compile(r" # (exit (?P<code>\d+)|says): (?P<words>.+)")
LONGEST = 300  # seconds of processor time, for all of it


def seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
def test_every_line_of_the_page_ends_as_it_says(tmp_path: Path) -> None:
    for folder in ("sparta_bench", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    command = tmp_path / "bin" / "sparta-bench"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sparta_bench.cli "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    before = seconds_of_children()
    for line in LINES:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        expected = EXPECTED.search(line)
        text = done.stdout + done.stderr
        assert done.returncode == int((expected and expected["code"]) or 0), (line, text)
        assert expected is None or expected["words"] in text, (line, text)
        assert "Traceback" not in text and "Warning" not in text, (line, text)
    assert seconds_of_children() - before < LONGEST
