"""What training with SpaRTA keeps in memory: counted, tensor by tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import backbone, classifier, loss_of
from torch import Tensor, nn

from sparta_bench.models.tensor_memory import TensorMemory
from sparta_bench.sparta import SpartaAdapter
from sparta_bench.training.optimizer import StochasticAdamW

# weights far larger than activations: two tokens, and one vocabulary of 4,096
WIDE = {"vocab_size": 4096, "hidden_size": 64, "intermediate_size": 256}
LARGEST_BYTES = 64 * 256 * 4
IDS = torch.tensor([[3, 5]])


def wide(**extra: Any) -> nn.Module:
    return backbone("gemma", torch.float32, **WIDE, **extra)


@pytest.mark.parametrize("gradient", ["dense", "sampled"])
@pytest.mark.parametrize("autocast", [False, True])
def test_nothing_weight_sized_is_saved_for_the_backward_pass(gradient: str, autocast: bool) -> None:
    model = wide()
    adapter = SpartaAdapter(model, 0.05, 0, gradient=gradient)
    own = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    own |= {indices.untyped_storage().data_ptr() for indices in adapter.indices.values()}
    copied: list[tuple[int, ...]] = []
    weights = 0

    def note(saved: Tensor) -> Tensor:
        nonlocal weights
        if saved.untyped_storage().data_ptr() in own:
            weights += 1
        elif saved.numel() > 64 * 64 / 2:  # half of the smallest matrix
            copied.append(tuple(saved.shape))
        return saved

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        loss = loss_of(model, IDS)
    assert copied == []
    assert weights >= 2 * 7  # a reference to each linear layer's weight
    loss.backward()


@pytest.mark.parametrize(("gradient", "dense_gradients"), [("dense", 1), ("sampled", 0)])
@pytest.mark.parametrize("flat", [False, True])
def test_at_most_one_dense_gradient_is_alive(
    gradient: str, dense_gradients: int, flat: bool
) -> None:
    model = wide(num_hidden_layers=4)
    adapter = SpartaAdapter(model, 0.01, 0, gradient=gradient, merge_after_step=not flat)
    if flat:
        adapter.flatten()
    for _ in range(2):  # the second time, all gradients of the deltas are there already
        loss = loss_of(model, IDS)
        with TensorMemory() as memory:
            before = memory.live
            loss.backward()
        room = 0.25 * LARGEST_BYTES + 4 * adapter.chosen
        assert memory.peak - before < dense_gradients * LARGEST_BYTES + room
        assert memory.peak - before > 0.9 * dense_gradients * LARGEST_BYTES
    # the embedding alone would be larger than that
    assert model.embed_tokens.weight.numel() * 4 > 10 * LARGEST_BYTES
    assert model.embed_tokens.weight.grad is None


def test_untouched_layers_form_no_weight_gradient() -> None:
    model = wide()
    SpartaAdapter(model, 0.05, 0, targets=["v_proj"], gradient="dense")
    made: list[tuple[int, ...]] = []

    class Shapes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and "mm" in func.__name__:
                made.append(tuple(result.shape))
            return result

    loss = loss_of(model, IDS)
    with Shapes():
        loss.backward()
    shape = tuple(model.layers[0].self_attn.v_proj.weight.shape)
    assert made.count(shape) == 2  # one a layer
    others = {tuple(tensor.shape) for tensor in model.parameters() if tensor.dim() == 2} - {shape}
    assert not others & set(made)


@pytest.mark.parametrize(
    ("dtype", "optimizer", "bytes_per_scalar"),
    [
        # index 4, original 2, delta, gradient, two moments
        (torch.float32, torch.optim.AdamW, 4 + 2 + 4 + 4 + 8),
        (torch.bfloat16, StochasticAdamW, 4 + 2 + 2 + 2 + 4),
    ],
)
def test_bytes_per_trained_scalar(
    dtype: torch.dtype, optimizer: Any, bytes_per_scalar: int
) -> None:
    model = classifier("gemma", torch.bfloat16, **WIDE)
    ids = {"input_ids": IDS, "labels": torch.tensor([1])}
    with TensorMemory() as memory:
        before = memory.live
        adapter = SpartaAdapter(model, 0.05, 0, dtype=dtype)
        values = list(adapter.deltas.values())  # the head is another matter
        running = optimizer(values, lr=1e-3, betas=(0.9, 0.99), eps=1e-8)
        model(**ids).loss.backward()
        running.step()
        for value in adapter.head.values():
            value.grad = None
        # the head: a wider copy, and the original; the indices: made by numpy, out of sight
        widened = sum(value.nbytes for value in adapter.head.values())
        used = memory.live - before - widened + 4 * adapter.chosen
    steps = 4 * len(values)  # Adam's count of steps, one number a tensor
    assert used - steps == pytest.approx(bytes_per_scalar * adapter.chosen, abs=1024)
    assert bytes_per_scalar <= 22


def test_few_chosen_entries_keep_few_columns_of_the_input() -> None:
    model = nn.Linear(512, 64, bias=False)
    x = torch.randn(10, 512, requires_grad=True)
    adapter = SpartaAdapter(model, 0.002, 0, gradient="sampled")
    kept: list[tuple[int, ...]] = []

    def note(saved: Tensor) -> Tensor:
        kept.append(tuple(saved.shape))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        loss = model(x).sum()
    assert kept == [(10, adapter.chosen), (64, 512), (adapter.chosen,)]
    loss.backward()
    (name,) = adapter.deltas
    places = adapter.indices[name].long()
    expected = x.detach().sum(0)[places % 512]
    torch.testing.assert_close(adapter.deltas[name].grad, expected)
