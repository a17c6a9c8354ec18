"""What is there at the peak of a step, method beside method, as stacked bars."""

from __future__ import annotations

from typing import Any, NamedTuple

from sparta_bench.analysis.memory.memory_tables import WAYS, label_of
from sparta_bench.report.plots import TONES, Figure, Frame, Key, Panel
from sparta_bench.text import as_bytes, shortened

# in the order in which they are stacked; no two neighbours look alike
PARTS = {
    "weights": "full_ft", "trained": "sparta", "indices": "other", "originals": "sparta_vo",
    "moments": "head", "gradients": "lora", "activations": "muted",
}  # fmt: skip
WIDTH, ROW = 400, 16


class Bar(NamedTuple):
    """A method in one way of training: bytes of each part at the peak, in the order of `PARTS`."""

    label: str
    sizes: tuple[float, ...]

    @property
    def text(self) -> str:
        """The sum, as it stands at the bar's end."""
        return as_bytes(sum(self.sizes))


def peaks(name: str, settings: list[dict[str, Any]]) -> Figure:
    """Draw a panel for each model of `findings.estimated`, with two bars a method: without gradient
    checkpointing, and with it below."""
    legend = tuple(Key(part, tone, "s") for part, tone in PARTS.items())
    title = "Memory at the peak of a training step"
    return Figure(name, title, tuple(map(_panel, settings)), legend)


def bars_of(setting: dict[str, Any]) -> list[Bar]:
    """Return the bars of one model, from the top."""
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
