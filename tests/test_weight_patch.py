"""`merge export --layout patch`, and `apply_patch` on tensors of the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import classifier
from test_cli import call
from torch import Tensor
from transformers import AutoModelForCausalLM

from sparta_bench import apply_patch
from sparta_bench.adapters.load_adapter import load
from sparta_bench.models.source import EMBEDDED
from sparta_bench.sparta import SpartaAdapter
from sparta_bench.sparta.weight_patch import write_patch


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same(tensors: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return tensors.keys() == others.keys() and all(
        torch.equal(tensor, others[name]) for name, tensor in tensors.items()
    )


def test_a_patched_base_is_what_the_run_trained_and_goes_back(
    capsys: pytest.CaptureFixture[str], trained: Any, tmp_path: Path
) -> None:
    adapter = trained("sparta")[2]
    out = tmp_path / "out"
    words = ["merge", "export", str(adapter), "--layout", "patch", "--out", str(out)]
    code, told, err = call(capsys, *words)
    file, saved = out / "patch.safetensors", load_file(adapter / "adapter.safetensors")
    deltas = {name: t for name, t in saved.items() if name.endswith(".deltas")}
    chosen = sum(map(len, deltas.values()))
    assert (code, err) == (0, [])
    assert told == (
        f"{file}: {chosen:,} entries of {len(deltas)} tensors of tiny-gemma in float32, and the "
        "head as score.weight\n"
    )
    assert [path.name for path in out.iterdir()] == ["patch.safetensors"]
    assert call(capsys, *words)[0] == 2, "it is not empty any more"

    patch = load_file(file)
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata()
    assert (about["base"], about["labels"]) == ("tiny-gemma", '["negative", "positive"]')
    assert {t.dtype for name, t in patch.items() if name.endswith(".indices")} == {torch.int32}
    assert torch.equal(patch["score.weight"], saved["head.weight"])

    loaded = load(adapter, None, None)
    loaded.merge_and_unload()
    wanted = dict(loaded.classifier.backbone.named_parameters())
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED / "tiny-gemma", dtype=torch.float32)
    before = copied(model.state_dict())
    assert apply_patch(model.state_dict(), file) == chosen
    now = dict(model.named_parameters())
    assert all(torch.equal(now[f"model.{name}"], tensor) for name, tensor in wanted.items())
    assert not same(model.state_dict(), before)
    with pytest.raises(ValueError, match=r"or the patch is applied already$"):
        apply_patch(model.state_dict(), file)
    assert apply_patch(model.model.state_dict(), file, revert=True) == chosen  # without `model.`
    assert same(model.state_dict(), before)


def changed() -> tuple[Any, dict[str, Tensor], SpartaAdapter]:
    """A model in bfloat16, its tensors before, and an adapter with random deltas."""
    model = classifier(dtype=torch.bfloat16)
    base = copied(model.state_dict())
    adapter = SpartaAdapter(model, density=0.1, seed=0)
    with torch.no_grad():
        for deltas in adapter.deltas.values():
            deltas.normal_()
    return model, base, adapter


@pytest.fixture
def patched(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A patch in bfloat16, and its base's tensors."""
    _, base, adapter = changed()
    write_patch(adapter, tmp_path / "p.safetensors", {}, {})
    return tmp_path / "p.safetensors", base


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("value", "does not hold the values of its base without it: this is another base"),
        ("dtype", "convert the model to torch.bfloat16 first: model.norm.weight is torch.float32"),
        ("missing", "changes model.norm.weight, which is not among the tensors given"),
        ("shorter", "the entries of model.norm.weight do not fit together, or its tensor"),
        ("index", "the entries of model.norm.weight do not fit together, or its tensor"),
        ("file", "cannot be read: "),
        ("format", "is no patch"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(
    patched: tuple[Path, dict[str, Tensor]], fault: str, line: str
) -> None:
    file, base = patched
    name = "model.norm.weight"
    at = load_file(file)[f"{name}.indices"].long()
    if fault == "value":
        base[name][at[-1]] += 1
    elif fault == "dtype":
        base[name] = base[name].float()
    elif fault == "missing":
        del base[name]
    elif fault == "shorter":
        base[name] = base[name][: int(at[-1])]
    elif fault == "file":
        file.write_bytes(file.read_bytes()[:100])
    else:
        with safe_open(file, framework="pt") as opened:
            about = opened.metadata()
        tensors = load_file(file)
        if fault == "index":
            tensors[f"{name}.indices"][0] = -1
        else:
            about["format"] = "2"
        save_file(tensors, file, about)
    before = copied(base)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        apply_patch(base, file)
    assert str(error.value).startswith(f"{file}: ") and line in str(error.value)
    assert same(base, before)


def test_a_patch_in_sixteen_bits_gives_the_weights_of_the_adapter(tmp_path: Path) -> None:
    model, base, adapter = changed()
    adapter.merge()
    write_patch(adapter, tmp_path / "p.safetensors", {}, {})
    assert apply_patch(base, tmp_path / "p.safetensors") == adapter.chosen
    adapter.bake()
    now = model.state_dict()
    assert all(torch.equal(base[name], now[name]) for name in base)
