"""The CUDA kernels, in Triton's interpreter on a CPU, and compiled for a GPU that is not there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

# Triton decides when a kernel is defined whether it is interpreted, so each way has its process.
IN_THE_INTERPRETER = """
import torch
from sparta_bench.sparta import kernels
from sparta_bench.sparta.merge import rounded_sum
from sparta_bench.sparta.sample import sample_indices

torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
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
    # next to ties: half a step, and a little more or less than float32 can add
    deltas[::2] = (originals[::2].double() * torch.finfo(dtype).eps / 2).float()
    deltas[::4] *= 1 + 2.0**-20
    expected = weight.clone()
    expected.view(-1)[places.long()] = rounded_sum(originals, deltas)
    kernels.merge(weight, places, originals, deltas)
    assert torch.equal(weight, expected), dtype
    for special in (float("inf"), float("-inf"), float("nan")):
        one = torch.tensor([special]).to(dtype)
        kernels.merge(one, torch.zeros(1, dtype=torch.int32), one.clone(), torch.ones(1))
        torch.testing.assert_close(one.float(), torch.tensor([special]), equal_nan=True)
empty = torch.zeros(0, dtype=torch.int32)
assert kernels.sampled_gradient(grad, x, empty).shape == (0,)
kernels.merge(weight, empty, torch.zeros(0), torch.zeros(0))
"""

COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from sparta_bench.sparta import kernels

def compiled(kernel, pointers, constants):
    numbers = {name: "i32" for name in kernel.arg_names if name not in pointers}
    signature = pointers | numbers | dict.fromkeys(constants, "constexpr")
    return compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32)).asm

for dtype in ("bf16", "fp16", "fp32"):
    values = {"grad_t": f"*{dtype}", "x_t": f"*{dtype}", "indices": "*i32", "result": "*fp32"}
    asm = compiled(kernels._sampled_gradient_kernel, values, {"ENTRIES": 16, "TOKENS": 128})
    assert "fma.rn.f32" in asm["ptx"] and len(asm["cubin"]) > 1000
    values = {
        "weight": f"*{dtype}", "indices": "*i32", "originals": f"*{dtype}", "deltas": "*fp32",
    }
    constants = {"ROUNDS": dtype != "fp32", "ENTRIES": 1024}
    asm = compiled(kernels._merge_kernel, values, constants)
    # the exact error of the sum is lost if the compiler fuses or reorders it
    assert "fma" not in asm["ptx"]
    assert asm["ptx"].count("sub.f32") + asm["ptx"].count("sub.rn.f32") >= (dtype != "fp32") * 3
"""


@pytest.mark.parametrize(("code", "interpret"), [(IN_THE_INTERPRETER, "1"), (COMPILED, "0")])
def test_kernels(code: str, interpret: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "TRITON_INTERPRET": interpret},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
