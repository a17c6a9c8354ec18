"""Draw docs/accuracy.png, the picture of the README, from the committed records.

python scripts/readme_picture.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from sparta_bench.files import whole_file
from sparta_bench.records.read import read_records
from sparta_bench.report.chart import Figure
from sparta_bench.report.figures import accuracy_figure
from sparta_bench.report.groups import groups_of
from sparta_bench.report.plots import write_figures
from sparta_bench.tables.select import select

ROOT = Path(__file__).resolve().parent.parent
SHOWN = {
    ("stories-3m-mistral", "SST2"): "SST-2, a real model of 3.1M scalars",
    ("tiny-gemma", "tiny-SST2"): "the same in small, generated, 0.2M",
}


def main() -> None:
    """Write the file."""
    records, _ = read_records([ROOT / "results/small-model/final", ROOT / "results/tiny-sst2"])
    panels, legend = [], ()
    for group in groups_of(select(records), records):
        figure = accuracy_figure(group)
        for panel in figure.panels if figure else ():
            title = SHOWN.get((group.model, panel.title))
            if figure is not None and title is not None:
                panels.append(replace(panel, title=title))
                legend = figure.legend
    with TemporaryDirectory() as folder:
        write_figures([Figure("accuracy", "README", tuple(panels), legend)], Path(folder))
        with whole_file(ROOT / "docs" / "accuracy.png") as path:
            path.write_bytes((Path(folder) / "accuracy.png").read_bytes())


if __name__ == "__main__":
    main()
