"""A baked folder is transformers' alone, and its logits are those of the evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import SMALL
from test_cli import call
from test_models import CPU
from test_predict import local_run, predictions, refusal
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sparta_bench.adapters.export import WHOLE, bake, padding_token
from sparta_bench.adapters.load_adapter import load
from sparta_bench.config.compose import compose
from sparta_bench.data.examples import render
from sparta_bench.data.splits import load_splits
from sparta_bench.data.tokenize import Encoded, tokenize
from sparta_bench.errors import InputError
from sparta_bench.files import whole_folder
from sparta_bench.inference.predict import ready
from sparta_bench.models.load import load_backbone
from sparta_bench.models.source import load_tokenizer
from sparta_bench.runs.run import run

PAIRS = ("model=tiny-mistral", "task=tiny-rte", "task.separator=sep_token")


def transformers_logits(folder: Path, texts: list[str], size: int, **how: Any) -> torch.Tensor:
    """As anybody would: their tokenizer, their padding, their pooling."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, **how).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.padding_side == "right"
    assert tokenizer.pad_token_id == model.config.pad_token_id
    parts = []
    for start in range(0, len(texts), size):
        inputs = tokenizer(texts[start : start + size], return_tensors="pt", padding=True)
        with torch.no_grad():
            parts.append(model(**inputs).logits.float())
    return torch.cat(parts)


def our_logits(folder: Path, encoded: Encoded, size: int) -> torch.Tensor:
    """The evaluation's forward pass, in the order of the examples."""
    loaded = load(folder, None, None)
    ready(loaded, CPU, loaded.about.dtypes["model"])
    parts = []
    for start in range(0, len(encoded), size):
        batch = encoded.collate(range(start, min(start + size, len(encoded))))
        with torch.no_grad():
            parts.append(loaded.classifier(batch["input_ids"], batch["attention_mask"]))
    return torch.cat(parts)


def examples(config: Any, count: int) -> tuple[list[str], Encoded]:
    """Inputs as text, an empty one among them, and as tokens."""
    splits = load_splits(config.task)
    texts = [render(t, config.task, config.model.kind) for t in splits.test.texts[: count - 1]]
    texts.insert(3, "")
    tokenizer = load_tokenizer(config.model, config.task)
    ids = [np.asarray(row, dtype=np.int32) for row in tokenize(texts, tokenizer)]
    return texts, Encoded(ids, [0] * count)


@pytest.mark.parametrize("size", [2, 3, 8, 60])
@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("sparta", ()),
        ("sparta_vo", ("model=tiny-mistral",)),
        ("sparta", ("model=tiny-mistral-it", "task=tiny-mnli")),
        ("head", PAIRS),
        ("full_ft", ()),
    ],
)
def test_logits_are_the_evaluations_bit_for_bit(
    trained: Any, tmp_path: Path, method: str, overrides: tuple[str, ...], size: int
) -> None:
    config, _, folder = trained(method, *overrides)
    bake(folder, tmp_path / "baked")
    texts, encoded = examples(config, 60)
    theirs = transformers_logits(tmp_path / "baked", texts, size)
    assert torch.equal(theirs, our_logits(folder, encoded, size))


def test_a_row_alone_differs_in_its_last_bits(trained: Any, tmp_path: Path) -> None:
    # One pooled row goes through a matrix-vector kernel here; transformers multiplies the head
    # with the states of all tokens, and pools after that.
    config, _, folder = trained("sparta")
    bake(folder, tmp_path / "baked")
    texts, encoded = examples(config, 60)
    theirs = transformers_logits(tmp_path / "baked", texts, 1)
    torch.testing.assert_close(theirs, our_logits(folder, encoded, 1), rtol=0, atol=2e-6)


def test_lora_is_merged_to_the_precision_of_its_dtype(trained: Any, tmp_path: Path) -> None:
    config, _, folder = trained("lora")
    bake(folder, tmp_path / "baked")
    texts, encoded = examples(config, 60)
    theirs = transformers_logits(tmp_path / "baked", texts, 8)
    torch.testing.assert_close(theirs, our_logits(folder, encoded, 8), rtol=1e-5, atol=1e-5)


def test_a_bfloat16_head_is_rounded_only_where_transformers_loads_it_so(
    trained: Any, tmp_path: Path
) -> None:
    config, _, folder = trained("sparta", "model.dtype=bfloat16")
    line = bake(folder, tmp_path / "baked")
    assert "the head is float32 in the file: loaded in bfloat16 it is rounded by 0." in line
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "baked")
    wide = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "baked", dtype=torch.float32
    )
    head = load(folder, None, None).classifier.head_weight
    assert model.dtype == model.score.weight.dtype == torch.bfloat16
    assert torch.equal(wide.score.weight, head)
    assert torch.equal(model.score.weight, head.bfloat16())
    assert torch.equal(model.model.norm.weight.float(), wide.model.norm.weight)
    texts, encoded = examples(config, 60)
    ours = our_logits(folder, encoded, 8).softmax(dim=1)
    theirs = transformers_logits(tmp_path / "baked", texts, 8).softmax(dim=1)
    assert float((ours - theirs).abs().max()) < 0.01
    lines = texts[:3] + texts[4:]
    for one, other in zip(
        predictions(folder, lines), predictions(tmp_path / "baked", lines), strict=True
    ):
        assert one == other, "this program reads the head as it was trained"


def test_the_configuration_says_what_transformers_needs(trained: Any, tmp_path: Path) -> None:
    bake(trained("sparta", *PAIRS)[2], tmp_path / "baked")
    config = json.loads((tmp_path / "baked" / "config.json").read_text())
    assert config["architectures"] == ["MistralForSequenceClassification"]
    assert config["id2label"] == {"0": "entailment", "1": "not_entailment"}
    assert config["label2id"] == {"entailment": 0, "not_entailment": 1}
    assert config["problem_type"] == "single_label_classification"
    assert config["pad_token_id"] == config["bos_token_id"] == 1, "this tokenizer cannot pad"
    assert config["vocab_size"] == 303, "the separator has a row of its own"
    _, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "baked", output_loading_info=True
    )
    assert not any(report.values())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "baked")
    assert tokenizer.convert_tokens_to_ids("<sep>") == 302


PLAIN = """
import sys
sys.modules["sparta_bench"] = None  # importing it raises
from transformers import pipeline
print(pipeline("text-classification", model=sys.argv[1])("a fine film"))
"""


@pytest.mark.slow
def test_a_baked_folder_needs_nothing_of_this_project(trained: Any, tmp_path: Path) -> None:
    bake(trained("sparta")[2], tmp_path / "baked")
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path / "baked")], cwd=tmp_path,
        env=os.environ, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (expected,) = predictions(tmp_path / "baked", ["a fine film"])
    (told,) = eval(done.stdout)
    assert told["label"] == expected.label
    assert told["score"] == pytest.approx(expected.probabilities[expected.label], abs=1e-6)


def test_the_texts_of_a_local_base_stay_without_its_path(tmp_path: Path, word_tokenizer) -> None:
    folder, base = local_run(tmp_path, word_tokenizer, "method=sparta")
    bake(folder, tmp_path / "baked", str(base))
    names = {file.name for file in (tmp_path / "baked").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", WHOLE}
    for file in (tmp_path / "baked").glob("*.json"):
        assert str(tmp_path) not in file.read_text(), file.name
    lines = ["good film", "", "bad film the"]
    assert predictions(tmp_path / "baked", lines)
    again = bake(tmp_path / "baked", tmp_path / "again")
    assert again.startswith(f"{tmp_path}/again: ")
    assert predictions(tmp_path / "again", lines) == predictions(tmp_path / "baked", lines)
    # and it is a base model like another: its head is left out
    model = compose(["model=local", f"model.path={tmp_path}/baked"]).model
    assert load_backbone(model, torch.float32).config.hidden_size == SMALL["hidden_size"]
    assert "needs none" in refusal(tmp_path / "baked", str(base))


def test_broken_whole_folders_are_refused(trained: Any, tmp_path: Path) -> None:
    folder = tmp_path / "baked"
    bake(trained("sparta")[2], folder)
    whole = json.loads((folder / WHOLE).read_text())
    (folder / WHOLE).write_text(json.dumps(whole | {"labels": ["a", "b", "c"]}))
    assert "score.weight has the shape (2, 64)" in refusal(folder)
    (folder / WHOLE).write_text(json.dumps(whole | {"format": 9}))
    assert "not of the format 2" in refusal(folder)
    (folder / WHOLE).write_text(json.dumps(whole))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert refusal(folder).startswith(f"{weights}: no safetensors file, or cut short")


@pytest.mark.parametrize(
    ("tokens", "pad"),
    [
        ({"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"}, "<pad>"),
        ({"pad": None, "bos": "<s>", "eos": "</s>", "unk": "<unk>"}, "<s>"),
        ({"pad": "</s>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"}, "<s>"),
        ({"pad": "<unk>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"}, "<s>"),
    ],
)
def test_the_padding_token_never_ends_an_input(tokens: dict[str, Any], pad: str) -> None:
    class Tokenizer:
        def __init__(self, tokens: dict[str, Any]) -> None:
            for name, token in tokens.items():
                setattr(self, f"{name}_token", token)

    assert padding_token(Tokenizer(tokens)) == pad
    with pytest.raises(InputError, match="neither a padding token of its own nor BOS"):
        padding_token(Tokenizer(tokens | {"pad": None, "bos": None}))


# ------------------------------------------------------------------------------ the command
def test_merge_lists_its_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "merge", "--help")
    assert (code, err) == (0, [])
    for verb in ("bake", "export", "multi-head", "combine", "overlap", "pairs"):
        assert f"    {verb}" in out
    code, out, (line,) = call(capsys, "merge")
    assert (code, out) == (2, "") and "required: VERB (see sparta-bench merge --help)" in line
    code, out, _ = call(capsys, "merge", "bake", "--help")
    assert code == 0 and "--out DIR" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["bakee"], "merge: argument VERB: invalid choice: 'bakee' (choose from"),
        (["bake", "{folder}"], "merge bake: the following arguments are required: --out (see"),
        (["bake", "{tmp}/x", "--out", "{tmp}/y"], "{tmp}/x: there is no such folder"),
        (
            ["export", "{folder}", "--out", "{tmp}/y", "--layout", "x", "--base-name", "b"],
            "merge export: argument --layout: invalid choice: 'x' (choose from",
        ),
        (["bake", "{folder}", "--out", "{tmp}/file"], "--out {tmp}/file: is a file"),
        (["bake", "{folder}", "--out", "{tmp}/file/x"], "--out {tmp}/file/x: cannot be written: "),
        (
            ["bake", "{folder}", "--out", "{tmp}"],
            "--out {tmp}: is not empty (--force replaces the whole folder)",
        ),
    ],
)
def test_wrong_input_gives_one_line(
    capsys: pytest.CaptureFixture[str],
    trained: Any,
    tmp_path: Path,
    arguments: list[str],
    line: str,
) -> None:
    (tmp_path / "file").touch()
    names = {"{tmp}": str(tmp_path), "{folder}": str(trained("head")[2])}
    for name, value in names.items():
        arguments = [argument.replace(name, value) for argument in arguments]
        line = line.replace(name, value)
    code, out, err = call(capsys, "merge", *arguments)
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith(f"sparta-bench: {line}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_there_is_replaced_with_force_alone(
    capsys: pytest.CaptureFixture[str], trained: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for method in ("head", "sparta"):
        folder = str(trained(method)[2])
        code, told, err = call(capsys, "merge", "bake", folder, "--out", str(out), "--force")
        assert (code, err) == (0, [])
        assert told == f"{out}: 208,512 scalars in float32, padded with <pad> on the right\n"
    assert json.loads((out / WHOLE).read_text())["method"]["name"] == "sparta"
    (out / "notes.txt").write_text("mine")
    assert call(capsys, "merge", "bake", folder, "--out", str(out))[0] == 2
    assert (out / "notes.txt").read_text() == "mine"
    for place in (out, out.parent):  # what is read is never what is replaced
        code, _, err = call(capsys, "merge", "bake", str(out), "--out", str(place), "--force")
        assert code == 2 and err[0].endswith("holds the adapter that is to be read")
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "no temporary folder is left"
    mode = (out / "model.safetensors").stat().st_mode
    assert mode == (out / "config.json").stat().st_mode


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    with whole_folder(folder) as temporary:
        (temporary / "a").write_text("1")
    with pytest.raises(LookupError), whole_folder(folder) as temporary:
        (temporary / "b").write_text("2")
        raise LookupError
    assert [path.name for path in folder.iterdir()] == ["a"]
    with whole_folder(folder) as temporary:
        (temporary / "b").write_text("2")
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [folder]


def test_save_full_writes_what_bake_writes(trained: Any, tmp_path: Path) -> None:
    small = trained("sparta")[2]
    config, _, _ = trained("sparta")
    _, path, _ = run(replace(config, save="full", force=True, results_dir=str(tmp_path)))
    bake(small, tmp_path / "baked")
    full = path.parent / "model"
    assert not (path.parent / "adapter").exists()
    names = {file.name for file in full.iterdir()}
    assert names == {file.name for file in (tmp_path / "baked").iterdir()}
    for name in names:
        assert (full / name).read_bytes() == (tmp_path / "baked" / name).read_bytes(), name
