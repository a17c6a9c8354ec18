"""The best density and the best rate, from the records of `+sweep=density_study` (section 10).

    python scripts/density_study.py FOLDER... [--out DIR]

Reads completed records, and prints and writes (`density.md`, `density.csv`, `density.png`): for
each model, task and number of training examples, and each density or other method, the rate with
the lowest mean dev loss, its test score with the standard deviation over seeds, and the gap between
train and dev loss; then the slope of log(best rate) over log(density), with a 95 % interval from
2,000 resamplings of the seeds.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparta_bench.files import whole_file
from sparta_bench.records.read import read_records
from sparta_bench.records.record import Record

RESAMPLINGS = 2000
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
    runs: int
    losses: Losses


def main() -> None:
    """Read, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    records, _ = read_records(options.folders)
    rows = rows_of([record for record in records if record.status == "completed"])
    text = "\n".join([*table(rows), "", *slopes(rows)]) + "\n"
    print(text, end="")
    if options.out:
        with whole_file(options.out / "density.md") as path:
            path.write_text(text, encoding="utf-8")
        with whole_file(options.out / "density.csv") as path, path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("model", "task", "examples", *Row._fields[1:-1]))
            writer.writerows((*row.group, *row[1:-1]) for row in rows)
        draw(rows, options.out / "density.png")


def rows_of(records: Sequence[Record]) -> list[Row]:
    """One row for each model, task, number of examples, method and density."""
    lines: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        examples = record.raw["data"]["train"]
        _, _, method, density = record.cell
        group = (record.cell.model, record.cell.task, examples)
        lines[group, method, density].append(record)
    return sorted(
        (_row(group, method, density, runs) for (group, method, density), runs in lines.items()),
        key=lambda row: (row.group, -row.share, row.method),
    )


def _row(group: Any, method: str, density: float | None, runs: Sequence[Record]) -> Row:
    by_rate: dict[float, list[Record]] = defaultdict(list)
    for run in runs:
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
    gaps = [run.score("dev", "loss") - _train_loss(run) for run in best]
    return Row(
        group,
        method,
        density if density is not None else parameters["trainable"] / parameters["total"],
        len(by_rate),
        rate,
        len(by_rate) > 1 and rate in (min(by_rate), max(by_rate)),
        most,
        means[rate],
        statistics.fmean(scores),
        statistics.stdev(scores) if len(scores) > 1 else None,
        statistics.fmean(gaps),
        len(runs),
        {r: {run.seed: run.score("dev", "loss") for run in found} for r, found in by_rate.items()},
    )


def _train_loss(run: Record) -> float:
    """The mean training loss up to the evaluation that was kept."""
    best = run.raw["training"]["best_step"]
    losses = [e["train_loss"] for e in run.raw["history"] if 0 < e["step"] <= best]
    return losses[-1] if losses and losses[-1] is not None else math.nan


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as a Markdown table."""
    heads = ("model", "task", "examples", "method", "share, %", "best rate", "dev loss", "test",
             "dev - train", "seeds", "runs")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        std = "" if row.test_std is None else f" ± {100 * row.test_std:.1f}"
        edge = " (at the edge)" if row.at_edge else ""
        lines.append(
            f"| {row.group[0]} | {row.group[1]} | {row.group[2]:,} | {row.method} | "
            f"{100 * row.share:.3g} | {row.rate:g}{edge} | {row.dev_loss:.4f} | "
            f"{100 * row.test:.1f}{std} | {row.gap:+.3f} | {row.seeds} | {row.runs} |"
        )
    return lines


def slopes(rows: Sequence[Row]) -> list[str]:
    """How the best rate depends on the density: rate = c * density ** -a, per group."""
    lines = []
    groups: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        if row.method == "sparta" and row.rates > 2:
            groups[row.group].append(row)
    for group, found in sorted(groups.items()):
        if len({row.share for row in found}) < 3:
            continue
        value = _slope([(row.share, row.rate) for row in found])
        low, high = _interval(found)
        lines.append(
            f"{group[0]}, {group[1]}, {group[2]:,} examples: best rate ∝ density^{value:.2f} "
            f"(95 % interval {low:.2f} to {high:.2f}; {len(found)} densities)"
        )
    return lines


def _slope(points: Sequence[tuple[float, float]]) -> float:
    logs = [(math.log(density), math.log(rate)) for density, rate in points]
    return statistics.linear_regression(*zip(*logs, strict=True)).slope


def _interval(rows: Sequence[Row]) -> tuple[float, float]:
    chance = random.Random(0)
    seeds = sorted({seed for row in rows for losses in row.losses.values() for seed in losses})
    found = []
    for _ in range(RESAMPLINGS):
        drawn = [chance.choice(seeds) for _ in seeds]
        points = [(row.share, _best_rate(row.losses, drawn)) for row in rows]
        found.append(_slope([(share, rate) for share, rate in points if rate]))
    found.sort()
    return found[int(0.025 * RESAMPLINGS)], found[int(0.975 * RESAMPLINGS)]


def _best_rate(losses: Mapping[float, Mapping[int, float]], seeds: Sequence[int]) -> float:
    means = {}
    for rate, by_seed in losses.items():
        values = [by_seed[seed] for seed in seeds if seed in by_seed]
        if values:
            means[rate] = statistics.fmean(values)
    return min(means, key=lambda rate: means[rate]) if means else 0.0


def draw(rows: Sequence[Row], path: Path) -> None:
    """A panel a model and task: test score over density, a line for each number of examples."""
    import matplotlib.pyplot as plt

    panels: dict[tuple[str, str], dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        panels[row.group[:2]][row.group[2]].append(row)
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 3.6), squeeze=False)
    for axis, (name, by_size) in zip(axes[0], panels.items(), strict=True):
        for number, (size, found) in enumerate(sorted(by_size.items())):
            sparta = [row for row in found if row.method == "sparta"]
            look = {"color": f"C{number}", "marker": "o", "capsize": 2, "label": f"{size:,}"}
            axis.errorbar(
                [100 * row.share for row in sparta],
                [100 * row.test for row in sparta],
                [100 * (row.test_std or 0) for row in sparta],
                **look,
            )
            for row in found:
                if row.method == "full_ft":
                    axis.plot(100, 100 * row.test, "^", color=f"C{number}")
                if row.method == "lora":
                    axis.plot(100 * row.share, 100 * row.test, "s", mfc="none", color=f"C{number}")
        axis.set_xscale("log")
        axis.set_xlabel("scalars trained, % (▲ full fine-tuning, □ LoRA)")
        axis.set_ylabel("test score, %")
        axis.set_title(f"{name[1]}, {name[0]}", fontsize=10)
        axis.legend(title="examples", fontsize=8)
    figure.tight_layout()
    with whole_file(path) as made:
        figure.savefig(made, format="png", dpi=150)


if __name__ == "__main__":
    main()
