"""What came out, for people: of one run, and of the runs of a grid. No torch."""

from __future__ import annotations

import shlex
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from sparta_bench.records.read import saved_by
from sparta_bench.records.record import DEFAULT, Cell, Record
from sparta_bench.runs.outcome import Score
from sparta_bench.text import as_duration, method_text, padded, shortened, spread_text

WIDTH = 80  # that every terminal has
LONGEST_NAME = 18  # of a model in a table


def run_text(record: Record, overrides: Sequence[str], was_there: bool) -> str:
    """Method, scalars, scores and time of a completed run, and what may follow it. `overrides` are
    the words of its command line."""
    raw = record.raw
    parameters, training = raw["parameters"], raw["training"]
    trainable, total = parameters["trainable"], parameters["total"]
    seconds = training["seconds"], training["evaluation_seconds"]
    trained, evaluated = (as_duration(part, 1) for part in seconds)
    rows = [
        ("method", method_text(record.cell.method, record.cell.density)),
        ("trained", f"{trainable:,} of {total:,} scalars ({trainable / total:.3%})"),
        *((split, _scores(raw[split])) for split in ("dev", "test")),
        ("time", f"{trained} of training, {evaluated} of evaluation"),
        ("record", str(record.path)),
    ]
    there = " (there already)" if was_there else ""
    title = f"{record.cell.task} with {record.cell.model}, seed {record.seed}{there}"
    lines = [title, *(f"  {name:<7}  {text}" for name, text in rows), "", "Next:"]
    lines += [f"  {line}" for line in _next_commands(record, overrides)]
    return "\n".join(["", *lines])


def _scores(split: Mapping[str, float]) -> str:
    return f"loss {split['loss']:.4f}  accuracy {split['accuracy']:7.2%}  mcc {split['mcc']:6.3f}"


def _next_commands(record: Record, overrides: Sequence[str]) -> list[str]:
    """To use what was trained, to see all results, and to compare with another method."""
    adapter = saved_by(record)
    results = record.path.parents[5]
    where = [] if results == DEFAULT else [str(results)]
    columns = record.raw["config"]["task"]["columns"]
    text = "your text" if len(columns) == 1 else "one text\\tthe other"
    # settings of the method do not fit another, nor do rates that were given for it; a single run
    # has no race
    own = ("method", "train.learning_rate", "search")
    others = [word for word in overrides if not word.lstrip("+~").startswith(own)]
    method = "sparta" if record.raw["method"] == "lora" else "lora"
    commands = [["tables", *where], [*others, f"method={method}"]]
    if adapter is not None:
        quoted = f'"{text}"' if len(columns) == 1 else f"$'{text}'"
        commands.insert(0, ["predict", str(adapter), quoted])
    return [_in_lines(["sparta-bench", *map(_quoted, words)]) for words in commands]


def _quoted(word: str) -> str:
    return word if word.startswith(('"', "$'")) else shlex.quote(word)


def _in_lines(words: Iterable[str]) -> str:
    """A command of a shell, in lines that fit where its words do."""
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and len(longer) > WIDTH - 6:  # indented, and a backslash follows
            lines.append(word)
        else:
            lines[-1] = longer
    return " \\\n    ".join(lines)


def grid_text(scores: Iterable[Score]) -> str:
    """A row for each cell of a grid: its setting with the lowest mean dev loss, of those that have
    the most seeds."""
    cells: dict[Cell, dict[str, list[Score]]] = defaultdict(lambda: defaultdict(list))
    for score in scores:
        cells[score.cell][score.setting].append(score)
    rows = [("task", "model", "method", "settings", "seeds", "dev loss", "test accuracy, %")]
    for cell, settings in cells.items():
        best = min(settings.values(), key=lambda runs: (-len(runs), _mean_dev_loss(runs)))
        accuracies = [100 * run.test_accuracy for run in best]
        std = statistics.stdev(accuracies) if len(best) > 1 else None
        method = method_text(cell.method, cell.density)
        rows.append((
            cell.task, shortened(cell.model, LONGEST_NAME), method, str(len(settings)),
            str(len(best)), f"{_mean_dev_loss(best):.4f}",
            spread_text(statistics.fmean(accuracies), std, 1),
        ))  # fmt: skip
    lines = ["  ".join(row).rstrip() for row in padded(rows, left=3)]
    if any(len(settings) > 1 for settings in cells.values()):
        lines.append("Of each cell the setting with the lowest mean dev loss is shown.")
    return "\n".join(["", *lines])


def _mean_dev_loss(runs: Sequence[Score]) -> float:
    return statistics.fmean(run.dev_loss for run in runs)
