"""Deltas as one tensor: what each layer's own deltas get, in one run of memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_models import backbone, loss_of, same_values, values_of
from torch import Tensor, nn

from sparta_bench.models.classifier import checkpoint_gradients
from sparta_bench.sparta import SpartaAdapter
from sparta_bench.sparta.flat import _PIECE
from sparta_bench.training.checkpoint import optimizer_tensors, restore_optimizer

BATCHES = torch.randint(0, 60, (2, 3, 9), generator=torch.Generator().manual_seed(0))


def attached(model: nn.Module, **named: Any) -> SpartaAdapter:
    return SpartaAdapter(model, 0.3, 0, merge_after_step=False, **named)


def mixed_dtypes(model_type: str) -> nn.Module:
    """bfloat16, but for the norms."""
    model = backbone(model_type, torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = parameter.data.float()
    return model


@pytest.mark.parametrize("gradient", ["dense", "sampled", "auto"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_and_weights_are_those_of_deltas_of_their_own(
    gradient: str, checkpointing: bool
) -> None:
    """Bit for bit, with two batches before a step."""
    one, other = backbone(dtype=torch.float32), backbone(dtype=torch.float32)
    own, flat = attached(one, gradient=gradient), attached(other, gradient=gradient)
    values = flat.flatten().values
    assert flat.flatten().values is values
    optimizers = [torch.optim.SGD(own.parameters(), 0.5), torch.optim.SGD([values], 0.5)]
    for model in (one, other):
        model.train()
        if checkpointing:
            checkpoint_gradients(model)
    for _ in range(2):
        for model in (one, other):
            for ids in BATCHES:
                loss_of(model, ids).backward()
        expected = torch.cat([deltas.grad for deltas in own.deltas.values()])  # type: ignore[misc]
        assert torch.equal(values.grad, expected)  # type: ignore[arg-type]
        assert all(parameter.grad is None for parameter in other.parameters())
        for optimizer, adapter in zip(optimizers, (own, flat), strict=True):
            optimizer.step()
            optimizer.zero_grad()
            adapter.merge()
        assert same_values(other, values_of(one))
        assert all(map(torch.equal, own.deltas.values(), flat.deltas.values()))
    assert flat.flatten().reached == set(own.deltas)
    saved, about = flat.saved()
    again, about_again = own.saved()
    assert about == about_again
    assert saved.keys() == again.keys()
    assert all(torch.equal(saved[name], again[name]) for name in saved)


@pytest.mark.parametrize("model_type", ["gemma", "mistral", "qwen2", "mamba"])
def test_weights_of_several_dtypes_in_pieces(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_PIECE, "cpu", 150)
    one, other = mixed_dtypes(model_type), mixed_dtypes(model_type)
    before = values_of(one)
    own, flat = attached(one), attached(other)
    values = flat.flatten().values
    with torch.no_grad():
        values.copy_(torch.randn(len(values), generator=torch.Generator().manual_seed(0)))
        for name, deltas in own.deltas.items():
            deltas.copy_(flat.deltas[name])
    own.merge()
    flat.merge()
    assert same_values(other, values_of(one))
    assert not same_values(other, before)
    flat.detach()
    assert same_values(other, before)


def test_the_model_is_as_it_was_after_it() -> None:
    model = backbone(dtype=torch.float32)
    before = values_of(model)
    with attached(model) as adapter:
        values = adapter.flatten().values
        loss_of(model, BATCHES[0]).backward()
        torch.optim.SGD([values], 0.5).step()
        adapter.merge()
        assert not same_values(model, before)
    assert same_values(model, before)
    assert all(
        type(module).__module__.startswith(("torch", "transformers")) for module in model.modules()
    )
    assert all(parameter.requires_grad for parameter in model.parameters())
    loss_of(model, BATCHES[0]).backward()  # no hook takes the gradient away
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_moves_copies_and_other_loops_are_refused() -> None:
    model = backbone()
    with attached(model) as adapter:
        adapter.flatten()
        with pytest.raises(RuntimeError, match="move or convert the model before"):
            model.float()
        with pytest.raises(RuntimeError, match="copy the model before"):
            copy.deepcopy(model)
    with (
        SpartaAdapter(model, 0.3, 0) as adapter,
        pytest.raises(ValueError, match="merge_after_step=False"),
    ):
        adapter.flatten()


def test_a_checkpoint_has_the_optimizers_state_by_tensor() -> None:
    """Its layout is that of an optimizer that holds each value for itself, both ways."""
    states: list[dict[str, Tensor]] = []
    for flat in (True, False):
        adapter = attached(backbone(dtype=torch.float32))
        head = nn.Parameter(torch.ones(2, 16))
        named = {**adapter.deltas, "head.weight": head}
        values = [adapter.flatten().values, head] if flat else [*named.values()]
        optimizer = torch.optim.AdamW(values)
        assert optimizer_tensors(optimizer, named) == {}  # before the first step
        for number, value in enumerate(named.values()):
            (value if value is head or not flat else adapter.flatten().values).grad = None
            gradient = torch.linspace(number, number + 1, value.numel()).view_as(value)
            value.grad = gradient
        if flat:
            adapter.flatten().values.grad = torch.cat(
                [deltas.grad for deltas in adapter.deltas.values()]  # type: ignore[misc]
            )
        optimizer.step()
        states.append(optimizer_tensors(optimizer, named))
        again = torch.optim.AdamW(values)
        restore_optimizer(again, states[-1], named)
        restored = optimizer_tensors(again, named)
        assert restored.keys() == states[-1].keys()
        assert all(torch.equal(restored[key], states[-1][key]) for key in restored)
    assert states[0].keys() == states[1].keys()
    assert len(states[0]) == 3 * len(named)
    for key, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][key], rtol=1e-6, atol=0)
