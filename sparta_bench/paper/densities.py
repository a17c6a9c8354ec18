"""The densities of the paper's rows of SpaRTA."""

from __future__ import annotations

DENSITIES = {"sparta-5": 0.05, "sparta-0.5": 0.005}
# The third row has LoRA's parameter count: the paper prints its density as 0.05, 0.037 and 0.048 %
# (docs/fidelity.md), and the files of conf/sweep, which bear these names, have the arithmetic.
LORA_DENSITY = {
    "table3": 0.0005,
    "table4": 0.000465,
    "table5": 0.000488,
    "table10": 0.000465,
    "table11": 0.000488,
    "tiny_table3": 0.036,
    "tiny_table4": 0.0352,
    "tiny_table5": 0.0364,
    "tiny_table10": 0.0352,
    "tiny_table11": 0.0364,
}
