"""Tables 2 and 9: the splits' sizes, from what `sparta-bench plan --json` prints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparta_bench.files import json_of
from sparta_bench.paper import number_of, rows_of
from sparta_bench.tables.format import MISSING
from sparta_bench.tables.table import Heading, Table

# The paper's counts come out with the prompts of the instruction models (docs/fidelity.md).
MODELS = {2: "gemma-2b-it", 9: "mistral-7b-it"}
SPLITS = ("train", "dev", "test")
Sizes = dict[tuple[str, str], dict[str, int]]  # model and task, then split


def read_plans(folders: Iterable[Path]) -> tuple[Sizes, list[str]]:
    """The sizes in `<folder>/plans/*.json`, and a line for each file that says none, or others than
    an earlier file of the same model and task."""
    sizes: Sizes = {}
    faults = []
    for path in sorted(path for folder in folders for path in folder.glob("plans/*.json")):
        try:
            plan = json_of(path)
            model, task, found = str(plan["model"]), str(plan["task"]), _sizes_of(plan)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            faults.append(f"{path.name} is no plan with counts")
            continue
        known = sizes.setdefault((model, task), {})
        if any(known.get(split, count) != count for split, count in found.items()):
            faults.append(
                f"{path.name} has other counts than the plans of {model} on {task} before it; "
                "not used"
            )
        else:
            known |= found
    return sizes, faults


def _sizes_of(plan: Any) -> dict[str, int]:
    data = plan["data"]
    dropped = data["train_dropped"]  # None where there was no tokenizer to count with
    sizes = {split: int(data[split]) for split in ("dev", "test")}
    if dropped is not None:
        # Table 2 counts IMDB before, GLUE after the long ones are dropped
        sizes["train"] = int(data["train"]) + (int(dropped) if plan["task"] == "imdb" else 0)
        sizes["kept"] = int(data["train"])
    return sizes


def count_tables(sizes: Sizes) -> list[Table]:
    """Tables 2 and 9 beside the paper's; none for which there is no plan."""
    planned = {model for model, _ in sizes}
    return [_table(number, model, sizes) for number, model in MODELS.items() if model in planned]


def _table(number: int, model: str, sizes: Sizes) -> Table:
    rows = []
    for printed in rows_of(f"table{number}"):
        counts = sizes.get((model, printed["task"]), {})
        cells = [printed["dataset"], printed["classes"]]
        for split in SPLITS:
            ours = counts.get(split)
            mark = "" if ours == number_of(printed[split]) else " ≠"
            cells += [MISSING if ours is None else f"{ours:,}{mark}", printed[split]]
        rows.append(tuple(cells))
    notes = ["≠: another number than the paper's. IMDB's training set is counted before long "
             "reviews are dropped, as in the paper."]  # fmt: skip
    kept = sizes.get((model, "imdb"), {}).get("kept")
    if kept is not None:
        paper = next(row["train"] for row in rows_of("imdb_train") if row["model"] == model)
        notes.append(f"After that {kept:,} are left; in the paper (appendix E.1) {paper}.")
    headings = (
        (Heading(""), Heading(""), *(Heading(split.capitalize(), 2) for split in SPLITS)),
        (Heading("Dataset"), Heading("Classes"), *map(Heading, ("ours", "paper") * 3)),
    )
    title = f"Table {number}: examples of each split, long ones dropped ({model})"
    return Table(f"table{number}", title, headings, tuple(rows), tuple(notes))
