"""Each token once: a shared prefix and the last layer's last token give what the whole gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import SMALL, backbone
from torch import Tensor, nn

from sparta_bench.config.schema import LoraConfig
from sparta_bench.data.tokenize import TokenRows, shared_prefix_length
from sparta_bench.methods.lora import wrap_in_lora
from sparta_bench.models.classifier import (
    Classifier,
    checkpoint_gradients,
    logits_of,
    random_head,
)
from sparta_bench.models.dtypes import Precision
from sparta_bench.models.packed_attention import Layout, knows_last_layer
from sparta_bench.models.tokens_once import (
    TokensOnce,
    cannot_share,
    disagreement,
    tokens_once,
)
from sparta_bench.sparta import SpartaAdapter

PREFIX = 6
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gemma": {},
    "mistral": {"sliding_window": 4},  # shorter than the prefix
    "llama": {"num_key_value_heads": 2},
    "qwen2": {},
    "gemma2": {"sliding_window": 4, "attn_implementation": "eager"},
}
WAYS = [(PREFIX, False), (0, True), (PREFIX, True)]


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and eager attention, which transformers computes in float32, in float64 as well."""
    for name in ("float", "float32"):
        monkeypatch.setattr(torch, name, torch.float64)
    monkeypatch.setattr(Tensor, "float", Tensor.double)


def classifier(model_type: str = "mistral", **extra: Any) -> Classifier:
    made = Classifier(
        backbone(model_type, **ARCHITECTURES.get(model_type, {}) | extra),
        random_head(2, SMALL["hidden_size"], 0).double(),
    )
    return made.train()


def batch(lengths: tuple[int, ...] = (9, 7, 12, 8), prefix: int = PREFIX) -> dict[str, Tensor]:
    """Inputs of these lengths that share `prefix` tokens, padded on the right."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 60, (len(lengths), max(lengths)), generator=draw)
    ids[:, :prefix] = ids[0, :prefix].clone()
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "labels": torch.arange(len(lengths)) % 2,
    }


def outputs(model: Classifier, once: TokensOnce, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Features and the gradients of all that trains, by name."""
    model.zero_grad()
    states = once.pooled(model.backbone, inputs["input_ids"], inputs["attention_mask"])
    F.cross_entropy(logits_of(states, model.head_weight), inputs["labels"]).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"features": states.detach(), **{name: grad.clone() for name, grad in grads.items()}}


def assert_same(model: Classifier, once: TokensOnce, inputs: dict[str, Tensor]) -> None:
    whole, mine = outputs(model, TokensOnce(), inputs), outputs(model, once, inputs)
    assert whole.keys() == mine.keys()
    wrong = {
        name: float((mine[name] - tensor).norm() / tensor.norm())
        for name, tensor in whole.items()
        if not (mine[name] - tensor).norm() <= 1e-10 * tensor.norm()
    }
    assert wrong == {}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_all_gradients_of_full_fine_tuning_are_the_same(
    model_type: str, way: tuple[int, bool], checkpointing: bool, attention: str
) -> None:
    model = classifier(model_type, **{"attn_implementation": attention} | ARCHITECTURES[model_type])
    if checkpointing:
        checkpoint_gradients(model.backbone)
    assert_same(model, TokensOnce(*way), batch())


@pytest.mark.parametrize("gradient", ["dense", "sampled"])
@pytest.mark.parametrize("density", [0.5, 0.05, 0.01])
@pytest.mark.parametrize("model_type", ["gemma", "mistral"])
def test_spartas_gradients_are_the_same(model_type: str, density: float, gradient: str) -> None:
    model = classifier(model_type)
    SpartaAdapter(model, density, 0, dtype=torch.float64, gradient=gradient)
    for way in WAYS:
        assert_same(model, TokensOnce(*way), batch())


@pytest.mark.parametrize("model_type", ["gemma", "qwen2"])
def test_loras_gradients_are_the_same(model_type: str) -> None:
    model = classifier(model_type).requires_grad_(False)
    settings = LoraConfig("lora", 2, 4.0, ["q_proj", "v_proj", "down_proj"], lora_dropout=0.0)
    wrap_in_lora(model, settings, Precision(torch.float64, torch.float64))
    for name, value in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value)
    for way in WAYS:
        assert_same(model, TokensOnce(*way), batch())


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize(
    ("lengths", "prefix"),
    [((11,), PREFIX), ((7,), PREFIX), ((7, 7, 7), PREFIX), ((7, 12), PREFIX), ((2, 3), 1)],
    ids=["one input", "one input, one token left", "one token left", "unequal", "prefix of one"],
)
def test_other_batches_are_the_same(
    lengths: tuple[int, ...], prefix: int, way: tuple[int, bool]
) -> None:
    once = TokensOnce(prefix if way[0] else 0, way[1])
    for model_type in ("mistral", "gemma"):
        assert_same(classifier(model_type), once, batch(lengths, prefix))


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ((PREFIX, False), [[6 + 4 * 6, 6 + 4 * 6], [7, 7]]),
        ((0, True), [[4 * 12, 4], [7, 1]]),
        ((PREFIX, True), [[6 + 4 * 6, 4], [7, 1]]),
    ],
    ids=str,
)
def test_each_layer_computes_the_prefix_once_and_the_last_one_a_token_of_each_input(
    way: tuple[int, bool], expected: list[list[int]]
) -> None:
    model = classifier("gemma")
    calls: list[int] = []
    for layer in model.backbone.layers:  # type: ignore[union-attr]
        layer.mlp.register_forward_hook(  # type: ignore[union-attr]
            lambda module, args, out: calls.append(out.shape[:2].numel())
        )
    found = []
    for inputs in (batch(), batch((7,))):
        outputs(model, TokensOnce(*way), inputs)
        found.append(calls.copy())
        calls.clear()
    assert found == expected


def test_with_dropout_only_evaluation_shares() -> None:
    model, calls = classifier(), []
    model.backbone.layers[0].mlp.register_forward_hook(  # type: ignore[index, union-attr]
        lambda module, args, out: calls.append(tuple(out.shape[:2]))
    )
    for mode in (True, False):
        outputs(model.train(mode), TokensOnce(PREFIX, in_training=False), batch())
    assert calls == [(4, 12), (1, PREFIX + 4 * 6)]


def test_without_shortcuts_a_pass_is_todays_bit_for_bit_also_where_the_layer_was_cut() -> None:
    model, inputs = classifier(), batch()
    before = outputs(model, TokensOnce(), inputs)
    outputs(model, TokensOnce(PREFIX, True), inputs)
    after = outputs(model, TokensOnce(), inputs)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert len(model.backbone.layers[-1]._forward_pre_hooks) == 1  # type: ignore[index, union-attr, arg-type]


def test_the_last_layer_computes_one_token_for_each_input() -> None:
    model = classifier("gemma")
    rows: dict[str, list[int]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, out: rows.setdefault(name, []).append(out.shape[1])

    for name, module in model.backbone.named_modules():
        if name.startswith(("layers.1.mlp.", "layers.1.self_attn.")) or name == "norm":
            module.register_forward_hook(note(name.rpartition(".")[2]))
    outputs(model, TokensOnce(0, True), batch())
    one = {name: [4] for name in ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norm")}
    assert {name: rows[name] for name in one} == one
    assert rows["k_proj"] == rows["v_proj"] == [4 * 12, 4]


@pytest.mark.parametrize("way", [(PREFIX, False), (0, True)], ids=str)
def test_inputs_that_are_not_as_promised_are_refused(way: tuple[int, bool]) -> None:
    model, good = classifier(), batch()
    left = {name: good[name].flip(1) for name in ("input_ids", "attention_mask")}
    other = good["input_ids"].clone()
    other[1, PREFIX - 1] += 1
    wrong = [left]
    if way[0]:
        wrong += [good | {"input_ids": other}, batch((PREFIX, 9))]
    for inputs in wrong:
        with pytest.raises(RuntimeError, match="inputs that do not share"):
            TokensOnce(*way).pooled(model.backbone, inputs["input_ids"], inputs["attention_mask"])


@pytest.mark.parametrize(
    ("model_type", "extra", "why"),
    [
        ("mamba", {}, "MambaModel's attention is not transformers' common one"),
        (
            "gemma2",
            {"use_bidirectional_attention": True},
            "Gemma2Model's tokens see the tokens after them",
        ),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "dynamic",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                }
            },
            "LlamaModel's positions depend on the length of the input",
        ),
    ],
)
def test_architectures_that_cannot_share_say_why(
    model_type: str, extra: dict[str, Any], why: str
) -> None:
    attention = {"attn_implementation": "eager"} if model_type != "llama" else {}
    assert cannot_share(backbone(model_type, **attention | extra)) == why


@pytest.mark.parametrize("model_type", [*ARCHITECTURES, "qwen3", "phi3", "gpt_neox", "gpt2", "opt"])
def test_architectures_share_and_the_check_agrees(model_type: str) -> None:
    model = classifier(model_type, pad_token_id=0, word_embed_proj_dim=16)
    assert cannot_share(model.backbone) is None
    assert knows_last_layer(model.backbone) == (model_type in ARCHITECTURES)
    once = TokensOnce(PREFIX, knows_last_layer(model.backbone))
    assert disagreement(model, once, batch(), draws=model_type in ("gpt2", "opt")) is None
    assert all(value.grad is None for value in model.parameters())


def test_the_check_compares_without_dropout_where_training_draws_it() -> None:
    model = classifier(attention_dropout=0.5)
    once = TokensOnce(PREFIX, True)
    assert "differ by" in str(disagreement(model, once, batch()))
    assert disagreement(model, once, batch(), draws=True) is None
    assert model.training and model.backbone.training


@pytest.mark.parametrize(
    ("share", "tokens", "draws", "expected"),
    [
        ("auto", 8, False, (8, True)),
        ("auto", 7, False, (0, True)),
        ("auto", 8, True, (8, False)),
        (True, 7, True, (7, True)),
        (True, 0, False, (0, True)),
        (False, 8, False, (0, True)),
    ],
)
def test_what_the_setting_chooses(
    share: str | bool, tokens: int, draws: bool, expected: tuple[int, bool]
) -> None:
    once, why_not = tokens_once(backbone(), share, tokens, draws)
    assert (once.prefix_tokens, once.in_training, once.last_layer, why_not) == (
        *expected,
        True,
        None,
    )


def test_the_setting_says_why_an_architecture_does_not_share() -> None:
    model = backbone("gemma2", attn_implementation="eager", use_bidirectional_attention=True)
    once, why_not = tokens_once(model, "auto", 8, draws=False)
    assert (once.prefix_tokens, once.last_layer) == (0, False)
    assert why_not == "Gemma2Model's tokens see the tokens after them"


def test_the_check_tells_of_features_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    model, once = classifier(), TokensOnce(PREFIX)
    whole = Layout.positions.fget
    monkeypatch.setattr(Layout, "positions", property(lambda layout: whole(layout) // 2))  # type: ignore[misc]
    assert "its features differ by" in str(disagreement(model, once, batch()))


def test_the_check_tells_of_gradients_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    model, once = classifier(), TokensOnce(PREFIX)
    whole = Layout.with_prefix
    monkeypatch.setattr(
        Layout, "with_prefix", lambda layout, prefix, own: whole(layout, prefix.detach(), own)
    )
    assert "its gradients differ by" in str(disagreement(model, once, batch()))
    model.requires_grad_(False)  # nothing trains: the features alone count
    assert disagreement(model, once, batch()) is None


def test_the_check_tells_of_models_that_take_no_layout() -> None:
    model = classifier("mamba", attn_implementation="eager")
    assert "Error: " in str(disagreement(model, TokensOnce(PREFIX), batch()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_check_agrees_in_other_dtypes(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = classifier("gemma")
    model.backbone.to(getattr(torch, dtype))
    model.head.to(torch.float32)
    assert disagreement(model, TokensOnce(PREFIX, True), batch()) is None


def rows_of(*rows: list[int]) -> TokenRows:
    return TokenRows(
        np.array([token for row in rows for token in row], dtype=np.int32),
        np.array([len(row) for row in rows]),
    )


@pytest.mark.parametrize(
    ("splits", "tokens"),
    [
        ([rows_of([1, 2, 3, 4], [1, 2, 3, 5])], 3),
        ([rows_of([1, 2, 3, 4], [1, 2, 3, 5]), rows_of([1, 2, 7])], 2),
        ([rows_of([1, 2, 3], [1, 2, 3])], 2),  # one token is left
        ([rows_of([1, 2, 3]), rows_of([1])], 0),
        ([rows_of([1, 2]), rows_of([3, 2])], 0),
        ([[np.array([1, 2, 3]), np.array([1, 2, 4])], []], 2),
        ([[]], 0),
    ],
)
def test_the_longest_common_prefix_leaves_a_token(splits: Any, tokens: int) -> None:
    assert shared_prefix_length(*splits) == tokens
