"""Adapters of the authors' package, both ways, with the package itself."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import SMALL
from test_cli import call
from test_models import save_model
from test_predict import local_run, predictions, refusal
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from sparta_bench.adapters.export import bake, export
from sparta_bench.adapters.load_adapter import load
from sparta_bench.errors import InputError
from sparta_bench.sparta import SpartaAdapter
from sparta_bench.sparta import peft_sparta as layout

peft_sparta = pytest.importorskip("peft_sparta")
TEXTS = ["good film", "bad film the", "Respond or Entail . good", "", "a b c d e"]


@pytest.fixture
def base(tmp_path: Path, word_tokenizer: Any) -> Path:
    """A bfloat16 base with as many embeddings as tokens, which their loader insists on."""
    folder = tmp_path / "my-base"
    torch.manual_seed(0)
    shape = SMALL | {"vocab_size": len(word_tokenizer), "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model("mistral", **shape, num_labels=2, tie_word_embeddings=False)
    model = AutoModelForSequenceClassification.from_config(config).to(torch.bfloat16)
    model.model.save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    return folder


def theirs_from(folder: Path, **how: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft_sparta.SpaRTAforSequenceClassification(str(folder), **how)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in model.named_parameters()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def plain(folder: Path, base: Path | None, **how: Any) -> Any:
    loaded = load(folder, base and str(base), None, **how)
    loaded.merge_and_unload()
    return loaded


# ----------------------------------------------------------------------------- ours to theirs
def exported(tmp_path: Path, word_tokenizer: Any, base: Path) -> tuple[Path, Path]:
    settings = ["method=sparta", "model.dtype=bfloat16", "train.learning_rate=0.01"]
    adapter, _ = local_run(tmp_path, word_tokenizer, *settings)
    out = tmp_path / "exported"
    line = export(adapter, out, str(base), str(base))
    assert line.endswith(f"deltas and the head, on {base}"), line
    return adapter, out


def test_an_exported_adapter_works_in_their_package(
    tmp_path: Path, word_tokenizer: Any, base: Path
) -> None:
    adapter, out = exported(tmp_path, word_tokenizer, base)
    ours = plain(adapter, base)
    theirs = theirs_from(out)
    assert same(weights(theirs.base_model), weights(ours.classifier.backbone))
    assert not same(weights(theirs.base_model), weights(load_base(base)))
    assert torch.equal(theirs.head.weight, ours.classifier.head_weight)
    assert set(theirs.id2label.values()) == {"negative", "positive"}
    mine = predictions(adapter, TEXTS, base=str(base))
    assert theirs.decide_class(TEXTS) == [one.label for one in mine]
    told = torch.tensor([list(one.probabilities.values()) for one in mine])
    torch.testing.assert_close(theirs.classify(TEXTS), told, rtol=0, atol=0.01)


def load_base(base: Path) -> Any:
    return AutoModel.from_pretrained(base, dtype=torch.bfloat16)


def test_a_model_that_is_loaded_already_is_used(
    tmp_path: Path, word_tokenizer: Any, base: Path
) -> None:
    adapter, out = exported(tmp_path, word_tokenizer, base)
    whole = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.bfloat16)
    theirs = theirs_from(out, model=whole)
    assert theirs.base_model is whole.model
    assert same(weights(whole.model), weights(plain(adapter, base).classifier.backbone))


def test_every_parameter_of_the_base_has_an_entry_and_nothing_else(
    tmp_path: Path, word_tokenizer: Any, base: Path
) -> None:
    _, out = exported(tmp_path, word_tokenizer, base)
    names = {f"model.{name}" for name in weights(load_base(base))} | {"score.weight"}
    tensors = load_file(out / "sparse_deltas.safetensors")
    assert set(tensors) == {f"{kind}.{name}" for kind in ("indices", "deltas") for name in names}
    assert tensors["indices.model.embed_tokens.weight"].shape == (0, 2)
    assert {t.dtype for name, t in tensors.items() if name.startswith("i")} == {torch.int32}
    config = json.loads((out / "config.json").read_text())
    assert config["problem_type"] == "single_label_classification"
    assert config["sparta_pretrained_model"] == str(base)


def test_an_export_comes_back_as_it_was(tmp_path: Path, word_tokenizer: Any, base: Path) -> None:
    adapter, out = exported(tmp_path, word_tokenizer, base)
    one, two = plain(adapter, base), plain(out, base)
    assert same(weights(one.classifier), weights(two.classifier))
    assert two.about.labels == one.about.labels
    again = export(out, tmp_path / "again", str(base), str(base))
    assert "deltas and the head" in again
    left, right = (load_file(f / "sparse_deltas.safetensors") for f in (out, tmp_path / "again"))
    assert same(left, right)


def test_the_export_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trained: Any
) -> None:
    out = tmp_path / "out"
    to = ["--layout", "peft-sparta", "--out", str(out), "--base-name", "me/base"]
    folder = str(trained("sparta")[2])
    code, told, err = call(capsys, "merge", "export", folder, *to)
    assert (code, err) == (0, [])
    assert told.startswith(f"{out}: 9,485 deltas and the head, on me/base; peft-sparta loads")
    assert call(capsys, "merge", "export", folder, *to)[0] == 2, "it is not empty any more"
    to.append("--force")
    assert call(capsys, "merge", "export", folder, *to)[0] == 0
    code, _, err = call(capsys, "merge", "export", str(trained("lora")[2]), *to)
    assert code == 2 and "an adapter of lora; this layout is for SpaRTA's" in err[0]
    pairs = ("model=tiny-mistral", "task=tiny-rte", "task.separator=sep_token")
    code, _, err = call(capsys, "merge", "export", str(trained("sparta", *pairs)[2]), *to)
    assert code == 2 and err[0].endswith("was trained with an added token, which is not exported")


def test_a_base_that_their_loader_refuses_is_told_of(tmp_path: Path, word_tokenizer: Any) -> None:
    base = save_model(tmp_path / "my-base")
    word_tokenizer.save_pretrained(base)
    adapter, _ = local_run(tmp_path, word_tokenizer, "method=sparta")
    line = export(adapter, tmp_path / "out", str(base), str(base))
    assert "will refuse it, because the tokenizer has 24 tokens and the model 64" in line
    with pytest.raises(AssertionError):
        theirs_from(tmp_path / "out")


# ----------------------------------------------------------------------------- theirs to ours
def trained_by_them(folder: Path, base: Path, end: str) -> dict[str, torch.Tensor]:
    """A few steps with their class, saved as their trainer does; the merged weights."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, dtype=torch.bfloat16, num_labels=2, id2label={0: "bad", 1: "good"}, pad_token_id=1
    )
    model.config.problem_type = "single_label_classification"
    wrapped = peft_sparta.SpaRTA(model, sparsity=0.9, frozen_modules=["embed_tokens", "norm"])
    optimizer = torch.optim.AdamW(list(wrapped.parameters()), lr=1e-2)
    for step in range(3):
        ids = torch.randint(3, 24, (4, 6), generator=torch.Generator().manual_seed(step))
        wrapped(input_ids=ids, labels=torch.tensor([0, 1, 1, 0])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder.mkdir()
    wrapped.eval()
    wrapped.save(str(folder), merged=False)
    start = wrapped.get_init_param(model.score.weight).data
    if end == "pt":
        torch.save(start, folder / "head_init.pt")
        spelt = load_file(folder / "sparse_deltas.safetensors")
        nested = {
            kind: {name.partition(".")[2]: t for name, t in spelt.items() if name.startswith(kind)}
            for kind in ("indices", "deltas")
        }
        torch.save(nested, folder / "sparse_deltas.pt")
        (folder / "sparse_deltas.safetensors").unlink()
    else:
        save_file({"head": start}, folder / "head_init.safetensors")
    return {name: tensor.clone() for name, tensor in weights(model.model).items()}


@pytest.mark.parametrize("end", ["pt", "safetensors"])
def test_an_adapter_of_theirs_gives_the_same_weights(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: Path, end: str
) -> None:
    folder = tmp_path / "theirs"
    merged = trained_by_them(folder, base, end)
    loaded = plain(folder, base, allow_pickle=True)
    theirs = theirs_from(folder)
    capsys.readouterr()
    assert same(weights(loaded.classifier.backbone), merged)
    assert same(weights(theirs.base_model), merged)
    assert not same(weights(load_base(base)), merged)
    assert torch.equal(loaded.classifier.head_weight, theirs.head.weight)
    assert loaded.about.labels == ["bad", "good"]
    assert loaded.about.dtypes["model"] == "bfloat16"
    words = [word for word in TEXTS if word]
    code, out, err = call(
        capsys, "predict", str(folder), "--base", str(base), "--allow-pickle", *words
    )
    assert code == 0 and len(err) == 1 and "computes in float32, training computed in b" in err[0]
    assert [line.split("\t")[0] for line in out.splitlines()] == theirs.decide_class(words)
    told = bake(folder, tmp_path / "whole", str(base), allow_pickle=True)
    assert told.startswith(f"{tmp_path}/whole: ")
    for file in (tmp_path / "whole").glob("*.json"):
        assert str(tmp_path) not in file.read_text(), file.name
    assert call(capsys, "predict", str(tmp_path / "whole"), *words)[:2] == (0, out)


def test_a_pickle_is_refused_unless_allowed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: Path
) -> None:
    folder = tmp_path / "theirs"
    trained_by_them(folder, base, "pt")
    capsys.readouterr()
    code, out, err = call(capsys, "predict", str(folder), "--base", str(base), "good film")
    assert (code, out) == (2, "")
    assert err == [
        f"sparta-bench: {folder}/sparse_deltas.pt: a pickle, which is read only where that is "
        "allowed (allow_pickle=True, --allow-pickle)"
    ]
    torch.save({"indices": Path}, folder / "sparse_deltas.pt")
    with pytest.raises(InputError, match=r"sparse_deltas\.pt: cannot be read: Weights only load"):
        load(folder, str(base), None, allow_pickle=True)


def change(make: Callable[[torch.Tensor], torch.Tensor], *names: str) -> Callable[[Path], None]:
    def broken(folder: Path) -> None:
        tensors = load_file(folder / "sparse_deltas.safetensors")
        tensors |= {name: make(tensors[name]).contiguous() for name in names}
        save_file(tensors, folder / "sparse_deltas.safetensors")

    return broken


def config_without(key: str) -> Callable[[Path], None]:
    def broken(folder: Path) -> None:
        path = folder / layout.CONFIG
        config = json.loads(path.read_text())
        del config[key]
        path.write_text(json.dumps(config))

    return broken


V_PROJ = "model.layers.0.self_attn.v_proj.weight"
BREAKS: dict[str, Callable[[Path], None]] = {
    "has not one delta for each index": change(lambda t: t[1:], f"deltas.{V_PROJ}"),
    f"{V_PROJ} has deltas and no indices": change(lambda t: t[:0], f"indices.{V_PROJ}"),
    "its coordinates do not lie in its shape (8, 16)": change(lambda t: t + 8, f"indices.{V_PROJ}"),
    "the adapter's head is none": change(
        lambda t: t[:0], "indices.score.weight", "deltas.score.weight"
    ),
    "no sparta_pretrained_model in it": config_without("sparta_pretrained_model"),
    "no id2label in it": config_without("id2label"),
    "head_init.pt: cannot be read": lambda f: (f / "head_init.safetensors").unlink(),
    "no head in head_init": lambda f: save_file({"x": torch.ones(1)}, f / "head_init.safetensors"),
    "added tokens are not supported": lambda f: (f / "new_embeddings_init.pt").touch(),
    "config.json: cannot be read": lambda f: (f / "config.json").write_text("{") and None,
    "sparse_deltas.safetensors: cannot be read": lambda f: (
        (f / "sparse_deltas.safetensors").write_bytes(b"x") and None
    ),
}


def test_a_pickled_head_may_lie_in_memory_in_another_order(tmp_path: Path, base: Path) -> None:
    folder = tmp_path / "theirs"
    trained_by_them(folder, base, "safetensors")
    expected = plain(folder, base).classifier.head_weight
    start = load_file(folder / "head_init.safetensors")["head"]
    (folder / "head_init.safetensors").unlink()
    torch.save(start.T.contiguous().T, folder / "head_init.pt")
    found = plain(folder, base, allow_pickle=True).classifier.head_weight
    assert torch.equal(found, expected)


def test_a_detached_adapter_is_not_written_as_one_that_changed_nothing(tmp_path: Path) -> None:
    model = AutoModel.from_config(AutoConfig.for_model("mistral", **SMALL))
    adapter = SpartaAdapter(model, 0.1, 0)
    adapter.detach()
    with pytest.raises(ValueError, match="the adapter is detached from its model; export it"):
        of_adapter = adapter.backbone, adapter.indices, adapter.deltas
        layout.write(*of_adapter, torch.zeros(2, 16), tmp_path, "base", ["no", "yes"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("told", BREAKS)
def test_broken_files_are_told_in_one_line(tmp_path: Path, base: Path, told: str) -> None:
    folder = tmp_path / "theirs"
    trained_by_them(folder, base, "safetensors")
    BREAKS[told](folder)
    line = refusal(folder, str(base))
    assert told in line and str(folder) in line


def test_a_base_in_a_folder_is_asked_for(tmp_path: Path, base: Path) -> None:
    folder = tmp_path / "theirs"
    merged = trained_by_them(folder, base, "safetensors")
    line = (
        f"{folder}: was trained on the base model in {base}, and no folder that an adapter names "
        "is opened; say with --base DIR where it is"
    )
    assert refusal(folder) == line
    moved = base.rename(tmp_path / "moved")
    assert refusal(folder) == line
    assert same(weights(plain(folder, moved).classifier.backbone), merged)
