"""The CUDA kernels, in Triton's interpreter on a CPU, and compiled for a GPU that is not there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

# Triton decides when a kernel is defined whether it is interpreted, so this has its own process.
IN_THE_INTERPRETER = """
import torch
from sparta_bench.sparta import adamw, kernel_check, kernels
from sparta_bench.sparta.merge import rounded_sum
from sparta_bench.sparta.sample import sample_indices

cpu = torch.device("cpu")
floats = (torch.float32, torch.bfloat16, torch.float16)
torch.manual_seed(0)
assert kernel_check.usable("adamw", cpu, torch.bfloat16)
for dtype in floats:
    assert kernel_check.usable("gradient", cpu, dtype)
    for deltas_dtype in floats:
        assert kernel_check.usable("merge", cpu, dtype, deltas_dtype)
        assert kernel_check.usable("merge_all", cpu, dtype, deltas_dtype)
    for tokens, outs, ins in ((300, 40, 70), (1, 16, 16), (129, 7, 33)):
        grad, x = torch.randn(tokens, outs).to(dtype), torch.randn(tokens, ins).to(dtype)
        places = sample_indices(outs * ins, 0.1, 0, "w")
        exact = (grad.double().t() @ x.double()).view(-1)[places.long()]
        found = kernels.sampled_gradient(grad, x, places)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)
    weight = torch.randn(50, 60).to(dtype)
    places = sample_indices(3000, 0.5, 0, "w")
    originals = weight.view(-1)[places.long()]
    deltas = torch.randn(len(places)) * torch.logspace(-9, 3, len(places))
    expected = weight.clone()
    expected.view(-1)[places.long()] = rounded_sum(originals, deltas)
    kernels.merge(weight, places, originals, deltas)
    assert torch.equal(weight, expected), dtype
    # a NaN whose upper bits alone would be an infinity
    one = torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)
    for original, delta in ((one.to(dtype), torch.ones(1)), (torch.ones(1).to(dtype), one)):
        weight = torch.zeros(1).to(dtype)
        kernels.merge(weight, torch.zeros(1, dtype=torch.int32), original, delta)
        assert weight.isnan()
for count, seed in ((1, 1), (1025, 2), (4096, 3)):
    slope, *start = (torch.randn(count).bfloat16() for _ in range(4))
    start[2] = start[2].abs()
    step = adamw.step_of(3e-5, (0.9, 0.999), 1e-8, 0.01, 7, adamw.key_of(seed, 0, 5, 7))
    found, expected = ([tensor.clone() for tensor in start] for _ in range(2))
    kernels.adamw(step, slope, *found)
    adamw.update(step, slope, *expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
empty = torch.zeros(0, dtype=torch.int32)
assert kernels.sampled_gradient(grad, x, empty).shape == (0,)
kernels.merge(weight, empty, torch.zeros(0), torch.zeros(0))
kernels.adamw(step, *[torch.zeros(0).bfloat16()] * 4)
"""
LARGE_ONES = """
from unittest import mock

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import TensorHandle, interpreter_builder

# Offsets from 2^31 on: 16,385 features of 2^17 tokens. 4 GiB are reserved; only what is read or
# written is ever there.
tokens, features = 1 << 17, (1 << 14) + 1
tall, short = torch.empty(features, tokens, dtype=torch.bfloat16), torch.ones(1, tokens).bfloat16()
tall[0], tall[-1] = 1.0, 2.0
kernels._ENTRIES_PER_PROGRAM, kernels._TOKENS_PER_STEP = 2, 1 << 14  # fewer steps to interpret
ends = torch.tensor([0, features - 1], dtype=torch.int32)
for found in (
    kernels._launch_sampled_gradient(tall, short, ends),  # a weight of features x 1
    kernels._launch_sampled_gradient(short, tall, ends),  # 1 x features
):
    assert found.tolist() == [tokens, 2.0 * tokens]
del tall
# Scalars from 2^31 on of AdamW: of 2^31 + 100 the last program alone.
tensors = [torch.empty((1 << 31) + 100, dtype=torch.bfloat16) for _ in range(4)]
tails = [tensor[-100:] for tensor in tensors]
for tail in tails:
    tail.copy_(torch.rand(100))
expected = [tail.clone() for tail in tails]
adamw.update(step, *expected, first=1 << 31)
number = (1 << 31) // kernels._UPDATED_PER_PROGRAM
last = TensorHandle(np.array([number], dtype=np.int32), tl.int32)
with mock.patch.object(interpreter_builder, "create_get_program_id", lambda axis: last):
    kernels._adamw_kernel[(1,)](
        *tensors, len(tensors[0]), 0, *step, SCALARS=kernels._UPDATED_PER_PROGRAM, GROUP=1
    )
assert all(torch.equal(tail, other) for tail, other in zip(tails, expected, strict=True))
del tensors, tails
# The largest weight of which anything is chosen: 2^31 - 1 entries.
weight = torch.empty(2**31 - 1, dtype=torch.bfloat16)
ends = torch.tensor([0, 2**31 - 2], dtype=torch.int32)
kernels.merge(weight, ends, torch.tensor([1.0, 2.0]).bfloat16(), torch.ones(2))
assert weight[ends.long()].tolist() == [2.0, 3.0]
"""


@pytest.mark.slow
def test_kernels_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IN_THE_INTERPRETER + LARGE_ONES],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "only 0-dimensional arrays can be converted to Python scalars" in done.stderr:
        pytest.skip(f"the interpreter of Triton {triton.__version__} needs numpy before 2.4")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""  # no kernel was found wanting


# Registers of a thread, of which an SM has 65,536. With these, 24 and 40 of at most 64 warps are
# there at once (sm_80, sm_90, sm_100), enough to hide what memory makes them wait for.
GRADIENT_REGISTERS, MERGE_REGISTERS, TRANSPOSE_REGISTERS = 80, 48, 80
ADAMW_REGISTERS = 96
FLOATS = ("fp32", "bf16", "fp16")
TARGETS = (80, 90, 100)
Compiled = Callable[..., Any]


class Resources:
    """What a compiled kernel takes: registers of a thread, bytes of local memory of a thread."""

    def __init__(self, compiled: Any, folder: Path) -> None:
        cubin = folder / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        said = _tool("cuobjdump", "--dump-resource-usage", str(cubin))
        used = {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", said)}
        self.registers = used["REG"]
        # where registers are spilled to, and arrays lie that do not fit into any
        self.local_bytes = used["LOCAL"] + used["STACK"]


def _tool(name: str, *arguments: str) -> str:
    program = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def ahead_of_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiled:
    """`compiled(kernel, target, pointers, constants, …)`, with nothing taken from Triton's cache.

    `aligned`: what torch allocates, and numbers that Triton finds to be multiples of 16.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton interprets, and compiles nothing")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))

    def compiled(
        kernel: Any,
        target: int,
        pointers: dict[str, str],
        constants: dict[str, Any],
        options: dict[str, Any],
        aligned: bool = True,
        numbers: dict[str, str] | None = None,
    ) -> Any:
        multiples = {*pointers, "tokens"} if aligned else {"tokens"}
        names = kernel.arg_names
        signature = dict.fromkeys(names, "i32") | (numbers or {})
        signature |= {name: f"*{dtype}" for name, dtype in pointers.items()}
        signature |= dict.fromkeys(constants, "constexpr")
        divisible = [["tt.divisibility", 16]]
        attributes = {(names.index(name),): divisible for name in multiples if name in names}
        source = ASTSource(kernel, signature, constants, attributes)
        return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)

    return compiled


def gradient_arguments(dtype: str) -> tuple[dict[str, str], dict[str, Any]]:
    pointers = {"grad_t": dtype, "x_t": dtype, "indices": "i32", "result": "fp32"}
    return pointers, {"ENTRIES": 8, "TOKENS": 256}


def merge_arguments(weight: str, deltas: str) -> tuple[dict[str, str], dict[str, Any]]:
    pointers = {"weight": weight, "indices": "i32", "originals": weight, "deltas": deltas}
    return pointers, {"ROUNDS": weight != "fp32", "ENTRIES": 1024}


def merge_all_arguments(weight: str, deltas: str) -> tuple[dict[str, str], dict[str, Any]]:
    pointers, constants = merge_arguments(weight, deltas)
    del pointers["weight"]
    return pointers | {"pieces": "i64"}, constants


def fused(ptx: str) -> int:
    """Fused multiply-adds, and what the assembler may still fuse: products not rounded by name."""
    return len(re.findall(r"\bfma\.|\bmul\.(?:ftz\.)?f32", ptx))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.slow
def test_the_gradient_kernel_compiles_within_its_budget(
    ahead_of_time: Compiled, tmp_path: Path, target: int
) -> None:
    from sparta_bench.sparta import kernels

    kernel, options = kernels._sampled_gradient_kernel, kernels.GRADIENT_OPTIONS
    for dtype in FLOATS:
        compiled = ahead_of_time(kernel, target, *gradient_arguments(dtype), options)
        ptx, used = compiled.asm["ptx"], Resources(compiled, tmp_path)
        assert used.registers <= GRADIENT_REGISTERS, (dtype, used.registers)
        assert used.local_bytes == 0 and ".local" not in ptx, dtype
        assert "fma.rn.f32" in ptx, dtype
        assert "mma" not in ptx, dtype  # no tensor cores: they would round float32 to TF32
        assert "ld.global.v" in ptx, dtype  # several tokens at once


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.slow
def test_the_transposed_copy_compiles_within_its_budget(
    ahead_of_time: Compiled, tmp_path: Path, target: int
) -> None:
    from sparta_bench.sparta import kernels

    for dtype in FLOATS:
        pointers = {"rows": dtype, "result": dtype}
        constants, options = {"SIDE": kernels._TRANSPOSED_SIDE}, kernels.COPY_OPTIONS
        compiled = ahead_of_time(kernels._transpose_kernel, target, pointers, constants, options)
        used = Resources(compiled, tmp_path)
        assert used.registers <= TRANSPOSE_REGISTERS, (dtype, used.registers)
        assert used.local_bytes == 0, dtype


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("weights", ["one", "all"])
@pytest.mark.slow
def test_the_merge_kernels_compile_within_their_budget(
    ahead_of_time: Compiled, tmp_path: Path, target: int, weights: str
) -> None:
    from sparta_bench.sparta import kernels

    # weight, deltas, aligned. The runner's come on every target; a weight may begin anywhere in
    # a file that is mapped into memory.
    cases = [("fp32", "fp32", True), ("bf16", "fp32", True), ("bf16", "bf16", True)]
    if target == 90:
        cases = [(w, d, True) for w in FLOATS for d in FLOATS] + [("bf16", "fp32", False)]
    for weight, deltas, aligned in cases:
        kernel, arguments = {
            "one": (kernels._merge_kernel, merge_arguments(weight, deltas)),
            "all": (kernels._merge_all_kernel, merge_all_arguments(weight, deltas)),
        }[weights]
        options = kernels.MERGE_OPTIONS
        compiled = ahead_of_time(kernel, target, *arguments, options, aligned)
        ptx, used = compiled.asm["ptx"], Resources(compiled, tmp_path)
        case = (weight, deltas, aligned)
        assert used.registers <= MERGE_REGISTERS, (case, used.registers)
        assert used.local_bytes == 0 and ".local" not in ptx, case
        # the exact error of the sum is lost if the compiler fuses or reorders, or flushes
        assert fused(ptx) == 0 and ".ftz" not in ptx, case
        assert len(re.findall(r"\bsub\.(?:rn\.)?f32", ptx)) >= (weight != "fp32") * 3, case


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.slow
def test_adamw_compiles_within_its_budget(
    ahead_of_time: Compiled, tmp_path: Path, target: int
) -> None:
    from sparta_bench.sparta import kernels
    from sparta_bench.sparta.adamw import Step

    pointers = dict.fromkeys(("grad", "value", "mean", "square"), "bf16")
    floats = {name: "fp32" for name, kind in Step.__annotations__.items() if kind == "float"}
    compiled = ahead_of_time(
        kernels._adamw_kernel,
        target,
        pointers,
        {"SCALARS": kernels._UPDATED_PER_PROGRAM, "GROUP": kernels._UPDATED_AT_ONCE},
        kernels.ADAMW_OPTIONS,
        numbers={**floats, "groups": "i64", "first": "i64"},
    )
    ptx, used = compiled.asm["ptx"], Resources(compiled, tmp_path)
    assert used.registers <= ADAMW_REGISTERS
    assert used.local_bytes == 0 and ".local" not in ptx
    assert "fma." not in ptx and ".ftz" not in ptx and ".approx" not in ptx
    assert "sqrt.rn.f32" in ptx and "div.rn.f32" in ptx
    assert "ld.global.v" in ptx and "st.global.v" in ptx  # several scalars at once


def test_the_merge_multiplies_nothing_on_the_gpu(ahead_of_time: Compiled, tmp_path: Path) -> None:
    from sparta_bench.sparta import kernels

    arguments = merge_arguments("bf16", "fp32")
    compiled = ahead_of_time(kernels._merge_kernel, 90, *arguments, kernels.MERGE_OPTIONS)
    cubin = tmp_path / "merge.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    machine_code = _tool("nvdisasm", "-c", str(cubin))
    assert "FADD" in machine_code
    assert "FFMA" not in machine_code and "FMUL" not in machine_code


@triton.jit  # type: ignore[untyped-decorator]
def _multiplies_and_adds(a, b, result, N: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    at = tl.arange(0, N)
    a, b = tl.load(a + at), tl.load(b + at)
    tl.store(result + at, a * b + a)


def test_the_tests_above_see_what_they_look_for(ahead_of_time: Compiled, tmp_path: Path) -> None:
    """A kernel that is made to spill, and one that is fused."""
    from sparta_bench.sparta import kernels

    starved = {**kernels.GRADIENT_OPTIONS, "maxnreg": 24}
    arguments = gradient_arguments("fp32")
    compiled = ahead_of_time(kernels._sampled_gradient_kernel, 90, *arguments, starved)
    assert Resources(compiled, tmp_path).local_bytes > 0
    pointers = dict.fromkeys(("a", "b", "result"), "fp32")
    for options, fuses in ((kernels.GRADIENT_OPTIONS, True), (kernels.MERGE_OPTIONS, False)):
        compiled = ahead_of_time(_multiplies_and_adds, 90, pointers, {"N": 128}, options)
        assert ("fma." in compiled.asm["ptx"]) is fuses
        assert fused(compiled.asm["ptx"]) or not fuses
