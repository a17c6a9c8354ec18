"""Predictions: those of the run's own evaluation, in order, of every kind of folder and input."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from quick import QUICK_RUN
from safetensors.torch import load_file, save_file
from test_cli import call
from test_methods import take_steps
from test_models import CPU, FLOAT32, config_for, save_model

from sparta_bench.adapters.load_adapter import load
from sparta_bench.config.compose import compose
from sparta_bench.data.splits import load_splits
from sparta_bench.data.tokenize import encode_splits
from sparta_bench.errors import InputError
from sparta_bench.inference.predict import lines_of, predict, read_texts, ready
from sparta_bench.methods import prepare
from sparta_bench.models.load import load_classifier
from sparta_bench.models.source import EMBEDDED, load_tokenizer
from sparta_bench.records.write import RunSpec
from sparta_bench.runs.experiment import save
from sparta_bench.runs.run import run
from sparta_bench.sparta import store

METHODS = ["sparta", "sparta_vo", "lora", "head", "full_ft"]


def predictions(
    folder: Path,
    lines: list[str],
    batch_size: int = 32,
    jsonl: bool = False,
    base: str | None = None,
) -> Any:
    """Of lines as the command would read them, on the CPU."""
    loaded = load(folder, base, None)
    ready(loaded, CPU, None)
    numbered = ((f"line {number}", line) for number, line in enumerate(lines, start=1))
    examples = read_texts(numbered, loaded.about, jsonl)
    return [one for some in predict(loaded, examples, batch_size) for one in some]


# ---------------------------------------------------------------------- equal to evaluation
@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        *((method, ()) for method in METHODS),
        ("sparta", ("model=tiny-mistral-it", "task=tiny-rte", "task.undo_spacing=true")),
        ("head", ("model=tiny-mistral", "task=tiny-rte", "task.separator=sep_token")),
        ("sparta", ("model=tiny-mistral", "task=tiny-mnli", "task.separator=sep_token")),
        ("full_ft", ("model=tiny-mistral", "task=tiny-rte", "task.separator=sep_token")),
    ],
)
def test_predictions_are_those_of_the_evaluation(
    trained: Any, method: str, overrides: tuple[str, ...]
) -> None:
    config, record, folder = trained(method, *overrides)
    test = load_splits(config.task).test
    rows = [dict(zip(config.task.columns, texts, strict=True)) for texts in test.texts]
    predicted = predictions(folder, [json.dumps(row) for row in rows], jsonl=True)
    labels = [config.task.labels[label] for label in test.labels]
    right = sum(one.label == label for one, label in zip(predicted, labels, strict=True))
    assert right / len(labels) == record["test"]["accuracy"]
    told = torch.tensor(
        [one.probabilities[label] for one, label in zip(predicted, labels, strict=True)],
        dtype=torch.float64,
    )
    assert float(-told.log().mean()) == pytest.approx(record["test"]["loss"], abs=1e-6)


@pytest.mark.parametrize("method", ["sparta", "lora"])
def test_probabilities_are_those_of_the_model_that_was_trained(
    tmp_path: Path, word_tokenizer, method: str
) -> None:
    folder = save_model(tmp_path / "base")
    word_tokenizer.save_pretrained(folder)
    config = config_for(folder, f"method={method}", f"cache_dir={tmp_path}/cache")
    tokenizer = load_tokenizer(config.model, config.task)
    classifier = load_classifier(config, tokenizer, FLOAT32, CPU)
    values = prepare(classifier, config, FLOAT32)
    take_steps(classifier, values)
    classifier.eval()
    encoded = encode_splits(config, load_splits(config.task), tokenizer).test
    save(
        RunSpec(config, "x", tmp_path / "run", FLOAT32, "x", Accelerator(cpu=True)),
        classifier,
        tokenizer,
        values,
    )
    texts = load_splits(config.task).test.texts[:100]
    loaded = load(tmp_path / "run" / "adapter", str(folder), None)
    ready(loaded, CPU, None)
    examples = [(str(number), text) for number, text in enumerate(texts)]
    got = [one.probabilities for some in predict(loaded, examples, 7, 2) for one in some]
    batch = encoded.collate(range(100))
    with torch.no_grad():
        logits = classifier(batch["input_ids"], batch["attention_mask"])
    expected = logits.double().softmax(dim=1)
    actual = torch.tensor([list(one.values()) for one in got], dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_batches_change_neither_order_nor_labels(trained: Any) -> None:
    folder = trained("sparta")[2]
    lines = [" ".join(["a fine film"] * (1 + number % 5)) for number in range(50)]
    one, many = predictions(folder, lines, 1), predictions(folder, lines, 64)
    for left, right in zip(one, many, strict=True):
        assert left.label == right.label
        assert left.probabilities == pytest.approx(right.probabilities, abs=1e-6)
    assert one[0].probabilities != pytest.approx(one[1].probabilities, abs=1e-4)


def test_a_large_input_is_never_read_ahead(trained: Any) -> None:
    loaded = load(trained("head")[2], None, None)
    read = []

    def endless() -> Any:
        while True:
            read.append(1)
            yield f"line {len(read)}", ("a fine film",)

    some = predict(loaded, endless(), batch_size=4, batches=2)
    assert (len(next(some)), len(read)) == (8, 8)
    assert (len(next(some)), len(read)) == (8, 16)


def test_bfloat16_training_is_computed_in_float32_on_a_cpu_unless_asked(trained: Any) -> None:
    folder = trained("sparta", "model.dtype=bfloat16")[2]
    lines = ["a fine film", "a dull and tired plot"]
    loaded = load(folder, None, None)
    assert next(loaded.classifier.backbone.parameters()).dtype == torch.bfloat16
    assert ready(loaded, CPU, "bfloat16") == "bfloat16"
    slow = [one for some in predict(loaded, enumerated(lines), 2) for one in some]
    for ours, theirs in zip(predictions(folder, lines), slow, strict=True):
        assert ours.label == theirs.label
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=0.02)


def enumerated(lines: list[str]) -> Any:
    return [(str(number), (line,)) for number, line in enumerate(lines)]


# ------------------------------------------------------------------------------ the command
def test_texts_of_the_command_line(capsys: pytest.CaptureFixture[str], trained: Any) -> None:
    folder = str(trained("sparta")[2])
    code, out, err = call(capsys, "predict", folder, "a fine film", "--device", "cpu", "dull", "")
    assert (code, err) == (0, [])
    lines = [line.split("\t") for line in out.splitlines()]
    assert len(lines) == 3
    assert all(label in ("negative", "positive") and 0.5 <= float(p) <= 1 for label, p in lines)
    assert call(capsys, "predict", folder, "--", "-5", "--x")[1].count("\n") == 2


@pytest.mark.parametrize("way", ["file", "stdin", "dash"])
def test_lines_of_files(
    capsys: pytest.CaptureFixture[str],
    trained: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    folder = str(trained("head")[2])
    raw = "\ufeffa fine film\r\n\na line\u2028of two\nlast".encode()
    file = tmp_path / "in.txt"
    file.write_bytes(raw)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    source = {"file": ["--file", str(file)], "stdin": [], "dash": ["--file", "-"]}[way]
    code, out, err = call(capsys, "predict", folder, "--jsonl", *source)
    assert (code, err) == (0, [])
    got = [json.loads(line) for line in out.splitlines()]
    assert len(got) == 4
    for one in got:
        assert set(one) == {"label", "probabilities"}
        assert one["label"] == max(one["probabilities"], key=one["probabilities"].get)
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-12)
    _, words, _ = call(capsys, "predict", folder, "--jsonl", "a fine film", "", "x", "last")
    for ours, theirs in zip(got[:2], map(json.loads, words.splitlines()), strict=False):
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-6)


def test_jsonl_by_columns_by_text_and_pairs_by_tab(
    capsys: pytest.CaptureFixture[str], trained: Any, tmp_path: Path
) -> None:
    single, pair = str(trained("head")[2]), str(trained("head", "task=tiny-rte")[2])
    file = tmp_path / "in.jsonl"
    file.write_text('{"sentence": "a fine film", "label": 1}\n\n{"text": "a fine film"}\n')
    out = call(capsys, "predict", single, "--jsonl", "--file", str(file))[1].splitlines()
    assert len(out) == 2 and out[0] == out[1]
    row = '{"sentence2": "A man sleeps.", "sentence1": "A man eats."}'
    by_name = call(capsys, "predict", pair, "--jsonl-input", row)
    by_tab = call(capsys, "predict", pair, "A man eats.\tA man sleeps.")
    assert by_name == by_tab and by_name[0] == 0


@pytest.mark.parametrize("arguments", [["a\udcff"], ["--file", "{tmp}/bytes"]])
def test_bytes_that_are_no_utf8(
    capsys: pytest.CaptureFixture[str], trained: Any, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "bytes").write_bytes(b"fine\nf\xffne\nfine\n")
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    code, out, (line,) = call(capsys, "predict", str(trained("head")[2]), *arguments)
    place = f"{tmp_path}/bytes, line 2" if "--file" in arguments else "text 1"
    assert code == 2 and line.startswith(f"sparta-bench: {place}: ") and "UTF-8" in line
    assert out.count("\n") == ("--file" in arguments), "lines before the fault are labelled"


def test_an_empty_text_needs_a_bos_token(tmp_path: Path, trained: Any) -> None:
    loaded = load(trained("head")[2], None, None)
    loaded.tokenizer = lambda texts, **_: {"input_ids": [[5] * len(text) for text in texts]}
    some = predict(loaded, [("line 1", ("a",)), ("line 2", ("",)), ("line 3", ("b",))], 8)
    assert len(next(some)) == 1
    with pytest.raises(InputError, match="line 2: an empty text, and the tokenizer adds no BOS"):
        next(some)


def test_predict_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "predict", "--help")
    assert (code, err) == (0, []) and "--jsonl-input" in out
    code, _, err = call(capsys, "predict")
    assert code == 2 and "required: ADAPTER" in err[0]


# ----------------------------------------------------------------------- folders and bases
def refusal(folder: Path, base: str | None = None, tokenizer: str | None = None) -> str:
    with pytest.raises(InputError) as told:
        load(folder, base, tokenizer)
    (line,) = told.value.lines
    assert "\n" not in line
    return line


def test_folders_that_hold_nothing(trained: Any, tmp_path: Path) -> None:
    assert refusal(tmp_path / "x").endswith("x: there is no such folder")
    assert "neither an adapter (adapter_config.json) nor a whole" in refusal(tmp_path)
    folder = trained("head")[2]
    assert refusal(folder.parent).endswith(f"what it trained is in {folder}")


def local_run(tmp_path: Path, word_tokenizer: Any, *overrides: str) -> tuple[Path, Path]:
    base = tmp_path / "my-base"
    if not base.exists():
        save_model(base)
        word_tokenizer.save_pretrained(base)
    places = [f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache"]
    settings = ["model=local", f"model.path={base}", "task=tiny-sst2"]
    record, path, _ = run(compose([*QUICK_RUN, *places, *settings, *overrides]))
    assert record["status"] == "completed", record["error"]
    return path.parent / "adapter", base


@pytest.mark.parametrize("method", ["sparta", "lora", "head"])
def test_a_base_in_a_folder_is_named_again_and_checked(
    tmp_path: Path, word_tokenizer, method: str
) -> None:
    folder, base = local_run(tmp_path, word_tokenizer, f"method={method}")
    assert str(tmp_path) not in (folder / "adapter_config.json").read_text()
    assert len(load(folder, None, None).about.labels) == 2  # where it was in training
    moved = base.rename(tmp_path / "elsewhere")
    assert refusal(folder) == (
        f"{folder}: was trained on a base model in a folder, called my-base then; say with "
        "--base DIR where it is"
    )
    assert load(folder, str(moved), None).about.model.path == "my-base"
    tensors = load_file(moved / "model.safetensors")
    tensors["model.norm.weight"] += 0.5
    save_file(tensors, moved / "model.safetensors", {"format": "pt"})
    line = refusal(folder, str(moved))
    assert line.startswith(f"{folder}: was trained on another base model: the fingerprint of")
    assert f"--base {moved} has " in line


def test_a_base_is_named_as_a_model_of_conf(trained: Any, tmp_path: Path) -> None:
    folder = trained("head")[2]
    assert load(folder, "tiny-gemma", "tiny-gemma").about.model.name == "tiny-gemma"
    places = [f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache"]
    settings = ["model=local", f"model.path={EMBEDDED / 'tiny-gemma'}", "method=head"]
    _, path, _ = run(compose([*QUICK_RUN, *places, *settings]))
    found = load(path.parent / "adapter", "tiny-gemma", None)
    assert found.about.model.path == "tiny-gemma"
    line = refusal(folder, "tiny-mistral")
    assert "was trained on another base model: " in line and "--base tiny-mistral has " in line
    assert refusal(folder, "gemma-2b").startswith("model=gemma-2b: google/gemma-2b cannot be ")


def test_another_tokenizer_is_refused(tmp_path: Path, word_tokenizer) -> None:
    folder, base = local_run(tmp_path, word_tokenizer, "method=head")
    other = tmp_path / "words"
    word_tokenizer.save_pretrained(other)
    text = (other / "tokenizer.json").read_text().replace('"film": ', '"filme": ')
    (other / "tokenizer.json").write_text(text)
    assert "was trained with another tokenizer" in refusal(folder, str(base), str(other))
    folder, _ = local_run(tmp_path, word_tokenizer, "method=head", f"model.tokenizer={other}")
    assert "called words then; say with --tokenizer DIR where it is" in refusal(folder, str(base))
    load(folder, str(base), str(other))


@pytest.mark.parametrize("method", ["sparta", "lora", "head"])
def test_changed_files_are_refused(trained: Any, tmp_path: Path, method: str) -> None:
    folder = trained(method)[2]
    config = store.read_config(folder)
    tensors = store.read_tensors(folder, config)
    copy = tmp_path / "copy"
    store.write(copy, tensors, config)
    load(copy, None, None)
    raw = (copy / store.TENSORS).read_bytes()
    (copy / store.TENSORS).write_bytes(raw[:-4])
    assert "cut short or changed since" in refusal(copy)
    store.write(copy, {"head.weight": torch.zeros(3, 64), "x": torch.zeros(1)}, config)
    assert str(copy) in refusal(copy)
    for key in ("labels", "model", "dtypes", "prompt", "base_fingerprint"):
        store.write(copy, tensors, {name: v for name, v in config.items() if name != key})
        assert str(copy) in refusal(copy)
    (copy / store.CONFIG).write_text("{")
    assert refusal(copy).endswith("is not JSON, or cut short")


def test_the_lines_of_a_terminal_are_numbered() -> None:
    assert list(lines_of(["a", "b"], None)) == [("text 1", "a"), ("text 2", "b")]


def test_an_adapter_of_somebody_elses_script_is_told_what_it_lacks(
    tmp_path: Path, trained: Any
) -> None:
    sparta = load(trained("sparta")[2], None, None).sparta
    assert sparta is not None
    sparta.save(tmp_path / "own")
    assert "SpartaAdapter.load(model, folder) puts it on its model" in refusal(tmp_path / "own")


def test_a_compact_adapter_predicts_the_same(tmp_path: Path, trained: Any) -> None:
    folder = trained("sparta")[2]
    loaded = load(folder, None, None)
    assert loaded.sparta is not None
    about = {k: v for k, v in loaded.about.as_dict().items() if k not in ("method", "density")}
    loaded.sparta.save(tmp_path / "compact", compact=True, about=about)
    lines = ["a fine film", "a dull plot"]
    assert predictions(tmp_path / "compact", lines) == predictions(folder, lines)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("seed", "x", "seed=x: must be a whole number from 0 to 2^63 - 1, or null"),
        ("labels", [1, 2], "labels=[1, 2]: must be two or more different names"),
        ("columns", [], "columns=[]: must be one or two column names"),
        ("separator", 5, "separator=5: must be newline or sep_token"),
        ("undo_spacing", "yes", "undo_spacing=yes: must be true or false"),
        ("method.name", "foo", "method.name=foo: must be full_ft, head, lora or sparta"),
        ("method", None, "method=null: must have keys of its own"),
        ("model.name", 5, "model.name=5: must be a text, or null"),
        ("model.embedded", 1, "model.embedded=1: must be true or false"),
        (
            "model.hub_id",
            None,
            "model.hub_id=null: the base model has no name, and was in no folder",
        ),
        ("dtypes.model", "int8", "dtypes.model=int8: must be float32 or bfloat16"),
        ("density", float("nan"), "density=nan: must be a number, or null"),
        ("prompt", {}, "prompt.instruction: is missing"),
    ],
)
def test_a_description_of_another_kind_names_the_key(
    key: str,
    value: Any,
    line: str,
    tmp_path: Path,
    trained: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(trained("head")[2], folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    part, _, name = key.rpartition(".")
    (config[part] if part else config)[name] = value
    if key == "model.hub_id":
        config["model"]["embedded"] = False
    path.write_text(json.dumps(config))
    code, _, lines = call(capsys, "predict", str(folder), "x")
    assert code == 2
    assert lines[0] == f"sparta-bench: {path}: {line}"
    assert len(lines) == (4 if key == "prompt" else 1)


def test_a_text_beyond_the_context_ends_what_comes_before_it(
    capsys: pytest.CaptureFixture[str], trained: Any, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("a film\n" + "a fine film " * 400 + "\nanother\n")
    folder = str(trained("head")[2])
    code, out, err = call(capsys, "predict", folder, "--file", str(tmp_path / "in.txt"))
    context = json.loads((EMBEDDED / "tiny-gemma" / "config.json").read_text())
    assert (code, len(out.splitlines())) == (2, 1)
    assert err == [
        f"sparta-bench: {tmp_path}/in.txt, line 2: shorten it; it has 1,201 tokens, and the "
        f"model reads {context['max_position_embeddings']:,} at most"
    ]


def test_a_lack_of_memory_is_told_in_a_line(
    capsys: pytest.CaptureFixture[str], trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("sparta_bench.inference.predict._predict", lacks)
    code, out, (line,) = call(capsys, "predict", str(trained("head")[2]), "a film", "a fine film")
    assert (code, out) == (2, "")
    assert line.endswith("a smaller --batch-size helps where it is not this text alone")
