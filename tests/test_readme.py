"""The README's commands work as they stand there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    return [line.partition("#")[0].strip() for line in lines]


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    assert "make demo" in README and "make test" in README


def test_linked_files_are_there() -> None:
    for target in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme_runs(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    assert words[0] == "sparta-bench"
    if words[1:2] in (["status"], ["tables"], ["report"]):  # of records that are there
        words.append(str(ROOT / "results" / "tiny-sst2"))
        words += [] if words[1] == "status" else ["--out", str(tmp_path)]
    elif "plan" not in words and "--cfg" not in words:
        # as it stands there, but with fewer steps
        words += ["train.max_steps=2", f"results_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "sparta_bench.cli", *words[1:]],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_example_with_the_trainer_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "trainer.py"), "--out", "adapter"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^(base|trained|loaded again): (.*)$", done.stdout, re.MULTILINE))
    assert found["loaded again"] == found["trained"]
    accuracy = {
        name: float(re.search(r"accuracy ([\d.]+)%", line)[1]) for name, line in found.items()
    }
    assert accuracy["base"] < 60 and accuracy["trained"] > 90
    assert (tmp_path / "adapter" / "adapter.safetensors").is_file()
