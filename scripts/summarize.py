"""Print a Markdown table of result records: mean and standard deviation over seeds.

    python scripts/summarize.py FOLDER [FOLDER ...]

Reads every `result.json` below the folders; needs no torch. Of several settings of one cell
(task, model, method, density) the one with the lowest mean dev loss is shown, never by test.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ORDER = {"full_ft": 0, "sparta": 1, "lora": 2, "head": 3}
# Not part of a setting: they differ between the runs that a mean is taken over.
RUN_KEYS = ("seed", "results_dir", "cache_dir", "force", "save", "device")


def read_records(folders: list[Path]) -> tuple[list[dict[str, Any]], int]:
    """All completed records, and how many others there were."""
    paths = [path for folder in folders for path in sorted(folder.rglob("result.json"))]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    completed = [record for record in records if record["status"] == "completed"]
    return completed, len(records) - len(completed)


def setting_of(record: dict[str, Any]) -> str:
    """What the runs of one mean have in common."""
    config = {key: value for key, value in record["config"].items() if key not in RUN_KEYS}
    config["train"] = {**config["train"], "checkpoint_every": None}  # changes no number
    config["base"] = record["base_model"]["fingerprint"]
    return json.dumps(config, sort_keys=True)


def spread(values: list[float], digits: int, scale: float = 1.0) -> str:
    """`mean ± standard deviation`, or the value alone."""
    scaled = [scale * value for value in values]
    text = f"{statistics.mean(scaled):.{digits}f}"
    return text + (f" ± {statistics.stdev(scaled):.{digits}f}" if len(scaled) > 1 else "")


def rows(records: list[dict[str, Any]]) -> list[str]:
    """A Markdown row for each cell."""
    cells: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for record in records:
        density = record["density"] or 0
        key = (record["task"], record["model"], ORDER[record["method"]], -density, record["method"])
        cells[key][setting_of(record)].append(record)
    lines = []
    for (task, model, _, density, method), settings in sorted(cells.items()):
        best = min(
            settings.values(), key=lambda runs: statistics.mean(run["dev"]["loss"] for run in runs)
        )
        name = f"{method} {-density:.4g}" if density else method
        trained = round(statistics.mean(run["parameters"]["trainable"] for run in best))
        values = [
            spread([run["dev"]["loss"] for run in best], 3),
            spread([run["test"]["loss"] for run in best], 3),
            spread([run["test"]["accuracy"] for run in best], 1, 100),
            spread([run["test"]["mcc"] for run in best], 3),
        ]
        rate = f"{best[0]['config']['train']['learning_rate']:g}"
        parts = [task, model, name, f"{trained:,}", rate, *values, str(len(best))]
        lines.append("| " + " | ".join(parts) + " |")
    return lines


def main() -> None:
    """Print the table of the folders on the command line."""
    if len(sys.argv) < 2:
        sys.exit("usage: python scripts/summarize.py FOLDER [FOLDER ...]")
    records, others = read_records([Path(name) for name in sys.argv[1:]])
    heads = ["task", "model", "method", "scalars trained", "rate", "dev loss", "test loss"]
    heads += ["test accuracy, %", "test mcc", "seeds"]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    print("\n".join(rows(records)))
    print(f"\n{len(records)} completed records; {others} others left out.")


if __name__ == "__main__":
    main()
