"""Spectra of the changes, one panel for each kind of matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparta_bench.analysis.ranks.rank_tables import kind_order, place_of
from sparta_bench.analysis.ranks.spectrum import MatrixChange, ModelChanges
from sparta_bench.report.plots import MARKS, TONES, Figure, Frame, Key, Lines, Panel
from sparta_bench.text import counted

POINTS, MARKED = 120, 4  # of a curve, and how many of them carry its marker
SPARE_TONES = ("other", "head", "sparta_vo", "muted", "bad")  # for what no method is known of


def spectra(name: str, title: str, shown: Sequence[ModelChanges]) -> Figure:
    """Draw singular values over the largest, both axes logarithmic; of several layers the median.
    What did not change has no curve. The dashed line is the tolerance, below which none counts."""
    kinds = {place_of(change.key).kind for one in shown for change in one.changes}
    tones = _tones(shown)
    panels = [
        panel
        for kind in sorted(kinds, key=kind_order)
        if (panel := _panel(kind, shown, tones)) is not None
    ]
    legend = [
        Key(one.label, tone, MARKS.get(tone, "o")) for one, tone in zip(shown, tones, strict=True)
    ]
    return Figure(name, title, tuple(panels), (*legend, Key("tolerance", "muted", style="--")))


def _tones(shown: Sequence[ModelChanges]) -> list[str]:
    """A method's own colour for its first model, and spare ones, in turn, for all others."""
    taken: list[str] = []
    for one in shown:
        spare = [tone for tone in SPARE_TONES if tone not in taken]
        own = one.method in TONES and one.method not in taken
        taken.append(str(one.method) if own else (spare or SPARE_TONES)[0])
    return taken


def _panel(kind: str, shown: Sequence[ModelChanges], tones: Sequence[str]) -> Panel | None:
    """None where none of the models changed it."""
    curves, layers = [], 0
    for one, tone in zip(shown, tones, strict=True):
        changed = [
            change
            for change in one.changes
            if place_of(change.key).kind == kind and change.largest > 0
        ]
        if changed:
            curves.append((tone, _median(changed)))
            tolerance = changed[0].relative_tolerance()
            layers = max(layers, len(changed))
    if not curves:
        return None
    floor = tolerance / 100  # below that is nothing but noise
    longest = max(len(values) for _, values in curves)

    lines = [Lines([1, longest], [tolerance] * 2, "muted", {"ls": "--", "lw": 1})]
    for tone, values in curves:
        xs, ys, marked = curve_of(values, floor)
        look = {"marker": MARKS.get(tone, "o"), "markevery": marked, "markersize": 4}
        lines.append(Lines(xs, ys, tone, look))

    def draw(frame: Frame) -> None:
        x, y = (0.8, 1.2 * longest), (floor / 1.5, 1.5)
        frame.chart(lines, "singular value, by size", log_x=True, log_y=True, x=x, y=y)

    note = f"over the largest, median of {counted(layers, 'layer')}"
    alt = f"Singular values of the change of {kind} over the largest"
    return Panel(kind, note, alt, draw)


def _median(changes: Sequence[MatrixChange]) -> np.ndarray:
    """Over layers, of each singular value over the largest of its layer (float64)."""
    shortest = min(len(change.values) for change in changes)
    relative = [change.values[:shortest].double().numpy() / change.largest for change in changes]
    return np.asarray(np.median(np.stack(relative), axis=0))


def curve_of(values: np.ndarray, floor: float) -> tuple[list[int], list[float], list[int]]:
    """Of values down to the floor: their numbers from 1 and themselves, thinned evenly on a
    logarithmic axis, and the indices of those that carry a marker."""
    end = int((values > floor).sum())
    numbers = np.unique(np.geomspace(1, end, min(POINTS, end)).round().astype(int))
    marked = np.unique(np.linspace(0, len(numbers) - 1, MARKED).astype(int))
    return numbers.tolist(), values[numbers - 1].tolist(), marked.tolist()
