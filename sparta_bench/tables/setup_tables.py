"""Tables 2 and 9, the splits' sizes, from what `sparta-bench plan --json` prints; Tables 12 and 13
from the configuration itself: what `conf/` sets, beside what the paper says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from sparta_bench.config.schema import Config, LoraConfig
from sparta_bench.files import json_of
from sparta_bench.paper import PAPER_DENSITIES, number_of, rows_of
from sparta_bench.tables.paper_tables import MISSING, NUMBERS, rate_text
from sparta_bench.tables.protocol import MODELS
from sparta_bench.tables.table import Heading, Table, table_of

# Of Tables 2 and 9: the paper's counts come out with the prompts of the instruction models
# (docs/fidelity.md).
COUNTED = {2: "gemma-2b-it", 9: "mistral-7b-it"}
SPLITS = ("train", "dev", "test")
Sizes = dict[tuple[str, str], dict[str, int]]  # model and task, then split
SPARTA = dict(zip(("sparta-5", "sparta-0.5", "sparta-lora"), PAPER_DENSITIES, strict=True))
DIFFERS = "≠"


# ------------------------------------------------------------------------------ Tables 2 and 9
def read_plans(folders: Iterable[Path]) -> tuple[Sizes, list[str]]:
    """The sizes in `<folder>/plans/*.json`, and a line for each file that says none, or others than
    an earlier file of the same model and task."""
    sizes: Sizes = {}
    faults = []
    for path in sorted(path for folder in folders for path in folder.glob("plans/*.json")):
        try:
            plan = json_of(path)
            model, task, data = str(plan["model"]), str(plan["task"]), plan["data"]
            dropped = data["train_dropped"]  # None where there was no tokenizer to count with
            counts = {split: int(data[split]) for split in ("dev", "test")}
            if dropped is not None:
                # Table 2 counts IMDB before, GLUE after the long ones are dropped
                counts["train"] = int(data["train"]) + (int(dropped) if task == "imdb" else 0)
                counts["kept"] = int(data["train"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            faults.append(f"{path.name} is no plan with counts")
            continue
        known = sizes.setdefault((model, task), {})
        if any(known.get(split, count) != count for split, count in counts.items()):
            before = f"the plans of {model} on {task} before it"
            faults.append(f"{path.name} has other counts than {before}; not used")
        else:
            known |= counts
    return sizes, faults


def count_tables(sizes: Sizes) -> list[Table]:
    """Tables 2 and 9 beside the paper's; none for which there is no plan."""
    planned = {model for model, _ in sizes}
    return [_counts(number, model, sizes) for number, model in COUNTED.items() if model in planned]


def _counts(number: int, model: str, sizes: Sizes) -> Table:
    rows = []
    for printed in rows_of(f"table{number}"):
        counts = sizes.get((model, printed["task"]), {})
        cells = [printed["dataset"], printed["classes"]]
        for split in SPLITS:
            ours = counts.get(split)
            mark = "" if ours == number_of(printed[split]) else f" {DIFFERS}"
            cells += [MISSING if ours is None else f"{ours:,}{mark}", printed[split]]
        rows.append(tuple(cells))
    notes = [f"{DIFFERS}: another number than the paper's. IMDB's training set is counted before "
             "long reviews are dropped, as in the paper."]  # fmt: skip
    kept = sizes.get((model, "imdb"), {}).get("kept")
    if kept is not None:
        paper = next(row["train"] for row in rows_of("imdb_train") if row["model"] == model)
        notes.append(f"After that {kept:,} are left; in the paper (appendix E.1) {paper}.")
    headings = (
        (Heading(""), Heading(""), *(Heading(split.capitalize(), 2) for split in SPLITS)),
        (Heading("Dataset"), Heading("Classes"), *map(Heading, ("ours", "paper") * 3)),
    )
    title = f"Table {number}: examples of each split, long ones dropped ({model})"
    return Table(f"table{number}", title, headings, tuple(rows), tuple(notes))


# ---------------------------------------------------------------------------- Tables 12 and 13
def settings_tables() -> list[Table]:
    """Both tables; composing their configurations takes some seconds."""
    return [_table12(), _table13()]


def _table12() -> Table:
    from sparta_bench.config.compose import compose_all

    jobs = {}
    for model in MODELS:
        for row in ("full_ft", "lora", "head", *SPARTA):
            density = [f"method.density={SPARTA[row]}"] if row in SPARTA else []
            method = f"method={'sparta' if density else row}"
            jobs[row, model] = ["task=imdb", f"model={model}", method, *density]
    configs: dict[tuple[str, str], list[Config]] = defaultdict(list)
    for (row, model), config in zip(jobs, compose_all(list(jobs.values())), strict=True):
        configs[row, model].append(config)
        if row in SPARTA:  # rows of SpaRTA without a density stand for all three
            configs["sparta", model].append(config)
    rows = []
    for printed in rows_of("table12"):
        cells = [printed["method"], printed["parameter"]]
        for model in MODELS:
            of_row = configs[printed["row"], model]
            values = {_value(config, printed["parameter"]) for config in of_row}
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


def _table13() -> Table:
    from sparta_bench.config.compose import compose
    from sparta_bench.config.sweeps import sweeps_of

    sweeps = {
        (sweep.method, number): (compose(sweep.jobs()[0]), sweep.axes)
        for number in NUMBERS
        for sweep in sweeps_of(f"table{number}")
    }
    rows = []
    for printed in rows_of("table13"):
        parameter = printed["parameter"]
        key = f"train.{parameter.replace(' ', '_')}"
        write = rate_text if parameter == "learning rate" else "{:g}".format
        paper = {number_of(text) for text in printed["values"].strip("[]").split(",")}
        cells = [printed["method"], parameter, printed["values"]]
        for number in NUMBERS:
            config, axes = sweeps[printed["row"], number]
            ours = [*map(write, axes[key])] if key in axes else [_value(config, parameter)]
            same = {number_of(text) for text in ours} == paper
            cells.append(f"[{', '.join(ours)}]{'' if same else f' {DIFFERS}'}")
        rows.append(cells)
    heads = ("", "Parameter", "paper", *(f"Table {number}" for number in NUMBERS))
    epochs = sorted({config.train.epochs for config, _ in sweeps.values()})
    stops = any(config.train.patience for config, _ in sweeps.values())
    notes = (
        f"From conf/sweep, table by table. {DIFFERS}: not the paper's range.",
        f"Epochs: {' or '.join(f'{value:g}' for value in epochs)}, "
        f"{'or fewer by early stopping' if stops else 'in full'}; in the paper 2.",
    )
    return table_of("table13", "Table 13: settings searched on GLUE", heads, rows, *notes)
