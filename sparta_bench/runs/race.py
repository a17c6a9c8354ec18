"""A race: which settings of a cell must still run, and which run may end early. Nothing here reads
a disk or a clock: the grid and scripts/race_replay.py ask the same questions.

A *point* is a setting as its values on the axes: the learning rate first, then the batch size, then
other settings of training. Dev losses are those of the points on the cell's first seed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

from sparta_bench.config.schema import TrainConfig
from sparta_bench.training.steps import plan_steps

Point = tuple[float, ...]
Curve = Sequence[tuple[float, float]]  # share of the steps done (0 to 1), dev loss (nats)

# Measured: results/race. A high rate is often behind early on and ahead at the end, when rates
# have come down: before half of the steps no margin tells a hopeless run from a good one.
EARLIEST = 0.5  # share of the steps before which no run is ended
MARGIN = 0.4  # nats: the default of `search.margin`
LEFT = 0.05  # nats by which a rival has fallen that has left its initial loss
STUCK = 0.1  # share of the rival's fall, below which a run has not left its own


def needed(
    points: Collection[Point],
    losses: Mapping[Point, float],
    running: Collection[Point] = (),
    start: Point | None = None,
    untrained: float = math.inf,
) -> list[Point]:
    """Return the points to run next, the most promising first; none where the race is decided.

    It is decided when the best point has both neighbours on every axis known, those of the rate
    first. So rates are tried from the start outwards, on to a side while the dev loss falls there,
    then batch sizes at the best rate, and the rates beside it again where the batch size changed.
    While nothing has learnt, which dev loss is the lowest says nothing: all rates are tried.

    Parameters
    ----------
    points
        All settings of the cell.
    losses
        Final dev losses of those that have run, `inf` for those that were stopped or failed.
    running
        Those that another process is at.
    start
        Where to begin: the middle of all axes by default.
    untrained
        The dev loss before training.
    """
    completed = [point for point in losses if losses[point] < math.inf]
    if completed:
        best = min(completed, key=lambda point: (losses[point], point))
        if losses[best] > untrained - LEFT:
            line = [point for point in outwards(points, best) if point[1:] == best[1:]]
            if unknown := [point for point in line if point not in losses]:
                return unknown
        for axis in range(len(best)):
            beside = neighbours(points, best, axis)
            if unknown := [point for point in beside if point not in losses]:
                return unknown
        if len(points) < math.prod(len({*values}) for values in zip(*points, strict=True)):
            # a grid with holes, where the best may have no neighbours
            return [point for point in outwards(points, best) if point not in losses]
        return []
    centre = min(running, default=start or middle(points))
    left = [point for point in outwards(points, centre) if point not in losses]
    if losses:
        return left[:1]
    # nothing is known yet: the first, and for other processes what will be needed beside it
    first = {centre, *neighbours(points, centre, 0)}
    return [point for point in left if point in first]


def neighbours(points: Collection[Point], point: Point, axis: int) -> list[Point]:
    """The nearest points on both sides that differ on one axis alone."""
    line = sorted(other for other in points if _differs_on(other, point) <= {axis})
    at = line.index(point)
    return [line[number] for number in (at + 1, at - 1) if 0 <= number < len(line)]


def middle(points: Collection[Point], smallest: int | None = None) -> Point:
    """The point nearest to the middle of every axis, but for one on which it is the smallest."""
    values = [sorted(set(axis)) for axis in zip(*points, strict=True)]
    centre = tuple(
        axis[0 if number == smallest else len(axis) // 2] for number, axis in enumerate(values)
    )
    return outwards(points, centre)[0]


def outwards(points: Collection[Point], centre: Point) -> list[Point]:
    """All points, by their distance in steps: along the rate before any other axis."""
    ranks = [
        {value: rank for rank, value in enumerate(sorted({*axis, centre[number]}))}
        for number, axis in enumerate(zip(*points, strict=True))
    ]

    def distance(point: Point) -> tuple[int, int, Point]:
        steps = [
            abs(ranks[axis][point[axis]] - ranks[axis][centre[axis]]) for axis in range(len(point))
        ]
        return sum(steps[1:]), sum(steps[:1]), point

    return sorted(points, key=distance)


def _differs_on(first: Point, second: Point) -> set[int]:
    return {axis for axis, pair in enumerate(zip(first, second, strict=True)) if len({*pair}) > 1}


def best_of(losses: Mapping[Point, float], number: int) -> list[Point]:
    """The points with the lowest dev losses, the best first; none that was stopped or failed."""
    completed = [point for point in losses if losses[point] < math.inf]
    return sorted(completed, key=lambda point: (losses[point], point))[:number]


def why_hopeless(
    curve: Curve, rival: Curve, margin: float, earliest: float = EARLIEST
) -> str | None:
    """Return why a run can end at its last evaluation; None where it may still win.

    A rival of another batch size has another number of steps, so that both are compared at the same
    share of their steps: there they have seen the same examples, and their rates have come as far.
    """
    share = curve[-1][0]
    if share < earliest:
        return None
    own, theirs = _best(curve, share), _best(rival, share)
    if own - theirs > margin:
        return f"its best dev loss {own:.4f} is more than {margin:g} above the {theirs:.4f}"
    if curve[0][0] > 0 or rival[0][0] > 0:  # nothing was evaluated before training
        return None
    fall, rivals_fall = curve[0][1] - own, rival[0][1] - theirs
    if rivals_fall > LEFT and fall < STUCK * rivals_fall:
        return f"its dev loss has fallen by {max(fall, 0):.4f}, beside the {rivals_fall:.4f}"
    return None


def _best(curve: Curve, share: float) -> float:
    """The lowest dev loss after training began, and up to a share of the steps."""
    return min((loss for at, loss in curve if 0 < at <= share), default=math.inf)


def curve_of(record: Mapping[str, Any]) -> Curve:
    """The dev losses of a run that has its data."""
    steps = _planned_steps(record)
    return [(entry["step"] / steps, entry["dev_loss"]) for entry in record["history"]]


def share_done(record: Mapping[str, Any]) -> float:
    """What a run cost, in whole runs: the share of its steps that were made. A completed run is
    one, wherever its early stopping ended it; one that failed before its data was there is none."""
    if record["status"] == "completed":
        return 1.0
    done = record["training"] and record["training"]["steps"]
    return done / _planned_steps(record) if done else 0.0


def _planned_steps(record: Mapping[str, Any]) -> int:
    # a record of an older version may lack a key
    train = SimpleNamespace(**{"max_steps": None, "eval_every": None, **record["config"]["train"]})
    return plan_steps(record["data"]["train"], cast(TrainConfig, train)).steps
