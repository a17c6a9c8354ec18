"""Command lines as people type, paste and mistype them: no traceback, and a line that says why.

What would train or measure for long is replaced: here it counts that the command line is read.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from forged_records import forge, write
from fuzzing import assert_told_well, command, examples
from hypothesis import given
from hypothesis import strategies as st
from mutations import NASTY

from sparta_bench.config.conf_folder import choices
from sparta_bench.errors import InputError
from sparta_bench.tables.paper_tables import LAYOUTS

# An argument holds no NUL, and bytes that are no UTF-8 as half surrogates.
WORDS = st.sampled_from([text for text in NASTY if "\0" not in text] + ["\udcff"]) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), max_size=12
)
NUMBERS = st.sampled_from(
    ["0", "1", "-1", "0.5", "1e-5", "1e400", "-0", "9" * 5000, "9" * 400, "1_000", "0x1F", "1.0",
     ".5", "inf", "nan", "-inf", "1e", "2**9", "٣", "1,2", "true", "null", "None"]
)  # fmt: skip
NESTED = st.recursive(
    NUMBERS | WORDS | st.just("'a b'"),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda found: f"[{','.join(found)}]"),
        st.lists(st.tuples(WORDS, inner), max_size=2).map(
            lambda found: "{" + ",".join(f"{key}:{value}" for key, value in found) + "}"
        ),
        st.lists(inner, max_size=3).map(",".join),
        inner.map(lambda value: f"choice({value})"),
        inner.map(lambda value: f"range({value})"),
        inner.map(lambda value: f"glob({value})"),
        inner.map(lambda value: "${" + value + "}"),
    ),
    max_leaves=4,
)
REFERENCES = st.sampled_from(
    ["${seed}", "${task.name}", "${results_dir}", "${oc.env:HOME}", "${hydra.job.name}", "${a",
     "${oc.decode:'[1,2'}", "${now:%Y}", "${.seed}", "${..}", "${method}", "$", "???",
     "${oc.env:X,${seed}}"]
)  # fmt: skip
VALUES = NUMBERS | WORDS | NESTED | REFERENCES
KEYS = (
    "seed", "device", "results_dir", "cache_dir", "force", "save", "model", "task", "method",
    "train", "sweep", "model.name", "model.path", "model.tokenizer", "model.hub_id", "model.shape",
    "model.kind", "model.dtype", "model.embedded", "model.revision", "task.name", "task.labels",
    "task.columns", "task.data_dir", "task.generated", "task.hub", "task.tsv", "task.dev",
    "task.dev.take", "task.dev.examples", "task.dev.split", "task.train_split", "task.test_splits",
    "task.draw_seed", "task.max_train_examples", "task.max_train_tokens", "task.separator",
    "task.undo_spacing", "task.on_bad_row", "task.prompt", "task.prompt.answers", "method.name",
    "task.prompt.fields", "method.density", "method.targets", "method.r",
    "method.density_of", "train.learning_rate", "train.batch_size", "train.epochs", "train.betas",
    "train.max_steps", "train.warmup_ratio", "train.eval_every", "train.schedule", "train.dropout",
    "train.trained_dtype", "train.accumulation_steps", "train.checkpoint_every", "hydra.job.name",
    "hydra/launcher", "hydra", "hydra/sweeper", "hydra.sweeper.params", "hydra.verbose",
    "hydra.mode", "hydra.searchpath",
)  # fmt: skip
SIGNS = st.sampled_from(["", "", "", "", "", "+", "++", "~", "-", "@"])


@cache
def names() -> list[str]:
    return [name for group in ("model", "task", "method", "sweep") for name in choices(group)]


@st.composite
def overrides(draw: st.DrawFn) -> str:
    """One of Hydra's, more or less."""
    key = draw(SIGNS) + draw(st.sampled_from(KEYS) | WORDS)
    if draw(st.integers(0, 9)) == 0:
        return key
    value = draw(VALUES | st.sampled_from(names()))
    return f"{key}={value}" if "results_dir" not in key else f"{key}={value.lstrip('/.')}"


# By subcommand: its options, and what may stand beside them.
ONE = ("{adapter}", "--base", "--tokenizer", "--allow-pickle", "--help")
COMPUTE = ("--head", "--device", "cpu", "--dtype", "float32", "bfloat16")
OPTIONS: dict[str, tuple[str, ...]] = {
    "predict": (*ONE, *COMPUTE, "--file", "--jsonl", "--jsonl-input", "--batch-size", "{text}"),
    "evaluate": (*ONE, *COMPUTE, "--json", "--out", "{out}", "task=tiny-sst2", "task=tiny-rte"),
    "merge": (*ONE, "bake", "export", "multi-head", "combine", "overlap", "pairs", "{records}",
              "{adapter}", "--out", "{out}", "--layout", "peft-sparta", "patch", "--base-name",
              "--force", "--names", "--how", "ties", "--dare", "--seed", "--seeds", "--weights",
              "--json"),
    "export": ("trackio", "tensorboard", "{records}", "--out", "{out}", "--help"),
    "tables": ("{records}", "--out", "{out}", "--format", "md", "csv", "--json", "{text}", "-h"),
    "report": ("{records}", "--out", "{out}", "--page-only", "{text}", "--help"),
    "status": ("{records}", "--json", "{text}", "--help"),
    "bench": ("--json", "--out", "{out}", "--rounds", "--steps", "--rows", "--tokens", "--only",
              "--crossover", "full_ft", "seed=1", "model=tiny-gemma", "--help"),
    "memory": ("--json", "--out", "{out}", "--figure", "--rows", "--tokens", "--gpu-gib", "24,80",
               "model=tiny-gemma", "task=tiny-rte", "train.batch_size=2", "--help"),
    "ranks": ("tiny-gemma", "{adapter}", "--json", "--out", "{out}", "--figure", "--dtype",
              "float64", "--device", "cpu", "gemma-2b", "me/model", "--help"),
    "plan": ("--json", "seed=1", "task=tiny-rte", "model=tiny-gemma", "train.epochs=1", "--help"),
}  # fmt: skip
HYDRA = (
    "--cfg", "job", "hydra", "all", "--help", "--hydra-help", "--version", "-m", "--multirun",
    "--run", "-r", "--info", "config", "--resolve", "--package", "task", "-p", "-c", "-sc", "x",
    "query=bash", "install=fish", "--shell-completion", "--config-name", "-cn",
)  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far below a temporary folder, and with nothing that takes long."""
    place = tmp_path / "a" / "b" / "c" / "d"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COMP_LINE", "sparta-bench task=")

    def refused(*_: Any, **__: Any) -> Any:
        raise InputError("not measured in a test")

    monkeypatch.setattr("sparta_bench.runs.grid.run", refused)
    monkeypatch.setattr("sparta_bench.cli.experiments._grid", lambda *_: 0)
    monkeypatch.setattr("sparta_bench.cli.bench_command.measure", refused)
    monkeypatch.setattr("sparta_bench.cli.bench_command.crossover", refused)
    monkeypatch.setattr("sparta_bench.analysis.memory.findings.estimates_of", refused)
    monkeypatch.setattr("sparta_bench.runs.status.LAYOUTS", LAYOUTS[1:2])


@pytest.mark.parametrize("before", [[], ["-m"]])
def test_nothing_is_trained_here(before: list[str]) -> None:
    assert command([*before, "train.max_steps=1"]).code in (0, 2)
    assert not list(Path.cwd().rglob("result.json"))


WAYS = st.sampled_from([[], ["-m"], ["--cfg", "job"], ["plan"]])


@examples(8)
@given(WAYS, st.lists(overrides(), min_size=1, max_size=3))
def test_overrides(before: list[str], words: list[str]) -> None:
    assert_told_well(command([*before, *words]), 0, 2)


@examples(4)
@given(st.lists(st.sampled_from(HYDRA) | overrides(), max_size=4))
def test_options_of_hydra(words: list[str]) -> None:
    assert_told_well(command(words), 0, 2)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_a_subcommand(name: str, tmp_path: Path, trained: Any) -> None:
    records = write(tmp_path / "records", forge(), forge(method="lora", status="failed"))
    places = {
        "{records}": str(records),
        "{out}": str(tmp_path / "out"),
        "{adapter}": str(trained("sparta")[2]),
    }

    @examples(3)
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        drawn = data.draw(
            st.lists(st.sampled_from(OPTIONS[name]) | WORDS | NUMBERS, max_size=6), "arguments"
        )
        words = [places.get(word, word) for word in drawn]
        words = [data.draw(WORDS, "text") if word == "{text}" else word for word in words]
        text = data.draw(st.sampled_from(["", "a film\n", "{}\n", "\ud800"]), "input")
        told = command([name, *words], text.encode("utf-8", "surrogatepass"))
        assert_told_well(told, 0, 2)

    fuzz()


@examples(3)
@given(WORDS, st.lists(WORDS, max_size=2))
def test_what_is_no_subcommand(name: str, words: list[str]) -> None:
    assert_told_well(command([name, *words]), 0, 2)
    assert Path.cwd().parts[-4:] == ("a", "b", "c", "d")
