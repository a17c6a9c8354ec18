"""The sweeps in conf/sweep: a file for each table and method, with the paper's settings."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

import pytest

from sparta_bench.config.compose import choices, compose, compose_all, config_dir, sweep_jobs
from sparta_bench.config.schema import Config, LoraConfig, SpartaConfig

METHODS = ("full_ft", "sparta", "lora", "head")
# model, and the density that gives LoRA's parameter count
GLUE_TABLES = {
    "table4": ("gemma-2b-it", "0.000465"),
    "table5": ("mistral-7b-it", "0.000488"),
    "table10": ("gemma-2b", "0.000465"),
    "table11": ("mistral-7b", "0.000488"),
    "tiny_table4": ("tiny-gemma-it", "0.0352"),
    "tiny_table5": ("tiny-mistral-it", "0.0364"),
    "tiny_table10": ("tiny-gemma", "0.0352"),
    "tiny_table11": ("tiny-mistral", "0.0364"),
}
TABLES = ("table3", "tiny_table3", *GLUE_TABLES)
NAMES = [f"{table}_{method}" for table in TABLES for method in METHODS]
MERGING = ("table6", "tiny_table6", "tiny_sparta", "tiny_lora", "tiny_full_ft")  # section 8

TASKS = ("qnli", "rte", "sst2", "qqp", "mnli", "mrpc", "cola")  # the columns of Tables 4 and 5
MODELS = ("gemma-2b", "gemma-2b-it", "mistral-7b", "mistral-7b-it")
TINY_MODELS = ("tiny-gemma", "tiny-gemma-it", "tiny-mistral", "tiny-mistral-it")
RATES = ("0.001", "0.0005", "0.0002", "0.0001", "5e-05", "1e-05", "5e-06")  # Table 13
BATCH_SIZES = ("32", "24", "8")  # Table 13
SEEDS = ("0", "1", "2")


def parts_of(name: str) -> tuple[str, str]:
    """Table and method of a sweep's name."""
    table = next(table for table in TABLES if name.startswith(f"{table}_"))
    return table, name.removeprefix(f"{table}_")


@cache
def jobs_of(name: str) -> list[dict[str, str]]:
    """The jobs of a sweep, each as key to value."""
    pairs = [[text.partition("=")[::2] for text in job] for job in sweep_jobs([f"+sweep={name}"])]
    return [dict(job) for job in pairs]


def composed(*jobs: dict[str, str]) -> list[Config]:
    return compose_all([[f"{key}={value}" for key, value in job.items()] for job in jobs])


@cache
def first_and_last(name: str) -> list[tuple[dict[str, str], Config]]:
    """The first and the last job of a sweep, with what they compose to."""
    jobs = [jobs_of(name)[0], jobs_of(name)[-1]]
    return list(zip(jobs, composed(*jobs), strict=True))


def axes_of(name: str) -> dict[str, tuple[str, ...]]:
    """What a sweep goes through, key by key, as the paper has it."""
    table, method = parts_of(name)
    tiny = table.startswith("tiny_")
    axes: dict[str, tuple[str, ...]] = {}
    if table in GLUE_TABLES:
        low = GLUE_TABLES[table][1]
        axes["task"] = tuple(f"tiny-{task}" for task in TASKS) if tiny else TASKS
    else:
        low = "0.036" if tiny else "0.0005"
        axes["model"] = TINY_MODELS if tiny else MODELS
    if table in GLUE_TABLES and not tiny:
        axes |= {"train.learning_rate": RATES, "train.batch_size": BATCH_SIZES}
    if not tiny:
        axes["seed"] = SEEDS
    if method == "sparta":
        axes["method.density"] = ("0.05", "0.005", low)
    return axes


# -------------------------------------------------------------------------------- the files
def test_there_is_a_file_for_each_table_and_method_and_no_other() -> None:
    assert len(NAMES) == 40
    assert choices("sweep") == sorted([*NAMES, *(f"merging_{name}" for name in MERGING)])


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_what_it_is_and_how_to_run_it(name: str) -> None:
    lines = (config_dir() / "sweep" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    table, _ = parts_of(name)
    number = table.removeprefix("tiny_").removeprefix("table")
    what = "The tiny twin of Table" if table.startswith("tiny_") else "Table"
    assert lines[0] == "# @package _global_"  # Hydra reads it in the first lines only
    assert lines[1].startswith(f"# {what} {number} (")
    assert lines[2] == f"#   sparta-bench -m +sweep={name}"


# --------------------------------------------------------------------------------- the jobs
@pytest.mark.parametrize("name", NAMES)
def test_the_jobs_are_all_combinations_and_each_once(name: str) -> None:
    axes = axes_of(name)
    expected = {tuple(sorted(zip(axes, job, strict=True))) for job in product(*axes.values())}
    jobs = jobs_of(name)
    assert {job.pop("+sweep") for job in map(dict, jobs)} == {name}
    found = [
        tuple(sorted((key, value) for key, value in job.items() if key != "+sweep")) for job in jobs
    ]
    assert len(found) == len(expected) and set(found) == expected


def test_the_sizes_of_the_tables() -> None:
    sizes = {name: len(jobs_of(name)) for name in NAMES}
    assert (sizes["table3_sparta"], sizes["table3_lora"]) == (4 * 3 * 3, 4 * 3)
    assert sizes["table4_sparta"] == 7 * 3 * 7 * 3 * 3 == 1323
    assert sizes["table4_full_ft"] == 7 * 7 * 3 * 3 == 441
    assert (sizes["tiny_table3_sparta"], sizes["tiny_table4_sparta"]) == (12, 21)
    tiny = sum(size for name, size in sizes.items() if name.startswith("tiny_"))
    assert (sum(sizes.values()) - tiny, tiny) == (10656, 192)


@pytest.mark.parametrize("name", NAMES)
def test_first_and_last_job_are_what_the_file_says(name: str) -> None:
    table, method = parts_of(name)
    for job, config in first_and_last(name):
        assert config.method.name == method
        if table in GLUE_TABLES:
            assert (config.model.name, config.task.name) == (GLUE_TABLES[table][0], job["task"])
        else:
            twin = "tiny-" if table.startswith("tiny_") else ""
            assert (config.model.name, config.task.name) == (job["model"], f"{twin}imdb")
        assert config.seed == int(job.get("seed", "0"))
        assert config.save == "none"
        if isinstance(config.method, SpartaConfig):
            assert config.method.density == float(job["method.density"])
        if table.startswith("tiny_"):
            assert config.train.checkpoint_every is None
        else:
            assert config.train.checkpoint_every == (1000 if method == "full_ft" else 200)


def test_a_value_on_the_command_line_takes_the_place_of_a_grid() -> None:
    jobs = sweep_jobs(["+sweep=table4_sparta", "seed=0", "task=rte,cola"])
    assert len(jobs) == 2 * 3 * 7 * 3
    assert all("seed=0" in job and ("task=rte" in job or "task=cola" in job) for job in jobs)
    assert len(sweep_jobs(["+sweep=tiny_table4_lora", "seed=0,1,2"])) == 7 * 3


# ----------------------------------------------------------------------------- the settings
@pytest.mark.parametrize("method", METHODS)
def test_table_3_runs_with_the_settings_of_table_12(method: str) -> None:
    """Which are the presets: test_config.py has them number by number."""
    seen = []
    for job in jobs_of(f"table3_{method}"):
        chosen = ["task=imdb", f"model={job['model']}", f"method={method}"]
        chosen += [f"{key}={job[key]}" for key in job if key == "method.density"]
        (config,) = composed(job)
        preset = compose(chosen).train
        assert replace(config.train, checkpoint_every=None) == preset
        seen.append(config.model.name)
    assert set(seen) == set(MODELS) and len(seen) == (36 if method == "sparta" else 12)


# Table 13: what is not searched there. LoRA's dropout is its own, not the attention's.
TABLE_13 = {
    "full_ft": {"weight_decay": 0.1, "dropout": 0.1},
    "sparta": {"weight_decay": 0.1, "dropout": 0.0},
    "lora": {"weight_decay": 0.1, "dropout": 0.0},
    "head": {"weight_decay": 0.0, "dropout": 0.1},
}


@pytest.mark.parametrize("table", ["table4", "table5", "table10", "table11"])
@pytest.mark.parametrize("method", METHODS)
def test_the_glue_tables_run_with_the_settings_of_table_13(table: str, method: str) -> None:
    for job, config in first_and_last(f"{table}_{method}"):
        train = config.train
        assert (train.epochs, train.patience) == (2, 0)  # "over 2 epochs of training"
        assert train.learning_rate == float(job["train.learning_rate"])
        assert train.batch_size == int(job["train.batch_size"])
        for key, value in TABLE_13[method].items():
            assert getattr(train, key) == value, (config.task.name, key)
        if isinstance(config.method, LoraConfig):
            assert (config.method.r, config.method.alpha, config.method.lora_dropout) == (
                8,
                16,
                0.1,
            )


@pytest.mark.parametrize(
    ("density", "lora", "head", "sampled"),
    [
        ("0.000465", 925_696, 4_096, 1_981_884_416),  # gemma-2b
        ("0.000488", 3_416_064, 8_192, 6_979_588_096),  # mistral-7b
        ("0.0352", 6_784, 128, 188_992),  # tiny-gemma
        ("0.0364", 7_296, 128, 197_120),  # tiny-mistral
    ],
)
def test_the_lowest_density_gives_the_count_of_lora(
    density: str, lora: int, head: int, sampled: int
) -> None:
    assert float(density) == float(f"{(lora - head) / sampled:.3g}")
    assert density in {low for _, low in GLUE_TABLES.values()}


def test_one_density_serves_both_tiny_families_in_table_3() -> None:
    for lora, head, sampled in ((6_784, 128, 188_992), (7_296, 128, 197_120)):
        assert 0.036 * sampled + head == pytest.approx(lora, rel=0.023)


# ------------------------------------------------------------------------------ merging
def test_table_6_is_trained_at_99_percent_sparsity_and_its_adapters_are_kept() -> None:
    for name, models, tasks, count in (
        ("merging_table6", {"gemma-2b"}, ["sst2", "cola"], 18),
        ("merging_tiny_table6", {"tiny-gemma", "tiny-mistral"}, ["tiny-sst2", "tiny-cola"], 24),
    ):
        jobs = jobs_of(name)
        configs = composed(*jobs)
        assert len(jobs) == count
        assert list(dict.fromkeys(config.task.name for config in configs)) == tasks
        for config in configs:
            assert isinstance(config.method, SpartaConfig)
            assert config.method.density == float(round(1 - 0.99, 2))
            assert config.save == "adapter"
        assert {config.model.name for config in configs} == models
        assert {config.seed for config in configs} == {0, 1, 2}


def test_what_merging_costs_is_compared_at_equal_parameter_count() -> None:
    saved = {}
    for method in ("sparta", "lora", "full_ft"):
        jobs = jobs_of(f"merging_tiny_{method}")
        configs = composed(*jobs)
        assert len(jobs) == 5 * 3
        assert {config.method.name for config in configs} == {method}
        assert {config.model.name for config in configs} == {"tiny-gemma"}
        saved[method] = {config.save for config in configs}
    assert saved == {"sparta": {"adapter"}, "lora": {"adapter"}, "full_ft": {"full"}}
    (first, *_) = composed(*jobs_of("merging_tiny_sparta"))
    assert isinstance(first.method, SpartaConfig)
    assert str(first.method.density) == GLUE_TABLES["tiny_table10"][1]


@pytest.mark.parametrize("name", MERGING)
def test_a_merging_file_says_what_it_is_and_how_to_run_it(name: str) -> None:
    path = config_dir() / "sweep" / f"merging_{name}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    assert "section 8" in lines[1]
    assert lines[2] == f"#   sparta-bench -m +sweep=merging_{name}"
