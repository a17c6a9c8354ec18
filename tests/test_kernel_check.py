"""Kernels are tried before they are used: wrong ones, broken ones and missing ones leave the work
to plain torch, and say so once. No Triton is needed here: kernels in plain torch take its place."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sparta_bench.sparta import SpartaAdapter, adamw, adapter, gradient, kernel_check
from sparta_bench.sparta.layer import write_merged_on_cuda
from sparta_bench.sparta.merge import rounded_sum, write_at

CPU = torch.device("cpu")
SIXTEEN = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, *SIXTEEN)
Use = Callable[..., dict[str, int]]


def right_merge(weight: Tensor, indices: Tensor, originals: Tensor, deltas: Tensor) -> None:
    write_at(weight, indices, rounded_sum(originals, deltas))


def right_gradient(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    return (grad.float().t() @ x.float()).view(-1)[indices.long()]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Use]:
    """`use(merge=…, gradient=…)`: these are the kernels; returns how often each is called."""
    monkeypatch.setattr(kernel_check, "_usable", {})

    def install(
        merge: Callable[..., None] = right_merge,
        gradient: Callable[..., Tensor] = right_gradient,
    ) -> dict[str, int]:
        calls = {"merge": 0, "gradient": 0}

        def counting(name: str, work: Callable[..., Tensor | None]) -> Callable[..., object]:
            def called(*arguments: Tensor) -> Tensor | None:
                calls[name] += 1
                return work(*arguments)

            return called

        kernels = SimpleNamespace(
            merge=counting("merge", merge), sampled_gradient=counting("gradient", gradient)
        )
        monkeypatch.setitem(sys.modules, "sparta_bench.sparta.kernels", kernels)
        return calls

    yield install


def small_merge(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weight, indices, originals, deltas, and what the weight should become."""
    weight, indices, deltas = kernel_check.merge_case(dtype, torch.float32)
    originals = weight.view(-1)[indices.long()]
    expected = weight.clone()
    expected.view(-1)[indices.long()] = rounded_sum(originals, deltas)
    return weight, indices, originals, deltas, expected


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("deltas", FLOATS)
def test_right_kernels_are_used_and_checked_once(
    use: Use, caplog: pytest.LogCaptureFixture, dtype: torch.dtype, deltas: torch.dtype
) -> None:
    calls = use()
    before = torch.get_rng_state()
    for _ in range(3):
        assert kernel_check.usable("merge", CPU, dtype, deltas)
        assert kernel_check.usable("gradient", CPU, dtype)
    assert calls == {"merge": 1, "gradient": 1}
    assert torch.equal(torch.get_rng_state(), before)
    assert caplog.messages == []


def test_float64_is_never_the_kernels_work(use: Use, caplog: pytest.LogCaptureFixture) -> None:
    calls = use()
    assert not kernel_check.usable("merge", CPU, torch.bfloat16, torch.float64)
    assert not kernel_check.usable("gradient", CPU, torch.float64)
    grad, x, indices = (t.double() for t in kernel_check.gradient_case(torch.float32))
    entries = gradient._on_cuda(grad, x, indices.int())
    assert torch.equal(entries, (grad.t() @ x).view(-1)[indices.long()])
    assert calls == {"merge": 0, "gradient": 0} and caplog.messages == []


def rounding_twice(weight: Tensor, indices: Tensor, originals: Tensor, deltas: Tensor) -> None:
    write_at(weight, indices, (originals.float() + deltas.float()).to(weight.dtype))


def forgetting_the_last(weight: Tensor, indices: Tensor, originals: Tensor, deltas: Tensor) -> None:
    right_merge(weight, indices[:-1], originals[:-1], deltas[:-1])


def writing_beside(weight: Tensor, indices: Tensor, originals: Tensor, deltas: Tensor) -> None:
    right_merge(weight, indices, originals, deltas)
    weight.view(-1)[0] = 1.0  # not among the indices


def flushing_subnormals(weight: Tensor, indices: Tensor, originals: Tensor, deltas: Tensor) -> None:
    total = rounded_sum(originals, deltas)
    tiny = total.abs() < torch.finfo(total.dtype).smallest_normal
    write_at(weight, indices, torch.where(tiny, torch.zeros_like(total), total))


def losing_nans(weight: Tensor, indices: Tensor, originals: Tensor, deltas: Tensor) -> None:
    write_at(weight, indices, rounded_sum(originals, deltas).nan_to_num(posinf=float("inf")))


WRONG_MERGES = [forgetting_the_last, writing_beside, flushing_subnormals, losing_nans]


@pytest.mark.parametrize(
    ("merge", "dtype"),
    [(merge, dtype) for merge in WRONG_MERGES for dtype in FLOATS]
    + [(rounding_twice, dtype) for dtype in SIXTEEN],
)
def test_a_wrong_merge_leaves_the_work_to_torch(
    use: Use,
    caplog: pytest.LogCaptureFixture,
    merge: Callable[..., None],
    dtype: torch.dtype,
) -> None:
    calls = use(merge=merge)
    for _ in range(3):
        weight, indices, originals, deltas, expected = small_merge(dtype)
        write_merged_on_cuda(weight, indices, originals, deltas)
        torch.testing.assert_close(weight, expected, rtol=0, atol=0, equal_nan=True)
    assert calls["merge"] == 1  # the check alone
    (message,) = caplog.messages
    name = str(dtype).removeprefix("torch.")
    start = f"SpaRTA: plain torch does the merge on cpu ({name}, float32), which is slower: "
    assert message.startswith(f"{start}the Triton kernel gives other values in ")
    assert caplog.records[0].levelno == logging.WARNING


def in_bfloat16(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    return right_gradient(grad.bfloat16(), x.bfloat16(), indices)


def in_tf32(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    cut = [(t.float().view(torch.int32) & ~0x1FFF).view(torch.float32) for t in (grad, x)]
    return right_gradient(cut[0], cut[1], indices)


def summed_in_bfloat16(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    halves = [
        right_gradient(g, v, indices) for g, v in zip(grad.split(150), x.split(150), strict=True)
    ]
    return (halves[0].bfloat16() + halves[1].bfloat16()).float()


def without_the_last_token(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    return right_gradient(grad[:-1], x[:-1], indices)


def with_a_nan(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    return right_gradient(grad, x, indices).index_fill(0, torch.tensor([7]), float("nan"))


@pytest.mark.parametrize(
    ("wrong", "dtype"),
    [
        (in_bfloat16, torch.float32),
        (in_tf32, torch.float32),
        (summed_in_bfloat16, torch.bfloat16),
        (without_the_last_token, torch.float16),
        (with_a_nan, torch.float32),
    ],
)
def test_a_wrong_gradient_leaves_the_work_to_torch(
    use: Use,
    caplog: pytest.LogCaptureFixture,
    wrong: Callable[..., Tensor],
    dtype: torch.dtype,
) -> None:
    calls = use(gradient=wrong)
    grad, x, indices = kernel_check.gradient_case(dtype)
    for _ in range(3):
        entries = gradient._on_cuda(grad, x, indices)
        # the dense product of these dtypes; in the dtype that the operator promises
        assert entries.dtype == torch.float32
        assert torch.equal(entries, (grad.t() @ x).view(-1)[indices.long()].float())
    assert calls["gradient"] == 1
    (message,) = caplog.messages
    assert "plain torch does the sampled gradient on cpu" in message


def fails(*arguments: Tensor) -> Tensor:
    raise RuntimeError("Triton Error [CUDA]: no kernel image\nand forty lines of PTX")


def test_a_kernel_that_does_not_start_leaves_the_work_to_torch(
    use: Use, caplog: pytest.LogCaptureFixture
) -> None:
    calls = use(gradient=fails)
    grad, x, indices = kernel_check.gradient_case(torch.float32)
    for _ in range(2):
        entries = gradient._on_cuda(grad, x, indices)
        assert torch.equal(entries, (grad.t() @ x).view(-1)[indices.long()])
    assert calls["gradient"] == 1
    assert caplog.messages == [
        "SpaRTA: plain torch does the sampled gradient on cpu (float32), which is slower: the "
        "Triton kernel failed with RuntimeError: Triton Error [CUDA]: no kernel image"
    ]


def test_without_triton_torch_does_the_work(
    use: Use, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sparta_bench.sparta.kernels", None)
    for _ in range(2):
        weight, indices, originals, deltas, expected = small_merge(torch.bfloat16)
        write_merged_on_cuda(weight, indices, originals, deltas)
        torch.testing.assert_close(weight, expected, rtol=0, atol=0, equal_nan=True)
    (message,) = caplog.messages
    assert "failed with ModuleNotFoundError: " in message


def test_a_full_device_is_no_fault_of_the_kernel(use: Use) -> None:
    def full(*arguments: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    use(gradient=full)
    with pytest.raises(torch.OutOfMemoryError):
        kernel_check.usable("gradient", CPU, torch.float32)
    use()
    assert kernel_check.usable("gradient", CPU, torch.float32)


def test_an_adapter_tries_the_kernels_of_its_layers_as_it_is_attached(
    use: Use, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[object, ...]] = []

    def usable(kernel: str, device: torch.device, *dtypes: torch.dtype) -> bool:
        asked.append((kernel, *dtypes))
        return kernel == "gradient"

    class Weight(torch.nn.Parameter):
        device = torch.device("cuda")  # where there is none

    monkeypatch.setattr(adapter, "usable", usable)
    layer = torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    names, holders = ["weight"], {"weight": [(layer, "weight")]}
    few, many = ({name: torch.arange(n) for name in names} for n in (31, 32))
    assert adapter._kernels(holders, many, torch.float32, "sampled") is None  # on a CPU
    assert asked == []
    layer.weight = Weight(layer.weight.detach())
    # from 32 entries the kernel, below that columns of the input, kept in the forward pass
    for indices, way, gradient_by in ((many, "sampled", "triton"), (few, "sampled", "torch")):
        expected = {"merge": "torch", "gradient": gradient_by}
        assert adapter._kernels(holders, indices, torch.float32, way) == expected
    merge = ("merge", torch.bfloat16, torch.float32)
    assert asked == [merge, ("gradient", torch.bfloat16), merge]


def test_on_a_cpu_no_kernel_is_tried(use: Use) -> None:
    calls = use()
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    assert SpartaAdapter(model, 0.5, 0).kernels is None
    assert calls == {"merge": 0, "gradient": 0}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda step, *tensors: adamw.update(step._replace(key=step.key ^ 1), *tensors),
        lambda step, *tensors: adamw.update(step._replace(upper=step.upper ^ 1), *tensors),
        lambda step, *tensors: adamw.update(step._replace(eps=0.0), *tensors),
        lambda step, *tensors: adamw.update(step, *(tensor[:-1] for tensor in tensors)),
    ],
)
def test_a_wrong_adamw_leaves_the_work_to_torch(
    use: Use,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    wrong: Callable[..., None],
) -> None:
    use()
    kernels = sys.modules["sparta_bench.sparta.kernels"]
    monkeypatch.setattr(kernels, "adamw", adamw.update, raising=False)
    assert kernel_check.usable("adamw", CPU, torch.bfloat16)
    assert caplog.messages == []
    monkeypatch.setattr(kernel_check, "_usable", {})
    monkeypatch.setattr(kernels, "adamw", wrong)
    assert not kernel_check.usable("adamw", CPU, torch.bfloat16)
    start = (
        "SpaRTA: plain torch does AdamW with stochastic rounding on cpu (bfloat16), which is slower"
    )
    (message,) = caplog.messages
    assert message.startswith(f"{start}: the Triton kernel gives other values in ")
