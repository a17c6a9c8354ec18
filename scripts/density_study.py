"""The best density and the best rate, from the records of `+sweep=density_study` (section 10).

    python scripts/density_study.py FOLDER... [--out DIR]

Reads completed records, and prints and writes (`density.md`, `density.csv`, `density.png`): for
each model, task and number of training examples, and each density or other method, the rate with
the lowest mean dev loss, its test score with the standard deviation over seeds, the gap between
train and dev loss at the end of training, and how far the dev loss has risen by then (appendix C:
overfitting); then the density with the lowest dev loss, the slope of log(best rate) over
log(density), and LoRA, random rows and a block beside SpaRTA at as many scalars.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from sparta_bench.files import whole_file
from sparta_bench.records.read import read_records
from sparta_bench.records.record import Record

BY_PATTERN = "sparta by "  # what precedes the pattern in a cell's method
Losses = dict[float, dict[int, float]]  # dev loss by rate and seed


class Row(NamedTuple):
    """What one line of runs gives: a method at a density, on so many examples."""

    group: tuple[str, str, int]  # model, task, training examples
    method: str
    share: float  # density of SpaRTA; of other methods trained over all scalars
    rates: int
    rate: float
    at_edge: bool
    seeds: int
    dev_loss: float
    test: float
    test_std: float | None
    gap: float
    rise: float
    runs: int
    losses: Losses


def main() -> None:
    """Read, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    records, _ = read_records(options.folders)
    rows = rows_of([record for record in records if record.status in ("completed", "stopped")])
    done = finished(rows)
    parts = [table(rows), best_densities(done), slopes(done), at_lora_count(done), patterns(done)]
    text = "\n\n".join("\n".join(part) for part in parts) + "\n"
    print(text, end="")
    if options.out:
        with whole_file(options.out / "density.md") as path:
            path.write_text(text, encoding="utf-8")
        with whole_file(options.out / "density.csv") as path, path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("model", "task", "examples", *Row._fields[1:-1]))
            writer.writerows((*row.group, *row[1:-1]) for row in rows)
        draw(done, options.out / "density.png")


def rows_of(records: Sequence[Record]) -> list[Row]:
    """One row for each model, task, number of examples, method and density. A stopped run says only
    that its rate was tried."""
    lines: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        examples = record.raw["data"]["train"]
        _, _, method, density = record.cell
        group = (record.cell.model, record.cell.task, examples)
        lines[group, method, density].append(record)
    return sorted(
        (
            _row(*line, runs)
            for line, runs in lines.items()
            if any(run.status == "completed" for run in runs)
        ),
        key=lambda row: (row.group, -row.share, row.method),
    )


def _row(group: Any, method: str, density: float | None, runs: Sequence[Record]) -> Row:
    by_rate: dict[float, list[Record]] = defaultdict(list)
    tried = {run.train["learning_rate"] for run in runs}
    for run in runs:
        if run.status == "completed":
            by_rate[run.train["learning_rate"]].append(run)
    most = max(len({run.seed for run in found}) for found in by_rate.values())
    means = {
        rate: statistics.fmean(run.score("dev", "loss") for run in found)
        for rate, found in by_rate.items()
        if len({run.seed for run in found}) == most
    }
    rate = min(means, key=lambda one: means[one])
    best = by_rate[rate]
    metric = "mcc" if "cola" in group[1] else "accuracy"
    scores = [run.score("test", metric) for run in best]
    parameters = best[0].raw["parameters"]
    return Row(
        group,
        method,
        density if density is not None else parameters["trainable"] / parameters["total"],
        len(tried),
        rate,
        len(tried) > 1 and rate in (min(tried), max(tried)),
        most,
        means[rate],
        statistics.fmean(scores),
        statistics.stdev(scores) if len(scores) > 1 else None,
        statistics.fmean(_gap(run) for run in best),
        statistics.fmean(_rise(run) for run in best),
        sum(map(len, by_rate.values())),
        {r: {run.seed: run.score("dev", "loss") for run in found} for r, found in by_rate.items()},
    )


def _rise(run: Record) -> float:
    """How far the dev loss ends above its lowest value: what training to the end would cost."""
    losses = [e["dev_loss"] for e in run.raw["history"]]
    return losses[-1] - min(losses)


def _gap(run: Record) -> float:
    """How far the dev loss ends above the mean training loss since the evaluation before."""
    end = run.raw["history"][-1]
    return end["dev_loss"] - end["train_loss"]


def finished(rows: Sequence[Row]) -> list[Row]:
    """Those whose rates no longer race: with as many seeds as any of their group."""
    most: dict[tuple[str, str, int], int] = defaultdict(int)
    for row in rows:
        most[row.group] = max(most[row.group], row.seeds)
    return [row for row in rows if row.seeds == most[row.group]]


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as a Markdown table."""
    heads = ("model", "task", "examples", "method", "share, %", "best rate", "dev loss", "test",
             "dev - train, end", "rise, end", "seeds", "runs")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        std = "" if row.test_std is None else f" ± {100 * row.test_std:.1f}"
        edge = " (at the edge)" if row.at_edge else ""
        lines.append(
            f"| {row.group[0]} | {row.group[1]} | {row.group[2]:,} | {row.method} | "
            f"{100 * row.share:.3g} | {row.rate:g}{edge} | {row.dev_loss:.4f} | "
            f"{100 * row.test:.1f}{std} | {row.gap:+.3f} | {row.rise:+.3f} | {row.seeds} | "
            f"{row.runs} |"
        )
    return lines


def slopes(rows: Sequence[Row]) -> list[str]:
    """How the best rate depends on the density: rate = c * density ** slope, for each group."""
    lines, centred = [], []
    for group, found in groups_of(rows):
        raced = [row for row in found if row.rates > 2]
        points = [(math.log(row.share), math.log(row.rate)) for row in raced]
        if len(points) < 3:
            continue
        if len({row.rate for row in raced}) == 1:  # such a line has no residual to tell from
            lines.append(f"- {group}: {raced[0].rate:g} at all {len(raced)} densities")
        else:
            lines.append(f"- {group}: {_fit(points, groups=1)}")
        means = [statistics.fmean(values) for values in zip(*points, strict=True)]
        centred += [(x - means[0], y - means[1]) for x, y in points]
    if len(lines) > 1:
        lines.append(f"- all, each with a constant of its own: {_fit(centred, len(lines))}")
    return ["Best rate over density, a least-squares line through the logarithms:", "", *lines]


def _fit(points: Sequence[tuple[float, float]], groups: int) -> str:
    """The slope with its 95 % interval by Student's t. Rates stand half a decade apart, so that an
    interval narrower than the grid is the grid's merit."""
    x, y = zip(*points, strict=True)
    line = stats.linregress(x, y)
    freedom = len(points) - 1 - groups
    error = line.stderr * math.sqrt((len(points) - 2) / freedom)
    half = stats.t.ppf(0.975, freedom) * error
    return (
        f"density^{line.slope:.2f} (95 % interval {line.slope - half:.2f} to "
        f"{line.slope + half:.2f}, {len(points)} best rates)"
    )


class Best(NamedTuple):
    """The share with the lowest mean dev loss, and 95 % of its range over draws of seeds."""

    share: float
    low: float
    high: float
    seeds: int


def best_density(rows: Sequence[Row]) -> Best | None:
    """Of SpaRTA's rows of one group: all draws of seeds with replacement are gone through. None of
    less than three rows or two seeds."""
    losses = {row.share: row.losses[row.rate] for row in rows}
    seeds = sorted(set.intersection(*map(set, losses.values())))
    if len(rows) < 3 or len(seeds) < 2:
        return None
    best = []
    for drawn in product(seeds, repeat=len(seeds)):
        means = {s: math.fsum(of_seed[k] for k in drawn) for s, of_seed in losses.items()}
        best.append(min(means, key=lambda share: means[share]))
    best.sort()
    low, high = best[int(0.025 * len(best))], best[int(0.975 * len(best))]
    return Best(statistics.median_low(best), low, high, len(seeds))


def best_densities(rows: Sequence[Row]) -> list[str]:
    """`best_density` of each group."""
    lines = []
    for group, found in groups_of(rows):
        if (best := best_density(found)) is not None:
            lines.append(
                f"- {group}: {100 * best.share:.3g} % ({100 * best.low:.3g} to "
                f"{100 * best.high:.3g} %, {best.seeds} seeds)"
            )
    return ["Density with the lowest dev loss:", "", *lines]


def at_lora_count(rows: Sequence[Row]) -> list[str]:
    """LoRA's test score less SpaRTA's at as many scalars, read between its two next densities."""
    lines = []
    names = {row.group: None for row in rows if row.method == "lora"}
    for group in names:
        lora = next(row for row in rows if row.group == group and row.method == "lora")
        sparta = sorted((r for r in rows if r.group == group and r.method == "sparta"), key=share)
        below = [row for row in sparta if row.share <= lora.share]
        above = [row for row in sparta if row.share > lora.share]
        if not below or not above:
            continue
        low, high = below[-1], above[0]
        weight = math.log(lora.share / low.share) / math.log(high.share / low.share)
        test = (1 - weight) * low.test + weight * high.test
        lines.append(
            f"- {named(group)}, {100 * lora.share:.2g} %: LoRA {100 * (lora.test - test):+.1f} "
            f"(standard error {100 * standard_error(lora, low):.1f})"
        )
    return ["Test score of LoRA less that of SpaRTA at as many scalars:", "", *lines]


def standard_error(one: Row, other: Row) -> float:
    """Of the difference of two mean test scores; no number where a row has one seed."""
    variances = [row.test_std**2 / row.seeds for row in (one, other) if row.test_std is not None]
    return math.sqrt(math.fsum(variances)) if len(variances) == 2 else math.nan


def patterns(rows: Sequence[Row]) -> list[str]:
    """Test score and dev loss of rows and a block less those of single scalars at one density."""
    lines = []
    for row in rows:
        if not row.method.startswith(BY_PATTERN):
            continue
        same = (row.group, "sparta", row.share)
        scalars = next((r for r in rows if (r.group, r.method, r.share) == same), None)
        if scalars is None or math.isnan(error := standard_error(row, scalars)):
            continue
        pattern = row.method.removeprefix(BY_PATTERN)
        lines.append(
            f"- {named(row.group)}, {100 * row.share:.3g} %, {pattern}: test "
            f"{100 * (row.test - scalars.test):+.1f} (standard error {100 * error:.1f}), dev loss "
            f"{row.dev_loss - scalars.dev_loss:+.4f}"
        )
    return ["Rows, or one block, less single scalars:", "", *lines]


def groups_of(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """SpaRTA's rows by model, task and number of examples, by density."""
    groups: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        if row.method == "sparta":
            groups[row.group].append(row)
    return [(named(group), sorted(found, key=share)) for group, found in sorted(groups.items())]


def named(group: tuple[str, str, int]) -> str:
    return f"{group[0]}, {group[1]}, {group[2]:,} examples"


def share(row: Row) -> float:
    return row.share


def draw(rows: Sequence[Row], path: Path) -> None:
    """A column a model and task, a colour each number of examples: test score, best rate and gap
    over density, and the best density over the number of examples."""
    import matplotlib.pyplot as plt

    columns: dict[tuple[str, str], dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        columns[row.group[:2]][row.group[2]].append(row)
    figure, axes = plt.subplots(4, len(columns), figsize=(5 * len(columns), 12), squeeze=False)
    for column, ((model, task), by_size) in enumerate(columns.items()):
        scores, rates, gaps, best = axes[:, column]
        for number, (size, found) in enumerate(sorted(by_size.items())):
            sparta = sorted((row for row in found if row.method == "sparta"), key=share)
            shares, color = [100 * row.share for row in sparta], f"C{number}"
            line: dict[str, Any] = {"color": color, "marker": "o", "label": f"{size:,}"}
            means = [100 * row.test for row in sparta]
            spread = [100 * (row.test_std or 0) for row in sparta]
            scores.errorbar(shares, means, spread, capsize=2, **line)
            rates.plot(shares, [row.rate for row in sparta], **line)
            gaps.plot(shares, [row.gap for row in sparta], **line)
            for row in found:
                look = {"full_ft": ("^", color), "lora": ("s", "none")}.get(row.method)
                if look is not None:
                    marker: dict[str, Any] = {"marker": look[0], "mfc": look[1], "color": color}
                    scores.plot(100 * row.share, 100 * row.test, **marker)
                    rates.plot(100 * row.share, row.rate, **marker)
                    gaps.plot(100 * row.share, row.gap, **marker)
            if (b := best_density(sparta)) is not None:
                reach = [[100 * (b.share - b.low)], [100 * (b.high - b.share)]]
                best.errorbar([size], [100 * b.share], reach, color=color, marker="o", capsize=4)
        scores.set_title(f"{task}, {model}", fontsize=10)
        names = ("test score, %", "best rate", "dev less train loss\nat the end, nats")
        for axis, name in zip((scores, rates, gaps), names, strict=True):
            axis.set(xscale="log", ylabel=name, xlabel="scalars trained, % (▲ full, □ LoRA)")
        rates.set_yscale("log")
        best.set(xscale="log", yscale="log", xlabel="training examples", ylabel="best density, %")
        scores.legend(title="examples", fontsize=8)
    figure.tight_layout()
    with whole_file(path) as made:
        figure.savefig(made, format="png", dpi=110)


if __name__ == "__main__":
    main()
