"""Spectra of the changes, one panel for each kind of matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sparta_bench.analysis.ranks.rank_tables import kind_order, place_of
from sparta_bench.analysis.ranks.spectrum import Change, Changes
from sparta_bench.report.chart import MARKERS, TONES, Axis, Figure, Key, Plot, Series, log_axis
from sparta_bench.text import counted

POINTS, MARKED = 120, 4  # of a curve, and how many of them carry its marker
SPARE_TONES = ("other", "head", "sparta_vo", "muted", "bad")  # for what no method is known of


def spectra(name: str, title: str, shown: Sequence[Changes]) -> Figure:
    """Singular values over the largest, both axes logarithmic; of several layers the median.

    What did not change at all has no curve. The dashed line is the tolerance, below which a
    singular value does not count.
    """
    kinds = {place_of(change.key).kind for one in shown for change in one.changes}
    tones = _tones(shown)
    panels = [
        panel
        for kind in sorted(kinds, key=kind_order)
        if (panel := _panel(kind, shown, tones)) is not None
    ]
    legend = [
        Key(one.label, tone, MARKERS[tone], "solid") for one, tone in zip(shown, tones, strict=True)
    ]
    return Figure(name, title, tuple(panels), (*legend, Key("tolerance", "muted", None, "dashed")))


def _tones(shown: Sequence[Changes]) -> list[str]:
    """A method's own colour for its first model, and spare ones, in turn, for all others."""
    taken: list[str] = []
    for one in shown:
        spare = [tone for tone in SPARE_TONES if tone not in taken]
        own = one.method in TONES and one.method not in taken
        taken.append(str(one.method) if own else (spare or SPARE_TONES)[0])
    return taken


def _panel(kind: str, shown: Sequence[Changes], tones: Sequence[str]) -> Plot | None:
    """Null where none of the models changed it."""
    curves, layers = [], 0
    for one, tone in zip(shown, tones, strict=True):
        changed = [
            change
            for change in one.changes
            if place_of(change.key).kind == kind and change.largest > 0
        ]
        if changed:
            curves.append((one.label, tone, _median(changed)))
            tolerance = changed[0].relative_tolerance()
            layers = max(layers, len(changed))
    if not curves:
        return None
    floor = tolerance / 100  # below that is nothing but noise
    longest = max(len(values) for _, _, values in curves)
    series = [_curve(label, tone, values, floor) for label, tone, values in curves]
    line = Series("tolerance", "muted", (1.0, float(longest)), (tolerance, tolerance), "dashed")
    return Plot(
        kind,
        f"median of {counted(layers, 'layer', 'layers')}",
        f"Singular values of the change of {kind} over the largest",
        log_axis("singular value, by size", (1.0, float(longest))),
        _powers(log_axis("over the largest", (floor, 1.0))),
        (*series, line),
    )


def _powers(axis: Axis) -> Axis:
    """With ticks that are short: 1, 1e-2, 1e-4."""
    ticks = [(at, f"1e{math.log10(at):.0f}" if at < 1 else f"{at:g}") for at, _ in axis.ticks]
    return replace(axis, ticks=tuple(ticks))


def _median(changes: Sequence[Change]) -> np.ndarray:
    """Over layers, of each singular value over the largest of its layer (float64)."""
    shortest = min(len(change.values) for change in changes)
    relative = [change.values[:shortest].double().numpy() / change.largest for change in changes]
    return np.asarray(np.median(np.stack(relative), axis=0))


def _curve(label: str, tone: str, values: np.ndarray, floor: float) -> Series:
    """As far as it is above the floor."""
    end = int((values > floor).sum())
    places = np.unique(np.geomspace(1, end, min(POINTS, end)).round().astype(int))
    marked = np.unique(np.linspace(0, len(places) - 1, MARKED).astype(int))
    return Series(
        label,
        tone,
        tuple(places.astype(float).tolist()),
        tuple(values[places - 1].tolist()),
        "solid",
        MARKERS[tone],
        tuple(marked.tolist()),
    )
