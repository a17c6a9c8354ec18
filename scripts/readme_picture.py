"""Draw docs/accuracy.png, the picture of the README, from the committed records.

python scripts/readme_picture.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from sparta_bench.files import whole_file
from sparta_bench.records.read import read_records
from sparta_bench.report.facts import groups_of, task_of
from sparta_bench.report.pictures import density_panel, method_keys
from sparta_bench.report.plots import Figure, write_figures
from sparta_bench.tables.select import select

ROOT = Path(__file__).resolve().parent.parent
SHOWN = {
    ("stories-3m-mistral", "SST2"): "SST-2 accuracy, a model of 3.1M scalars",
    ("tiny-gemma", "tiny-SST2"): "generated SST-2, accuracy, 0.2M scalars",
}


def main() -> None:
    """Write the file."""
    records, _ = read_records([ROOT / "results/small-model/final", ROOT / "results/tiny-sst2"])
    panels, methods = [], []
    for group in groups_of(select(records), records):
        for task, cells in group.tasks().items():
            title = SHOWN.get((group.model, task_of(task)))
            panel = density_panel(task, cells) if title else None
            if title and panel is not None:
                panels.append(replace(panel, title=title, note=""))
                methods += [chosen.cell.method for chosen in cells]
    with TemporaryDirectory() as folder:
        figure = Figure("accuracy", "README", tuple(panels), method_keys(methods))
        write_figures([figure], Path(folder))
        with whole_file(ROOT / "docs" / "accuracy.png") as path:
            path.write_bytes((Path(folder) / "accuracy.png").read_bytes())


if __name__ == "__main__":
    main()
