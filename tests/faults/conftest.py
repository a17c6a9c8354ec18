"""The cases of `make test-faults`: processes that are killed, disks that are full, and the like."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faults.disks import Disk
from faults.harness import LONG


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with few rows of the tiny task like SST-2: a run then takes a second."""
    from sparta_bench.data.generated import generate

    folder = tmp_path_factory.mktemp("rows")
    made = generate("sst2")
    for split, count in (("train", 80), ("validation", 16)):
        lines = [json.dumps(row) + "\n" for row in made[split][:count]]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="session")
def small(rows: Path) -> Callable[..., list[str]]:
    """`small(folder, "seed=1", …)`: the words of a command line for a run; results and cache are
    below the folder."""

    def words(folder: Path, *more: str) -> list[str]:
        return [
            f"task.data_dir={rows}", "task.dev.examples=16", "train.max_steps=6",
            "train.eval_every=2", "train.checkpoint_every=1", f"results_dir={folder / 'results'}",
            f"cache_dir={folder / 'cache'}", *more,
        ]  # fmt: skip

    return words


@pytest.fixture(params=["tmpfs", "limits"] if LONG else ["tmpfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A small disk, see disks.py."""
    made = Disk(tmp_path / "disk", request.param == "tmpfs")
    yield made
    made.close()
