"""Replay races over full grids that were run: what `search=race` saves, and what it loses.

    python scripts/race_replay.py FOLDER ...   add the curves of records of `search=grid` first
    python scripts/race_replay.py              replay those in results/race/curves.jsonl

Nothing is trained: a replay asks `runs/race.py` what is needed and what is hopeless, as the grid
does, and draws the answers from the curves. Writes results/race/{curves.jsonl,race.md,race.png}.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparta_bench.files import whole_file
from sparta_bench.records.read import read_records
from sparta_bench.records.record import Record
from sparta_bench.runs import race
from sparta_bench.tables.paper_tables import rate_text, row_name, score_of
from sparta_bench.tables.table import write_texts
from sparta_bench.tables.views import paired_test

OUT = Path(__file__).resolve().parent.parent / "results" / "race"
MARGINS = (0.02, 0.05, 0.1, 0.2, 0.4, math.inf)
DRAWS = 30  # of what takes settings in a random order, for each cell and first seed


@dataclass(frozen=True)
class Run:
    """What a record says of a run."""

    curve: race.Curve
    dev: float
    test: float
    score: float  # accuracy, or mcc for COLA


@dataclass(frozen=True)
class Cell:
    """A full grid: a run for every setting (rate, batch size) and seed."""

    name: str
    runs: dict[tuple[race.Point, int], Run]

    @property
    def points(self) -> list[race.Point]:
        return sorted({point for point, _ in self.runs})

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for _, seed in self.runs})

    def mean(self, point: race.Point, of: Callable[[Run], float]) -> float:
        return statistics.fmean(of(self.runs[point, seed]) for seed in self.seeds)

    def best(self, points: list[race.Point]) -> race.Point:
        """By mean dev loss over all seeds, as tables choose."""
        return min(points, key=lambda point: (self.mean(point, lambda run: run.dev), point))


@dataclass(frozen=True)
class Found:
    """What a search chose, and what it cost in whole runs."""

    point: race.Point
    cost: float


Search = Callable[[Cell, int, random.Random], Found]  # of a cell with a first seed


# ------------------------------------------------------------------------------------ the searches
def raced(
    margin: float = race.MARGIN,
    confirm: int = 1,
    start: Callable[[Cell, random.Random], race.Point] = lambda cell, draw: smallest(cell),
    batch_first: bool = False,
    earliest: float = race.EARLIEST,
) -> Search:
    """The race as the grid runs it in one process."""

    def turned(point: race.Point) -> race.Point:
        return point[::-1] if batch_first else point

    def search(cell: Cell, first: int, draw: random.Random) -> Found:
        points = [turned(point) for point in cell.points]
        losses: dict[race.Point, float] = {}
        cost = 0.0
        first_point = turned(start(cell, draw))
        untrained = next(iter(cell.runs.values())).curve[0][1]
        while left := race.needed(points, losses, (), first_point, untrained):
            run = cell.runs[turned(left[0]), first]
            best = race.best_of(losses, 1)
            rival = cell.runs[turned(best[0]), first].curve if best else None
            ended = None if rival is None else stop_of(run.curve, rival, margin, earliest)
            losses[left[0]] = run.dev if ended is None else math.inf
            cost += 1.0 if ended is None else ended
        return confirmed(cell, [turned(point) for point in race.best_of(losses, confirm)], cost)

    return search


def smallest(cell: Cell) -> race.Point:
    """Where a race begins that knows of no neighbour: the middle rate, the smallest batch size."""
    return race.middle(cell.points, 1)


def stop_of(curve: race.Curve, rival: race.Curve, margin: float, earliest: float) -> float | None:
    """The share of its steps after which a run is stopped; None if it completes."""
    for number in range(2, len(curve)):  # the untrained state is first, and the end no stop
        if race.why_hopeless(curve[:number], rival, margin, earliest):
            return curve[number - 1][0]
    return None


def confirmed(cell: Cell, best: list[race.Point], cost: float) -> Found:
    """The other seeds for the best on the first one, of which the lowest mean wins."""
    return Found(cell.best(best), cost + len(best) * (len(cell.seeds) - 1))


def one_seed(cell: Cell, first: int, draw: random.Random) -> Found:
    """All settings on one seed, and the other seeds for the best."""
    best = min(cell.points, key=lambda point: cell.runs[point, first].dev)
    return confirmed(cell, [best], len(cell.points))


def random_half(cell: Cell, first: int, draw: random.Random) -> Found:
    """Half of the settings, with all seeds."""
    half = draw.sample(cell.points, math.ceil(len(cell.points) / 2))
    return Found(cell.best(half), len(half) * len(cell.seeds))


def halving(cell: Cell, first: int, draw: random.Random) -> Found:
    """Successive halving on one seed: at 1/8, 1/4 and 1/2 of the steps the better half goes on."""
    left, cost, done = cell.points, 0.0, 0.0
    runs = {point: cell.runs[point, first].curve for point in left}
    late = 0.01  # evaluations come a little after the share where it is no whole number of steps
    first_at = max(curve[1][0] for curve in runs.values())
    for share in (share for share in (1 / 8, 1 / 4, 1 / 2, 1.0) if first_at <= share + late):
        cost += len(left) * (share - done)
        done = share
        left = sorted(left, key=lambda point: best_up_to(runs[point], share + late))
        left = left[: max(1, math.ceil(len(left) / 2))] if share < 1 else left
    return confirmed(cell, left[:1], cost)


def best_up_to(curve: race.Curve, share: float) -> float:
    return min(loss for at, loss in curve if 0 < at <= share)


def median_pruner(cell: Cell, first: int, draw: random.Random) -> Found:
    """Optuna's MedianPruner with its defaults (five trials first, no warm-up), written out: a trial
    in random order ends at an evaluation where its best value so far is above the median of the
    values that completed trials had there."""
    completed: list[race.Point] = []
    cost = 0.0
    for point in draw.sample(cell.points, len(cell.points)):
        curve, ended = cell.runs[point, first].curve, None
        for step in range(1, len(curve) - 1):
            others = [cell.runs[one, first].curve for one in completed]
            if len(completed) >= 5 and min(loss for _, loss in curve[1 : step + 1]) > (
                statistics.median(other[step][1] for other in others)
            ):
                ended = curve[step][0]
                break
        cost += 1.0 if ended is None else ended
        if ended is None:
            completed.append(point)
    best = min(completed, key=lambda point: cell.runs[point, first].dev)
    return confirmed(cell, [best], cost)


# ------------------------------------------------------------------------------------ the outcomes
@dataclass(frozen=True)
class Outcome:
    """Of one search over all cells, each with every seed as the first one."""

    cost: float  # share of the full grid's
    worst_cost: float
    same: float  # how often the full grid's setting was chosen
    regrets: list[float]  # nats of mean dev loss, by cell and first seed
    losses: list[float]  # test loss less that of the full grid's choice
    scores: list[float]  # test score less that of the full grid's choice, in points


def outcome_of(search: Search, cells: list[Cell], draws: int = 1) -> Outcome:
    costs, same, regrets, losses, scores = [], [], [], [], []
    for cell in cells:
        full = cell.best(cell.points)
        for first in cell.seeds:
            found = [search(cell, first, random.Random(number)) for number in range(draws)]

            def off(of: Callable[[Run], float], found: list[Found] = found) -> list[float]:
                return [cell.mean(one.point, of) - cell.mean(full, of) for one in found]  # noqa: B023

            costs.append(statistics.fmean(one.cost for one in found) / len(cell.runs))
            same.append(statistics.fmean(one.point == full for one in found))
            regrets += off(lambda run: run.dev)
            losses.append(statistics.fmean(off(lambda run: run.test)))
            scores.append(100 * statistics.fmean(off(lambda run: run.score)))
    return Outcome(
        statistics.fmean(costs), max(costs), statistics.fmean(same), regrets, losses, scores
    )


def of_cells(values: list[float], cells: list[Cell]) -> list[float]:
    """Means over the first seeds: cells are independent of each other, replays of one are not."""
    each = len(values) // len(cells)
    return [statistics.fmean(values[at : at + each]) for at in range(0, len(values), each)]


def line_of(name: str, outcome: Outcome, cells: list[Cell]) -> list[str]:
    def interval(values: list[float], digits: int) -> str:
        test = paired_test(of_cells(values, cells))
        half = "" if test.half_interval is None else f" ± {test.half_interval:.{digits}f}"
        return f"{test.mean:+.{digits}f}{half}"

    return [
        name,
        f"{outcome.cost:.3f}",
        f"{outcome.worst_cost:.3f}",
        f"{100 * outcome.same:.0f} %",
        f"{statistics.fmean(outcome.regrets):.4f}",
        f"{max(outcome.regrets):.4f}",
        interval(outcome.losses, 4),
        interval(outcome.scores, 2),
        f"{min(outcome.scores):+.1f}",
    ]


VARIANTS = {
    "race, best 2 confirmed": raced(confirm=2),
    "race, best 3 confirmed": raced(confirm=3),
    "race, may end runs from the first evaluation": raced(earliest=0.0),
    "race, may end runs from 1/4 of the steps": raced(earliest=0.25),
    "race, batch size before rate": raced(batch_first=True),
    "race, begun at the middle batch size": raced(
        start=lambda cell, draw: race.middle(cell.points)
    ),
    "race, begun at the largest rate": raced(start=lambda cell, draw: cell.points[-1]),
    "all settings on one seed": one_seed,
    "successive halving on one seed": halving,
}
DEFAULT = "race, best 2 confirmed"
DRAWN = {
    "race, begun at random": raced(start=lambda cell, draw: draw.choice(cell.points)),
    "half of the settings, at random": random_half,
    "Optuna's median pruner on one seed": median_pruner,
}


# --------------------------------------------------------------------------------------- the curves
def write_curves(folders: list[Path]) -> None:
    """A line for each run of the cells that are complete; other cells stay as they are."""
    records, _ = read_records(folders)
    by_cell: dict[Any, list[Record]] = defaultdict(list)
    for record in records:
        if record.status == "completed":
            by_cell[record.cell].append(record)
    complete = {
        cell: of_cell
        for cell, of_cell in by_cell.items()
        if is_complete((point_of(record), record.seed) for record in of_cell)
    }
    path = OUT / "curves.jsonl"
    kept = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    lines = [line for line in kept if tuple(json.loads(line)["cell"]) not in complete]
    lines += [line_of_record(record) for of_cell in complete.values() for record in of_cell]
    OUT.mkdir(parents=True, exist_ok=True)
    write_texts(OUT, {"curves.jsonl": "".join(f"{line}\n" for line in sorted(lines))})


def point_of(record: Record) -> race.Point:
    return float(record.train["learning_rate"]), float(record.train["batch_size"])


def line_of_record(record: Record) -> str:
    rate, batch = point_of(record)
    line = {
        "cell": list(record.cell),
        "batch": batch,
        "rate": rate,
        "seed": record.seed,
        "dev": round(record.score("dev", "loss"), 6),
        "test": round(record.score("test", "loss"), 6),
        "score": round(record.score("test", score_of(record.cell.task)), 6),
        "curve": [[round(share, 6), round(loss, 5)] for share, loss in race.curve_of(record.raw)],
    }
    return json.dumps(line, separators=(",", ":"))


def read_cells() -> list[Cell]:
    """The cells among the curves in which every setting has every seed."""
    found: dict[tuple[Any, ...], dict[tuple[race.Point, int], Run]] = defaultdict(dict)
    for text in (OUT / "curves.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        run = Run([tuple(pair) for pair in line["curve"]], line["dev"], line["test"], line["score"])
        point = (float(line["rate"]), float(line["batch"]))
        found[tuple(line["cell"])][point, line["seed"]] = run
    return [
        Cell(f"{task} {model} {row_name(method, density)}", runs)
        for (model, task, method, density), runs in found.items()
        if is_complete(runs)
    ]


def is_complete(runs: Iterable[tuple[race.Point, int]]) -> bool:
    """Table 13's grid: seven rates, three batch sizes, three seeds."""
    keys = [(*point, seed) for point, seed in runs]
    return [len(set(axis)) for axis in zip(*keys, strict=True)] == [7, 3, 3] and len(keys) == 63


# -------------------------------------------------------------------------------- table and figure
HEADS = (
    "search", "cost", "dearest cell", "same setting", "regret, mean", "regret, worst",
    "test loss", "test score", "worst score",
)  # fmt: skip
NOTE = """
Cost: steps made, as a share of the full grid's. Same setting: how often the full grid's was chosen.
Regret: how far the mean dev loss (nats, all seeds) of the setting chosen lies above that of the
full grid's. Test: of the setting chosen less that of the full grid's, mean over the cells ± half
the 95 % interval (Student's t; a cell's first seeds are averaged before); score: points of
accuracy, for COLA of mcc. Each cell is replayed with every seed as the first; what takes settings
at random is drawn {draws} times for each. Races have a margin of {margin:g} and confirm one setting
unless the row says otherwise.
"""


def markdown(cells: list[Cell], outcomes: dict[str, Outcome]) -> str:
    def row(texts: Iterable[str]) -> str:
        return f"| {' | '.join(texts)} |"

    lines = ["# Races replayed over full grids", ""]
    lines += ["Made by `python scripts/race_replay.py`; docs/many-runs.md says what follows.", ""]
    lines += [row(HEADS), row("---" for _ in HEADS)]
    lines += [row(line_of(name, outcome, cells)) for name, outcome in outcomes.items()]
    lines += [
        NOTE.format(draws=DRAWS, margin=race.MARGIN),
        "The grids, with their best setting, and what the default race (best 2 confirmed) does:",
        "",
    ]
    heads = (
        "cell", "settings", "seeds", "rate", "batch", "dev loss, mean over seeds",
        "race: cost", "same setting", "regret, mean", "regret, worst",
    )  # fmt: skip
    lines += [row(heads), row("---" for _ in heads)]
    for cell in cells:
        rate, batch = best = cell.best(cell.points)
        loss = cell.mean(best, lambda run: run.dev)
        counts = (str(len(cell.points)), str(len(cell.seeds)))
        of_race = line_of(DEFAULT, outcome_of(VARIANTS[DEFAULT], [cell]), [cell])
        _, cost, _, same, mean, worst, *_ = of_race
        grid = (*counts, rate_text(rate), f"{batch:g}", f"{loss:.4f}")
        lines.append(row((cell.name, *grid, cost, same, mean, worst)))
    return "\n".join(lines) + "\n"


def draw(outcomes: dict[str, Outcome], by_margin: dict[str, Outcome]) -> None:
    """Mean regret over cost: the race by margin, and the alternatives."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    others = [name for name in outcomes if name not in by_margin]
    for number, name in enumerate(others):
        regret = statistics.fmean(outcomes[name].regrets)
        marker = "o" if name.startswith("race") else "s"
        colour = f"C{number % 10}"
        axes.plot(outcomes[name].cost, regret, marker, color=colour, label=name)
    x = [outcome.cost for outcome in by_margin.values()]
    y = [statistics.fmean(outcome.regrets) for outcome in by_margin.values()]
    label = f"race, margin {MARGINS[0]:g} (left) to none"
    axes.plot(x, y, "k.-", label=label)
    axes.set(xlabel="steps, as a share of the full grid's", ylabel="mean regret in dev loss, nats")
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.axvline(0.25, color="0.8", zorder=0)
    axes.legend(fontsize=7)
    with whole_file(OUT / "race.png") as path:
        figure.savefig(path, format="png", dpi=120, metadata={"Software": None})


def main() -> None:
    """Write the files."""
    if folders := [Path(text) for text in sys.argv[1:]]:
        write_curves(folders)
    cells = read_cells()
    if not cells:
        raise SystemExit("race_replay: no cell is complete: 7 rates, 3 batch sizes, 3 seeds")
    by_margin = {f"race, margin {margin:g}": outcome_of(raced(margin), cells) for margin in MARGINS}
    outcomes = {
        **by_margin,
        **{name: outcome_of(search, cells) for name, search in VARIANTS.items()},
        **{name: outcome_of(search, cells, DRAWS) for name, search in DRAWN.items()},
    }
    text = markdown(cells, outcomes)
    write_texts(OUT, {"race.md": text})
    draw(outcomes, by_margin)
    print(text, end="")


if __name__ == "__main__":
    main()
