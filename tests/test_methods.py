"""What each method trains, how it goes back, and what it leaves on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_models import CPU, FLOAT32, config_for, save_model

from sparta_bench.errors import InputError
from sparta_bench.methods import prepare
from sparta_bench.methods.trained import HEAD, Trained
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.counts import count_parameters, shapes_of
from sparta_bench.models.dtypes import Precision
from sparta_bench.models.load import load_classifier
from sparta_bench.training.optimizer import build_optimizer

METHODS = {
    "head": ["method=head"],
    "full_ft": ["method=full_ft"],
    "lora": ["method=lora", "method.r=2"],
    "sparta": ["method=sparta", "method.density=0.3"],
}
MIXED = Precision(torch.bfloat16, torch.float32)
IDS = torch.tensor([[1, 7, 9, 4], [1, 3, 8, 8]])
MASK = torch.ones_like(IDS)


def make(
    tmp_path: Path, word_tokenizer, name: str, precision: Precision = FLOAT32, *extra: str
) -> tuple[Classifier, Trained]:
    folder = tmp_path / "model"
    if not folder.exists():
        save_model(folder)
    config = config_for(folder, *METHODS[name], *extra)
    classifier = load_classifier(config, word_tokenizer, precision, CPU)
    return classifier, prepare(classifier, config, precision)


def take_steps(
    classifier: Classifier, trained: Trained, steps: int = 3, rate: float = 1e-2
) -> None:
    optimizer = torch.optim.AdamW(trained.groups(0.1), lr=rate)
    for _ in range(steps):
        torch.nn.functional.cross_entropy(classifier(IDS, MASK), torch.tensor([0, 1])).backward()
        optimizer.step()
        optimizer.zero_grad()
        trained.write()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("precision", [FLOAT32, MIXED])
def test_exactly_what_should_train_changes(
    tmp_path: Path, word_tokenizer, name: str, precision: Precision
) -> None:
    classifier, trained = make(tmp_path, word_tokenizer, name, precision)
    before = {key: tensor.detach().clone() for key, tensor in classifier.named_parameters()}
    take_steps(classifier, trained)
    changed = {
        key for key, tensor in classifier.named_parameters() if not torch.equal(tensor, before[key])
    }
    assert HEAD in changed
    body = {key for key in before if key != HEAD}
    expected = {
        "head": set(),
        "full_ft": body,
        "lora": {key for key in body if "lora_" in key},
        "sparta": {key for key in body if "embed_tokens" not in key},
    }[name]
    if precision is MIXED:  # a bfloat16 norm of 1 may not move by 0.03
        expected = {key for key in expected if "norm" not in key}
        changed = {key for key in changed if "norm" not in key}
    assert changed - {HEAD} == expected
    assert all(value.dtype == torch.float32 for value in trained.values.values())
    assert all(value.grad is None for value in classifier.backbone.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_snapshot_brings_every_logit_back(tmp_path: Path, word_tokenizer, name: str) -> None:
    classifier, trained = make(tmp_path, word_tokenizer, name, MIXED)
    classifier.eval()
    take_steps(classifier, trained)
    kept, logits = trained.snapshot(), classifier(IDS, MASK)
    take_steps(classifier, trained)
    assert not torch.equal(classifier(IDS, MASK), logits)
    trained.restore(kept)
    assert torch.equal(classifier(IDS, MASK), logits)


@pytest.mark.parametrize("name", METHODS)
def test_the_head_is_never_decayed(tmp_path: Path, word_tokenizer, name: str) -> None:
    _, trained = make(tmp_path, word_tokenizer, name)
    groups = trained.groups(0.1)
    decay = {id(value): group["weight_decay"] for group in groups for value in group["params"]}
    assert decay.pop(id(trained.values[HEAD])) == 0.0
    assert set(decay.values()) == (set() if name == "head" else {0.1})
    # SpaRTA's deltas are one tensor
    others = {"head": 0, "sparta": 1}.get(name, len(trained.values) - 1)
    assert len(decay) == others


@pytest.mark.parametrize("name", METHODS)
def test_counts_are_what_is_counted(tmp_path: Path, word_tokenizer, name: str) -> None:
    folder = save_model(tmp_path / "model")
    config = config_for(folder, *METHODS[name])
    classifier = load_classifier(config, word_tokenizer, FLOAT32, CPU)
    counts = count_parameters(shapes_of(classifier.backbone), 2, config.method)
    assert counts.total == sum(p.numel() for p in classifier.parameters())
    assert counts.embeddings == 64 * 16 and counts.head == 2 * 16
    trained = prepare(classifier, config, FLOAT32)
    if name == "sparta":
        spread = (counts.sparsifiable * 0.3 * 0.7) ** 0.5
        assert abs(trained.trainable - counts.trainable) < 4 * spread
        assert trained.sampled == trained.trainable - counts.head
    else:
        assert trained.trainable == counts.trainable
        assert trained.sampled is None


def test_float32_copies_keep_updates_that_bfloat16_weights_would_lose(
    tmp_path: Path, word_tokenizer
) -> None:
    classifier, trained = make(tmp_path, word_tokenizer, "full_ft", MIXED)
    name = "backbone.layers.0.mlp.up_proj.weight"
    before = trained.values[name].detach().clone()
    take_steps(classifier, trained, steps=20, rate=1e-6)
    moved = (trained.values[name].detach() - before).abs()
    assert float(moved.mean()) > 5e-6  # 20 steps of about 1e-6
    weight = classifier.get_parameter(name)
    assert torch.equal(weight, trained.values[name].to(torch.bfloat16))


def test_sparta_reports_what_rounding_swallows(tmp_path: Path, word_tokenizer) -> None:
    classifier, trained = make(tmp_path, word_tokenizer, "sparta", MIXED)
    take_steps(classifier, trained, steps=1, rate=1e-6)
    lost = trained.lost_to_rounding()
    assert lost is not None and 0.5 < lost <= 1
    assert make(tmp_path, word_tokenizer, "lora")[1].lost_to_rounding() is None


@pytest.mark.parametrize("name", ["lora", "sparta"])
def test_merging_for_good_keeps_the_logits(tmp_path: Path, word_tokenizer, name: str) -> None:
    classifier, trained = make(tmp_path, word_tokenizer, name)
    classifier.eval()
    take_steps(classifier, trained)
    logits = classifier(IDS, MASK)
    trained.merge_and_unload()
    torch.testing.assert_close(classifier(IDS, MASK), logits, rtol=1e-5, atol=1e-6)
    assert not any("lora_" in key for key in classifier.state_dict())


def test_modules_that_are_not_there_are_refused(tmp_path: Path, word_tokenizer) -> None:
    with pytest.raises(InputError, match=r"method\.targets"):
        make(tmp_path, word_tokenizer, "lora", FLOAT32, "method.targets=[query]")
    with pytest.raises(InputError, match=r"method\.targets"):
        make(tmp_path, word_tokenizer, "sparta", FLOAT32, "method.targets=[query]")


def test_the_bfloat16_preset_trains_the_weights_themselves(tmp_path: Path, word_tokenizer) -> None:
    pure = Precision(torch.bfloat16, torch.bfloat16)
    folder = save_model(tmp_path / "model")
    config = config_for(folder, "method=full_ft", "train.trained_dtype=bfloat16")
    classifier = load_classifier(config, word_tokenizer, pure, CPU)
    trained = prepare(classifier, config, pure)
    assert trained.values["backbone.norm.weight"] is classifier.get_parameter(
        "backbone.norm.weight"
    )
    optimizer = build_optimizer(trained.groups(0.0), config.train)
    torch.nn.functional.cross_entropy(classifier(IDS, MASK), torch.tensor([0, 1])).backward()
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    before = classifier.backbone.layers[0].mlp.up_proj.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(classifier.backbone.layers[0].mlp.up_proj.weight, before)
    state = optimizer.state[trained.values["backbone.norm.weight"]]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["lora", "sparta"])
def test_what_trains_is_drawn_from_the_runs_seed(tmp_path: Path, word_tokenizer, name: str) -> None:
    drawn = []
    for seed in (0, 1, 1):
        _, trained = make(tmp_path, word_tokenizer, name, FLOAT32, f"seed={seed}")
        if name == "sparta":
            drawn.append(trained.sparta.checksum())
        else:
            values = trained.snapshot().items()
            drawn.append([value.tolist() for key, value in values if "lora_A" in key])
    assert drawn[0] != drawn[1] == drawn[2] != []
