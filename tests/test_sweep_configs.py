"""The sweeps in conf/sweep: the paper's settings, table by table and method by method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from sparta_bench.config import conf_folder, sweeps
from sparta_bench.config.compose import compose, compose_all
from sparta_bench.config.conf_folder import choices, config_dir
from sparta_bench.config.schema import Config, LoraConfig, SpartaConfig
from sparta_bench.config.sweeps import read_sweep, sweep_jobs, sweep_names, sweeps_of
from sparta_bench.errors import InputError
from sparta_bench.paper import DENSITIES, LORA_DENSITY

METHODS = ("full_ft", "sparta", "lora", "head")
GLUE_TABLES = {
    "table4": "gemma-2b-it",
    "table5": "mistral-7b-it",
    "table10": "gemma-2b",
    "table11": "mistral-7b",
    "tiny_table4": "tiny-gemma-it",
    "tiny_table5": "tiny-mistral-it",
    "tiny_table10": "tiny-gemma",
    "tiny_table11": "tiny-mistral",
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
        axes["task"] = tuple(f"tiny-{task}" for task in TASKS) if tiny else TASKS
    else:
        axes["model"] = TINY_MODELS if tiny else MODELS
    if table in GLUE_TABLES and not tiny:
        axes |= {"train.learning_rate": RATES, "train.batch_size": BATCH_SIZES}
    axes["seed"] = ("0",) if tiny else SEEDS
    if method == "sparta":
        densities = (*DENSITIES.values(), LORA_DENSITY[table])
        axes["method.density"] = tuple(map(str, densities))
    return axes


# -------------------------------------------------------------------------------- the files
def test_there_is_a_file_for_each_table_and_no_other() -> None:
    studies = ("density_study", "density_tiny", "grid_tiny", "smollm2_base", "smollm2_instruct")
    others = ("density_structure", "merging_table6", "merging_tiny", "merging_tiny_table6")
    assert choices("sweep") == sorted([*studies, *TABLES, *others])
    assert len(NAMES) == 40
    grids = [f"{name}_{method}" for name in studies for method in METHODS]
    grids += ["density_structure_lora", "density_structure_sparta"]
    assert sweep_names() == sorted([*NAMES, *(f"merging_{name}" for name in MERGING), *grids])


@pytest.mark.parametrize("name", [*TABLES, "merging_table6", "merging_tiny", "merging_tiny_table6"])
def test_a_file_says_what_it_is_and_how_to_run_it(name: str) -> None:
    lines = (config_dir() / "sweep" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    number = name.removeprefix("tiny_").removeprefix("table")
    assert lines[0].startswith(f"# Table {number} ") if name in TABLES else "section 8" in lines[0]
    assert lines[1].startswith(f"#   sparta-bench -m +sweep={name}")


def test_a_table_is_the_sweeps_of_its_methods() -> None:
    assert [sweep.method for sweep in read_sweep("table4")] == list(METHODS)
    assert sweep_jobs(["+sweep=table4"]) == [
        job for method in METHODS for job in sweep_jobs([f"+sweep=table4_{method}"])
    ]
    assert sweeps_of("table4-twins") == read_sweep("tiny_table4")
    assert sweeps_of("table6") == []


def test_a_pattern_stands_for_each_method_once() -> None:
    jobs = sweep_jobs(["+sweep=glob(tiny_table*)"])
    names = [name for name in sweep_names() if name.startswith("tiny_table")]
    assert jobs == [job for name in names for job in sweep_jobs([f"+sweep={name}"])]
    assert len(jobs) == 192
    assert len(sweep_jobs(["+sweep=glob(tiny_table*_lora)"])) == 32


# --------------------------------------------------------------------------------- the jobs
@pytest.mark.parametrize("name", NAMES)
def test_the_jobs_are_all_combinations_and_each_once(name: str) -> None:
    axes = axes_of(name)
    expected = {tuple(sorted(zip(axes, job, strict=True))) for job in product(*axes.values())}
    jobs = jobs_of(name)
    varying = [tuple(sorted((key, job[key]) for key in axes)) for job in jobs]
    assert len(varying) == len(expected) and set(varying) == expected
    for key in set(jobs[0]) - set(axes):
        assert len({job[key] for job in jobs}) == 1


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
            assert (config.model.name, config.task.name) == (GLUE_TABLES[table], job["task"])
        else:
            tiny = "tiny-" if table.startswith("tiny_") else ""
            assert (config.model.name, config.task.name) == (job["model"], f"{tiny}imdb")
        assert config.seed == int(job["seed"])
        assert config.save == "none"
        if isinstance(config.method, SpartaConfig):
            assert config.method.density == float(job["method.density"])
        if table.startswith("tiny_"):
            assert config.train.checkpoint_every is None
        else:
            assert config.train.checkpoint_every == (1000 if method == "full_ft" else 200)


# --------------------------------------------------------------------- beside a command line
def test_a_value_on_the_command_line_takes_the_place_of_a_grid() -> None:
    jobs = sweep_jobs(["+sweep=table4_sparta", "seed=0", "task=rte,cola"])
    assert len(jobs) == 2 * 3 * 7 * 3
    assert all("seed=0" in job and ("task=rte" in job or "task=cola" in job) for job in jobs)
    assert len(sweep_jobs(["+sweep=tiny_table4_lora", "seed=0,1,2"])) == 7 * 3


def test_a_method_on_the_command_line_narrows_a_sweep() -> None:
    lora = sweep_jobs(["+sweep=tiny_table4_lora"])
    assert [set(job) for job in sweep_jobs(["+sweep=tiny_table4", "method=lora"])] == [
        set(job) for job in lora
    ]
    both = sweep_jobs(["+sweep=tiny_table4_sparta,tiny_table4_lora", "method=head,lora"])
    assert [set(job) for job in both] == [set(job) for job in lora]
    # another choice of the same method has the method's own axes
    jobs = sweep_jobs(["+sweep=tiny_table4", "method=sparta_vo"])
    assert len(jobs) == 21 and all("method=sparta_vo" in job for job in jobs)
    assert {text for job in jobs for text in job if text.startswith("method.density")} == {
        "method.density=0.05", "method.density=0.005", "method.density=0.0352"
    }  # fmt: skip
    for sweep in ("table4_sparta", "merging_table6"):
        with pytest.raises(InputError) as caught:
            sweep_jobs([f"+sweep={sweep}", "method=head"])
        assert caught.value.lines == (
            "-m: the values given make no job at all; the sweep runs no method=head",
        )


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`write(text)`: a folder `conf` whose one sweep `mine` says that, beside `other`."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "other.yaml").write_text("seed: [0, 1]\nsave: none\nmethods: {lora: {}, head: {}}\n")
    for group in ("model", "method"):
        (tmp_path / group).symlink_to(config_dir() / group)
    for module in (conf_folder, sweeps):
        monkeypatch.setattr(module, "config_dir", lambda: tmp_path)
    return lambda text: (folder / "mine.yaml").write_text(text) and None


def test_a_file_may_be_like_another(write: Callable[[str], None]) -> None:
    write("like: other\nseed: 5\nmethods: {lora: {method.r: [2, 4]}}\n")
    assert sweep_jobs(["+sweep=mine"]) == [
        ["seed=5", "save=none", "method=lora", "method.r=2"],
        ["seed=5", "save=none", "method=lora", "method.r=4"],
        ["seed=5", "save=none", "method=head"],
    ]


def test_a_file_without_methods_is_one_sweep(write: Callable[[str], None]) -> None:
    write("seed: [1, 2]\n")
    assert sweep_jobs(["+sweep=mine", "method=lora"]) == [
        ["seed=1", "method=lora"], ["seed=2", "method=lora"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("like: mine", "like=mine: must be another sweep, and not like this one"),
        ("like: nope", "like=nope: must be another sweep, and not like this one"),
        ("methods: 5", "methods=5: must have a key for each method"),
        ("methods: {}", "methods={}: must have a key for each method"),
        ("methods: {lora: 5}", "methods.lora=5: must have keys of its own"),
        ("methods: {loar: {}}", "method=loar: no such method"),
        ("model: [tiny-gema]", "model=tiny-gema: no such model"),
        ("sed: 1", "sed=1: no such key (did you mean seed?)"),
        ("seed: []", "seed=[]: must have a value to go through"),
        ("seed: [0, x]", "seed=x: must be a whole number from 0 to 2^63 - 1"),
        ("train.epochs: {a: 1}", "train.epochs={a: 1}: must be a number above 0, and at most 1e9"),
    ],
)
def test_a_file_with_something_wrong_in_it(
    write: Callable[[str], None], text: str, line: str
) -> None:
    write(text)
    with pytest.raises(InputError) as caught:
        sweep_jobs(["+sweep=mine"])
    assert [told.partition(": ")[2] for told in caught.value.lines] == [line]


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
            method_settings = (config.method.r, config.method.alpha, config.method.lora_dropout)
            assert method_settings == (8, 16, 0.1)


@pytest.mark.parametrize(
    ("tables", "lora", "head", "sampled"),
    [
        (("table4", "table10"), 925_696, 4_096, 1_981_884_416),  # gemma-2b
        (("table5", "table11"), 3_416_064, 8_192, 6_979_588_096),  # mistral-7b
        (("tiny_table4", "tiny_table10"), 6_784, 128, 188_992),  # tiny-gemma
        (("tiny_table5", "tiny_table11"), 7_296, 128, 197_120),  # tiny-mistral
    ],
)
def test_the_lowest_density_gives_the_count_of_lora(
    tables: tuple[str, ...], lora: int, head: int, sampled: int
) -> None:
    for table in tables:
        assert LORA_DENSITY[table] == float(f"{(lora - head) / sampled:.3g}")


def test_one_density_serves_both_tiny_families_in_table_3() -> None:
    for lora, head, sampled in ((6_784, 128, 188_992), (7_296, 128, 197_120)):
        density = LORA_DENSITY["tiny_table3"]
        assert density * sampled + head == pytest.approx(lora, rel=0.023)


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
    assert first.method.density == LORA_DENSITY["tiny_table10"]
