"""Which tables there are: Tables 3, 4, 5, 10 and 11 of the paper, and the same for the twins."""

from __future__ import annotations

from dataclasses import dataclass

from sparta_bench.paper import results_of
from sparta_bench.records.record import Cell
from sparta_bench.tables.protocol import GLUE, MODELS, TWIN_MODELS

METHOD_NAMES = {"full_ft": "Full FT", "sparta": "SpaRTA", "lora": "LoRA", "head": "Head"}


@dataclass(frozen=True, slots=True)
class Row:
    """`id` is that of the paper's values; `density` is exact, where the paper rounds."""

    id: str
    method: str
    density: float | None


@dataclass(frozen=True, slots=True)
class Column:
    """A model on a task, with its loss and its score. `paper` begins the names of its values."""

    head: str
    model: str
    task: str
    paper: str


@dataclass(frozen=True, slots=True)
class Layout:
    """One table of the paper, or its twin. `groups` says what its columns are."""

    key: str
    number: int
    title: str
    groups: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    loss_digits: int
    twins: bool

    def cell(self, row: Row, column: Column) -> Cell:
        """What our records must be of to stand there."""
        return Cell(column.model, column.task, row.method, row.density)

    def label(self, row: Row) -> str:
        """The row's name as the paper prints it."""
        return results_of(self.number)[row.id]["label"]

    def paper(self, row: Row, column: Column, metric: str) -> str:
        """The paper's value as it is printed; `metric` is loss, accuracy or mcc."""
        return results_of(self.number)[row.id][f"{column.paper}.{metric}"]


def score_of(task: str) -> str:
    """The metric beside the loss: Matthews' correlation for CoLA, else accuracy (Table 4)."""
    return "mcc" if task.removeprefix("tiny-") == "cola" else "accuracy"


def task_name(task: str) -> str:
    """How the paper writes a task: SST2. Twins keep their `tiny-`."""
    known = task.removeprefix("tiny-")
    return task.replace(known, known.upper()) if known in (*GLUE, "imdb") else task


def method_name(method: str) -> str:
    """How the paper writes a method, with what `Cell.method` adds to it."""
    first, _, rest = method.partition(" ")
    return f"{METHOD_NAMES.get(first, first)} {rest}".strip()


def percent(density: float) -> str:
    """0.000465 as 0.0465%."""
    return f"{100 * density:.6g}%"


def row_name(method: str, density: float | None) -> str:
    """`SpaRTA (0.5%)`, `LoRA`."""
    return method_name(method) + ("" if density is None else f" ({percent(density)})")


def _rows(lora_density: float) -> tuple[Row, ...]:
    return (
        Row("full_ft", "full_ft", None),
        Row("sparta-5", "sparta", 0.05),
        Row("sparta-0.5", "sparta", 0.005),
        Row("sparta-lora", "sparta", lora_density),
        Row("lora", "lora", None),
        Row("head", "head", None),
    )


def _imdb(key: str, models: tuple[str, ...], task: str, density: float) -> Layout:
    columns = tuple(
        Column(model, model, task, paper) for model, paper in zip(models, MODELS, strict=True)
    )
    twins = task != "imdb"
    title = "the embedded models on tiny-imdb" if twins else "four models on IMDB"
    return Layout(key, 3, title, "Model", _rows(density), columns, 3, twins)


def _glue(number: int, model: str, density: float) -> Layout:
    twins = model in TWIN_MODELS
    columns = tuple(
        Column(task.upper(), model, f"tiny-{task}" if twins else task, task) for task in GLUE
    )
    key = f"table{number}" + ("-twins" if twins else "")
    title = f"{model} on the tiny GLUE tasks" if twins else f"{model} on GLUE"
    return Layout(key, number, title, "Task", _rows(density), columns, 2, twins)


# The third density gives LoRA's parameter count: the paper prints it as 0.05, 0.037 and 0.048 %
# (docs/fidelity.md); conf/sweep has the arithmetic.
LAYOUTS = (
    _imdb("table3", MODELS, "imdb", 0.0005),
    _glue(4, "gemma-2b-it", 0.000465),
    _glue(5, "mistral-7b-it", 0.000488),
    _glue(10, "gemma-2b", 0.000465),
    _glue(11, "mistral-7b", 0.000488),
    _imdb("table3-twins", TWIN_MODELS, "tiny-imdb", 0.036),
    _glue(4, "tiny-gemma-it", 0.0352),
    _glue(5, "tiny-mistral-it", 0.0364),
    _glue(10, "tiny-gemma", 0.0352),
    _glue(11, "tiny-mistral", 0.0364),
)
