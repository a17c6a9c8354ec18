"""What is there at the peak of a step, method beside method, as stacked bars."""

from __future__ import annotations

from typing import Any

from sparta_bench.analysis.memory.memory_tables import WAYS, label_of
from sparta_bench.report.chart import Bar, Bars, Figure, Key, Piece

# in the order in which they are stacked; no two neighbours look alike
TONES = {
    "weights": "full_ft", "trained": "sparta", "indices": "other", "originals": "sparta_vo",
    "moments": "head", "gradients": "lora", "activations": "muted",
}  # fmt: skip


def peaks(name: str, settings: list[dict[str, Any]]) -> Figure:
    """A panel for each model of `findings.estimated`, with two bars a method: without gradient
    checkpointing, and with it below."""
    legend = [Key(part, tone, "square", "none") for part, tone in TONES.items()]
    title = "Memory at the peak of a training step"
    return Figure(name, title, tuple(map(_panel, settings)), tuple(legend))


def _panel(setting: dict[str, Any]) -> Bars:
    bars = [
        _bar(label, method[way]["at_peak_bytes"])
        for method in setting["methods"]
        for way, label in zip(WAYS, (label_of(method["name"]), "checkpointing"), strict=True)
    ]
    title = f"{setting['model']}, {setting['rows']} × {setting['tokens']} tokens"
    said = "; ".join(f"{bar.label} {bar.text}" for bar in bars)
    return Bars(title, "", f"Memory at the peak, {title}: {said}", tuple(bars))


def _bar(label: str, sizes: dict[str, int]) -> Bar:
    pieces = tuple(Piece(tone, float(sizes[part])) for part, tone in TONES.items())
    total = sum(sizes.values())
    text = f"{total / 1e9:,.1f} GB" if total >= 1e9 else f"{total / 1e6:,.0f} MB"
    return Bar(label, "muted", float(total), text, pieces)
