"""The tables of `sparta-bench memory`, from its JSON: Table 1, the parts, what fits; and its
figure, what is there at the peak of a step, method beside method, as stacked bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sparta_bench.paper import half_unit, number_of
from sparta_bench.report.plots import TONES, Figure, Frame, Key, Panel
from sparta_bench.tables.table import Table, table_of
from sparta_bench.text import as_bytes, shortened

# of the figure with their tones, in the order in which they are stacked; no two neighbours look
# alike
PARTS = {
    "weights": "full_ft", "trained": "sparta", "indices": "other", "originals": "sparta_vo",
    "moments": "head", "gradients": "lora", "activations": "muted",
}  # fmt: skip
COLUMNS = ("weights", "trained", "indices", "originals", "gradients", "moments")  # of the table
WAYS = {"plain": "", "checkpointing": ", checkpointing"}  # and what is added to a heading
COMPARED = {
    "held_bytes": "held",
    "smallest_peak_bytes": "peak, 1 token",
    "peak_bytes": "peak, batch",
    "activation_bytes": "activations",
}
WIDTH, ROW = 400, 16  # of a panel and of a bar


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


def _table1(models: Sequence[dict[str, Any]]) -> Table:
    heads, rows, same = ["model", ""], [], 0
    columns = list(models[0]["formula_gb"])
    for column in columns:
        kind, _, sparsity = column.partition("-")
        plain = {"full_ft": "full FT"}.get(kind, kind)
        heads.append(f"SpaRTA {sparsity} %" if sparsity else plain)
    for model in models:
        formula, printed = model["formula_gb"], model["printed_gb"]
        rows.append([model["model"], "formula", *(f"{formula[name]:.2f}" for name in columns)])
        rows.append([model["model"], "paper", *(printed[name] for name in columns)])
        for name in columns:  # whether the formula's, rounded as the paper rounds, is printed
            off = abs(formula[name] - number_of(printed[name]))
            same += off <= half_unit(printed[name]) + 1e-9
    count = len(columns) * len(models)
    note = f"{same} of {count} values are the paper's, rounded as it rounds them."
    title = "Table 1: GB to store, and to train with Adam, by sparsity; all in bfloat16"
    return table_of("table1", title, heads, rows, note)


def _parts(settings: Sequence[dict[str, Any]]) -> Table:
    methods = [(setting["model"], row) for setting in settings for row in setting["methods"]]
    unit = _Unit([row["total_bytes"] for _, row in methods])
    rows = [
        [
            model, label_of(row["name"]), f"{row['trainable']:,}", row["dtypes"]["trained"],
            *(unit.text(row["parts_bytes"][part]) for part in COLUMNS),
            unit.text(row["total_bytes"]), unit.text(row["paper_formula_bytes"]),
        ]
        for model, row in methods
    ]  # fmt: skip
    heads = ["model", "method", "scalars trained", "trained in", *COLUMNS, "all", "paper's formula"]
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
    rows = []
    for model, row in methods:
        peaks = [unit.text(row[way]["peak_bytes"]) for way in WAYS]
        most = [most for way in WAYS for most in row[way]["largest_rows"].values()]
        fits = [f"{count:,}" if count else "does not fit" for count in most]
        rows.append([model, label_of(row["name"]), *peaks, *fits])
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


def _compared(setting: dict[str, Any]) -> Table:
    unit = _Unit([row["estimated"]["peak_bytes"] for row in setting["methods"]])
    rows = []
    for row in setting["methods"]:
        name = label_of(row["name"]) + (", checkpointing" if row["gradient_checkpointing"] else "")
        if row["measured"] is None:
            rows.append([name, row["status"], *[""] * (2 * len(COMPARED) - 1)])
            continue
        cells = [name]
        for key in COMPARED:
            share = row["off"].get(key)  # None where nothing was measured to be off from
            off = "–" if share is None else f"{share:+.1%}"
            zero = share is not None and float(off[:-1]) == 0
            cells += [unit.text(row["measured"][key]), "0.0%" if zero else off]
        rows.append(cells)
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


# ---------------------------------------------------------------------------------- figure
class Bar(NamedTuple):
    """A method in one way of training: bytes of each part at the peak, in the order of `PARTS`."""

    label: str
    sizes: tuple[float, ...]

    @property
    def text(self) -> str:
        return as_bytes(sum(self.sizes))


def peaks(name: str, settings: list[dict[str, Any]]) -> Figure:
    """Draw a panel for each model of `findings.estimated`, with two bars a method: without gradient
    checkpointing, and with it below."""
    legend = tuple(Key(part, tone, "s") for part, tone in PARTS.items())
    title = "Memory at the peak of a training step"
    return Figure(name, title, tuple(map(_panel, settings)), legend)


def bars_of(setting: dict[str, Any]) -> list[Bar]:
    return [
        Bar(label, tuple(float(method[way]["at_peak_bytes"][part]) for part in PARTS))
        for method in setting["methods"]
        for way, label in zip(WAYS, (label_of(method["name"]), "checkpointing"), strict=True)
    ]


def _panel(setting: dict[str, Any]) -> Panel:
    bars = bars_of(setting)
    rows = range(len(bars))
    title = f"{setting['model']}, {setting['rows']} × {setting['tokens']} tokens"
    texts = "; ".join(f"{bar.label} {bar.text}" for bar in bars)

    def draw(frame: Frame) -> None:
        axes = frame.axes(left=104, right=62, top=22, bottom=4)
        ends = [0.0] * len(bars)
        for part, tone in enumerate(PARTS.values()):
            sizes = [bar.sizes[part] for bar in bars]
            axes.barh(rows, sizes, 0.66, left=ends, color=TONES[tone].light)
            ends = [end + size for end, size in zip(ends, sizes, strict=True)]
        for row, bar, end in zip(rows, bars, ends, strict=True):
            axes.annotate(bar.text, (end, row), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(rows, [shortened(bar.label, 18) for bar in bars])
        axes.set_xticks([])
        axes.set_xlim(left=0)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.spines["bottom"].set_visible(False)

    height = 26 + ROW * len(bars)
    return Panel(title, "", f"Memory at the peak, {title}: {texts}", draw, WIDTH, height)
