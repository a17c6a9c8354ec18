"""Adapters on disk: they come back exactly, or are refused with the model untouched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import batch, classifier, same_values, values_of
from torch import nn

from sparta_bench.files import sha256_of
from sparta_bench.sparta import SpartaAdapter


def trained(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, SpartaAdapter]:
    model = classifier(dtype=dtype).eval()
    adapter = SpartaAdapter(model, 0.2, 7, **options)
    running = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    for _ in range(3):
        model(**batch()).loss.backward()
        running.step()
        running.zero_grad()
    return model, adapter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compact", [False, True])
def test_a_saved_adapter_comes_back_bit_for_bit(
    dtype: torch.dtype, compact: bool, tmp_path: Path
) -> None:
    model, adapter = trained(dtype)
    adapter.save(tmp_path / "a", compact=compact, about={"labels": ["no", "yes"]})
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "adapter.safetensors",
        "adapter_config.json",
    ]
    saved = load_file(tmp_path / "a" / "adapter.safetensors")
    name = "layers.0.mlp.up_proj.weight"
    assert (f"{name}.indices" in saved) is not compact
    assert saved[f"{name}.deltas"].dtype == torch.float32
    assert saved["head.weight"].shape == (2, 16)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["density"], config["seed"], config["compact"]) == (0.2, 7, compact)
    assert config["method"] == {
        "name": "sparta", "density": 0.2, "targets": "all", "density_of": "sampled",
        "pattern": "scalars",
    }  # fmt: skip
    assert config["labels"] == ["no", "yes"] and config["chosen"] == adapter.chosen

    fresh = classifier(dtype=dtype).eval()
    before = values_of(fresh)
    loaded = SpartaAdapter.load(fresh, tmp_path / "a")
    assert torch.equal(fresh(**batch()).logits, model(**batch()).logits)
    for name, indices in adapter.indices.items():
        assert torch.equal(loaded.indices[name], indices)
        assert torch.equal(loaded.deltas[name], adapter.deltas[name])
    # it trains on, and lets go
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    fresh(**batch()).loss.backward()
    optimizer.step()
    loaded.detach()
    assert same_values(fresh, before)


@pytest.mark.parametrize("pattern", ["rows", "block"])
def test_a_compact_adapter_draws_rows_and_blocks_again(pattern: str, tmp_path: Path) -> None:
    density = 0.05  # of a block that a matrix can hold
    model = classifier().eval()
    adapter = SpartaAdapter(model, density, 7, pattern=pattern)
    for deltas in adapter.deltas.values():
        deltas.data.normal_()
    adapter.merge()
    adapter.save(tmp_path / "a", compact=True)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["method"] == {
        "name": "sparta", "density": density, "targets": "all", "density_of": "sampled",
        "pattern": pattern,
    }  # fmt: skip
    fresh = classifier().eval()
    loaded = SpartaAdapter.load(fresh, tmp_path / "a")
    assert {name: list(i) for name, i in loaded.indices.items()} == {
        name: list(i) for name, i in adapter.indices.items()
    }
    assert torch.equal(fresh(**batch()).logits, model(**batch()).logits)


def test_compact_is_much_smaller(tmp_path: Path) -> None:
    _, adapter = trained()
    adapter.save(tmp_path / "plain")
    adapter.save(tmp_path / "compact", compact=True)
    sizes = [
        sum(t.nbytes for t in load_file(tmp_path / kind / "adapter.safetensors").values())
        for kind in ("plain", "compact")
    ]
    assert sizes[0] - sizes[1] == 4 * adapter.chosen


def test_the_same_base_in_a_wider_dtype_is_the_same_base(tmp_path: Path) -> None:
    _, adapter = trained(torch.bfloat16)
    adapter.save(tmp_path)
    wide = classifier(dtype=torch.bfloat16).float()
    SpartaAdapter.load(wide, tmp_path)


def test_an_adapter_of_a_classifier_goes_onto_its_backbone(tmp_path: Path) -> None:
    model, adapter = trained()
    adapter.save(tmp_path)
    bare = classifier().model
    SpartaAdapter.load(bare, tmp_path, head=False)
    for name, tensor in bare.named_parameters():
        assert torch.equal(tensor, dict(model.model.named_parameters())[name])
    with pytest.raises(ValueError, match=r"head is .*the model's none"):
        SpartaAdapter.load(classifier().model, tmp_path)


class WithHead(nn.Module):
    """A module of somebody's own, all of which is backbone, with a part that is called `head`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 4)


@pytest.mark.parametrize("compact", [False, True])
def test_a_part_of_the_backbone_may_be_called_head(compact: bool, tmp_path: Path) -> None:
    adapter = SpartaAdapter(WithHead(), 0.5, 0)
    with torch.no_grad():
        for deltas in adapter.deltas.values():
            deltas.normal_()
    adapter.merge()
    adapter.save(tmp_path, compact=compact)
    model = WithHead()
    loaded = SpartaAdapter.load(model, tmp_path)
    assert loaded.head == {} and set(loaded.deltas) == set(adapter.deltas)
    assert same_values(model, values_of(adapter.model))


def test_a_base_in_another_memory_format_takes_an_adapter(tmp_path: Path) -> None:
    def conv() -> nn.Module:
        torch.manual_seed(0)
        return nn.Conv2d(4, 6, 3)

    adapter = SpartaAdapter(conv(), 0.5, 0)
    with torch.no_grad():
        adapter.deltas["weight"].fill_(0.5)
    adapter.merge()
    adapter.save(tmp_path)
    other = conv().to(memory_format=torch.channels_last)
    loaded = SpartaAdapter.load(other, tmp_path)
    for name in adapter.deltas:
        assert torch.equal(loaded.originals[name], adapter.originals[name])
        assert torch.equal(other._parameters[name], adapter.model._parameters[name])


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def change_tensors(edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    """Change tensors, and the hash with them: what remains must be found by the other checks."""

    def change(folder: Path) -> None:
        path = folder / "adapter.safetensors"
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path)
        change_config(tensors_sha256=sha256_of(path))(folder)

    return change


def cut_short(folder: Path) -> None:
    path = folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte(folder: Path) -> None:
    path = folder / "adapter.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(bytes(raw))


UP = "layers.0.mlp.up_proj.weight"
BROKEN: list[tuple[Callable[[Path], Any], str]] = [
    (cut_short, "cut short or changed"),
    (flip_a_byte, "cut short or changed"),
    (lambda f: (f / "adapter.safetensors").unlink(), "tensors: cannot be read: No such"),
    (lambda f: (f / "adapter_config.json").unlink(), "config.json: cannot be read: No such file"),
    (lambda f: (f / "adapter_config.json").write_text('{"format": 2, '), "is not JSON, or cut"),
    (lambda f: (f / "adapter_config.json").write_bytes(b"\xff\xfe\x00"), "is not JSON, or cut"),
    (lambda f: (f / "adapter_config.json").write_text("[]"), "format is None"),
    (change_config(format=1), "format is 1, and this version reads 2"),
    (change_config(method={"name": "lora"}), "an adapter of lora, not of SpaRTA"),
    (change_config(method=None), "method is missing or of another kind"),
    (change_config(method="sparta"), "method is missing or of another kind"),
    (change_config(dtype="int8"), "dtype=int8 is missing or of another kind"),
    (change_config(dtype=["float32"]), r"dtype=\['float32'\] is missing or of another kind"),
    (change_config(seed=8, compact=True), "has not one delta for each index"),
    (change_config(sampling=2, compact=True), "draws indices in way 1"),
    (change_config(indices_checksum="0" * 16), "not the indices that the adapter was trained at"),
    (change_config(base_fingerprint="0" * 16), "trained on another base model"),
    (change_config(originals_checksum="0" * 16), "the values at the adapter's indices"),
    (change_tensors(lambda t: t.pop(f"{UP}.deltas")), "has not one delta for each index"),
    (change_tensors(lambda t: t.pop(f"{UP}.indices")), "has deltas and no indices"),
    (
        change_tensors(lambda t: t.update({f"{UP}.indices": t[f"{UP}.indices"] + 100_000})),
        r"the indices of layers.0.mlp.up_proj.weight do not lie in its shape \(24, 16\)",
    ),
    (
        change_tensors(lambda t: t.update({f"{UP}.indices": t[f"{UP}.indices"].flip(0)})),
        "do not lie in its shape",
    ),
    (
        change_tensors(lambda t: t.update({f"{UP}.indices": t[f"{UP}.indices"].long()})),
        "do not lie in its shape",
    ),
    (
        change_tensors(
            lambda t: t.update(
                {f"other.{kind}": t.pop(f"{UP}.{kind}") for kind in ("indices", "deltas")}
            )
        ),
        "the adapter trains other, which this model has not",
    ),
    (
        change_tensors(lambda t: t.update({f"{UP}.deltas": t[f"{UP}.deltas"][:, None]})),
        "has not one delta for each index",
    ),
    (
        change_tensors(lambda t: t.update({f"{UP}.deltas": torch.tensor(1.0)})),
        "has not one delta for each index",
    ),
    (
        change_tensors(lambda t: t.update({f"{UP}.indices": torch.tensor(1, dtype=torch.int32)})),
        "do not lie in its shape",
    ),
    (
        change_tensors(lambda t: t[f"{UP}.deltas"].fill_(float("nan"))),
        "the deltas of layers.0.mlp.up_proj.weight are not finite numbers",
    ),
    (
        change_tensors(lambda t: t.update({f"{UP}.deltas": t[f"{UP}.deltas"].long()})),
        "are not finite numbers",
    ),
    (change_config(seed=float("inf")), "seed=inf: must be a whole number"),
    (change_config(seed="x"), "seed='x': must be a whole number"),
    (
        change_config(
            method={"name": "sparta", "density": 0.2, "targets": 5, "density_of": "sampled"}
        ),
        "targets=5: must be all, or names of modules",
    ),
    (change_tensors(lambda t: t.pop("head.weight")), "the adapter's head is none"),
    (
        change_tensors(lambda t: t.update({"head.weight": torch.zeros(3, 16)})),
        r"head is .*\(3, 16\)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "told"), BROKEN)
def test_what_is_broken_is_refused_in_one_line_and_the_model_is_untouched(
    damage: Callable[[Path], Any], told: str, tmp_path: Path
) -> None:
    _, adapter = trained()
    adapter.save(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    damage(tmp_path / "b")
    model = classifier()
    before = values_of(model)
    with pytest.raises(ValueError, match=told) as caught:
        SpartaAdapter.load(model, tmp_path / "b")
    assert "\n" not in str(caught.value) and str(tmp_path / "b") in str(caught.value)
    assert same_values(model, before)
    assert all(tensor.requires_grad for tensor in model.parameters())


def test_another_base_is_refused_and_untouched(tmp_path: Path) -> None:
    _, adapter = trained()
    adapter.save(tmp_path)
    other = classifier()
    with torch.no_grad():
        other.model.norm.weight[3] += 1e-3
    before = values_of(other)
    with pytest.raises(ValueError, match="trained on another base model"):
        SpartaAdapter.load(other, tmp_path)
    assert same_values(other, before)
    deeper = classifier(num_hidden_layers=1)
    with pytest.raises(ValueError, match="which this model has not"):
        SpartaAdapter.load(deeper, tmp_path)
    with pytest.raises(ValueError, match="carries a SpaRTA adapter already"):
        SpartaAdapter.load(trained()[0], tmp_path)


def test_the_fingerprint_is_that_of_the_base_however_it_is_trained() -> None:
    _, adapter = trained()
    again = SpartaAdapter(classifier(), 0.5, 1)
    assert adapter.base_fingerprint == again.base_fingerprint
    assert adapter.base_fingerprint != SpartaAdapter(classifier("gemma"), 0.5, 1).base_fingerprint


def test_what_cannot_be_saved_is_told_and_not_written_half(tmp_path: Path) -> None:
    model, adapter = trained()
    adapter.save(tmp_path / "a")
    adapter.detach()
    with pytest.raises(ValueError, match="detached from its model; save it before that"):
        adapter.save(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    again = SpartaAdapter.load(model, tmp_path / "a")
    again.draw = None  # as an adapter of peft-sparta has none
    with pytest.raises(ValueError, match="not drawn from a seed"):
        again.save(tmp_path / "b", compact=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_deltas_of_every_dtype_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    model, adapter = trained(dtype=dtype)
    adapter.detach()
    adapter = SpartaAdapter(model, 0.2, 1, dtype=dtype)
    torch.nn.init.normal_(adapter.deltas[UP])
    adapter.merge()
    adapter.save(tmp_path)
    deltas = adapter.deltas[UP].detach().clone()
    adapter.detach()
    again = SpartaAdapter.load(model, tmp_path)
    assert again.dtype == dtype and torch.equal(again.deltas[UP], deltas)


def test_a_file_in_the_way_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file: cannot be written to"):
        trained()[1].save(tmp_path / "file")


def test_an_adapter_says_what_it_is() -> None:
    _, adapter = trained()
    places = f"{adapter.chosen:,} scalars in {len(adapter.deltas)} tensors"
    assert repr(adapter) == f"SpartaAdapter({places}, 32 in the head, attached)"
    adapter.detach()
    assert repr(adapter).endswith("detached)")


def test_a_base_in_another_dtype_is_not_called_another_base(tmp_path: Path) -> None:
    model, adapter = trained(torch.bfloat16)
    adapter.save(tmp_path / "a")
    fresh = classifier(dtype=torch.float32).eval()
    before = values_of(fresh)
    with pytest.raises(ValueError, match=r"on this base model in torch.bfloat16; convert it first"):
        SpartaAdapter.load(fresh, tmp_path / "a")
    assert same_values(fresh, before)
    SpartaAdapter.load(fresh.to(torch.bfloat16), tmp_path / "a")
    assert torch.equal(fresh(**batch()).logits, model(**batch()).logits)
