"""The tables of `sparta-bench memory`, from what `report` found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparta_bench.paper import half_unit, number_of
from sparta_bench.tables.table import Heading, Table

PARTS = ("weights", "trained", "indices", "originals", "gradients", "moments")
WAYS = {"plain": "", "checkpointing": ", checkpointing"}  # and what is added to a heading
COMPARED = {
    "held_bytes": "held",
    "smallest_peak_bytes": "peak, 1 token",
    "peak_bytes": "peak, batch",
    "activation_bytes": "activations",
}


def tables_of(found: dict[str, Any]) -> list[Table]:
    """All tables, in the order in which they are shown."""
    tables = [_table1(found["table1"]), _savings(found["savings"]), _break_even(found)]
    for setting in found["settings"]:
        tables += [_parts(setting), _peaks(setting), _fits(setting)]
    for setting in found["measured"] or []:
        tables += [_measured_parts(setting), _compared(setting), _measured_table1(setting)]
    return tables


def label_of(name: str) -> str:
    """`sparta 5 %` for `sparta-0.05`; others as they are."""
    kind, _, density = name.partition("-")
    return f"{kind} {100 * float(density):g} %" if density else name


def _table(
    key: str, title: str, names: Sequence[str], rows: Sequence[Sequence[str]], *notes: str
) -> Table:
    headings = (tuple(Heading(name) for name in names),)
    return Table(key, title, headings, tuple(map(tuple, rows)), notes)


# ------------------------------------------------------------------------------- the paper
def _table1(models: Sequence[dict[str, Any]]) -> Table:
    columns = list(models[0]["formula_gb"])
    rows, same = [], 0
    for model in models:
        formula, printed = model["formula_gb"], model["printed_gb"]
        rows.append([model["model"], "formula", *(f"{formula[name]:.2f}" for name in columns)])
        rows.append([model["model"], "paper", *(printed[name] for name in columns)])
        same += sum(_is_as_printed(formula[name], printed[name]) for name in columns)
    values = len(columns) * len(models)
    names = [_column(name) for name in columns]
    note = f"{same} of {values} values are the paper's, rounded as it rounds them."
    title = "Table 1: GB to store, and to train with Adam, by sparsity; all in bfloat16"
    return _table("table1", title, ["model", "", *names], rows, note)


def _column(name: str) -> str:
    """Table 1's heading for a column of its file."""
    kind, _, sparsity = name.partition("-")
    return f"SpaRTA {sparsity} %" if sparsity else {"full_ft": "full FT"}.get(kind, kind)


def _is_as_printed(value: float, text: str) -> bool:
    """Whether a value, rounded as the paper rounds, is what it prints."""
    return abs(value - number_of(text)) <= half_unit(text) + 1e-9


def _savings(savings: Sequence[dict[str, Any]]) -> Table:
    rows = [
        [
            f"{row['sparsity']} %",
            *(
                text
                for name in ("more_storage", "less_memory")
                for text in (f"{row['formula'][name]:.1%}", row["printed"][name])
            ),
        ]
        for row in savings
    ]
    names = ["sparsity", "more storage", "paper", "less memory than full FT", "paper"]
    return _table(
        "savings", "What SpaRTA adds on disk, and saves in training (section 5)", names, rows
    )


def _break_even(found: dict[str, Any]) -> Table:
    cases = [*found["break_even"], *(setting["break_even"] for setting in found["settings"])]
    rows = [
        [
            case["case"],
            *(str(case[f"{name}_bytes"]) for name in ("full_ft", "frozen", "chosen")),
            f"{case['density']:.1%}",
        ]
        for case in cases
    ]
    names = ["case", "full FT", "SpaRTA, frozen", "SpaRTA, chosen", "break-even"]
    title = "Bytes a scalar, and the share of chosen scalars from which SpaRTA saves nothing"
    notes = (
        "Chosen: delta, gradient, two moments and the place; here the original value too, without "
        "which a bfloat16 base drifts.",
        "Of all scalars of the model; embeddings are never chosen from.",
    )
    return _table("break-even", title, names, rows, *notes)


# ------------------------------------------------------------------------------- estimated
def _where(setting: dict[str, Any]) -> str:
    return (
        f"{setting['model']} ({setting['parameters']:,} parameters, {setting['weights_dtype']} "
        f"weights)"
    )


def _batch(setting: dict[str, Any]) -> str:
    return f"{setting['rows']:,} rows of {setting['tokens']:,} tokens"


def _parts(setting: dict[str, Any]) -> Table:
    unit = _Unit([row["total_bytes"] for row in setting["methods"]])
    rows = [
        [
            label_of(row["name"]),
            f"{row['trainable']:,}",
            row["dtypes"]["trained"],
            *(unit.text(row["parts_bytes"][part]) for part in PARTS),
            unit.text(row["total_bytes"]),
            unit.text(row["paper_formula_bytes"]),
        ]
        for row in setting["methods"]
    ]
    title = f"{_where(setting)}: {unit.name} of each part, activations aside"
    names = ["method", "scalars trained", "trained in", *PARTS, "all", "paper's formula"]
    notes = [
        "trained: what trains beside the weights (copies, deltas, matrices, the head); all: with "
        "all gradients.",
        *(f"{label_of(name)} is left out: {why}" for name, why in setting["left_out"].items()),
    ]
    return _table(f"{setting['model']}-parts", title, names, rows, *notes)


def _peaks(setting: dict[str, Any]) -> Table:
    unit = _Unit([row[way]["peak_bytes"] for row in setting["methods"] for way in WAYS])
    sizes = ("activation_bytes", "peak_bytes")
    rows = [
        [label_of(row["name"]), *(unit.text(row[way][size]) for way in WAYS for size in sizes)]
        for row in setting["methods"]
    ]
    title = f"{setting['model']}: {unit.name} in a step with {_batch(setting)}"
    names = [f"{name}{more}" for more in WAYS.values() for name in ("activations", "peak")]
    note = (
        "Activations are estimated by a dry run. They are never all there at once with all "
        "gradients, so the peak is less than the sum of all parts."
    )
    return _table(f"{setting['model']}-peaks", title, ["method", *names], rows, note)


def _fits(setting: dict[str, Any]) -> Table:
    rows = [
        [
            label_of(row["name"]),
            *(
                f"{most:,}" if most else "does not fit"
                for way in WAYS
                for most in row[way]["largest_rows"].values()
            ),
        ]
        for row in setting["methods"]
    ]
    limits = list(setting["methods"][0]["plain"]["largest_rows"])
    names = [f"{limit} GiB{more}" for more in WAYS.values() for limit in limits]
    title = (
        f"{setting['model']}: rows of {setting['tokens']:,} tokens in the largest batch that fits"
    )
    note = (
        f"{setting['kept_free_bytes'] / 2**30:g} GiB of a GPU is kept free for CUDA itself: a "
        "guess. train.accumulation_steps cuts a batch into parts that fit."
    )
    return _table(f"{setting['model']}-fits", title, ["method", *names], rows, note)


class _Unit:
    """Megabytes or gigabytes (powers of ten), whichever suits the largest of the sizes."""

    def __init__(self, sizes: Sequence[int]) -> None:
        large = max(sizes) >= 1e9
        self.name, self._bytes, self._digits = ("GB", 1e9, 3) if large else ("MB", 1e6, 2)

    def text(self, size: float) -> str:
        return f"{size / self._bytes:,.{self._digits}f}" if size else "–"


# -------------------------------------------------------------------------------- measured
def _measured_parts(setting: dict[str, Any]) -> Table:
    rows = [row for row in setting["methods"] if not row["gradient_checkpointing"]]
    unit = _Unit([row["estimated"]["held_bytes"] for row in rows])
    body = []
    for row in rows:
        if row["measured"] is None:
            body.append([label_of(row["name"]), *[""] * (len(PARTS) + 1), row["status"]])
            continue
        parts, held = row["measured"]["parts_bytes"], row["measured"]["held_bytes"]
        unexplained = held - (sum(parts.values()) - parts["gradients"])
        sizes = [*(parts[part] for part in PARTS), held, unexplained]
        body.append([label_of(row["name"]), *map(unit.text, sizes)])
    title = f"{_where(setting)}, measured: {unit.name} of each part"
    names = ["method", *PARTS, "held between steps", "of it in no part"]
    return _table(f"{setting['model']}-measured-parts", title, names, body, _device(setting))


def _device(setting: dict[str, Any]) -> str:
    device, versions = setting["device"], setting["versions"]
    what = "CUDA's allocator" if device["type"] == "cuda" else "all tensors of the process"
    return f"{setting['date']}, {device['name']}, torch {versions['torch']}: {what}."


def _compared(setting: dict[str, Any]) -> Table:
    unit = _Unit([row["estimated"]["peak_bytes"] for row in setting["methods"]])
    body = []
    for row in setting["methods"]:
        name = label_of(row["name"]) + (", checkpointing" if row["gradient_checkpointing"] else "")
        if row["measured"] is None:
            body.append([name, row["status"], *[""] * (2 * len(COMPARED) - 1)])
            continue
        cells = ((unit.text(row["measured"][key]), _off(row["off"].get(key))) for key in COMPARED)
        body.append([name, *(text for pair in cells for text in pair)])
    where = f"{setting['model']}, {_batch(setting)}"
    title = f"{where}: {unit.name} measured, and how far the estimate is off"
    names = [text for name in COMPARED.values() for text in (name, "off")]
    note = (
        "held: between two steps; 1 token: with a batch of one row with one token; activations: "
        "what the batch adds to that."
    )
    return _table(f"{setting['model']}-compared", title, ["method", *names], body, note)


def _measured_table1(setting: dict[str, Any]) -> Table:
    columns = setting["table1"]
    unit = _Unit([column["formula_bytes"] or 0 for column in columns])
    cells = [_table1_cells(column, unit) for column in columns]
    kinds = ("the paper's formula", "all parts", "all but the originals", "peak of a step")
    rows = [[kind, *row] for kind, row in zip(kinds, zip(*cells, strict=True), strict=True)]
    where = f"Table 1 measured at the size of {setting['model']}"
    title = f"{where}: {unit.name}, everything in bfloat16, one token"
    names = [_column(column["column"]) for column in columns]
    note = (
        "The paper's SpaRTA has no originals. The peak holds the largest weight's gradient, or "
        "what stochastic rounding of the largest tensor works with, 27 bytes a scalar in pieces of "
        "16,777,216 scalars."
    )
    return _table(f"{setting['model']}-table1", title, ["", *names], rows, note)


def _table1_cells(column: dict[str, Any], unit: _Unit) -> list[str]:
    formula, parts = column["formula_bytes"], column["parts_bytes"]
    first = "–" if formula is None else unit.text(formula)
    if parts is None:
        return [first, column["status"], "", ""]
    total = sum(parts.values())
    return [first, *map(unit.text, (total, total - parts["originals"], column["peak_bytes"]))]


def _off(share: float | None) -> str:
    """`+1.2%`; a dash where nothing was measured that it could be off from."""
    if share is None:
        return "–"
    text = f"{share:+.1%}"
    return text if float(text[:-1]) else "0.0%"


# ------------------------------------------------------------------------------ for the CSV
def values_table(found: dict[str, Any]) -> Table:
    """Every size in bytes, one a row: estimated, and measured where it was."""
    rows = []
    for setting in found["settings"]:
        for method in setting["methods"]:
            start = _start(setting, setting["device"], method["name"])
            sizes = method["parts_bytes"] | {"total": method["total_bytes"]}
            rows += [(*start, "", part, str(size), "") for part, size in sizes.items()]
            for way in WAYS:
                sizes = {name: method[way][f"{name}_bytes"] for name in ("activation", "peak")}
                rows += [(*start, way, part, str(size), "") for part, size in sizes.items()]
    for setting in found["measured"] or []:
        for method in setting["methods"]:
            way = "checkpointing" if method["gradient_checkpointing"] else "plain"
            start = _start(setting, setting["device"]["type"], method["name"])
            here, there = (_flat(method[side]) for side in ("estimated", "measured"))
            rows += [
                (*start, way, part, str(size), str(there.get(part, "")))
                for part, size in here.items()
            ]
        for column in setting["table1"]:
            start = (setting["model"], setting["device"]["type"], "1", "1", column["column"])
            parts = column["parts_bytes"]
            total = "" if parts is None else str(sum(parts.values()))
            formula = column["formula_bytes"]
            rows.append((*start, "table1", "total", "" if formula is None else str(formula), total))
    names = (
        "model", "device", "rows", "tokens", "method", "way", "part", "estimated bytes",
        "measured bytes",
    )  # fmt: skip
    return _table("memory", "Bytes of each part", names, rows)


def _start(setting: dict[str, Any], device: str, method: str) -> tuple[str, ...]:
    return (setting["model"], device, str(setting["rows"]), str(setting["tokens"]), method)


def _flat(side: dict[str, Any] | None) -> dict[str, int]:
    if side is None:
        return {}
    others = {name.removesuffix("_bytes"): side[name] for name in COMPARED}
    return {**side["parts_bytes"], **others}
