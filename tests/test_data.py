"""From raw rows to batches: splits, prompts, encoding and padding."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from sparta_bench.config.compose import compose
from sparta_bench.config.schema import Config, Dev, TaskConfig
from sparta_bench.data.examples import Examples, check_classes, class_counts, render, undo_spacing
from sparta_bench.data.generated import SIZES
from sparta_bench.data.splits import Splits, load_splits, stratified
from sparta_bench.data.tokenize import (
    Encoded,
    cache_folder,
    encode_splits,
    evaluation_batches,
    training_batches,
)
from sparta_bench.errors import InputError
from sparta_bench.records.record import identity_of

GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "imdb")


@pytest.fixture(scope="module")
def tasks() -> dict[str, TaskConfig]:
    names = [*GLUE, *(f"tiny-{name}" for name in GLUE)]
    return {name: compose([f"task={name}"]).task for name in names}


def write_split(folder: Path, split: str, rows: int, columns: list[str], word: str = "") -> None:
    """`rows` numbered rows, so that a test can say which are where; labels alternate."""
    lines = [",".join([*columns, "label"])]
    lines += [
        ",".join([f"{word or split} {row}"] * len(columns) + [str(row % 2)]) for row in range(rows)
    ]
    (folder / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def load(task: TaskConfig, folder: Path, sizes: dict[str, int], dev: int | None = None) -> Splits:
    for split, rows in sizes.items():
        write_split(folder, split, rows, task.columns)
    rule = replace(task.dev, examples=dev if dev else task.dev.examples)
    return load_splits(replace(task, data_dir=str(folder), dev=rule))


def firsts(examples: Examples) -> list[str]:
    return [texts[0] for texts in examples.texts]


# ------------------------------------------------------------------------------------- splits
@pytest.mark.parametrize("name", ["cola", "sst2", "rte", "qnli", "qqp"])
def test_dev_is_the_end_of_train(tasks: dict[str, TaskConfig], tmp_path: Path, name: str) -> None:
    splits = load(tasks[name], tmp_path, {"train": 10, "validation": 4}, dev=3)
    assert firsts(splits.train) == [f"train {row}" for row in range(7)]
    assert firsts(splits.dev) == [f"train {row}" for row in (7, 8, 9)]
    assert firsts(splits.test) == [f"validation {row}" for row in range(4)]
    assert splits.dev.labels == [1, 0, 1]


def test_the_splits_of_tables_2_and_9(tasks: dict[str, TaskConfig]) -> None:
    last = {"cola": 1000, "sst2": 1000, "qnli": 5000, "qqp": 5000, "mnli": 10_000, "rte": 300}
    for name, examples in last.items():
        assert tasks[name].dev == Dev("train", "last", examples)
    capped = {name for name in GLUE if tasks[name].cap_takes == "first"}
    assert capped == {"mnli", "qnli", "qqp"}
    caps = {name: tasks[name].max_train_examples for name in GLUE}
    assert caps == {name: 100_000 if name in ("mnli", "qnli", "qqp") else None for name in GLUE}
    limits = {name: tasks[name].max_train_tokens for name in GLUE}
    assert limits == {name: 384 if name == "imdb" else 256 for name in GLUE}
    assert tasks["mrpc"].dev == Dev("validation", "all", None)
    assert tasks["imdb"].dev == Dev("test", "random", 5000)


def test_mnli_tests_on_mismatched_then_matched(
    tasks: dict[str, TaskConfig], tmp_path: Path
) -> None:
    sizes = {"train": 9, "validation_matched": 2, "validation_mismatched": 3}
    splits = load(tasks["mnli"], tmp_path, sizes, dev=4)
    assert firsts(splits.test) == [
        *(f"validation_mismatched {row}" for row in range(3)),
        *(f"validation_matched {row}" for row in range(2)),
    ]


def test_mrpc_has_labels_in_its_test_split(tasks: dict[str, TaskConfig], tmp_path: Path) -> None:
    splits = load(tasks["mrpc"], tmp_path, {"train": 5, "validation": 3, "test": 4})
    assert [len(splits.train), len(splits.dev), len(splits.test)] == [5, 3, 4]
    assert firsts(splits.dev) == ["validation 0", "validation 1", "validation 2"]
    assert splits.test.labels == [0, 1, 0, 1]


def test_imdb_draws_dev_from_test(tasks: dict[str, TaskConfig], tmp_path: Path) -> None:
    splits = load(tasks["imdb"], tmp_path, {"train": 6, "test": 100}, dev=20)
    assert len(splits.train) == 6
    drawn, rest = firsts(splits.dev), firsts(splits.test)
    assert len(drawn) == 20 and len(rest) == 80
    assert sorted(drawn + rest) == sorted(f"test {row}" for row in range(100))
    order = [int(text.split()[1]) for text in drawn]
    assert order == sorted(order) and order != list(range(80, 100)) and order != list(range(20))
    task = replace(tasks["imdb"], data_dir=str(tmp_path), dev=Dev("test", "random", 20))
    assert firsts(load_splits(task).dev) == drawn
    other = load_splits(replace(task, draw_seed=1))
    assert firsts(other.dev) != drawn
    assert other.fingerprint() != splits.fingerprint()


def test_the_draw_does_not_depend_on_the_runs_seed() -> None:
    assert "seed" not in compose(["seed=1"]).as_dict()["task"]
    assert compose(["seed=1"]).task == compose(["seed=2"]).task


def test_the_cap_comes_after_dev_and_before_the_filter(
    tasks: dict[str, TaskConfig], tmp_path: Path
) -> None:
    task = replace(tasks["qnli"], max_train_examples=5)
    splits = load(task, tmp_path, {"train": 10, "validation": 2}, dev=3)
    assert firsts(splits.train) == [f"train {row}" for row in range(5)]
    assert firsts(splits.dev) == ["train 7", "train 8", "train 9"]
    assert len(load(task, tmp_path, {"train": 6, "validation": 2}, dev=3).train) == 3


def test_a_cap_of_the_users_draws_each_label_in_its_share() -> None:
    labels = [0] * 600 + [1] * 300 + [2] * 100  # sorted, as IMDB's files are
    rows = stratified(labels, 20, seed=0)
    assert rows == sorted(set(rows))
    assert Counter(labels[row] for row in rows) == {0: 12, 1: 6, 2: 2}
    assert stratified(labels, 20, seed=0) == rows != stratified(labels, 20, seed=1)
    assert stratified(labels, 1000, seed=0) == list(range(1000))
    # where shares are below one: each label once, as long as there is room
    rare = [0] * 97 + [1, 2, 3]
    assert Counter(rare[row] for row in stratified(rare, 10, 0)) == {0: 7, 1: 1, 2: 1, 3: 1}
    assert Counter(rare[row] for row in stratified(rare, 4, 0)) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert [rare[row] for row in stratified(rare, 3, 0)] == [0, 0, 0]


def test_a_cap_is_drawn_where_the_command_line_gives_it() -> None:
    def takes(*overrides: str) -> tuple[int | None, str]:
        task = compose(list(overrides)).task
        return task.max_train_examples, task.cap_takes

    assert takes("task=qqp") == (100_000, "first")
    assert takes("task=qqp", "task.max_train_examples=500") == (500, "random")
    assert takes("task=qqp", "++task.max_train_examples=500") == (500, "random")
    capped = ("task.max_train_examples=500", "task.cap_takes=first")
    assert takes("task=tiny-sst2", *capped) == (500, "first")
    # a setting that is not read is no part of the run_id
    kept = [
        identity_of(compose(["task=tiny-sst2", *words]).as_dict(), 1)["task"]
        for words in ([], capped, capped[:1])
    ]
    assert [task.get("cap_takes") for task in kept] == [None, "first", "random"]


def test_a_cap_takes_the_same_rows_whatever_the_runs_seed(
    tasks: dict[str, TaskConfig], tmp_path: Path
) -> None:
    task = replace(tasks["mrpc"], max_train_examples=4, cap_takes="random")
    splits = load(task, tmp_path, {"train": 10, "validation": 2, "test": 2})
    assert sorted(splits.train.labels) == [0, 0, 1, 1]
    assert firsts(splits.train) != [f"train {row}" for row in range(4)]
    assert splits == load(task, tmp_path, {"train": 10, "validation": 2, "test": 2})


def test_one_class_is_refused_and_rare_ones_are_named() -> None:
    names = ("no", "yes", "maybe")
    assert class_counts([1, 0, 1], names) == {"no": 1, "yes": 2, "maybe": 0}
    with pytest.raises(InputError) as caught:
        check_classes("t", {"train": class_counts([1, 1], names)})
    assert caught.value.lines == (
        "task=t: take training examples of at least two labels; all 2 have the label yes",
    )
    assert check_classes("t", {"train": class_counts([1, 0, 1], names)}) == [
        "task=t: training has fewer than two examples of no (1), maybe (0), from which little can "
        "be learnt"
    ]
    assert check_classes("t", {"train": class_counts([0, 0, 1, 1, 2, 2], names)}) == []


@pytest.mark.parametrize("rows", [4, 5, 9, 10, 11, 30])
@pytest.mark.parametrize("cap", [1, 3, 7, 100])
def test_what_is_let_go_under_a_cap_was_of_no_use(
    tasks: dict[str, TaskConfig], tmp_path: Path, rows: int, cap: int
) -> None:
    sizes = {"train": rows, "validation": 5, "test": 6}
    for name, dev in (("sst2", 3), ("mrpc", None), ("imdb", 4)):
        whole = load(tasks[name], tmp_path, sizes, dev=dev)
        task = replace(tasks[name], max_train_examples=cap, cap_takes="first")
        capped = load(task, tmp_path, sizes, dev=dev)
        assert capped.train == whole.train.select(range(min(cap, len(whole.train))))
        assert (capped.dev, capped.test) == (whole.dev, whole.test)


@pytest.mark.parametrize("dev", [10, 11])
def test_a_dev_set_that_leaves_nothing(
    tasks: dict[str, TaskConfig], tmp_path: Path, dev: int
) -> None:
    with pytest.raises(InputError) as caught:
        load(tasks["sst2"], tmp_path, {"train": 10, "validation": 2}, dev=dev)
    assert caught.value.lines == (
        f"task.dev.examples={dev}: split train has only 10 rows, and some must be left",
    )
    assert len(load(tasks["sst2"], tmp_path, {"train": 10, "validation": 2}, dev=9).train) == 1


def test_a_split_that_a_twin_does_not_have(tasks: dict[str, TaskConfig]) -> None:
    with pytest.raises(InputError) as caught:
        load_splits(replace(tasks["tiny-sst2"], test_splits=["nope"]))
    assert caught.value.lines == ("split nope: task tiny-sst2 has only train or validation",)


def test_a_split_that_the_tsv_layout_does_not_have(
    tasks: dict[str, TaskConfig], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        load_splits(replace(tasks["sst2"], data_dir=str(tmp_path), train_split="nope"))
    assert caught.value.lines == (
        f"task.data_dir={tmp_path}: no file for split nope; "
        "looked for nope.parquet, nope.jsonl, nope.csv",
    )


def test_bad_rows_of_all_splits_are_counted(tasks: dict[str, TaskConfig], tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path, split, 6, ["sentence"])
        with (tmp_path / f"{split}.csv").open("a") as file:
            file.write("bad,9\n")
    task = replace(tasks["sst2"], data_dir=str(tmp_path), dev=Dev("train", "last", 2))
    assert load_splits(replace(task, on_bad_row="skip")).bad_rows == 2
    with pytest.raises(InputError, match="row 8"):
        load_splits(task)


@pytest.mark.parametrize("name", GLUE)
def test_the_twins_have_the_real_tasks_form(tasks: dict[str, TaskConfig], name: str) -> None:
    real, twin = tasks[name], tasks[f"tiny-{name}"]
    for key in ("columns", "labels", "prompt", "train_split", "test_splits"):
        assert getattr(real, key) == getattr(twin, key)
    assert (real.dev.split, real.dev.take) == (twin.dev.split, twin.dev.take)
    splits, size = load_splits(twin), SIZES[name]
    assert (len(splits.train), len(splits.dev), len(splits.test)) == (
        size.train,
        size.dev,
        size.test,
    )
    assert set(splits.test.labels) == set(range(len(twin.labels)))


# ------------------------------------------------------------------------------------- prompts
PROMPTS = {
    "sst2": "Determine if the following sentence has a positive sentiment. Respond Yes or No.\n"
    "Sentence: A b.\nResponse:",
    "cola": "Determine if the following sentence is both syntactically and semantically correct. "
    "Respond Yes or No.\nSentence: A b.\nResponse:",
    "imdb": "Determine if the following review about a movie is positive. Respond Yes or No.\n"
    "Review: A b.\nResponse:",
    "mrpc": "Determine if the following two sentences are semantically equivalent. "
    "Respond Yes or No.\nSentence 1: A b.\nSentence 2: C d?\nResponse:",
    "qqp": "Determine if the following two questions are semantically equivalent "
    "(i.e., duplicates, paraphrases of each other). Respond Yes or No.\n"
    "Question 1: A b.\nQuestion 2: C d?\nResponse:",
    "rte": "Determine if the first sentence entails the second sentence. Respond Yes or No.\n"
    "SENTENCE 1: A b.\nSENTENCE 2: C d?\nResponse:",
    "qnli": "Determine if the answer to the question is contained in the sentence that follows. "
    "Respond Yes or No.\nQUESTION: A b.\nSENTENCE: C d?\nResponse:",
    "mnli": "Determine if the first sentence entails, contradicts, or is neutral to the second "
    "sentence. Respond Entail, Contradict, or Neutral.\n"
    "SENTENCE 1: A b.\nSENTENCE 2: C d?\nResponse:",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_what_an_instruction_model_reads(tasks: dict[str, TaskConfig], name: str) -> None:
    texts = (" A b.\n", "C d? ")[: len(tasks[name].columns)]
    assert render(texts, tasks[name], "instruct") == PROMPTS[name]


@pytest.mark.parametrize("name", PROMPTS)
def test_what_a_base_model_reads(tasks: dict[str, TaskConfig], name: str) -> None:
    task = tasks[name]
    if len(task.columns) == 1:
        assert render((" A b.\n",), task, "base") == " A b.\n"  # not stripped
    else:
        assert render((" A b.\n", "C d? "), task, "base") == "A b.\nC d?"
        other = replace(task, separator="sep_token")
        assert render((" A b.\n", "C d? "), other, "base") == "A b.<sep>C d?"
        assert render((" A b.\n", "C d? "), other, "instruct") == PROMPTS[name]


@pytest.mark.parametrize("name", GLUE)
def test_answers_mean_what_the_hubs_labels_mean(tasks: dict[str, TaskConfig], name: str) -> None:
    upside_down = name in ("rte", "qnli")  # there 0 is entailment
    answers = ("Yes", "No") if upside_down else ("No", "Yes")
    assert tasks[name].prompt.answers == (
        ("Entail", "Neutral", "Contradict") if name == "mnli" else answers
    )


@pytest.mark.parametrize(
    ("tokenised", "text"),
    [
        ("good .", "good."),
        ("oh , no ; yes : ok ! why ?", "oh, no; yes: ok! why?"),
        ("it 's n't they 're we 've i 'll he 'd i 'm", "it'sn't they're we've i'll he'd i'm"),
        ("do n't", "don't"),
        ("the actors ' work", "the actors' work"),
        ("actors '", "actors'"),
        ("( a ) [ b ] { c }", "(a) [b] {c}"),
        ("$ 5 and 5 %", "$5 and 5%"),
        ("wait ...", "wait..."),
        ("rock 'n' roll", "rock 'n' roll"),
        ("a 'so-called' film", "a 'so-called' film"),
        ("nothing to do here.", "nothing to do here."),
        ("good \n", "good \n"),
        ("", ""),
    ],
)
def test_undoing_tokenised_spacing(tokenised: str, text: str) -> None:
    assert undo_spacing(tokenised) == text


def test_spacing_is_undone_only_when_asked(tasks: dict[str, TaskConfig]) -> None:
    assert render(("good . ",), tasks["sst2"], "base") == "good . "
    task = replace(tasks["sst2"], undo_spacing=True)
    assert render(("good . ",), task, "base") == "good. "
    assert "Sentence: good.\n" in render(("good . ",), task, "instruct")


# ------------------------------------------------------------------------------------ encoding
def splits_of(train: list[str], dev: list[str], test: list[str]) -> Splits:
    def examples(texts: list[str]) -> Examples:
        return Examples([(text,) for text in texts], [row % 2 for row in range(len(texts))])

    return Splits(examples(train), examples(dev), examples(test), bad_rows=0)


@pytest.fixture
def limited(tiny_config: Callable[..., Config]) -> Callable[[int], Config]:
    return lambda limit: tiny_config(f"task.max_train_tokens={limit}")


def test_the_limit_counts_bos_and_keeps_equality(limited: Any, word_tokenizer: Any) -> None:
    splits = splits_of(["a b", "a b c", "a b c d", "e"], ["a"], ["a b"])
    data = encode_splits(limited(4), splits, word_tokenizer)
    assert data.train.lengths() == [3, 4, 2]
    assert data.train.labels == [0, 1, 1]
    assert [ids.tolist() for ids in data.train.ids] == [[1, 11, 12], [1, 11, 12, 13], [1, 15]]
    assert all(ids.dtype == np.int32 for ids in data.train.ids)
    summary = data.summary
    assert (summary["train"], summary["train_dropped"], summary["max_train_tokens"]) == (3, 1, 4)
    assert summary["labels"] == {
        "train": {"negative": 1, "positive": 2},
        "dev": {"negative": 1, "positive": 0},
        "test": {"negative": 1, "positive": 0},
    }
    assert (summary["longest_train_tokens"], summary["mean_train_tokens"]) == (4, 3.0)


def test_tokens_that_the_tokenizer_does_not_know_are_counted(
    limited: Any, word_tokenizer: Any
) -> None:
    # of what is kept, BOS included: 3 and 2 tokens, 2 of them unknown
    splits = splits_of(["a xyzzy", "plugh", "a b c d e"], ["a"], ["a b"])
    assert encode_splits(limited(4), splits, word_tokenizer).summary["unknown_train_share"] == 0.4
    word_tokenizer = copy.deepcopy(word_tokenizer)
    word_tokenizer.unk_token = None
    found = encode_splits(limited(4), splits, word_tokenizer).summary["unknown_train_share"]
    assert found is None


def test_dev_and_test_are_never_filtered(limited: Any, word_tokenizer: Any) -> None:
    splits = splits_of(["a"], ["a b c d e", "a"], ["a b c d e a"])
    data = encode_splits(limited(2), splits, word_tokenizer)
    assert (data.dev.lengths(), data.test.lengths()) == ([6, 2], [7])
    assert (data.summary["dev"], data.summary["test"]) == (2, 1)
    assert data.summary["longest_eval_tokens"] == 7


def test_inputs_longer_than_the_models_context_are_refused_or_cut(
    tiny_config: Callable[..., Config], word_tokenizer: Any
) -> None:
    splits = splits_of(["a"] * 2, ["a b c d e", "a"], ["a b", "a b c d"])

    def encoded(*overrides: str, context: int | None = 4) -> Any:
        config = tiny_config("task.max_train_tokens=99", *overrides)
        return encode_splits(config, splits, word_tokenizer, context)

    with pytest.raises(InputError) as caught:
        encoded()
    assert caught.value.lines == (
        "task.truncate_eval=false: set it to true to cut inputs of dev and test (recorded), or "
        "take a model with a longer context than 4 tokens: 1 of dev and 1 of test are longer, the "
        "longest has 6",
    )
    with pytest.raises(InputError, match=r"^task.max_train_tokens=99: must be at most 1, the mod"):
        encoded(context=1)
    for whole in (encoded(context=None), encoded(context=6)):
        assert whole.summary["truncated"] == {"dev": 0, "test": 0}
        assert whole.summary["longest_eval_tokens"] == 6
    data = encoded("task.truncate_eval=true")
    assert data.dev.ids[0].tolist() == [1, 11, 12, 13]
    assert (data.dev.lengths(), data.test.lengths()) == ([4, 2], [3, 4])
    assert data.summary["truncated"] == {"dev": 1, "test": 1}
    assert data.summary["longest_eval_tokens"] == 4


def test_a_prompt_that_is_cut_keeps_its_end(
    tiny_config: Callable[..., Config], word_tokenizer: Any
) -> None:
    config = tiny_config("task.truncate_eval=true", "model=tiny-gemma-it")
    splits = splits_of(["a"] * 2, ["a " * 99, "a"], ["a"])
    data = encode_splits(config, splits, word_tokenizer, 30)
    assert data.dev.lengths()[0] == 30
    end = word_tokenizer("Response:", add_special_tokens=False)["input_ids"]
    assert data.dev.ids[0][-len(end) :].tolist() == end == data.dev.ids[1][-len(end) :].tolist()
    assert data.dev.ids[0][-len(end) - 1] == 11  # the last word that is left of the text


def test_a_limit_that_drops_everything(limited: Any, word_tokenizer: Any) -> None:
    with pytest.raises(InputError) as caught:
        encode_splits(limited(2), splits_of(["a b", "a b c"], ["a"], ["a"]), word_tokenizer)
    assert caught.value.lines == (
        "task.max_train_tokens=2: drops all 2 training examples; the shortest has 3 tokens",
    )


def test_empty_texts_are_kept_and_counted(limited: Any, word_tokenizer: Any) -> None:
    splits = splits_of(["", "a", " \n"], ["", "a"], ["a"])
    summary = encode_splits(limited(9), splits, word_tokenizer).summary
    assert summary["empty_texts"] == {"train": 2, "dev": 1, "test": 0}
    assert (summary["train"], summary["train_dropped"]) == (3, 0)


def test_an_input_of_no_token_at_all_is_refused(limited: Any, word_tokenizer: Any) -> None:
    import copy

    from tokenizers.processors import TemplateProcessing

    without_bos = copy.deepcopy(word_tokenizer)
    without_bos.backend_tokenizer.post_processor = TemplateProcessing(single="$A")
    with pytest.raises(InputError, match=r"^dev, example 2: an empty text, and the tokenizer adds"):
        encode_splits(limited(9), splits_of(["a"], ["a", " "], ["a"]), without_bos)


def count_tokenizing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from sparta_bench.data import tokenize

    calls: list[int] = []
    original = tokenize.tokenize

    def counted(texts: list[str], tokenizer: Any) -> list[list[int]]:
        calls.append(len(texts))
        return original(texts, tokenizer)

    monkeypatch.setattr(tokenize, "tokenize", counted)
    return calls


def same(one: Encoded, other: Encoded) -> bool:
    pairs = zip(one.ids, other.ids, strict=True)
    return one.labels == other.labels and all(np.array_equal(a, b) for a, b in pairs)


SPLITS = splits_of(["a b", "c", ""], ["d e"], ["a", "b c d"])


def test_a_cache_hit_equals_a_fresh_encoding(
    limited: Any, word_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_tokenizing(monkeypatch)
    fresh = encode_splits(limited(9), SPLITS, word_tokenizer)
    assert calls == [3, 1, 2]
    cached = encode_splits(limited(9), SPLITS, word_tokenizer)
    assert calls == [3, 1, 2]
    assert cached.summary == fresh.summary
    assert all(same(getattr(fresh, s), getattr(cached, s)) for s in ("train", "dev", "test"))
    assert encode_splits(limited(2), SPLITS, word_tokenizer).train.lengths() == [2, 1]
    assert calls == [3, 1, 2]  # the limit is applied after the cache


def test_texts_go_to_the_tokenizer_in_parts(
    limited: Any, word_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tiny_config: Any
) -> None:
    from sparta_bench.data import tokenize

    whole = encode_splits(limited(9), SPLITS, word_tokenizer)
    monkeypatch.setattr(tokenize, "TEXTS_AT_ONCE", 2)
    calls = count_tokenizing(monkeypatch)
    data = encode_splits(tiny_config("cache_dir=${results_dir}/2"), SPLITS, word_tokenizer)
    assert calls == [2, 1, 1, 2]
    assert data.summary == whole.summary | {"max_train_tokens": 48}
    assert all(same(getattr(whole, s), getattr(data, s)) for s in ("train", "dev", "test"))


def test_another_tokenizer_is_not_served_from_the_cache(limited: Any, word_tokenizer: Any) -> None:
    import copy

    from tokenizers.normalizers import Replace

    encode_splits(limited(9), SPLITS, word_tokenizer)
    other = copy.deepcopy(word_tokenizer)
    other.backend_tokenizer.normalizer = Replace("a", "b")
    data = encode_splits(limited(9), SPLITS, other)
    assert data.train.ids[0].tolist() == [1, 12, 12]


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "no ids", "folder"])
def test_a_damaged_cache_is_encoded_again(
    limited: Any, word_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    fresh = encode_splits(limited(9), SPLITS, word_tokenizer)
    for path in cache_folder(limited(9)).iterdir():
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:-3])
        elif damage == "empty":
            path.write_bytes(b"")
        elif damage == "other":
            save_file({"ids": np.zeros(1), "lengths": np.ones(7)}, path)
        elif damage == "no ids":
            save_file({"lengths": np.ones(3)}, path)
        else:
            path.unlink()
            path.mkdir()
    calls = count_tokenizing(monkeypatch)
    again = encode_splits(limited(9), SPLITS, word_tokenizer)
    assert calls == [3, 1, 2]
    assert same(again.train, fresh.train)


def test_a_cache_that_cannot_be_written_does_no_harm(
    tiny_config: Any, word_tokenizer: Any, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    data = encode_splits(tiny_config(f"cache_dir={file}"), SPLITS, word_tokenizer)
    assert data.train.lengths() == [3, 2, 1]
    assert file.read_bytes() == b""


def test_where_the_cache_is(tiny_config: Any, tmp_path: Path) -> None:
    assert cache_folder(tiny_config()) == tmp_path / "cache"
    home = Path(os.environ["XDG_CACHE_HOME"], "sparta-bench")
    assert cache_folder(tiny_config("cache_dir=null")) == home


# ------------------------------------------------------------------------------------- batches
LENGTHS = [(7 * row) % 61 + 1 for row in range(1003)]


@pytest.mark.parametrize("buckets", [0, 1, 3, 50, 1000])
@pytest.mark.parametrize("size", [1, 7, 32, 2000])
def test_each_example_is_in_one_batch(buckets: int, size: int) -> None:
    batches = training_batches(LENGTHS, size, buckets, "s")
    assert Counter(row for batch in batches for row in batch) == Counter(range(1003))
    sizes = sorted((len(batch) for batch in batches), reverse=True)
    assert sizes == [size] * (1003 // size) + ([1003 % size] if 1003 % size else [])


@pytest.mark.parametrize("buckets", [0, 5])
def test_the_seed_decides_the_order(buckets: int) -> None:
    one = training_batches(LENGTHS, 8, buckets, "0/epoch 0")
    assert one == training_batches(LENGTHS, 8, buckets, "0/epoch 0")
    for other in ("0/epoch 1", "1/epoch 0"):
        changed = training_batches(LENGTHS, 8, buckets, other)
        assert changed != one
        assert {frozenset(batch) for batch in changed} != {frozenset(batch) for batch in one}


@pytest.mark.parametrize("count", [37, 203])  # fewer than a bucket of 160, and more
def test_the_smaller_batch_holds_examples_of_any_length(count: int) -> None:
    """Each example is as likely in it as any other, so that its mean length is that of all."""
    lengths = LENGTHS[:count]
    shares = np.zeros(count)
    for epoch in range(2000):
        batches = training_batches(lengths, 16, 10, f"0:{epoch}")
        (smaller,) = (rows for rows in batches if len(rows) < 16)
        shares[smaller] += 1 / 2000
    expected = count % 16 / count
    deviation = np.sqrt(expected * (1 - expected) / 2000)
    assert shares.max() < expected + 5 * deviation and shares.min() > expected - 5 * deviation
    mean_length = shares @ lengths / shares.sum()
    assert mean_length == pytest.approx(np.mean(lengths), rel=0.02)


def padding(batches: list[list[int]]) -> int:
    return sum(
        max(LENGTHS[row] for row in batch) * len(batch) - sum(LENGTHS[row] for row in batch)
        for batch in batches
    )


def test_buckets_save_padding() -> None:
    without = padding(training_batches(LENGTHS, 16, 0, "s"))
    assert padding(training_batches(LENGTHS, 16, 50, "s")) < without / 10


def test_buckets_do_not_sort_the_epoch() -> None:
    batches = training_batches(LENGTHS, 16, 50, "s")
    means = [sum(LENGTHS[row] for row in batch) / len(batch) for batch in batches]
    assert means != sorted(means) and means != sorted(means, reverse=True)


def test_evaluation_goes_from_long_to_short() -> None:
    assert evaluation_batches([3, 9, 3, 5, 9], 2) == [[1, 4], [3, 0], [2]]
    flat = [row for batch in evaluation_batches(LENGTHS, 32) for row in batch]
    assert sorted(flat) == list(range(1003))
    assert [LENGTHS[row] for row in flat] == sorted(LENGTHS, reverse=True)


def test_long_examples_are_evaluated_a_few_at_a_time() -> None:
    lengths = [3, 9, 3, 5, 20]
    assert evaluation_batches(lengths, 3, 10) == [[4], [1], [3, 0], [2]]  # one is more than 10
    assert evaluation_batches(lengths, 3, 60) == evaluation_batches(lengths, 3)


def test_a_batch_is_padded_on_the_right_to_its_longest() -> None:
    ids = [np.array(row, dtype=np.int32) for row in ([5, 6], [7], [8, 9, 2], [4] * 9)]
    batch = Encoded(ids, [1, 0, 2, 1]).collate([2, 1])
    assert batch["input_ids"].tolist() == [[8, 9, 2], [7, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [2, 0]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
