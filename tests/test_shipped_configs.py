"""Every YAML that is shipped composes and, on the tiny twins, runs."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sparta_bench.config.compose import compose
from sparta_bench.config.conf_folder import config_dir

SHIPPED = sorted(
    path.relative_to(config_dir()).with_suffix("")
    for path in config_dir().rglob("*.yaml")
    if path.parent != config_dir()
    and not path.stem.startswith("_")
    and path.parent.name != "sweep"  # test_sweep_configs.py
)
GROUPS = {str(path.parent) for path in SHIPPED}


def test_the_groups_are_the_known_ones() -> None:
    assert {"model", "task", "method", "train"} <= GROUPS
    assert len(SHIPPED) >= 31


def overrides_for(choice: Path, folder: Path) -> list[str]:
    """The choice; a model that needs a folder gets an embedded one."""
    overrides = [f"{choice.parent}={choice.name}"]
    if choice == Path("model/local"):
        overrides.append(f"model.path='{folder}'")
    if choice == Path("model/hub"):
        overrides += ["model.hub_id=someone/hub", "train.learning_rate=1e-4"]
    if choice == Path("task/own"):
        overrides.append("task.hub=someone/own")
    return overrides


@pytest.fixture(scope="session")
def embedded() -> Path:
    from importlib import resources

    return Path(str(resources.files("sparta_bench"))) / "tiny_models" / "tiny-gemma"


@pytest.mark.parametrize("choice", SHIPPED, ids=str)
def test_it_composes(choice: Path, embedded: Path) -> None:
    config = compose(overrides_for(choice, embedded))
    if str(choice.parent) in ("model", "task") and choice.name != "local":
        assert getattr(config, str(choice.parent)).name == choice.name


def without_a_comment(path: Path, explained: set[str]) -> set[str]:
    """Keys of the file on whose line or directly above which no comment stands; `explained` gets
    those that have one. What another file in its defaults explains needs none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# "), path  # says what the file is
    bare = set()
    for above, line in pairwise(lines):
        key = re.match(r"([a-z_]+):", line)
        if key is None or key[1] == "defaults":
            continue
        if " # " in line or above.lstrip().startswith("#"):
            explained.add(key[1])
        else:
            bare.add(key[1])
    return bare


@pytest.mark.parametrize("group", ["", "model", "task", "method", "train"])
def test_every_key_has_a_comment(group: str) -> None:
    """Once in its group: `_base.yaml` explains the keys of models and tasks."""
    bare, explained = set(), set()
    for path in sorted((config_dir() / group).glob("*.yaml")):
        bare |= without_a_comment(path, explained)
    assert explained and bare - explained == set()


def test_a_file_of_a_group_sets_the_groups_own_keys_alone() -> None:
    """So that `composed_choices` may put parts of several compositions together."""
    for group in GROUPS:
        for path in (config_dir() / group).glob("*.yaml"):
            text = path.read_text(encoding="utf-8")
            assert "@package" not in text and "override " not in text, path


def runs_here(choice: Path) -> bool:
    """Real models and tasks need a hub or files; they only compose."""
    return str(choice.parent) in ("method", "train") or choice.name.startswith(("tiny-", "local"))


@pytest.mark.slow
@pytest.mark.parametrize("choice", [c for c in SHIPPED if runs_here(c)], ids=str)
def test_it_runs_on_the_tiny_twins(choice: Path, embedded: Path, tiny_config: Any) -> None:
    from sparta_bench.runs.run import run

    config = tiny_config(*overrides_for(choice, embedded), "train.max_steps=2")
    record, path, was_there = run(config)
    assert record["status"] == "completed", record["error"]
    assert not was_there
    assert record["training"]["steps"] == 2
    assert json.loads(path.read_text(encoding="utf-8")) == record
    for part in ("dev", "test"):
        assert 0 <= record[part]["accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(c.name for c in SHIPPED if c.match("task/tiny-*")))
def test_the_instruct_twins_read_every_tasks_prompt(task: str, tiny_config: Any) -> None:
    from sparta_bench.runs.run import run

    config = tiny_config("model=tiny-mistral-it", f"task={task}", "train.max_steps=1")
    assert run(config)[0]["status"] == "completed"
