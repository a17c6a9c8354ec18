"""`sparta-bench ranks` on what this project trains: adapters, and the whole models of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import backbone
from test_predict import local_run
from test_ranks_command import ranks, refused
from torch import Tensor

from sparta_bench.adapters.export import bake, export
from sparta_bench.adapters.load_adapter import load
from sparta_bench.sparta import SpartaAdapter

BF16 = ("model.dtype=bfloat16", "train.max_steps=2")


def edited(
    folder: Path,
    to: Path,
    tensors: Callable[[dict[str, Tensor]], None] = lambda tensors: None,
    **config: Any,
) -> str:
    """A copy of an adapter with other tensors and settings, as a program could have written it."""
    shutil.copytree(folder, to)
    path = to / "adapter.safetensors"
    values = load_file(path)
    tensors(values)
    save_file(values, path)
    about = json.loads((to / "adapter_config.json").read_text())
    about |= {"tensors_sha256": hashlib.sha256(path.read_bytes()).hexdigest()} | config
    about = {key: value for key, value in about.items() if value != "left out"}
    (to / "adapter_config.json").write_text(json.dumps(about))
    return str(to)


# ---------------------------------------------------------------------------- what is found
def test_methods_side_by_side(capsys: pytest.CaptureFixture[str], trained: Any) -> None:
    methods = ("sparta", "lora", "head", "full_ft")
    rows, notes = ranks(capsys, "tiny-gemma", *(str(trained(method)[2]) for method in methods))
    assert len(rows) == 4 * 29
    of = {(row["tuned"], row["name"].removeprefix("model.")): row for row in rows}
    names = [name for tuned, name in of if tuned == "head"]
    assert len(names) == 29
    deltas = load_file(trained("sparta")[2] / "adapter.safetensors")
    for name in names:
        sparta, lora = of["sparta 0.05", name], of["lora r=8", name]
        here = deltas.get(f"{name}.deltas", torch.zeros(0))
        # a delta below half a unit in the last place is lost
        assert 0.98 * len(here) <= sparta["changed_scalars"] <= int(here.count_nonzero())
        assert sparta["rank"] <= sparta["changed_rows"]
        assert lora["rank"] == (8 if "q_proj" in name or "v_proj" in name else 0)
        assert of["head", name]["rank"] == of["head", name]["changed_scalars"] == 0
        if "mlp" in name:
            assert sparta["deficiency"] == 0
            assert of["full_ft", name]["rank"] > 50
    assert of["sparta 0.05", "embed_tokens.weight"]["rank"] == 0
    seen = of["full_ft", "embed_tokens.weight"]["changed_rows"]  # tokens of 200 texts
    assert 64 < seen < 303
    assert [note for note in notes if "rows" in note or "only here" in note] == [
        "sparta 0.05, lora r=8, head: left out, only here: head.weight",
        "full_ft: left out, only here: score.weight",
        f"full_ft: model.embed_tokens.weight changed in {seen} of its 303 rows",
    ]


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("sparta", ()),
        ("sparta_vo", ()),
        ("lora", ()),
        ("head", ()),
        ("sparta", BF16),
        ("lora", BF16),
    ],
)
def test_an_adapter_has_the_ranks_of_its_baked_model(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    trained: Any,
    method: str,
    overrides: tuple[str, ...],
) -> None:
    folder = trained(method, *overrides)[2]
    bake(folder, tmp_path / "baked")
    of_adapter, _ = ranks(capsys, "tiny-gemma", str(folder))
    of_whole, _ = ranks(capsys, "tiny-gemma", str(tmp_path / "baked"))
    labels = {"sparta": "sparta 0.05", "sparta_vo": "sparta 0.005", "lora": "lora r=8"}
    assert {row.pop("tuned") for row in of_adapter} == {labels.get(method, method)}
    assert {row.pop("tuned") for row in of_whole} == {method.partition("_")[0]}
    assert of_adapter == of_whole
    if overrides and method == "lora":
        q_proj = [row for row in of_adapter if "q_proj" in row["name"]]
        assert all(row["rank"] > 8 >= row["rank_above_rounding"] for row in q_proj)


def test_rows_of_an_adapter_do_not_depend_on_the_block(trained: Any) -> None:
    from sparta_bench.analysis.ranks.spectrum import TunedModel
    from sparta_bench.models.stored_tensors import open_checkpoint

    base = open_checkpoint("tiny-gemma")
    for method in ("sparta", "lora"):
        tuned = TunedModel(str(trained(method)[2]), base)
        for name in ("layers.1.self_attn.q_proj.weight", "layers.2.self_attn.v_proj.weight"):
            rows = tuned.shapes[name][0]
            whole = tuned.pair(name, 0, rows)[1]
            parts = [tuned.pair(name, start, start + 5)[1] for start in range(0, rows, 5)]
            # LoRA's product may differ in its last bit
            assert torch.allclose(torch.cat(parts), whole, rtol=0, atol=1e-7 * (method == "lora"))
            assert not torch.equal(whole, tuned.pair(name, 0, rows)[0])


def test_an_adapter_that_a_script_saved(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = backbone(dtype=torch.float32)
    model.save_pretrained(tmp_path / "base")
    adapter = SpartaAdapter(model, density=0.3, seed=1)
    for deltas in adapter.deltas.values():
        deltas.data.fill_(0.5)
    adapter.save(tmp_path / "own")
    rows, _ = ranks(capsys, str(tmp_path / "base"), str(tmp_path / "own"))
    changed = {row["name"]: row["changed_scalars"] for row in rows if row["changed_scalars"]}
    assert changed == {
        name: deltas.numel() for name, deltas in adapter.deltas.items() if name in changed
    }
    assert len(changed) == 14 and {row["tuned"] for row in rows} == {"sparta 0.3"}


def test_an_added_token_leaves_the_base_unchecked(
    capsys: pytest.CaptureFixture[str], trained: Any
) -> None:
    pairs = ("model=tiny-mistral", "task=tiny-rte", "task.separator=sep_token")
    rows, notes = ranks(capsys, "tiny-mistral", str(trained("sparta", *pairs)[2]))
    assert any(row["rank"] for row in rows)
    assert notes[0] == (
        "sparta 0.05: the run may have added a token's row to the embedding, so that its base "
        "cannot be checked"
    )


def test_a_whole_model_of_another_base_is_told(
    capsys: pytest.CaptureFixture[str], trained: Any
) -> None:
    folder = str(trained("full_ft")[2])
    _, notes = ranks(capsys, "tiny-gemma-it", folder)
    assert notes[0] == "full_ft: was trained on tiny-gemma, by its classifier_config.json"
    known, _ = ranks(capsys, "tiny-gemma", folder)
    unknown, _ = ranks(capsys, "tiny-gemma", f"{folder}/model.safetensors")
    # the base's own rounding counts where it is not known that training began with these values
    assert all(
        a["rounding_noise"] < b["rounding_noise"] for a, b in zip(known, unknown, strict=True)
    )


# --------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize("method", ["sparta", "lora", "head"])
def test_an_adapter_of_another_base(
    capsys: pytest.CaptureFixture[str], trained: Any, method: str
) -> None:
    folder = trained(method)[2]
    (told,) = refused(capsys, "tiny-gemma-it", str(folder))
    expected = json.loads((folder / "adapter_config.json").read_text())["base_fingerprint"]
    start = f"{folder}: was trained on another base model: the fingerprint of its weights is "
    assert told.startswith(f"{start}{expected}, and tiny-gemma-it has ")


def test_an_adapter_on_a_base_in_a_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, word_tokenizer: Any
) -> None:
    folder, base = local_run(tmp_path, word_tokenizer, "method=sparta")
    rows, _ = ranks(capsys, str(base), str(folder))
    assert any(row["rank"] for row in rows)
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, base / "model.safetensors")
    assert "was trained on another base model" in refused(capsys, str(base), str(folder))[0]


def test_compact_and_the_authors_adapters_are_to_be_baked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trained: Any
) -> None:
    folder = trained("sparta")[2]
    loaded = load(folder, None, None)
    assert loaded.sparta is not None
    about = {k: v for k, v in loaded.about.as_dict().items() if k not in ("method", "density")}
    small = tmp_path / "compact"
    loaded.sparta.save(small, compact=True, about=about)
    (told,) = refused(capsys, "tiny-gemma", str(small))
    assert told == (
        f"{small}: is compact: it holds the seed of its indices, which are drawn on a model; "
        f"`sparta-bench merge bake {small} --out DIR` makes a whole model of it"
    )
    bake(small, tmp_path / "baked")
    theirs = tmp_path / "theirs"
    export(folder, theirs, "some/base")
    (told,) = refused(capsys, "tiny-gemma", str(theirs))
    assert told == (
        f"{theirs}: an adapter of peft-sparta, which does not say what its base was; "
        f"`sparta-bench merge bake {theirs} --out DIR` makes a whole model of it"
    )
    rows, _ = ranks(capsys, "tiny-gemma", str(folder))
    baked, _ = ranks(capsys, "tiny-gemma", str(tmp_path / "baked"))
    assert [row["rank"] for row in rows] == [row["rank"] for row in baked]


def drop(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.__delitem__(name)


def put(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: value})


Q_PROJ = "layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("method", "change", "config", "line"),
    [
        ("sparta", drop(f"{Q_PROJ}.weight.deltas"), {}, ": layers.0.self_attn.q_proj.weight has "
         "not one delta for each index"),
        ("sparta", drop(f"{Q_PROJ}.weight.indices"), {}, ": layers.0.self_attn.q_proj.weight has "
         "deltas and no indices"),
        ("sparta", put("x.indices", torch.zeros(1, dtype=torch.int32)), {}, ": the adapter trains "
         "x, which this model has not"),
        ("sparta", put(f"{Q_PROJ}.weight.indices", torch.tensor([4096], dtype=torch.int32)), {},
         ": the indices of layers.0.self_attn.q_proj.weight do not lie in its shape (64, 64)"),
        ("sparta", lambda t: None, {"method": {"name": "full_ft"}}, "/adapter_config.json: "
         "'full_ft' is missing or of another kind"),
        ("sparta", lambda t: None, {"method": "sparta"}, "/adapter_config.json: "),
        ("sparta", lambda t: None, {"compact": "left out"}, "/adapter_config.json: 'compact' is "
         "missing or of another kind"),
        ("sparta", lambda t: None, {"dtypes": {"model": "int3", "trained": "float32"}},
         "/adapter_config.json: "
         "dtypes.model=int3: must be"),
        ("sparta", lambda t: None, {"format": 1}, "/adapter_config.json: format is 1, and this "
         "version reads 2"),
        ("sparta", lambda t: None, {"tensors_sha256": "0"}, "/adapter.safetensors: cut short or "
         "changed since adapter_config.json was written"),
        ("lora", drop(f"{Q_PROJ}.lora_A.default.weight"), {}, f": {Q_PROJ}.weight has no two "
         "factors of rank 8"),
        ("lora", put(f"{Q_PROJ}.lora_A.default.weight", torch.ones(7, 64)), {}, f": {Q_PROJ}"
         ".weight has no two factors of rank 8"),
        ("lora", put(f"{Q_PROJ}.lora_A.default.weight", torch.ones(8, 65)), {}, f": changes "
         f"{Q_PROJ}.weight of shape (64, 65), and the base has (64, 64)"),
        ("lora", lambda t: t.update({f"x.lora_{s}.default.weight": torch.ones(8, 8) for s in "AB"}),
         {}, ": changes x.weight of shape (8, 8), and the base has no such matrix"),
        ("lora", put("x", torch.ones(2)), {}, ": x is no factor of a linear layer's change"),
        ("lora", put(f"{Q_PROJ}.lora_A.default.weight", torch.ones(0, 64)), {}, f": {Q_PROJ}"
         ".weight has no two factors of rank 8"),
        ("lora", lambda t: None, {"method": {"name": "lora", "r": 8, "alpha": "x",
         "targets": ["q_proj"],
         "lora_dropout": 0.0}}, "/adapter_config.json: method.alpha=x: must be"),
        ("lora", put(f"{Q_PROJ}.lora_A.default.weight", torch.full((8, 64), torch.nan)), {},
         f"/adapter.safetensors: {Q_PROJ}.lora_A.default.weight does not hold finite numbers"),
    ],
)  # fmt: skip
def test_broken_adapters(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    trained: Any,
    method: str,
    change: Callable[[dict[str, Tensor]], None],
    config: dict[str, Any],
    line: str,
) -> None:
    broken = edited(trained(method)[2], tmp_path / "broken", change, **config)
    told = refused(capsys, "tiny-gemma", broken)
    assert told[-1].startswith(f"{broken}{line}")


def test_a_whole_model_with_a_broken_description(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trained: Any
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained("full_ft")[2], folder)
    (folder / "classifier_config.json").write_text('{"method": 5}')
    (told,) = refused(capsys, "tiny-gemma", str(folder))
    assert told == (
        f"{folder}/classifier_config.json: not of the format 2, which this version reads"
    )
