"""The configuration: every rule, every fault told at once, and the paper's presets."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from itertools import product
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from sparta_bench.config import presets
from sparta_bench.config.check import from_dict
from sparta_bench.config.compose import compose, compose_all
from sparta_bench.config.conf_folder import choices, config_dir
from sparta_bench.config.presets import guessed_rate, preset_of, preset_rows, size_of
from sparta_bench.config.rules import RULES
from sparta_bench.config.schema import METHODS, Config, LoraConfig, SpartaConfig, TrainConfig
from sparta_bench.config.sweeps import sweep_jobs
from sparta_bench.errors import InputError, shown


def compose_of(*overrides: str) -> Config:
    return compose(list(overrides))


def lines_of(*overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        compose(list(overrides))
    return list(caught.value.lines)


NUMBERS = "must be a whole number of at least"
NAME = "must be a text that can name a folder"
TASKS = "must be cola, mnli, mrpc, qnli, qqp, rte, sst2 or imdb, or null"
# override → the one line it must give; a second element chooses what it needs to exist
WRONG: dict[str, tuple[str, ...]] = {
    "seed=1.5: must be a whole number from 0 to 2^63 - 1": (),
    "seed=-1: must be a whole number from 0 to 2^63 - 1": (),
    "seed=9223372036854775808: must be a whole number from 0 to 2^63 - 1": (),
    "seed=null: must be a whole number from 0 to 2^63 - 1": (),
    "seed=true: must be a whole number from 0 to 2^63 - 1": (),
    "seed=nan: must be a whole number from 0 to 2^63 - 1": (),
    "device=gpu: must be auto, cpu or cuda (did you mean cpu?)": (),
    "results_dir=5: must be a folder": (),
    "cache_dir=5: must be a text, or null": (),
    "force=1: must be true or false": (),
    "save=all: must be adapter, full or none": (),
    "runs_at_once=0: must be auto or a whole number of at least 1": (),
    "logger=x: must be none, tensorboard, trackio, wandb or mlflow": (),
    f"limit=0: {NUMBERS} 1, or null": (),
    f"model.name=a/b: {NAME}": (),
    "model.hub_id=5: must be a name on the hub, as google/gemma-2b, or null": (),
    "model.revision=null: must be a text": (),
    "model.path=5: must be a text, or null": (),
    "model.tokenizer=[a]: must be a text, or null": (),
    "model.kind=chat: must be base or instruct": (),
    "model.dtype=float16: must be auto, float32 or bfloat16 (did you mean bfloat16 or float32?)": (),  # noqa: E501
    "model.embedded=1: must be true or false": (),
    "model.shape=abc: must be null or have a model_type": (),
    f"task.name=..: {NAME}": (),
    "task.hub.path=null: must be a text": ("task=sst2",),
    "task.hub.name=5: must be a text, or null": ("task=sst2",),
    "task.hub.revision=null: must be a text": ("task=sst2",),
    "task.data_dir=5: must be a text, or null": (),
    f"task.generated=foo: {TASKS}": (),
    "task.tsv.folder=null: must be a text": ("task=sst2",),
    "task.tsv.files=null: must give each split a file name": ("task=sst2",),
    "task.tsv.columns=a: must give each column a header name": ("task=sst2",),
    "task.tsv.positions=[1]: must give each column a place from 0, or null": ("task=cola",),
    f"task.tsv.fields=0: {NUMBERS} 1, or null": ("task=cola",),
    "task.columns=[]: must be one or two column names, or null": (),
    "task.label_column=null: must be a text": (),
    "task.data=5: must be a text, or null": (),
    "task.labels=[x]: must be two or more different names, or null": (),
    "task.train_split=null: must be a text": (),
    "task.dev.split=null: must be a text": (),
    "task.dev.take=first: must be all, last, random or stratified": (),
    f"task.dev.examples=0: {NUMBERS} 1, or null": (),
    "task.test_splits=[]: must be one or more different names, or null": (),
    f"task.test_examples=0: {NUMBERS} 1, or null": (),
    f"task.draw_seed=-1: {NUMBERS} 0": (),
    f"task.max_train_examples=0: {NUMBERS} 1, or null": (),
    "task.cap_takes=last: must be first or random": (),
    "task.truncate_eval=1: must be true or false": (),
    f"task.max_train_tokens=0: {NUMBERS} 1": (),
    "task.separator=sep: must be newline or sep_token": (),
    "task.undo_spacing=5: must be true or false": (),
    "task.on_bad_row=drop: must be error or skip": (),
    "task.prompt.instruction=null: must be a text": (),
    "task.prompt.answers=null: must be a list of names": (),
    "task.prompt.answers_text=null: must be a text": (),
    "task.prompt.fields=null: must be a list of names": (),
    "method.name=foo: must be full_ft, head, lora or sparta": (),
    "method.density=0: must lie inside (0, 1)": (),
    "method.density=1: must lie inside (0, 1)": (),
    "method.density=1.5: must lie inside (0, 1)": (),
    "method.density=null: must lie inside (0, 1)": (),
    "method.density=5%: must lie inside (0, 1)": (),
    "method.density_of=all: must be sampled or backbone": (),
    "method.pattern=columns: must be scalars, rows or block": (),
    f"method.r=2.5: {NUMBERS} 1": ("method=lora",),
    "method.alpha=0: must be a number above 0": ("method=lora",),
    "method.lora_dropout=1: must be a number from 0 to below 1": ("method=lora",),
    "train.learning_rate=-1: must be a number above 0, or search where runs are made": (),
    f"train.batch_size=1.5: {NUMBERS} 1": (),
    "train.epochs=0: must be a number above 0, and at most 1e9": (),
    "train.weight_decay=-1: must be a number of at least 0": (),
    "train.dropout=1: must be a number from 0 to below 1": (),
    "train.max_grad_norm=-1: must be a number of at least 0": (),
    f"train.patience=-1: {NUMBERS} 0": (),
    "train.trained_dtype=float16: must be float32 or bfloat16 (did you mean bfloat16 or float32?)": (),  # noqa: E501
    "train.betas=[0.9]: must be two numbers from 0 to below 1": (),
    "train.eps=0: must be a number above 0": (),
    "train.warmup_ratio=2: must be a number from 0 to 1": (),
    "train.schedule=linaer: must be linear or constant (did you mean linear?)": (),
    "train.floor_ratio=-1: must be a number from 0 to 1": (),
    f"train.max_steps=0: {NUMBERS} 1, or null": (),
    f"train.accumulation_steps=0: {NUMBERS} 1": (),
    f"train.eval_every=0: {NUMBERS} 1, or null": (),
    "train.eval_first=1: must be true or false": (),
    f"train.eval_tokens=0: {NUMBERS} 1, or null": (),
    f"train.eval_batch_size=0: {NUMBERS} 1, or null": (),
    "train.min_improvement=-1: must be a number of at least 0": (),
    f"train.bucket_batches=-1: {NUMBERS} 0": (),
    "train.share_prefix=yes: must be auto, true or false": (),
    "train.gradient_checkpointing=yes: must be true or false": (),
    f"train.checkpoint_every=0: {NUMBERS} 1, or null": (),
    "train.sharding=true: must be none or fsdp": (),
    "search.name=half: must be grid or race": (),
    f"search.confirm=0: {NUMBERS} 1": (),
    "search.margin=0: must be a number above 0": (),
    "search.rival=a/b: must be a text that can name a folder, or null": (),
}


@pytest.mark.parametrize("line", WRONG)
def test_a_value_against_a_rule_gives_one_line(line: str) -> None:
    assert lines_of(*WRONG[line], line.split(": must")[0]) == [line]


def test_a_list_where_one_value_belongs_is_told_how_a_grid_is_written() -> None:
    assert lines_of("train.learning_rate=[1e-3,0.01]", "seed=[0,1.5]") == [
        "seed=[0, 1.5]: must be a whole number from 0 to 2^63 - 1",  # no grid of seeds either
        "train.learning_rate=[0.001, 0.01]: must be a number above 0, or search where runs are "
        "made; a grid takes -m and commas: train.learning_rate=0.001,0.01",
    ]


def test_every_rule_has_a_wrong_value_in_the_table() -> None:
    assert {line.split("=")[0] for line in WRONG} == RULES.keys()


def test_every_setting_has_a_rule() -> None:
    nested = {"task.dev": 3, "task.prompt": 4, "task.hub": 3, "task.tsv": 5}
    settings = set()
    for override in ("method=sparta", "method=lora"):
        settings |= set(flat(plain("task=cola", override)))
    told_together = {"method.targets"}  # its rule depends on the method
    assert {key for key in settings if key not in RULES} == told_together
    for key, size in nested.items():
        assert sum(rule.startswith(f"{key}.") for rule in RULES) == size


def plain(*overrides: str) -> dict[str, Any]:
    return compose(list(overrides)).as_dict()


def flat(tree: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in tree.items():
        inner = isinstance(value, dict) and not prefix.startswith("task.tsv.")
        if inner and key not in ("shape",):
            keys += flat(value, f"{prefix}{key}.")
        else:
            keys.append(prefix + key)
    return keys


# ------------------------------------------------------------------ faults of more than one key
@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["model=local"],
            "model.path=null: needs the folder of a Hugging Face model (or model.hub_id=NAME)",
        ),
        (["model.path=/nope"], "model.path=/nope: there is no such folder"),
        (["model.tokenizer=/nope"], "model.tokenizer=/nope: there is no such folder"),
        (["task.data_dir=/nope"], "task.data_dir=/nope: there is no such folder"),
        (
            ["task.generated=null"],
            "task.data_dir=null: give a folder, a file (task.data=FILE) or a data set of the hub "
            "(task.hub=NAME): this task has no data elsewhere",
        ),
        (
            ["task.dev.examples=null"],
            "task.dev.examples=null: take=last needs a number of examples",
        ),
        (["task=mrpc", "task.dev.examples=5"], "task.dev.examples=5: must be null with take=all"),
        (
            ["task=mrpc", "task.dev.split=train"],
            "task.dev.take=all: would leave nothing of split train to train on or test",
        ),
        (
            ["task.test_splits=[train]"],
            "task.test_splits=[train]: must not hold the training split",
        ),
        (
            ["task.labels=[a,b,c]"],
            "task.prompt.answers=[No, Yes]: must hold one word for each of 3 labels",
        ),
        (
            ["task.prompt.answers=[Yes,Yes]"],
            "task.prompt.answers=[Yes, Yes]: two labels have the same word",
        ),
        (
            ["task.columns=[a,b]"],
            "task.prompt.fields=[Sentence]: must name each of 2 column(s)",
        ),
        (["method.targets=[]"], "method.targets=[]: must be a list of module names, or all"),
        (
            ["method=lora", "method.targets=all"],
            "method.targets=all: must be a list of module names",
        ),
        (
            ["train.batch_size=4", "train.accumulation_steps=8"],
            "train.accumulation_steps=8: must not be above train.batch_size=4",
        ),
    ],
)
def test_values_that_do_not_fit_each_other(overrides: list[str], line: str) -> None:
    assert lines_of(*overrides) == [line]


@pytest.mark.parametrize("key", ["results_dir", "model.path", "model.tokenizer", "task.data_dir"])
def test_a_name_that_no_file_system_has(key: str) -> None:
    model = ["model=local"] if key == "model.path" else []
    (line,) = lines_of(*model, f'{key}="a\0b"')
    assert line.startswith(f"{key}=a")
    assert line.endswith(
        "no file system has such a name" if key == "results_dir" else ": there is no such folder"
    )


def test_more_steps_than_can_be_counted() -> None:
    assert lines_of("train.epochs=1e308") == [
        "train.epochs=1e+308: must be a number above 0, and at most 1e9"
    ]
    assert compose(["train.epochs=1e9"]).train.epochs == 1e9


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert lines_of(f"model.path={tmp_path}") == [
        f"model.path={tmp_path}: the folder has no config.json"
    ]
    assert lines_of(f"results_dir={file}") == [
        f"results_dir={file}: must be a folder that can be written; {file} is no folder"
    ]
    assert lines_of(f"results_dir={file}/below") == [
        f"results_dir={file}/below: must be a folder that can be written; {file} is no folder"
    ]
    assert not (tmp_path / "new").exists()
    compose([f"results_dir={tmp_path}/new/deeper"])
    assert not (tmp_path / "new").exists()  # composing writes nothing
    long = "a" * 5000
    assert lines_of(f"model.path={long}") == [f"model.path={long}: File name too long"]
    assert lines_of(f"results_dir={long}") == [
        f"results_dir={long}: must be a folder that can be written; File name too long"
    ]


# ------------------------------------------------------------------------ faults of composition
def test_all_faults_are_told_at_once() -> None:
    lines = lines_of("model=gema-2b", "foo=3", "method.density=5", "seed=-1", "train.epohcs=3")
    models = ", ".join(choices("model"))
    assert lines == [
        f"model=gema-2b: no such model (did you mean gemma-2b or gemma-2b-it?); known: {models}",
        "foo=3: no such key",
        "train.epohcs=3: no such key (did you mean train.epochs or train.eps?)",
        "seed=-1: must be a whole number from 0 to 2^63 - 1",
        "method.density=5: must lie inside (0, 1)",
    ]


def test_faults_of_several_groups_are_told_at_once() -> None:
    lines = lines_of(
        "model.kind=x", "task.labels=[a,b,c]", "method.density=0", "train.epochs=0", "save=x"
    )
    assert [line.split("=")[0] for line in lines] == [
        "save", "model.kind", "method.density", "train.epochs", "task.prompt.answers"
    ]  # fmt: skip


CANNOT_READ = "the value has characters that need quotes"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("foo", "foo: not of the form key=value"),
        ("", ": not of the form key=value"),
        ("=5", "=5: not of the form key=value"),
        ("train.=5", "train.=5: not of the form key=value"),
        ("results_dir=a=b", f"results_dir=a=b: {CANNOT_READ}: 'results_dir=\"...\"'"),
        ("results_dir=é(", f"results_dir=é(: {CANNOT_READ}: 'results_dir=\"...\"'"),
        ("+foo=1", "foo=1: no such key"),
        ("+train.foo=1", "train.foo=1: no such key"),
        ("+task.dev.foo=1", "task.dev.foo=1: no such key"),
        ("~seed", "seed: is missing"),
        ("~task.dev.take", "task.dev.take: is missing"),
        ("~model.name", "model.name=null: must be a text that can name a folder"),
        ("~train", "~train: choose one with train=NAME; known: default"),
        ("+train=default", "+train=default: choose one with train=NAME; known: default"),
        ("train@x=default", "train@x=default: choose one with train=NAME; known: default"),
        ("train=null", "train=null: no such train; known: default"),
        ("train=5", "train=5: no such train; known: default"),
        ("train=[default]", "train=[default]: no such train; known: default"),
        ("train=../method/lora", "train=../method/lora: no such train; known: default"),
        ("task.dev=5", "task.dev=5: must have keys of its own"),
        ("task.prompt=abc", "task.prompt=abc: must have keys of its own"),
        ("task.hub=5", "task.hub=5: must have keys of its own"),
        ("seed=1,2", "seed=1,2: several values are a grid, and need -m"),
        ("seed=range(1,3)", "seed=range(1,3): several values are a grid, and need -m"),
        ("seed=${nothing}", "seed=${nothing}: Interpolation key 'nothing' not found"),
        ("seed=${seed}", "seed=${seed}: Recursive interpolation detected"),
        ("seed=???", "seed=???: Missing mandatory value: seed"),
        ("hydra/launcher=x", "hydra/launcher=x: In 'hydra/config': Could not find 'hydra/launcher/x'"),  # noqa: E501
    ],
)  # fmt: skip
def test_an_override_that_cannot_be_used_gives_one_line(override: str, line: str) -> None:
    assert lines_of(override) == [line]


def test_a_key_of_another_method_is_told() -> None:
    (line,) = lines_of("method=lora", "method.density=0.1")
    assert line.startswith("method.density=0.1: no such key")


def test_values_may_be_quoted() -> None:
    assert compose(["results_dir='a=b (c), é'"]).results_dir == "a=b (c), é"


# ----------------------------------------------------------------------------------- sweeps
def test_a_grid_is_every_combination() -> None:
    assert sweep_jobs(["seed=0,1", "method=sparta,lora", "force=True"]) == [
        [f"seed={seed}", f"method={method}", "force=True"]
        for seed in (0, 1)
        for method in ("sparta", "lora")
    ]
    assert sweep_jobs(["seed=range(0,3)"]) == [["seed=0"], ["seed=1"], ["seed=2"]]
    tasks = [["task=" + name] for name in choices("task") if name.startswith("tiny-")]
    assert sweep_jobs(["task=glob(tiny-*)"]) == tasks


def test_faults_of_a_grid_are_told_once_and_together() -> None:
    with pytest.raises(InputError) as caught:
        compose_all(sweep_jobs(["seed=0,x", "train.epochs=0,1", "model=tiny-gemma,nope"]))
    assert [line.split(":")[0] for line in caught.value.lines] == [
        "train.epochs=0", "model=nope", "seed=x"
    ]  # fmt: skip
    for values in ("seed=glob(*)", "hydra.sweeper.params.seed=1"):
        with pytest.raises(InputError):
            compose_all(sweep_jobs([values]))


# --------------------------------------------------------------------------------- numbers
def test_scientific_notation_is_a_number() -> None:
    assert compose(["train.learning_rate=1e-5"]).train.learning_rate == 1e-5
    assert compose(["train.learning_rate='3E-4'"]).train.learning_rate == 3e-4
    assert compose([]).train.eps == 1e-8
    config = compose(["train.batch_size=1e2", "task.max_train_examples=1e5", "seed=8.0"])
    assert (config.train.batch_size, config.task.max_train_examples, config.seed) == (100, 10**5, 8)
    assert type(config.train.batch_size) is type(config.seed) is int


def test_whole_and_broken_numbers_are_the_same_experiment() -> None:
    whole = compose(["train.epochs=5", "train.betas=[0,0.9]", "train.max_grad_norm=10"])
    broken = compose(["train.epochs=5.0", "train.betas=[0.0,0.9]", "train.max_grad_norm=1e1"])
    assert repr(whole) == repr(broken)
    assert repr(compose(["method=lora", "method.alpha=16"])) == repr(
        compose(["method=lora", "method.alpha=16.0"])
    )


@pytest.mark.parametrize("value", [inf, -inf, nan, 10**400])
def test_numbers_without_a_float_are_refused(value: float) -> None:
    raw = compose([]).as_dict()
    raw["train"]["epochs"] = value
    with pytest.raises(InputError) as caught:
        from_dict(raw)
    assert caught.value.lines == (
        f"train.epochs={shown(str(value))}: must be a number above 0, and at most 1e9",
    )


def test_a_checked_configuration_stays_as_it_is() -> None:
    config = compose(["task=mnli", "model=mistral-7b-it", "method=sparta_vo"])
    assert from_dict(config.as_dict()) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]


# --------------------------------------------------------------------------------- presets
MODELS = ("gemma-2b", "gemma-2b-it", "mistral-7b", "mistral-7b-it")
# Table 12 of the paper; "*" in its epochs (early stopping) is a patience here.
TABLE_12: dict[tuple[str, ...], dict[str, tuple[float | None, ...]]] = {
    ("method=full_ft",): {
        "batch_size": (32, 32, 36, 36),
        "epochs": (2, 2, None, None),
        "learning_rate": (1e-5, 1e-5, 3e-6, 3e-6),
        "max_grad_norm": (10, 50, 120, 120),
        "dropout": (0.1, 0.1, 0.15, 0.15),
        "weight_decay": (0.1, 0.1, 0.01, 0.01),
    },
    ("method=sparta", "method.density=0.05"): {
        "batch_size": (40, 40, 16, 16),
        "epochs": (2, 2, None, None),
        "learning_rate": (1.5e-5, 8e-6, 2e-6, 2e-6),
    },
    ("method=sparta", "method.density=0.005"): {
        "batch_size": (40, 40, 16, 16),
        "epochs": (2, 2, None, None),
        "learning_rate": (1e-4, 5e-5, 3e-6, 3e-6),
    },
    ("method=sparta", "method.density=0.0005"): {
        "batch_size": (40, 40, 16, 16),
        "epochs": (2, 2, None, None),
        "learning_rate": (6e-5, 6e-5, 6e-5, 6e-5),
    },
    ("method=lora",): {
        "batch_size": (40, 40, 20, 20),
        "epochs": (3, 3, 3, 3),
        "learning_rate": (2e-4, 2e-4, 5e-6, 5e-6),
        "max_grad_norm": (15, 15, 0, 0),
    },
    ("method=head",): {
        "batch_size": (40, 40, 16, 16),
        "epochs": (4, 4, 3, 3),
        "learning_rate": (2e-4, 2e-4, 1e-4, 1e-4),
    },
}


@pytest.mark.parametrize("method", TABLE_12, ids=" ".join)
@pytest.mark.parametrize("model", MODELS)
def test_imdb_has_the_settings_of_table_12(method: tuple[str, ...], model: str) -> None:
    config = compose_of("task=imdb", f"model={model}", *method)
    for key, values in TABLE_12[method].items():
        value = values[MODELS.index(model)]
        if value is not None:
            assert getattr(config.train, key) == value, key
    stops_early = TABLE_12[method]["epochs"][MODELS.index(model)] is None
    assert (config.train.patience > 0) == stops_early
    if isinstance(config.method, LoraConfig):
        assert (config.method.r, config.method.alpha, config.method.lora_dropout) == (8, 16, 0.1)
        assert config.method.targets == ("q_proj", "v_proj")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("task", ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2"])
def test_glue_keeps_to_the_ranges_of_table_13(model: str, task: str) -> None:
    rates = {1e-3, 5e-4, 2e-4, 1e-4, 5e-5, 1e-5, 5e-6}
    decay = {"full_ft": 0.1, "sparta": 0.1, "lora": 0.1, "head": 0.0}
    dropout = {"full_ft": 0.1, "head": 0.1}
    for method in decay:
        train = compose_of(f"task={task}", f"model={model}", f"method={method}").train
        assert train.learning_rate in rates
        assert train.batch_size in (32, 24, 8)
        assert train.weight_decay == decay[method]
        assert train.dropout == dropout.get(method, train.dropout)
        assert (train.epochs, train.patience) == (2, 0)  # "over 2 epochs of training"


def test_glue_is_clipped_as_imdb_is() -> None:
    """Table 13 says nothing of clipping; Table 12's values for the model stand in for it."""
    for model in MODELS:
        for method in ("full_ft", "sparta", "lora", "head"):
            glue, imdb = (
                compose_of(f"task={task}", f"model={model}", f"method={method}").train.max_grad_norm
                for task in ("rte", "imdb")
            )
            assert glue == imdb


@pytest.mark.parametrize("method", ["full_ft", "sparta", "lora", "head"])
def test_the_tiny_models_keep_their_epochs_and_do_not_stop_early(method: str) -> None:
    for model in ("tiny-gemma", "tiny-gemma-it", "tiny-mistral", "tiny-mistral-it"):
        for task, epochs in (("tiny-sst2", 4), ("tiny-mnli", 2)):
            train = compose_of(f"task={task}", f"model={model}", f"method={method}").train
            assert (train.epochs, train.patience) == (epochs, 0)


def test_only_full_fine_tuning_of_mistral_trains_in_bfloat16() -> None:
    for model in MODELS:
        for method in ("full_ft", "head", "lora", "sparta"):
            dtype = compose_of(f"model={model}", f"method={method}").train.trained_dtype
            expected = method == "full_ft" and model.startswith("mistral")
            assert dtype == ("bfloat16" if expected else "float32")


def test_an_explicit_value_beats_the_preset() -> None:
    table = ["task=imdb", "model=gemma-2b", "method=full_ft"]
    config = compose_of(*table, "train.learning_rate=3e-3", "train.patience=7")
    assert (config.train.learning_rate, config.train.patience) == (3e-3, 7)
    assert config.train.batch_size == 32
    assert compose_of(*table, "train.weight_decay=0").train.weight_decay == 0


@pytest.mark.parametrize(
    ("density", "rate"),
    [
        (0.9, 1.5e-5), (0.01, 1.5e-5), (0.00999, 1e-4),
        (0.001, 1e-4), (0.000999, 6e-5), (1e-9, 6e-5),
    ],
)  # fmt: skip
def test_a_density_range_includes_its_lower_end(density: float, rate: float) -> None:
    config = compose_of("task=imdb", "model=gemma-2b", f"method.density={density}")
    assert config.train.learning_rate == rate


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`table(row, …)`: other rows in the place of `conf/presets.csv`."""
    lines = (config_dir() / "presets.csv").read_text(encoding="utf-8").splitlines()
    head = next(line for line in lines if not line.startswith("#"))

    def write(*rows: str) -> None:
        (tmp_path / "presets.csv").write_text("\n".join(["# a table", head, *rows]))
        monkeypatch.setattr(presets, "config_dir", lambda: tmp_path)

    return write


def test_every_row_of_the_presets_is_of_something_that_is_there() -> None:
    rows = presets._presets(config_dir() / "presets.csv")
    assert len(rows) == 57
    settings = {field.name for field in dataclasses.fields(TrainConfig)}
    for row in rows:
        assert row.method in METHODS
        assert set(row.models) <= {*choices("model"), "other"}
        assert set(row.tasks) <= {*choices("task"), "other"}
        assert (row.densities == (0.0, 1.0)) == (row.method != "sparta")
        assert len(row.values) == 8 and row.values.keys() <= settings


def test_exactly_one_row_fits_whatever_is_chosen() -> None:
    models, tasks = [*choices("model"), "mine"], [*choices("task"), "mine"]
    for method, model, task in product(METHODS, models, tasks):
        densities = (1e-9, 0.000999, 0.001, 0.00999, 0.01, 0.999) if method == "sparta" else (None,)
        for density in densities:
            assert preset_of(method, model, task, density) is not None


def test_the_row_that_gave_a_value_is_named() -> None:
    overrides = ["task=imdb", "model=gemma-2b", "method.density=0.005", "train.epochs=7"]
    rows = preset_rows(compose(overrides))
    assert "epochs" not in rows and rows["learning_rate"] == rows["batch_size"]
    assert re.fullmatch(
        r"presets.csv line \d+ \(sparta, gemma-2b, imdb, 0.001 to 0.01\): Table 12",
        rows["learning_rate"],
    )


@pytest.mark.parametrize(
    ("method", "rates"),
    [  # of sizes 1.2e8, 9.1e8 and 6.4e9
        ("method=full_ft", (3.3e-5, 1.1e-5, 3.5e-6)),
        ("method=head", (6.1e-4, 2.2e-4, 8.3e-5)),
        ("method=lora", (3.5e-4, 1.5e-4, 6.3e-5)),
        ("method.density=0.05", (1e-4, 2.1e-5, 4.4e-6)),
        ("method.density=0.005", (2.2e-4, 4.4e-5, 9.4e-6)),
        ("method.density=0.0005", (3.9e-4, 1e-4, 2.8e-5)),
        ("method.density=0.2", (5.7e-5, 1.2e-5, 2.6e-6)),  # times 4**-0.4 = 0.574
        ("method.density=0.00025", (5.1e-4, 1.4e-4, 3.7e-5)),  # times 2**0.4 = 1.32
    ],
)
def test_a_model_without_presets_gets_a_rate_by_its_size_and_density(
    method: str, rates: tuple[float, ...], tmp_path: Path
) -> None:
    for (layers, width), rate in zip([(30, 576), (18, 2048), (32, 4096)], rates, strict=True):
        shape = {"model_type": "llama", "num_hidden_layers": layers, "hidden_size": width}
        (tmp_path / "config.json").write_text(json.dumps(shape))
        config = compose_of("model=local", f"model.path='{tmp_path}'", method)
        assert config.train.learning_rate == rate == guessed_rate(config)
        assert "a guess from the model's size" in preset_rows(config)["learning_rate"]
        given = compose_of("model=local", f"model.path='{tmp_path}'", "train.learning_rate=1e-3")
        assert guessed_rate(given) is None
        assert preset_rows(given).keys() == config.as_dict()["train"].keys() & {
            "batch_size", "epochs", "weight_decay", "dropout", "max_grad_norm", "patience",
            "trained_dtype",
        }  # fmt: skip
    assert guessed_rate(compose_of(method)) is None  # a model with rows of its own


def test_a_size_is_read_from_any_configuration_or_asked_for(tmp_path: Path) -> None:
    def size(**shape: Any) -> int | None:
        return size_of({"shape": {"model_type": "x", **shape}, "path": None})

    assert size(num_hidden_layers=2, hidden_size=8) == size(n_layer=2, n_embd=8) == 12 * 2 * 64
    assert size(text_config={"num_hidden_layers": 2, "hidden_size": 8}) == 1536
    assert size_of({"path": str(tmp_path)}) is None  # there is nothing, which loading it says
    (tmp_path / "config.json").write_text('{"model_type": "odd"}')
    assert lines_of("model=local", f"model.path='{tmp_path}'") == [
        "train.learning_rate=null: give a rate; none can be guessed for this model: its "
        "configuration names no number of layers or no hidden size"
    ]
    given = compose_of("model=local", f"model.path='{tmp_path}'", "train.learning_rate=1")
    assert given.train.learning_rate == 1


def test_without_a_row_the_missing_values_are_told(table: Callable[..., None]) -> None:
    table("lora,other,other,,1,1,1,0,0,0,0,float32,me")
    assert [line.split("=")[0] for line in lines_of()] == [
        f"train.{key}" for key in ("learning_rate", "batch_size", "epochs", "weight_decay",
                                   "dropout", "max_grad_norm", "patience", "trained_dtype")
    ]  # fmt: skip


def test_two_rows_that_fit_are_refused(table: Callable[..., None]) -> None:
    table(
        "lora,tiny-gemma,other,,1,1,1,0,0,0,0,float32,me",
        "lora,tiny-gemma other,other,,1,1,1,0,0,0,0,float32,you",
    )
    assert lines_of("method=lora") == [
        "presets.csv line 3 (lora, tiny-gemma, other): me and "
        "presets.csv line 4 (lora, tiny-gemma other, other): you: both fit, and only one row may"
    ]
    assert compose(["method=lora", "model=tiny-mistral"]).train.learning_rate == 1


def test_a_value_of_a_row_has_the_rule_of_its_setting(table: Callable[..., None]) -> None:
    table("lora,other,other,,x,1.5,1,0,0,0,0,float32,me")
    assert lines_of("method=lora") == [
        "train.learning_rate=x: must be a number above 0, or search where runs are made",
        "train.batch_size=1.5: must be a whole number of at least 1",
    ]


# ------------------------------------------------------------------------------------ names
def test_a_local_model_is_named_by_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "1e5"  # stays text
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    config = compose(["model=local", f"model.path={folder}"])
    assert (config.model.name, config.model.kind) == ("1e5", "base")
    assert compose(["model=local", f"model.path={folder}", "model.name=me"]).model.name == "me"
    # whatever is in the folder: it must not bear the embedded model's name
    assert compose([f"model.path={folder}"]).model == config.model


def test_the_authors_variant_is_sparta_with_other_settings() -> None:
    assert compose(["method=sparta_vo"]).method == SpartaConfig(
        "sparta", 0.005, ("v_proj", "o_proj"), "backbone"
    )


def test_choices_leave_out_what_is_shared() -> None:
    assert choices("train") == ["default"]
    assert "_base" not in choices("task") and len(choices("task")) == 17
    assert config_dir().name == "conf"
    assert isinstance(compose([]), Config)


def test_configurations_have_a_hash_and_are_written_as_plain_values() -> None:
    words = ["task=sst2", "method=lora", "model=gemma-2b"]
    one, same = compose(words), compose(words)
    assert one == same and len({one, same}) == 1
    other = dataclasses.replace(
        one, model=dataclasses.replace(one.model, shape={**(one.model.shape or {}), "x": [1]})
    )
    assert len({one, other}) == 2
    values = one.as_dict()
    assert values == json.loads(json.dumps(values))
    assert values["train"]["betas"] == [0.9, 0.99] and one.train.betas == (0.9, 0.99)
