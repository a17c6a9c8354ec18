"""AdamW on bfloat16 values: its arithmetic, its random bits, and what it rounds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparta_bench.analysis.memory.estimate import STOCHASTIC_UPDATE
from sparta_bench.models.tensor_memory import TensorMemory
from sparta_bench.sparta import adamw
from sparta_bench.sparta.sharded import local, sharded
from sparta_bench.training.optimizer import StochasticAdamW

CPU = torch.device("cpu")
WORD = (1 << 32) - 1


def words(first: int, count: int, key: int, upper: int) -> tuple[Tensor, Tensor]:
    low, high = adamw.random_words(first, count, key, upper, CPU)
    return low.long() & WORD, high.long() & WORD


# counter (two words), key and result of Random123's known answers for philox2x32 of 10 rounds
@pytest.mark.parametrize(
    ("counter", "key", "result"),
    [
        ((0, 0), 0, (0xFF1DAE59, 0x6CD10DF2)),
        ((WORD, WORD), WORD, (0x2C3F628B, 0xAB4FD7AD)),
        ((0x243F6A88, 0x85A308D3), 0x13198A2E, (0xDD7CE038, 0xF62A4C12)),
    ],
)
def test_the_random_words_are_those_of_philox(
    counter: tuple[int, int], key: int, result: tuple[int, int]
) -> None:
    low, high = counter
    for first, upper in ((low, high), (low + (5 << 32), high ^ 5)):  # an index of over 32 bits
        for signed in (0, 1 << 32):  # kernels take negative numbers for those from 2^31 on
            found = words(first, 1, key - signed, upper - signed)
            assert tuple(word.item() for word in found) == result


def test_words_do_not_depend_on_where_they_begin() -> None:
    whole = words((1 << 32) - 50, 100, 3, 4)
    parts = [words((1 << 32) - 50 + first, 25, 3, 4) for first in range(0, 100, 25)]
    for one, others in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(one, torch.cat(others))


def test_each_rounding_is_right_on_average_and_none_follows_another() -> None:
    """200,000 roundings to one of two neighbours each, three tenths of the way up."""
    count = 200_000
    exact = 1.0 + 2**-7 * 0.3
    rounded = []
    low, high = adamw.random_words(0, count, *adamw.key_of(0, 0, 0, 1), CPU)
    for random in (low, low >> 16, high):  # of value, mean and mean square
        target = torch.empty(count, dtype=torch.bfloat16)
        adamw.store_rounded(torch.full((count,), exact), random, target)
        assert set(target.float().unique().tolist()) == {1.0, 1.0 + 2**-7}
        assert float(target.float().mean()) == pytest.approx(exact, abs=3e-5)
        rounded.append((target > 1).float())
    lagged = [rounded[0][1:], rounded[0][:-1]]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert abs(torch.corrcoef(torch.stack([rounded[one], rounded[other]]))[0, 1]) < 0.01
    assert abs(torch.corrcoef(torch.stack(lagged))[0, 1]) < 0.01


def test_what_is_no_finite_number_stays_so_and_what_is_exact_too() -> None:
    """Also a NaN whose bits are all set, as CUDA makes them: a carry would make it a zero."""
    bits = [0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000, 0x7F800000, -0x00800000, 0x7F7FFFFF]
    special = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    source = torch.cat([special, torch.tensor([1.5, -2.0, 0.0])]).repeat(1000)
    target = torch.empty_like(source, dtype=torch.bfloat16)
    adamw.store_rounded(source, adamw.random_words(0, len(source), 1, 2, CPU)[0], target)
    rows = target.float().view(1000, 10)
    assert rows[:, :4].isnan().all()
    assert (rows[:, 4] == math.inf).all() and (rows[:, 5] == -math.inf).all()
    assert set(rows[:, 6].tolist()) <= {math.inf, torch.finfo(torch.bfloat16).max}
    assert (rows[:, 7:] == torch.tensor([1.5, -2.0, 0.0])).all()


def test_stochastic_adamw_follows_adamw() -> None:
    torch.manual_seed(0)
    start = torch.randn(4000)
    plain = torch.nn.Parameter(start.clone())
    rounded = torch.nn.Parameter(start.to(torch.bfloat16))
    exact = torch.nn.Parameter(start.clone())  # float32 is not rounded
    one = torch.optim.AdamW([plain], lr=1e-4, betas=(0.9, 0.99), weight_decay=0.1)
    groups = [{"params": [rounded, exact], "weight_decay": 0.1}]
    two = StochasticAdamW(groups, 1e-4, (0.9, 0.99), 1e-8)
    for _ in range(100):
        grad = torch.sign(start) + 0.1 * torch.randn(4000)
        plain.grad, rounded.grad, exact.grad = grad, grad.to(torch.bfloat16), grad
        one.step()
        two.step()
    torch.testing.assert_close(exact, plain, rtol=1e-6, atol=1e-6)
    path = plain.detach() - start
    moved = float(path.abs().mean())
    # single values differ by bfloat16's spacing, but the movement is not lost
    kept = (rounded.detach().float() - start).mul(path.sign()).mean()
    assert float(kept) == pytest.approx(moved, rel=0.03)


def bfloat16_values(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    """Drawn from one seed, with gradients."""
    draw = torch.Generator().manual_seed(5)
    values = []
    for shape in shapes:
        value = torch.nn.Parameter(torch.randn(shape, generator=draw).to(torch.bfloat16))
        value.grad = torch.randn(shape, generator=draw).to(torch.bfloat16)
        values.append(value)
    return values


def stepped(values: list[torch.nn.Parameter], stream: int = 0) -> list[Tensor]:
    """Three steps; values and moments of all."""
    group = {"params": values, "weight_decay": 0.1, "stream": stream}
    optimizer = StochasticAdamW([group], 1e-2, (0.9, 0.99), 1e-8)
    torch.manual_seed(0)
    for _ in range(3):
        optimizer.step()
    states = [optimizer.state[value] for value in values]
    moments = [state[name] for name in ("exp_avg", "exp_avg_sq") for state in states]
    return [tensor.detach() for tensor in (*values, *moments)]


def test_what_a_tensor_becomes_does_not_depend_on_pieces_or_memory_format(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = stepped(bfloat16_values((50, 51)))
    (value,) = bfloat16_values((50, 51))
    assert value.grad is not None
    value.grad = value.grad.t().contiguous().t()  # the same values, by columns in memory
    monkeypatch.setitem(adamw.PIECE, "cpu", 1000)
    for found, whole in zip(stepped([value]), expected, strict=True):
        assert torch.equal(found, whole)


def test_tensors_steps_streams_and_seeds_have_random_bits_of_their_own() -> None:
    """A constant is rounded in each; all but a repetition differ."""

    def rounded(seed: int, stream: int, step: int) -> list[Tensor]:
        values = [torch.nn.Parameter(torch.ones(100, dtype=torch.bfloat16)) for _ in range(2)]
        optimizer = StochasticAdamW([{"params": values, "stream": stream}], 0.0, (0.0, 0.0), 1.0)
        for value in values:
            value.grad = torch.full((100,), 1.1).bfloat16()  # whose square is no bfloat16
            optimizer.state[value] = {"step": torch.tensor(float(step))}
            for name in ("exp_avg", "exp_avg_sq"):
                optimizer.state[value][name] = torch.zeros_like(value)
        torch.manual_seed(seed)
        optimizer.step()
        return [optimizer.state[value]["exp_avg_sq"] for value in values]

    made = [rounded(*which) for which in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len({tuple(squares.tolist()) for pair in made for squares in pair}) == 8
    for again, first in zip(rounded(0, 0, 0), made[0], strict=True):
        assert torch.equal(again, first)


def test_an_update_needs_room_for_a_piece_only(monkeypatch: pytest.MonkeyPatch) -> None:
    (value,) = bfloat16_values((300, 100))
    optimizer = StochasticAdamW([value], 1e-2, (0.9, 0.99), 1e-8)
    optimizer.step()

    def room() -> int:
        with TensorMemory() as memory:
            before = memory.live
            optimizer.step()
        assert memory.live == before
        return memory.peak - before

    assert room() == STOCHASTIC_UPDATE * value.numel()
    monkeypatch.setitem(adamw.PIECE, "cpu", 1000)
    assert room() == STOCHASTIC_UPDATE * 1000


def test_of_a_sharded_tensor_each_process_updates_its_rows_by_bits_of_its_own() -> None:
    """The second of two processes, without the first: nothing travels."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    (value,) = bfloat16_values((1000,))
    torch.distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (2,))
        rows = torch.nn.Parameter(sharded(value.detach().clone(), mesh, (2000,)))
        assert value.grad is not None
        rows.grad = sharded(value.grad.clone(), mesh, (2000,))
        found = [local(tensor) for tensor in stepped([rows])]
    finally:
        torch.distributed.destroy_process_group()
    for one, expected in zip(found, stepped([value], stream=2), strict=True):
        assert torch.equal(one, expected)
