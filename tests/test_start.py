"""What a command or an import does not load: each of these packages takes a second or more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forks import Forks
from quick import QUICK_RUN

HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate")
SCRIPT = "import sys; {}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in a new process after the statement."""
    command = [sys.executable, "-c", SCRIPT.format(statement)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_the_package_alone_is_nothing_but_itself() -> None:
    assert loaded_by("import sparta_bench").isdisjoint(
        {"hydra", "numpy", "huggingface_hub", *HEAVY}
    )


@pytest.mark.slow  # torch is imported anew
def test_the_adapter_brings_torch_and_no_runner() -> None:
    loaded = loaded_by("from sparta_bench import SpartaAdapter; SpartaAdapter.load")
    assert {"torch", "safetensors"} <= loaded
    assert loaded.isdisjoint({"hydra", "scipy", "sklearn", *HEAVY[1:]})


def test_a_plan_of_an_embedded_model_needs_no_torch(
    forks_without: Callable[..., Forks], tmp_path: Path
) -> None:
    told = forks_without(*HEAVY).run("plan", f"cache_dir={tmp_path}")
    assert "  total            208,512\n" in told


def test_runs_that_are_done_are_known_without_torch(
    forks: Forks, forks_without: Callable[..., Forks], tmp_path: Path
) -> None:
    words = [*QUICK_RUN, "method=head", f"results_dir={tmp_path}", f"cache_dir={tmp_path}/cache"]
    made = forks.call(*words)
    again, grid = (forks_without(*HEAVY).call(*more, *words) for more in ([], ["-m", "seed=0"]))
    assert (made.code, again.code, grid.code) == (0, 0, 0), (made, again, grid)
    assert "there already" in again.out and "there already" in grid.out
    assert grid.err == "sparta-bench: 1 run: 1 done, 0 to go\n"
