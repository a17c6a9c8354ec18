"""The embedded tiny twins: generated data sets and shipped language models."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections import Counter
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import sparta_bench
from sparta_bench.config.schema import TINY_TASKS
from sparta_bench.data import generated as data_sets

MODELS = Path(sparta_bench.__file__).parent / "tiny_models"
TASK_YAML = Path(__file__).resolve().parent.parent / "conf" / "task"
TOKEN = re.compile(r"\n|\w+|[^\w\s]")
NAMES = ("tiny-gemma", "tiny-gemma-it", "tiny-mistral", "tiny-mistral-it")

COLUMNS = {
    "cola": ["sentence", "label"],
    "mnli": ["premise", "hypothesis", "label"],
    "mrpc": ["sentence1", "sentence2", "label"],
    "qnli": ["question", "sentence", "label"],
    "qqp": ["question1", "question2", "label"],
    "rte": ["sentence1", "sentence2", "label"],
    "sst2": ["sentence", "label"],
    "imdb": ["text", "label"],
}

# sha256 of the canonical JSON of generate(task): the rows are part of what a result means.
GOLDEN = {
    "cola": "62687593d7034484756943df7cd0ec98d3d38158be5316fa90e3b3f4b082a9cd",
    "mnli": "df4c2059459fd046f8047fd9cd96573dd33e60d9d01ca5fbde9e5fbbd5c06f81",
    "mrpc": "3902fabc0f98c5496d5903a1e303b9acf2ca3aef94a0b7ff954fccbed4cbf883",
    "qnli": "77aabe4b50d4ed7f34e70808e950c7a8cb468d60ecf4ad7840cb4c4164388a02",
    "qqp": "59946272a7e53b1f46a5c705968bd2c5ac6b3d2bb4fbc0683e318ff01d46ba3f",
    "rte": "0ef2a1ccece8ea58cbde608b3b77bf8eaad03f6bc0ca5c6f268a925157389d37",
    "sst2": "8b93cc349891fd71eb11ad69ba4d2d5db916a1e44225c552134883ec84ad4b28",
    "imdb": "9effe7f79207873bcf8ea22188b565f90374d36fc5250f85cd58f44a7f792a6d",
}


@cache
def rows_of(task: str, noise: float = data_sets.LABEL_NOISE) -> data_sets.Splits:
    """Generated once for all tests, which only read them."""
    return data_sets.generate(task, noise=noise)


def row_counts(task: str) -> dict[str, int]:
    size = data_sets.SIZES[task]
    if task == "mnli":
        half = size.test // 2
        return {
            "train": size.train + size.dev,
            "validation_matched": half,
            "validation_mismatched": size.test - half,
        }
    if task == "mrpc":
        return {"train": size.train, "validation": size.dev, "test": size.test}
    if task == "imdb":
        return {"train": size.train, "test": size.dev + size.test}
    return {"train": size.train + size.dev, "validation": size.test}


def text_of(row: data_sets.Row) -> str:
    return "\n".join(str(value) for column, value in row.items() if column != "label")


def token_count(text: str) -> int:
    """Tokens as the tiny tokenizers count them, BOS included."""
    return 1 + len(TOKEN.findall(text))


@cache
def prompt_of(task: str) -> dict[str, Any]:
    return dict(yaml.safe_load((TASK_YAML / f"{task}.yaml").read_text())["prompt"])


def instruction_input(task: str, row: data_sets.Row) -> str:
    prompt = prompt_of(task)
    texts = text_of(row).split("\n")
    lines = [f"{field}: {text}" for field, text in zip(prompt["fields"], texts, strict=True)]
    head = f"{prompt['instruction']} Respond {prompt['answers_text']}."
    return "\n".join([head, *lines, "Response:"])


@pytest.mark.parametrize("task", TINY_TASKS)
def test_layout_and_sizes(task: str) -> None:
    splits = rows_of(task)
    assert {name: len(rows) for name, rows in splits.items()} == row_counts(task)
    for rows in splits.values():
        assert all(list(row) == COLUMNS[task] for row in rows)
        assert all(isinstance(row["label"], int) for row in rows)


@pytest.mark.parametrize("task", TINY_TASKS)
def test_labels_are_roughly_balanced(task: str) -> None:
    classes = 3 if task == "mnli" else 2
    for rows in rows_of(task).values():
        shares = {label: n / len(rows) for label, n in Counter(r["label"] for r in rows).items()}
        assert set(shares) == set(range(classes))
        assert min(shares.values()) > 0.7 / classes


@pytest.mark.parametrize("task", TINY_TASKS)
def test_rows_are_the_same_everywhere(task: str) -> None:
    canonical = json.dumps(data_sets.generate(task), sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(canonical.encode()).hexdigest() == GOLDEN[task]


def test_seeds_give_different_rows() -> None:
    assert data_sets.generate("sst2", seed=1) == data_sets.generate("sst2", seed=1)
    assert data_sets.generate("sst2", seed=1) != data_sets.generate("sst2", seed=0)


def test_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match="wnli"):
        data_sets.generate("wnli")


@pytest.mark.parametrize("task", TINY_TASKS)
def test_only_training_rows_carry_noise(task: str) -> None:
    noisy, clean = rows_of(task), rows_of(task, noise=0.0)
    trained = data_sets.SIZES[task].train
    for name, rows in noisy.items():
        wrong = [i for i, row in enumerate(rows) if row["label"] != clean[name][i]["label"]]
        assert [text_of(row) for row in rows] == [text_of(row) for row in clean[name]]
        if name == "train":
            assert all(index < trained for index in wrong)
            assert 0.08 < len(wrong) / trained < 0.12
        else:
            assert not wrong


@pytest.mark.parametrize("task", TINY_TASKS)
@pytest.mark.parametrize("instruct", [False, True])
def test_the_length_limit_drops_a_few_percent(task: str, instruct: bool) -> None:
    size = data_sets.SIZES[task]
    rows = rows_of(task)["train"][: size.train]
    texts = [instruction_input(task, row) if instruct else text_of(row) for row in rows]
    dropped = sum(token_count(text) > size.max_tokens for text in texts) / len(texts)
    assert 0.005 < dropped < 0.05


@pytest.mark.parametrize("task", TINY_TASKS)
def test_held_out_texts_are_rarely_trained_on(task: str) -> None:
    splits = rows_of(task)
    seen = {text_of(row) for row in splits["train"]}
    held_out = [text_of(row) for name, rows in splits.items() if name != "train" for row in rows]
    assert sum(text in seen for text in held_out) / len(held_out) < 0.05


@pytest.mark.parametrize("task", TINY_TASKS)
def test_length_and_last_mark_say_nothing_about_the_label(task: str) -> None:
    """No threshold on the length and no final mark may classify much better than guessing."""
    rows = rows_of(task, noise=0.0)["train"][: data_sets.SIZES[task].train]
    guess = max(Counter(row["label"] for row in rows).values()) / len(rows)
    for feature in (lambda row: token_count(text_of(row)), lambda row: text_of(row)[-1]):
        groups: dict[object, Counter[object]] = {}
        for row in rows:
            groups.setdefault(feature(row), Counter())[row["label"]] += 1
        best = sum(max(group.values()) for group in groups.values()) / len(rows)
        assert best < guess + 0.12


def documents(seed: int, easy_first: int, count: int) -> tuple[str, ...]:
    """The first documents of scripts/tiny_corpus.py."""
    path = Path(__file__).resolve().parent.parent / "scripts" / "tiny_corpus.py"
    spec = importlib.util.spec_from_file_location("tiny_corpus", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tuple(islice(module.documents(seed=seed, easy_first=easy_first), count))


def test_documents_repeat_for_a_seed() -> None:
    first = documents(3, 100, 300)
    again = documents(3, 100, 300)
    assert first == again
    assert len(set(first)) > 250


@cache
def every_token() -> frozenset[str]:
    """All words and marks of the data sets, the prompts and the pretraining documents."""
    texts = list(documents(1, 0, 1000))
    for task in TINY_TASKS:
        rows = [row for part in rows_of(task).values() for row in part]
        texts += [text_of(row) for row in rows]
        texts += [instruction_input(task, rows[0]), " ".join(prompt_of(task)["answers"])]
    return frozenset(token for text in texts for token in TOKEN.findall(text.lower()))


@pytest.mark.parametrize("name", NAMES)
def test_tokenizer_knows_every_word(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
    assert every_token() <= set(tokenizer.get_vocab())
    for task in TINY_TASKS:
        texts = [instruction_input(task, row) for row in rows_of(task)["train"][:50]]
        encoded = tokenizer(texts)["input_ids"]
        assert not any(tokenizer.unk_token_id in ids for ids in encoded)
        assert all(ids[0] == tokenizer.bos_token_id for ids in encoded)
        assert [len(ids) for ids in encoded] == [token_count(text) for text in texts]


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_one_token_wherever_they_stand(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
    for task in TINY_TASKS:
        for word in prompt_of(task)["answers"]:
            alone = tokenizer(word, add_special_tokens=False)["input_ids"]
            assert len(alone) == 1
            assert tokenizer(f"Response: {word}")["input_ids"][-1:] == alone


@pytest.mark.parametrize("name", NAMES)
def test_shipped_model_is_small_and_loads(name: str) -> None:
    folder = MODELS / name
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2 * 2**20
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.num_parameters() < 1_000_000
    assert config.max_position_embeddings >= 512
    assert len(tokenizer) == config.vocab_size
    gemma = "gemma" in name
    assert config.tie_word_embeddings is gemma
    # The real Mistral has no padding token either.
    assert (tokenizer.pad_token is not None) is gemma


@pytest.mark.parametrize("name", NAMES)
def test_shipped_files_name_no_folder_of_the_machine_that_made_them(name: str) -> None:
    for file in ("config.json", "tokenizer_config.json"):
        text = (MODELS / name / file).read_text()
        assert "/work" not in text and "/home" not in text and "/tmp" not in text
