"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparta_bench.analysis.bench.sampled_gradient import CROSSOVER_DENSITIES


def as_markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    device, dtypes = report["device"], report["dtypes"]
    packages = [
        f"{name} {version or 'not installed'}" for name, version in report["versions"].items()
    ]
    lines = [
        f"{device['name']} ({device['type']}, {device['threads']} threads), {report['date']}",
        f"weights {dtypes['model']}, trained values {dtypes['trained']}; {report['rounds']} rounds",
        ", ".join(packages),
    ]
    for setting in report.get("settings", []):
        lines += ["", *_setting_lines(setting)]
    for table in report.get("crossover", []):
        lines += ["", *_crossover_lines(table)]
    return "\n".join(lines)


def _setting_lines(setting: dict[str, Any]) -> list[str]:
    contenders = (
        "contender", "trained", "step, ms", "quartiles", "fastest", "tokens/s", "TFLOP",
        "of product's speed", "backward/forward", "launches", "peak, MB", "merge",
        "gather", "gradient", "",
    )  # fmt: skip
    ratios = ("ratio", "value", "rounds", "of fastest")
    return [
        f"{setting['model']}: {setting['parameters']:,} parameters, {setting['rows']} rows of "
        f"{setting['tokens']} tokens; a plain matrix product reaches "
        f"{setting['product_flops_per_second'] / 1e12:,.2f} TFLOP/s",
        "",
        *_table(contenders, [_contender(row, len(contenders)) for row in setting["contenders"]]),
        "",
        *_table(ratios, list(map(_ratio, setting["ratios"]))),
    ]


def _contender(row: dict[str, Any], width: int) -> list[str]:
    if "step_seconds" not in row:
        return [row["name"], *[""] * (width - 2), row["status"]]
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
    spread, fastest = ratio.get("lowest_and_highest_round"), ratio.get("of_fastest_steps")
    return [
        ratio["what"],
        f"{ratio['value']:.3f}",
        "" if spread is None else f"{spread[0]:.3f} – {spread[1]:.3f}",
        "" if fastest is None else f"{fastest:.3f}",
    ]


def _crossover_lines(table: dict[str, Any]) -> list[str]:
    head = ("layer", *(f"{density:.2%}" for density in CROSSOVER_DENSITIES), "faster up to")
    body = []
    for layer in table["layers"]:
        ratios = [f"{times['sampled'] / times['dense']:.2f}" for times in layer["seconds"].values()]
        most = layer["sampled_is_faster_up_to"]
        shape = f"{layer['out_features']} × {layer['in_features']}"
        body.append([shape, *ratios, "never" if most is None else f"{most:.2%}"])
    return [
        f"{table['model']}, {table['tokens']:,} tokens: seconds of the sampled gradient / of the "
        "dense one, by layer (out × in) and density",
        "",
        *_table(head, body),
    ]


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in [head, *body]) for place in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        return f"| {' | '.join(cells)} |"

    return [line(head), line(["-" * width for width in widths]), *map(line, body)]
