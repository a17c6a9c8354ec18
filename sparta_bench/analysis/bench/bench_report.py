"""The report as Markdown."""

from __future__ import annotations

from typing import Any

from sparta_bench.tables.render import as_markdown
from sparta_bench.tables.table import Table, table_of

CONTENDER = (
    "contender", "trained", "step, ms", "quartiles", "fastest", "tokens/s", "TFLOP",
    "of product's speed", "backward/forward", "launches", "peak, MB", "merge", "gather",
    "gradient", "",
)  # fmt: skip


def as_text(report: dict[str, Any]) -> str:
    """Return the report for people."""
    device, dtypes = report["device"], report["dtypes"]
    packages = report["versions"].items()
    lines = [
        f"{device['name']} ({device['type']}, {device['threads']} threads), {report['date']}",
        f"weights {dtypes['model']}, trained values {dtypes['trained']}; {report['rounds']} rounds",
        ", ".join(f"{name} {version or 'not installed'}" for name, version in packages),
    ]
    tables = [table for setting in report.get("settings", []) for table in _steps(setting)]
    tables += map(_crossover, report.get("crossover", []))
    return "\n".join([*lines, "", *map(as_markdown, tables)]).rstrip("\n")


def _steps(setting: dict[str, Any]) -> list[Table]:
    title = (
        f"{setting['model']}: {setting['parameters']:,} parameters, {setting['rows']} rows of "
        f"{setting['tokens']} tokens"
    )
    speed = f"{setting['product_flops_per_second'] / 1e12:,.2f} TFLOP/s"
    rows = map(_contender, setting["contenders"])
    ratios = ("ratio", "value", "rounds", "of fastest")
    return [
        table_of("steps", title, CONTENDER, rows, f"A plain matrix product reaches {speed}."),
        table_of("ratios", "Ratios", ratios, map(_ratio, setting["ratios"])),
    ]


def _contender(row: dict[str, Any]) -> list[str]:
    if "step_seconds" not in row:
        return [row["name"], *[""] * (len(CONTENDER) - 2), row["status"]]
    low, high = row["step_seconds_quartiles"]
    shares = [row.get(f"{part}_share") for part in ("merge", "gather", "gradient")]
    return [
        row["name"],
        f"{row['trainable']:,}",
        f"{row['step_seconds'] * 1e3:.1f}",
        f"{low * 1e3:.1f} – {high * 1e3:.1f}",
        f"{row['fastest_step_seconds'] * 1e3:.1f}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['total_flops'] / 1e12:.3f}",
        f"{row['share_of_peak']:.0%}",
        f"{row['backward_to_forward']:.3f}",
        "" if row["kernel_launches"] is None else f"{row['kernel_launches']:,}",
        f"{row['peak_memory_bytes'] / 1e6:,.1f}",
        *("" if share is None else f"{share:.1%}" for share in shares),
        row["note"] or "",
    ]


def _ratio(ratio: dict[str, Any]) -> list[str]:
    cells = [ratio["what"], f"{ratio['value']:.3f}"]
    if "of_fastest_steps" not in ratio:
        return [*cells, "", ""]
    low, high = ratio["lowest_and_highest_round"]
    return [*cells, f"{low:.3f} – {high:.3f}", f"{ratio['of_fastest_steps']:.3f}"]


def _crossover(measured: dict[str, Any]) -> Table:
    rows = []
    for layer in measured["layers"]:
        ratios = [f"{times['sampled'] / times['dense']:.2f}" for times in layer["seconds"].values()]
        most = layer["sampled_is_faster_up_to"]
        shape = f"{layer['out_features']} × {layer['in_features']}"
        rows.append([shape, *ratios, "never" if most is None else f"{most:.2%}"])
    densities = (f"{float(density):.2%}" for density in measured["layers"][0]["seconds"])
    title = (
        f"{measured['model']}, {measured['tokens']:,} tokens: seconds of the sampled gradient / of "
        "the dense one, by layer (out × in) and density"
    )
    return table_of("crossover", title, ("layer", *densities, "faster up to"), rows)
