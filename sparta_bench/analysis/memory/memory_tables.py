"""The tables of `sparta-bench memory`, from its JSON: Table 1, the parts, what fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparta_bench.paper import half_unit, number_of
from sparta_bench.tables.table import Table, table_of

PARTS = ("weights", "trained", "indices", "originals", "gradients", "moments")
WAYS = {"plain": "", "checkpointing": ", checkpointing"}  # and what is added to a heading
COMPARED = {
    "held_bytes": "held",
    "smallest_peak_bytes": "peak, 1 token",
    "peak_bytes": "peak, batch",
    "activation_bytes": "activations",
}


def tables_of(found: dict[str, Any]) -> list[Table]:
    """Return the three tables, and one for each model that was measured."""
    tables = [_table1(found["table1"])]
    if found["settings"]:
        tables += [_parts(found["settings"]), _fits(found["settings"])]
    return [*tables, *map(_compared, found["measured"] or [])]


def label_of(name: str) -> str:
    """`sparta 5 %` for `sparta-0.05`; others as they are."""
    kind, _, density = name.partition("-")
    return f"{kind} {100 * float(density):g} %" if density else name


class _Unit:
    """Megabytes or gigabytes (powers of ten), whichever suits the largest of the sizes."""

    def __init__(self, sizes: Sequence[int]) -> None:
        large = max(sizes) >= 1e9
        self.name, self._bytes, self._digits = ("GB", 1e9, 3) if large else ("MB", 1e6, 2)

    def text(self, size: float) -> str:
        return f"{size / self._bytes:,.{self._digits}f}" if size else "–"


def _batch(setting: dict[str, Any]) -> str:
    shared = setting["shared_tokens"]
    same = f", of which all begin with the same {shared:,}" if shared else ""
    return f"{setting['rows']:,} rows of {setting['tokens']:,} tokens{same}"


# ------------------------------------------------------------------------------- the paper
def _table1(models: Sequence[dict[str, Any]]) -> Table:
    columns = list(models[0]["formula_gb"])
    rows, same = [], 0
    for model in models:
        formula, printed = model["formula_gb"], model["printed_gb"]
        rows.append([model["model"], "formula", *(f"{formula[name]:.2f}" for name in columns)])
        rows.append([model["model"], "paper", *(printed[name] for name in columns)])
        same += sum(_is_as_printed(formula[name], printed[name]) for name in columns)
    note = f"{same} of {len(columns) * len(models)} values are the paper's, rounded as it rounds"
    title = "Table 1: GB to store, and to train with Adam, by sparsity; all in bfloat16"
    heads = ["model", "", *map(_heading, columns)]
    return table_of("table1", title, heads, rows, f"{note} them.")


def _heading(column: str) -> str:
    kind, _, sparsity = column.partition("-")
    return f"SpaRTA {sparsity} %" if sparsity else {"full_ft": "full FT"}.get(kind, kind)


def _is_as_printed(value: float, text: str) -> bool:
    """Whether a value, rounded as the paper rounds, is what it prints."""
    return abs(value - number_of(text)) <= half_unit(text) + 1e-9


# ------------------------------------------------------------------------------- estimated
def _parts(settings: Sequence[dict[str, Any]]) -> Table:
    methods = [(setting["model"], row) for setting in settings for row in setting["methods"]]
    unit = _Unit([row["total_bytes"] for _, row in methods])
    rows = [
        [
            model,
            label_of(row["name"]),
            f"{row['trainable']:,}",
            row["dtypes"]["trained"],
            *(unit.text(row["parts_bytes"][part]) for part in PARTS),
            unit.text(row["total_bytes"]),
            unit.text(row["paper_formula_bytes"]),
        ]
        for model, row in methods
    ]
    heads = ["model", "method", "scalars trained", "trained in", *PARTS, "all", "paper's formula"]
    notes = [
        f"{setting['model']} ({setting['parameters']:,} parameters, {setting['weights_dtype']} "
        "weights)."
        for setting in settings
    ]
    notes.append(
        "trained: what trains beside the weights (copies, deltas, matrices, the head); all: with "
        "all gradients."
    )
    notes += [
        f"{setting['model']}: {label_of(name)} is left out: {why}"
        for setting in settings
        for name, why in setting["left_out"].items()
    ]
    return table_of("parts", f"{unit.name} of each part, activations aside", heads, rows, *notes)


def _fits(settings: Sequence[dict[str, Any]]) -> Table:
    methods = [(setting["model"], row) for setting in settings for row in setting["methods"]]
    unit = _Unit([row[way]["peak_bytes"] for _, row in methods for way in WAYS])
    rows = [
        [
            model,
            label_of(row["name"]),
            *(unit.text(row[way]["peak_bytes"]) for way in WAYS),
            *(
                f"{most:,}" if most else "does not fit"
                for way in WAYS
                for most in row[way]["largest_rows"].values()
            ),
        ]
        for model, row in methods
    ]
    limits = list(settings[0]["methods"][0]["plain"]["largest_rows"])
    heads = [f"peak, {unit.name}{more}" for more in WAYS.values()]
    heads += [f"{limit} GiB{more}" for more in WAYS.values() for limit in limits]
    notes = (
        *(f"{setting['model']}: a step with {_batch(setting)}." for setting in settings),
        *_of_each(settings),
        "Activations are estimated by a dry run. They are never all there at once with all "
        "gradients, so the peak is less than the sum of all parts.",
        f"{settings[0]['kept_free_bytes'] / 2**30:g} GiB of a GPU is kept free for CUDA itself: a "
        "guess. train.accumulation_steps cuts a batch into parts that fit.",
    )
    title = "Peak of a step, and rows of the largest batch that fits"
    return table_of("fits", title, ["model", "method", *heads], rows, *notes)


def _of_each(settings: Sequence[dict[str, Any]]) -> list[str]:
    gpus = settings[0]["gpus"]
    if gpus == 1:
        return []
    return [
        f"Bytes are those of each of {gpus} GPUs that share the model (train.sharding=fsdp), "
        "with the layers that are gathered; rows are those of all."
    ]


# -------------------------------------------------------------------------------- measured
def _compared(setting: dict[str, Any]) -> Table:
    unit = _Unit([row["estimated"]["peak_bytes"] for row in setting["methods"]])
    rows = []
    for row in setting["methods"]:
        name = label_of(row["name"]) + (", checkpointing" if row["gradient_checkpointing"] else "")
        if row["measured"] is None:
            rows.append([name, row["status"], *[""] * (2 * len(COMPARED) - 1)])
            continue
        cells = ((unit.text(row["measured"][key]), _off(row["off"].get(key))) for key in COMPARED)
        rows.append([name, *(text for pair in cells for text in pair)])
    device = setting["device"]
    what = "CUDA's allocator" if device["type"] == "cuda" else "all tensors of the process"
    return table_of(
        f"{setting['model']}-compared",
        f"{setting['model']}, {_batch(setting)}: {unit.name} measured, and how far the estimate is "
        "off",
        ["method", *(text for name in COMPARED.values() for text in (name, "off"))],
        rows,
        "held: between two steps; 1 token: with a batch of one row with one token; activations: "
        "what the batch adds to that.",
        f"{setting['date']}, {device['name']}, torch {setting['versions']['torch']}: {what}.",
    )


def _off(share: float | None) -> str:
    """`+1.2%`; a dash where nothing was measured that it could be off from."""
    if share is None:
        return "–"
    text = f"{share:+.1%}"
    return text if float(text[:-1]) else "0.0%"
