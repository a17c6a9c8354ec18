"""Draw docs/accuracy.png, the picture of the README, from the committed records.

python scripts/readme_picture.py

Above SmolLM2-135M-Instruct, from results/smollm2, below what the paper prints for gemma-2b-it
(Table 4): a column for each task of which results/smollm2 has all six rows with three seeds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from sparta_bench.files import whole_file
from sparta_bench.paper import number_of, results_of
from sparta_bench.records.read import read_records
from sparta_bench.report.facts import groups_of, task_of, tone_of
from sparta_bench.report.pictures import density_panel, method_keys
from sparta_bench.report.plots import MARKS, Figure, Frame, Lines, Panel, write_figures
from sparta_bench.tables.paper_tables import score_of
from sparta_bench.tables.select import Chosen, select

ROOT = Path(__file__).resolve().parent.parent
MODEL = "smollm2-135m-it"
PAPER = "gemma-2b-it, by the paper"


def main() -> None:
    """Write the file."""
    records, _ = read_records([ROOT / "results/smollm2"])
    group = next(one for one in groups_of(select(records), records) if one.model == MODEL)
    tasks = {task: cells for task, cells in group.tasks().items() if _is_complete(cells)}
    ours = [_ours(task, cells) for task, cells in tasks.items()]
    panels = (*ours, *(_paper(task, panel.note) for task, panel in zip(tasks, ours, strict=True)))
    methods = [chosen.cell.method for cells in tasks.values() for chosen in cells]
    with TemporaryDirectory() as folder:
        figure = Figure("accuracy", "README", panels, method_keys(methods), len(tasks))
        write_figures([figure], Path(folder))
        with whole_file(ROOT / "docs" / "accuracy.png") as path:
            path.write_bytes((Path(folder) / "accuracy.png").read_bytes())


def _is_complete(cells: Sequence[Chosen]) -> bool:
    return len(cells) == 6 and all(len(chosen.runs) == 3 for chosen in cells)


def _ours(task: str, cells: Sequence[Chosen]) -> Panel:
    panel = density_panel(task, cells)
    if panel is None:
        raise SystemExit(f"results/smollm2: no completed run of {task}")
    return replace(panel, title=f"{task_of(task)}: SmolLM2-135M-Instruct")


def _paper(task: str, note: str) -> Panel:
    """Table 4's column of the task over the shares that its row names print."""
    metric = score_of(task)
    points = []
    for row, values in results_of(4).items():
        printed = re.search(r"\((.*)%\)", values["label"])
        if printed:
            points.append((row, float(printed[1]), number_of(values[f"{task}.{metric}"])))
    lines = []
    for method in ("full_ft", "lora", "head", "sparta"):
        tone = tone_of(method)
        found = sorted((share, score) for row, share, score in points if row.startswith(method))
        look = {"ls": "-" if method == "sparta" else "", "marker": MARKS[tone]}
        lines.append(Lines(*zip(*found, strict=True), tone, look))

    def draw(frame: Frame) -> None:
        frame.chart(lines, "% of all scalars trained", log_x=True)

    return Panel(f"{task_of(task)}: {PAPER}", note, f"{metric} by the paper on {task}", draw)


if __name__ == "__main__":
    main()
