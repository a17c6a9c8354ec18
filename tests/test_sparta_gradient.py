"""Chosen entries of a weight's gradient: each way gives what the dense product has there."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sparta_bench.sparta import SpartaAdapter
from sparta_bench.sparta.gradient import (
    columns_of,
    is_sampled,
    keeps_columns,
    weight_gradient_at,
    weight_gradient_of_columns,
)
from sparta_bench.sparta.sample import sample_indices

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
# gathered columns, a sparse product of pieces, more tokens than a piece, one token, none chosen
@pytest.mark.parametrize(
    ("tokens", "outs", "ins", "density"),
    [(50, 40, 60, 0.01), (50, 40, 60, 0.3), (700, 33, 17, 0.5), (1, 8, 8, 0.5), (5, 8, 8, 1e-9)],
)
def test_sampled_entries_are_those_of_the_product(
    dtype: torch.dtype, tokens: int, outs: int, ins: int, density: float
) -> None:
    draw = torch.Generator().manual_seed(0)
    grad = torch.randn(tokens, outs, generator=draw).to(dtype)
    x = torch.randn(tokens, ins, generator=draw).to(dtype)
    places = sample_indices(outs * ins, density, 0, "w")
    exact = (grad.double().t() @ x.double()).view(-1)[places.long()]
    sampled = weight_gradient_at(grad, x, places, sampled=True)
    assert sampled.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # 16-bit operands are summed in float32: no error beyond that of float32
    tolerance = 1e-12 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(sampled.double(), exact, rtol=tolerance, atol=tolerance)
    kept = columns_of(x, places)
    assert kept.shape == (tokens, len(places))
    again = weight_gradient_of_columns(grad, kept, places, ins)
    torch.testing.assert_close(again.double(), exact, rtol=tolerance, atol=tolerance)


def test_flops_are_two_per_token_and_chosen_entry() -> None:
    grad, x = torch.randn(10, 20), torch.randn(10, 30)
    places = sample_indices(600, 0.2, 0, "w")
    for work in (
        lambda: weight_gradient_at(grad, x, places, sampled=True),
        lambda: weight_gradient_of_columns(grad, columns_of(x, places), places, 30),
    ):
        with FlopCounterMode(display=False) as counter:
            work()
        assert counter.get_total_flops() == 2 * 10 * len(places)
    with FlopCounterMode(display=False) as counter:
        weight_gradient_at(grad, x, places, sampled=False)
    assert counter.get_total_flops() == 2 * 10 * 20 * 30


@pytest.mark.parametrize(
    ("shape", "density", "tokens", "device", "sampled"),
    [
        # which numbers of threads, of 1, 2, 4 and 8
        ((16384, 2048), 0.05, 1000, CPU, (1,)),
        ((16384, 2048), 0.3, 1000, CPU, ()),
        ((16384, 2048), 0.005, 1000, CPU, (1, 2, 4, 8)),
        ((768, 768), 0.05, 1000, CPU, (1,)),
        ((384, 384), 0.05, 1000, CPU, ()),
        ((384, 384), 0.03, 1000, CPU, (1,)),
        # few entries: their columns are gathered
        ((384, 384), 0.003, 1000, CPU, (1, 2)),
        ((64, 384), 0.05, 1000, CPU, ()),
        ((64, 384), 0.005, 1000, CPU, (1,)),
        # the widest layers of hidden size 192
        ((512, 192), 0.05, 640, CPU, ()),
        ((512, 192), 0.005, 640, CPU, (1,)),
        ((512, 192), 0.0005, 640, CPU, (1, 2, 4, 8)),
        ((16, 16), 0.05, 1000, CPU, ()),
        ((16384, 2048), 0.05, 10_800, CUDA, ()),
        ((16384, 2048), 0.0005, 10_800, CUDA, (1, 2, 4, 8)),
        ((16384, 2048), 0.0005, 800, CUDA, ()),  # starting more kernels takes longer
        ((256, 2048), 0.0005, 10_800, CUDA, ()),
    ],
)
def test_the_choice_is_by_density_shape_tokens_and_threads(
    shape: tuple[int, int],
    density: float,
    tokens: int,
    device: torch.device,
    sampled: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sparta_bench.sparta.gradient._TRITON", True)
    weight = torch.Size(shape)
    chosen = round(weight.numel() * density)
    counts = (1, 2, 4, 8)
    assert sampled == tuple(
        threads for threads in counts if is_sampled("auto", weight, chosen, tokens, device, threads)
    )
    assert is_sampled("dense", weight, chosen, tokens, device, 1) is False
    assert is_sampled("sampled", weight, chosen, tokens, device, 1) is True
    monkeypatch.setattr("sparta_bench.sparta.gradient._TRITON", False)
    assert is_sampled("auto", weight, chosen, tokens, CUDA, 1) is False  # no Triton, no kernel


def test_threads_count_when_the_adapter_is_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later ones change no step: all sum in the same order."""
    asked = []
    monkeypatch.setattr(
        "sparta_bench.sparta.layer.is_sampled", lambda *named: asked.append(named[-1])
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    with SpartaAdapter(model, 0.5, seed=0):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
        model(torch.ones(1, 8))
    assert asked == [3]


def test_columns_are_kept_where_they_are_fewer_than_half() -> None:
    assert keeps_columns(torch.Size((2048, 16384)), 8191)
    assert not keeps_columns(torch.Size((2048, 16384)), 8192)
