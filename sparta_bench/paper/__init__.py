"""The paper's own numbers, as it prints them, one file a table; no torch.

Tables 7 and 8: `layers` are ranges ("1,3-5"), or "-" for a matrix outside the layers. Table 13:
where the paper says "same as for Full FT", the values of Full FT stand. `imdb_train` is appendix
E.1, `printed_models` how the headings of Tables 4, 5, 10 and 11 call the model, `section5` what
SpaRTA adds to the stored model and saves of full fine-tuning's memory, by sparsity in percent.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

DENSITIES = {"sparta-5": 0.05, "sparta-0.5": 0.005}  # of the paper's rows of SpaRTA
# The third row has LoRA's parameter count: the paper prints its density as 0.05, 0.037 and 0.048 %
# (docs/fidelity.md), and the files of conf/sweep, which bear these names, have the arithmetic.
LORA_DENSITY = {
    "table3": 0.0005, "table4": 0.000465, "table5": 0.000488, "table10": 0.000465,
    "table11": 0.000488, "tiny_table3": 0.036, "tiny_table4": 0.0352, "tiny_table5": 0.0364,
    "tiny_table10": 0.0352, "tiny_table11": 0.0364,
}  # fmt: skip
PAPER_DENSITIES = (*DENSITIES.values(), LORA_DENSITY["table3"])  # as Table 3 prints them


@cache
def rows_of(name: str) -> tuple[dict[str, str], ...]:
    """The lines of `table4`, `imdb_train` and so on by column; every value is the printed text."""
    with Path(__file__).with_name(f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


@cache
def results_of(number: int) -> dict[str, dict[str, str]]:
    """Tables 3, 4, 5, 10 and 11: row (`full_ft`, `sparta-5`, …), then column (`rte.loss`, …)."""
    return {row["row"]: row for row in rows_of(f"table{number}")}


def number_of(text: str) -> float:
    """What a printed value says: "96.9%" is 96.9, "1,725" is 1725, "5e-4" is 0.0005."""
    return float(text.removesuffix("%").replace(",", ""))


def half_unit(text: str) -> float:
    """Half a unit of a printed decimal's last digit: what rounding can have hidden."""
    return 0.5 * 10.0 ** -len(text.removesuffix("%").partition(".")[2])
