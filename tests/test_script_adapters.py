"""What a script saved with `SpartaAdapter.save` is served by the commands; its base is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import call
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sparta_bench.models.source import EMBEDDED
from sparta_bench.sparta import SpartaAdapter

TEXTS = ["the film is good .", "although everybody finds the music delightful , it is bad ."]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED / "tiny-gemma", tmp_path / "my-base"))


@pytest.fixture
def saved(base: Path, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """An adapter as a script leaves it, and the probabilities of `TEXTS` there."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=2, id2label={0: "bad", 1: "good"}, dtype=torch.float32
    )
    adapter = SpartaAdapter(model, density=0.05, seed=0)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in TEXTS]
    for _ in range(3):
        for label, row in enumerate(ids):
            model(row, labels=torch.tensor([label])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapter.save(tmp_path / "adapter")
    with torch.no_grad():
        logits = torch.cat([model.eval()(row).logits for row in ids])
    return tmp_path / "adapter", logits.softmax(dim=-1)


def probabilities(out: str) -> torch.Tensor:
    rows = [json.loads(line)["probabilities"] for line in out.splitlines()]
    return torch.tensor([[row["bad"], row["good"]] for row in rows])


def test_predict_serves_what_a_script_saved_and_finds_its_base(
    saved: tuple[Path, torch.Tensor], base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, expected = saved
    code, out, err = call(capsys, "predict", str(adapter), "--jsonl", *TEXTS)
    assert code == 0, err
    torch.testing.assert_close(probabilities(out), expected, rtol=1e-5, atol=1e-6)
    assert str(base) not in (adapter / "adapter_config.json").read_text()
    moved = base.rename(base.with_name("elsewhere"))
    code, _, err = call(capsys, "predict", str(adapter), *TEXTS)
    assert code == 2 and err[-1].endswith("called my-base then; say with --base DIR where it is")
    code, out, _ = call(capsys, "predict", str(adapter), "--base", str(moved), "--jsonl", *TEXTS)
    assert code == 0
    torch.testing.assert_close(probabilities(out), expected, rtol=1e-5, atol=1e-6)
    shutil.copytree(EMBEDDED / "tiny-mistral", base)  # another model where the base was
    code, _, err = call(capsys, "predict", str(adapter), *TEXTS)
    assert code == 2 and "was trained on another base model" in err[-1]


def test_an_adapter_of_no_classifier_is_for_scripts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from small_models import classifier

    model = classifier(num_labels=1, problem_type="regression")
    SpartaAdapter(model, 0.2, 0).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter.safetensors", "adapter_config.json"
    ]  # fmt: skip
    code, _, err = call(capsys, "predict", str(tmp_path), "a text")
    assert code == 2 and "SpartaAdapter.load(model, folder) puts it on its model" in err[-1]


def test_counts_are_printed_as_peft_does(capsys: pytest.CaptureFixture[str]) -> None:
    from small_models import classifier

    model: Any = classifier()
    total = sum(value.numel() for value in model.parameters())
    adapter = SpartaAdapter(model, 0.2, 0)
    adapter.print_trainable_parameters()
    trained = adapter.chosen + 32
    share = f"{100 * trained / total:.4f}"
    assert capsys.readouterr().out == (
        f"trainable params: {trained:,} || all params: {total:,} || trainable%: {share}\n"
    )
