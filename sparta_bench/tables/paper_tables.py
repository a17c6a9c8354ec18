"""Which tables there are: Tables 3, 4, 5, 10 and 11 of the paper, and those of tiny models; what
their rows and columns are called and in which order they stand; how numbers are written in cells.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sparta_bench.paper import DENSITIES, LORA_DENSITY, results_of
from sparta_bench.records.record import Cell
from sparta_bench.tables.protocol import GLUE, MODELS, TASKS, TINY_MODELS
from sparta_bench.tables.select import Chosen
from sparta_bench.text import spread_text

METHOD_NAMES = {"full_ft": "Full FT", "sparta": "SpaRTA", "lora": "LoRA", "head": "Head"}
BAND = 0.1  # a density is a row's where it differs by no more than this share of the row's own
MISSING = "–"
SCALE = {"loss": 1.0, "accuracy": 100.0, "mcc": 100.0}  # as the paper prints them


# ------------------------------------------------------------------------------ names and order
def score_of(task: str) -> str:
    """The metric beside the loss: Matthews' correlation for CoLA, else accuracy (Table 4)."""
    return "mcc" if task.removeprefix("tiny-") == "cola" else "accuracy"


def task_name(task: str) -> str:
    """How the paper writes a task: SST2. Generated tasks keep their `tiny-`."""
    known = task.removeprefix("tiny-")
    return task.replace(known, known.upper()) if known in TASKS else task


def percent(density: float) -> str:
    """0.000465 as 0.0465%."""
    return f"{100 * density:.6g}%"


def row_name(method: str, density: float | None = None) -> str:
    """`SpaRTA (0.5%)`, `LoRA`, with what `Cell.method` adds to the method."""
    first, _, rest = method.partition(" ")
    name = f"{METHOD_NAMES.get(first, first)} {rest}".strip()
    return name if density is None else f"{name} ({percent(density)})"


def model_order(model: str) -> tuple[Any, ...]:
    """What sorts models as the paper has them, the tiny ones after them, others last."""
    return _index((*MODELS, *TINY_MODELS), model)


def task_order(task: str) -> tuple[Any, ...]:
    """What sorts tasks as the columns of the paper, the generated ones after them, others last."""
    return _index((*TASKS, *(f"tiny-{known}" for known in TASKS)), task)


def method_order(method: str, density: float | None) -> tuple[Any, ...]:
    """What sorts methods and densities as the rows of the paper, densities downwards."""
    return (*_index(tuple(METHOD_NAMES), method), -(density or 0.0))


def _index(order: tuple[str, ...], name: str) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order)), name


def cell_order(cell: Cell) -> tuple[Any, ...]:
    model, task, method, density = cell
    return (*model_order(model), *task_order(task), *method_order(method, density))


def lines_and_tasks(cells: Iterable[Cell]) -> tuple[list[tuple[str, float | None]], list[str]]:
    """Methods with densities in the order of the paper's rows, and tasks in that of its columns."""
    all_cells = list(cells)
    lines = {(cell.method, cell.density) for cell in all_cells}
    tasks = {cell.task for cell in all_cells}
    return sorted(lines, key=lambda line: method_order(*line)), sorted(tasks, key=task_order)


# -------------------------------------------------------------------------------------- numbers
def mean_of(chosen: Chosen | None, metric: str, digits: int, unit: str = "") -> str:
    """The mean over seeds of a test metric; a dash without a record, `failed` if all runs did. A
    star stands where a setting with fewer seeds looks better; the table's note names it."""
    if chosen is None or not chosen.runs:
        return "failed" if chosen is not None and chosen.failed else MISSING
    mean = SCALE[metric] * chosen.over_seeds("test", metric).mean
    return f"{mean:.{digits}f}{unit}{'*' if chosen.ahead else ''}"


def spread_of(
    chosen: Chosen | None, metric: str, digits: int, split: str = "test", with_n: bool = True
) -> str:
    """`mean ± standard deviation (seeds)`, or without deviation where there is one seed."""
    if chosen is None or not chosen.runs:
        return mean_of(chosen, metric, digits)
    spread = chosen.over_seeds(split, metric).times(SCALE[metric])
    text = spread_text(spread.mean, spread.std, digits) + (f" ({spread.n})" if with_n else "")
    return text + ("*" if chosen.ahead else "")


def spread_over(values: Sequence[float], digits: int) -> str:
    """`mean ± standard deviation` of some values."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return spread_text(statistics.fmean(values), std, digits)


def rate_text(rate: float) -> str:
    """`1.5e-5`: a learning rate as the paper writes it."""
    if rate == 0 or abs(rate) >= 0.1:
        return f"{rate:g}"
    mantissa, _, exponent = f"{rate:.6e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


# -------------------------------------------------------------------------------------- layouts
class Row(NamedTuple):
    """`id` is that of the paper's values; `density` is exact, where the paper rounds."""

    id: str
    method: str
    density: float | None

    def has(self, density: float | None) -> bool:
        if self.density is None or density is None:
            return self.density is density
        return abs(density - self.density) <= BAND * self.density


class Column(NamedTuple):
    """A model on a task, with its loss and its score. `paper` begins the names of its values."""

    head: str
    model: str
    task: str
    paper: str


At = tuple[int, int]  # row and column


@dataclass(frozen=True, slots=True)
class Layout:
    """One table of the paper, or the same for tiny models. `groups` says what its columns are."""

    key: str
    number: int
    title: str
    groups: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    loss_digits: int
    tiny: bool

    def take(self, cells: dict[Cell, Chosen]) -> dict[At, Chosen]:
        """Take out of `cells` what stands in the table, by row and column: of each method the cell
        whose density lies in the row's band, nearest to the row's own."""
        taken = {}
        by_names: dict[tuple[str, ...], list[Cell]] = {}
        for cell in cells:
            by_names.setdefault(cell[:3], []).append(cell)
        for number, row in enumerate(self.rows):
            for place, column in enumerate(self.columns):
                same = by_names.get((column.model, column.task, row.method), ())
                near = [cell for cell in same if row.has(cell.density)]
                if near:
                    own = row.density or 0.0
                    best = min(near, key=lambda cell: abs((cell.density or 0.0) - own))
                    taken[number, place] = cells.pop(best)
        return taken

    def label(self, row: Row) -> str:
        """The row's name as the paper prints it."""
        return results_of(self.number)[row.id]["label"]

    def densities(self, row: int, chosen: Mapping[At, Chosen]) -> str:
        """The densities that ran in a row, or its own where none did; empty without densities."""
        ran = {one.cell.density for (number, _), one in chosen.items() if number == row}
        return " or ".join(map(percent, sorted(filter(None, ran or {self.rows[row].density}))))

    def name(self, row: int, chosen: Mapping[At, Chosen]) -> str:
        densities = self.densities(row, chosen)
        return row_name(self.rows[row].method) + (f" ({densities})" if densities else "")

    def paper(self, row: Row, column: Column, metric: str) -> str:
        """The paper's value as it is printed; `metric` is loss, accuracy or mcc."""
        return results_of(self.number)[row.id][f"{column.paper}.{metric}"]


def _layout(number: int, columns: tuple[Column, ...], title: str) -> Layout:
    tiny = columns[0].model in TINY_MODELS
    groups, loss_digits = ("Model", 3) if number == 3 else ("Task", 2)
    rows = (
        Row("full_ft", "full_ft", None),
        *(Row(id, "sparta", density) for id, density in DENSITIES.items()),
        Row("sparta-lora", "sparta", LORA_DENSITY[f"{'tiny_' * tiny}table{number}"]),
        Row("lora", "lora", None),
        Row("head", "head", None),
    )
    key = f"table{number}" + "-twins" * tiny
    return Layout(key, number, title, groups, rows, columns, loss_digits, tiny)


def _imdb(models: tuple[str, ...], task: str, title: str) -> Layout:
    named = zip(models, MODELS, strict=True)
    return _layout(3, tuple(Column(model, model, task, paper) for model, paper in named), title)


def _glue(number: int, model: str) -> Layout:
    tiny = "tiny-" if model in TINY_MODELS else ""
    columns = tuple(Column(task.upper(), model, tiny + task, task) for task in GLUE)
    return _layout(number, columns, f"{model} on {'the tiny GLUE tasks' if tiny else 'GLUE'}")


NUMBERS = (4, 5, 10, 11)  # of the tables on GLUE, each of one model
LAYOUTS = (
    _imdb(MODELS, "imdb", "four models on IMDB"),
    *map(_glue, NUMBERS, ("gemma-2b-it", "mistral-7b-it", "gemma-2b", "mistral-7b")),
    _imdb(TINY_MODELS, "tiny-imdb", "the embedded models on tiny-imdb"),
    *map(_glue, NUMBERS, ("tiny-gemma-it", "tiny-mistral-it", "tiny-gemma", "tiny-mistral")),
)
