"""SpaRTA in TRL's trainers: the examples run, learn, and leave an adapter that loads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from sparta_bench.sparta import SpartaAdapter

pytest.importorskip("trl")

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "sparta_bench" / "tiny_models" / "tiny-gemma"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["sft", "reward", "dpo"])
def test_an_example_learns_and_its_adapter_loads(what: str, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    command = [sys.executable, str(ROOT / "examples" / f"trl_{what}.py"), "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-3000:]
    first, last = map(
        float, re.findall(r"loss ([\d.]+) at first, ([\d.]+) at last", ended.stdout)[0]
    )
    assert last < 0.97 * first
    if what == "dpo":
        numbers = re.findall(r"liked text: ([\d.]+), of the reference ([\d.]+)", ended.stdout)[0]
        policy, reference = map(float, numbers)
        assert policy != reference
    kind = AutoModelForSequenceClassification if what == "reward" else AutoModelForCausalLM
    extra = {"num_labels": 1} if what == "reward" else {}
    model = kind.from_pretrained(BASE, dtype=torch.float32, **extra)
    adapter = SpartaAdapter.load(model, out)
    checkpoint = load_file(next(Path(f"{out}-checkpoints").glob("*/model.safetensors")))
    trained = sum(value.numel() for value in adapter.parameters())
    assert sum(value.numel() for value in checkpoint.values()) == trained
