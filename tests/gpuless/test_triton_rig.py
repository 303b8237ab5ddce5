# SPDX-License-Identifier: Apache-2.0
"""Tests that triton_rig detects wrong values, accesses out of bounds, spills and float64."""

from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from gpuless.triton_rig import ARCHS, TENSOR_CORES, compiled_launches, guard, interpret, untouched

SCALE = """
import pytest, torch, triton, triton.language as tl
from gpuless.triton_rig import guard, untouched

@triton.jit
def scale(x_ptr, y_ptr, n, FACTOR: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i, FACTOR * tl.load(x_ptr + i, mask=i < n), mask=i < n)

@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rig_passes_a_correct_kernel(dtype):
    x, y = guard(torch.arange(5).to(dtype)), guard(torch.zeros(5, dtype=dtype))
    scale[(1,)](x, y, 5, 2.0, 8)
    assert torch.equal(y, 2 * x) and untouched(y)

def test_rig_fails_a_wrong_kernel():
    x, y = torch.arange(5.0), torch.zeros(5)
    scale[(1,)](x, y, 5, 2.5, 8)
    assert torch.equal(y, 2 * x)

def test_rig_fails_a_stray_write():
    x, y = torch.ones(8), guard(torch.zeros(5))
    scale[(1,)](x, y, 6, 2.0, 8)
    assert untouched(y)

def test_rig_reports_a_skip():
    pytest.skip("because")
"""


def test_interpreter_reports_every_outcome(tmp_path):
    path = tmp_path / "test_scale.py"
    path.write_text(SCALE)
    names = [
        "test_rig_passes_a_correct_kernel[dtype0]",
        "test_rig_passes_a_correct_kernel[dtype1]",
        "test_rig_fails_a_wrong_kernel",
        "test_rig_fails_a_stray_write",
        "test_rig_reports_a_skip",
    ]
    outcomes = interpret(Path(__file__).parents[2], path, names)
    got = [outcomes.get(name, outcomes[""])[0] for name in names]
    assert got == ["passed", "passed", "failure", "failure", "skipped"], outcomes
    assert "because" in outcomes["test_rig_reports_a_skip"][1]


@pytest.mark.interpreted
def test_marked_test_runs_in_the_interpreter():
    assert triton.knobs.runtime.interpret


@triton.jit
def _product(a_ptr, b_ptr, y_ptr, slope, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    at = i[:, None] * SIZE + i[None, :]
    y = slope * tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at))
    tl.store(y_ptr + at, y)


@pytest.mark.parametrize("arch", ARCHS)
def test_rig_compiles_for_absent_gpus(arch):
    a = torch.zeros(64, 64, dtype=torch.bfloat16)
    (kernel,) = compiled_launches(arch, lambda: _product[(1,)](a, a, a, 0.1, 64, num_warps=4))
    kernel.check(registers=128, shared=32 << 10)
    assert any(name.startswith(TENSOR_CORES[arch]) for name in kernel.counts), kernel.counts
    with pytest.raises(AssertionError, match="registers, limit 1$"):
        kernel.check(registers=1)
    with pytest.raises(AssertionError, match="shared memory, limit 1$"):
        kernel.check(shared=1)


def test_rig_detects_spills():
    a = torch.zeros(64, 64, dtype=torch.bfloat16)
    (kernel,) = compiled_launches(80, lambda: _product[(1,)](a, a, a, 0.1, 64, maxnreg=32))
    with pytest.raises(AssertionError, match="spills or keeps arrays in local memory"):
        kernel.check()


def test_rig_detects_float64():
    a, y = torch.zeros(64, 64, dtype=torch.bfloat16), torch.zeros(64, 64, dtype=torch.float64)
    (kernel,) = compiled_launches(90, lambda: _product[(1,)](a, a, y, 0.1, 64))
    with pytest.raises(AssertionError, match="arguments y_ptr arrive as float64"):
        kernel.check()


def test_rig_detects_stray_writes():
    x = guard(torch.arange(12.0).reshape(3, 4).t())
    assert torch.equal(x, torch.arange(12.0).reshape(3, 4).t()) and untouched(x)
    x.as_strided((1,), (1,), 4095)[0] = 3
    assert not untouched(x)
