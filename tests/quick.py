"""The settings of a run that takes half a second: few steps, on few rows of a tiny task."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

TRAIN, DEV, TEST = 168, 32, 64  # rows
_FOLDER = tempfile.TemporaryDirectory(prefix="sparta-bench-rows-")
# for a task whose dev set is the end of its training set
FEW_ROWS = [f"task.data_dir={_FOLDER.name}", f"task.dev.examples={DEV}"]
QUICK_RUN = ["train.max_steps=4", "train.eval_every=2", *FEW_ROWS]
TASKS = ("cola", "mnli", "qnli", "qqp", "rte", "sst2")


def write_few_rows() -> None:
    """Put the first rows of the tiny tasks where `FEW_ROWS` finds them."""
    from sparta_bench.data.generated import generate

    for task in TASKS:
        folder = Path(_FOLDER.name, f"tiny-{task}")
        folder.mkdir()
        for split, rows in generate(task).items():
            few = rows[: TRAIN + DEV if split == "train" else TEST]
            text = "".join(json.dumps(row) + "\n" for row in few)
            (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
