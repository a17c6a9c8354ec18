"""Tables 12 and 13 from the configuration itself: what `conf/` sets, beside what the paper says."""

from __future__ import annotations

from typing import Any

from sparta_bench.config.compose import compose, compose_all
from sparta_bench.config.schema import Config, LoraConfig
from sparta_bench.config.sweeps import sweeps_of
from sparta_bench.paper import PAPER_DENSITIES, number_of, rows_of
from sparta_bench.tables.format import rate_text
from sparta_bench.tables.protocol import MODELS
from sparta_bench.tables.table import Heading, Table, table_of

DENSITIES = dict(zip(("sparta-5", "sparta-0.5", "sparta-lora"), PAPER_DENSITIES, strict=True))
GLUE_TABLES = (4, 5, 10, 11)
DIFFERS = "≠"


def settings_tables() -> list[Table]:
    """Both tables; composing their configurations takes some seconds."""
    return [_table12(), _table13()]


# ------------------------------------------------------------------------------------ Table 12
def _table12() -> Table:
    configs = _imdb_configs()
    rows = []
    for printed in rows_of("table12"):
        cells = [printed["method"], printed["parameter"]]
        for model in MODELS:
            printed_configs = configs[printed["row"], model]
            values = {_value(config, printed["parameter"]) for config in printed_configs}
            ours = " / ".join(sorted(values))
            same = len(values) == 1 and is_the_papers(ours, printed[model])
            cells += [ours if same else f"{ours} {DIFFERS}", printed[model]]
        rows.append(tuple(cells))
    headings = (
        (Heading(""), Heading(""), *(Heading(model, 2) for model in MODELS)),
        (Heading(""), Heading("Parameter"), *map(Heading, ("ours", "paper") * len(MODELS))),
    )
    most = max(config.train.epochs for some in configs.values() for config in some)
    notes = (
        f"From conf/presets.csv and conf/method, task imdb. {DIFFERS}: not what the paper says.",
        f"* in the number of epochs: early stopping, here after at most {most:g} epochs. "
        "No clipping (0 here) is - in the paper. LoRA's dropout is that of its adapters.",
    )
    return Table("table12", "Table 12: settings on IMDB", headings, tuple(rows), notes)


def _imdb_configs() -> dict[tuple[str, str], list[Config]]:
    """By row of Table 12 and model; rows of SpaRTA without a density stand for all three."""
    jobs = {}
    for model in MODELS:
        for row in ("full_ft", "lora", "head", *DENSITIES):
            method = "sparta" if row in DENSITIES else row
            jobs[row, model] = ["task=imdb", f"model={model}", f"method={method}"]
            if row in DENSITIES:
                jobs[row, model].append(f"method.density={DENSITIES[row]}")
    configs: dict[tuple[str, str], list[Config]] = {}
    for (row, model), config in zip(jobs, compose_all(list(jobs.values())), strict=True):
        configs[row, model] = [config]
        if row in DENSITIES:
            configs.setdefault(("sparta", model), []).append(config)
    return configs


def _value(config: Config, parameter: str) -> str:
    """A setting as Tables 12 and 13 write it."""
    train, method = config.train, config.method
    if parameter == "num epochs":
        return "*" if train.patience else f"{train.epochs:g}"
    if parameter == "learning rate":
        return rate_text(train.learning_rate)
    if isinstance(method, LoraConfig) and parameter in ("dropout", "r", "α"):
        values = {"dropout": method.lora_dropout, "r": method.r, "α": method.alpha}
        return f"{values[parameter]:g}"
    return f"{getattr(train, parameter.replace(' ', '_')):g}"


def is_the_papers(ours: str, printed: str) -> bool:
    """Whether a value of ours is the printed one, where - is no clipping and * early stopping."""
    if printed == "*":
        return ours == "*"
    return ours != "*" and number_of(ours) == (0.0 if printed == "-" else number_of(printed))


# ------------------------------------------------------------------------------------ Table 13
def _table13() -> Table:
    sweeps = {
        (sweep.method, number): (compose(sweep.jobs()[0]), sweep.axes)
        for number in GLUE_TABLES
        for sweep in sweeps_of(f"table{number}")
    }
    rows = []
    for printed in rows_of("table13"):
        paper = {number_of(text) for text in printed["values"].strip("[]").split(",")}
        cells = [printed["method"], printed["parameter"], printed["values"]]
        for number in GLUE_TABLES:
            ours = _values(*sweeps[printed["row"], number], printed["parameter"])
            same = {number_of(text) for text in ours} == paper
            cells.append(f"[{', '.join(ours)}]{'' if same else f' {DIFFERS}'}")
        rows.append(cells)
    heads = ("", "Parameter", "paper", *(f"Table {number}" for number in GLUE_TABLES))
    epochs = sorted({config.train.epochs for config, _ in sweeps.values()})
    stops = any(config.train.patience for config, _ in sweeps.values())
    notes = (
        f"From conf/sweep, table by table. {DIFFERS}: not the paper's range.",
        f"Epochs: {' or '.join(f'{value:g}' for value in epochs)}, "
        f"{'or fewer by early stopping' if stops else 'in full'}; in the paper 2.",
    )
    return table_of("table13", "Table 13: settings searched on GLUE", heads, rows, *notes)


def _values(config: Config, grid: dict[str, list[Any]], parameter: str) -> list[str]:
    key = f"train.{parameter.replace(' ', '_')}"
    if key in grid:
        write = rate_text if parameter == "learning rate" else "{:g}".format
        return [write(value) for value in grid[key]]
    return [_value(config, parameter)]
