# SPDX-License-Identifier: Apache-2.0
"""Tests of the CUDA kernels of deform_conv2d on the emulator, against float64."""

import pytest
import torch
from gpuless.emu import ptxas_report

from fastds.ops import deform_conv2d
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference
from tests.support.deform_cases import (
    NAMES,
    PROBLEMS,
    Problem,
    assert_gradients_agree,
    by_id,
    compute_one_gradient,
    far_problem,
    gradients,
    run_with_gradients,
    views,
)

pytestmark = pytest.mark.usefixtures("in_one_pass")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
CASES = [p for p in PROBLEMS if p.id not in ("many_pixels", "channels16", "batch37", "no_bias", "no_mask", "kernel5x5")]
FEW = [p for p in PROBLEMS if p.id in ("plain", "groups_not_nested", "points10", "channels8")]


@pytest.fixture
def deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("problem", **by_id(CASES))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_and_gradients(emulated, problem, dtype):
    emulated("deform_conv2d", seed=1)
    assert_gradients_agree(problem, problem.tensors(dtype))


@pytest.mark.parametrize("problem", **by_id(FEW))
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_offset_in_float32(emulated, problem, dtype):
    emulated("deform_conv2d", seed=2)
    assert_gradients_agree(problem, problem.tensors(dtype, offset_dtype=torch.float32))


@pytest.mark.parametrize("problem", **by_id(FEW))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ordered_gradients(emulated, deterministic, problem, dtype):
    emulated("deform_conv2d", seed=3)
    assert_gradients_agree(problem, problem.tensors(dtype))


@pytest.mark.parametrize("problem", **by_id(FEW))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ordered", [False, True], ids=["atomic", "ordered"])
def test_results_do_not_depend_on_thread_order(emulated, problem, dtype, ordered, request):
    """Results are bitwise equal, except grad_x without deterministic algorithms, which is summed atomically."""
    if ordered:
        request.getfixturevalue("deterministic")
    tensors = problem.tensors(dtype, offset_dtype=torch.float32)
    grad_y = torch.randn(problem.B, problem.O, *problem.out).to(dtype)
    emulator, runs = emulated("deform_conv2d"), []
    for seed in (0, 1, 2):
        emulator.seed = seed
        runs.append(run_with_gradients(problem, tensors, grad_y))
    for other in runs[1:]:
        for index, (a, b) in enumerate(zip(other, runs[0], strict=True)):
            if index == 1 and not ordered:
                torch.testing.assert_close(a, b)
            else:
                assert torch.equal(a, b), index
    if dtype == torch.float32 and not ordered:
        assert any(not torch.equal(other[1], runs[0][1]) for other in runs[1:])  # the seeds do change the order


MISALIGNED = pytest.param("misaligned", marks=pytest.mark.sanitized)


@pytest.mark.parametrize("layout", ["contiguous", "channel_slice", MISALIGNED, "expanded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_do_not_depend_on_strides(emulated, deterministic, layout, dtype):
    problem = Problem("strides", 2, 16, 8, 5, 6, G=2)
    tensors = problem.tensors(dtype, offset_dtype=torch.float32)
    grad_y = torch.randn(2, 8, 5, 6).to(dtype)
    changed = [views(layout, t) if i in (0, 1, 4) else t for i, t in enumerate(tensors)]
    emulated("deform_conv2d", seed=4)
    expected = run_with_gradients(problem, [t.clone(memory_format=torch.contiguous_format) for t in changed], grad_y)
    got = run_with_gradients(problem, changed, grad_y)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    x = tensors[0]
    assert problem.run(deform_conv2d, [x, *tensors[1:]]).is_contiguous(memory_format=torch.channels_last)
    assert problem.run(deform_conv2d, [x.contiguous(), *tensors[1:]]).is_contiguous()


@pytest.mark.sanitized
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("ordered", [False, True], ids=["atomic", "ordered"])
def test_no_out_of_bounds_access(emulated, dtype, ordered, request):
    if ordered:
        request.getfixturevalue("deterministic")
    emulated("deform_conv2d", seed=5)
    for problem in (p for p in PROBLEMS if p.id in ("groups_not_nested", "channels8")):
        assert_gradients_agree(problem, problem.tensors(dtype))


@pytest.mark.parametrize("far", ["batch", "row", "pixel"])
def test_elements_beyond_32_bits(emulated, far):
    """Strides of 2^30 elements give what a compact field gives."""
    problem, values, far_values = far_problem(far)
    grad_y = torch.randn(problem.B, problem.O, *problem.out)
    emulated("deform_conv2d")
    expected = run_with_gradients(problem, values, grad_y)
    assert all(
        torch.equal(a, b) for a, b in zip(run_with_gradients(problem, far_values, grad_y), expected, strict=True)
    )


SPECIAL = [float("nan"), float("inf"), float("-inf"), 1e10, -1e10, 65504.0, -1.0, -1.0 + 2**-10, -2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_outside_and_non_finite_offsets(emulated, dtype):
    """A sample outside the field, or exactly at -1, is 0 and has no gradient."""
    problem = Problem("special", 1, 8, 4, 3, len(SPECIAL), (1, 1), padding=(0, 0), G=1)
    tensors = problem.tensors(dtype, offset_dtype=torch.float32)
    tensors[1] = torch.tensor(SPECIAL).repeat(3, 1)[None, None].repeat(1, 2, 1, 1)
    tensors[1][:, 1] -= torch.arange(len(SPECIAL))  # columns get the special position itself
    tensors[1][:, 0] = 0.25
    emulated("deform_conv2d")
    assert_gradients_agree(problem, tensors)
    grad_y = torch.ones(1, 4, *problem.out).to(dtype)
    grad_offset = run_with_gradients(problem, tensors, grad_y)[2]
    assert torch.equal(grad_offset[:, 0] != 0, (torch.arange(len(SPECIAL)) == 7).expand(1, 3, -1))


def test_all_samples_on_one_pixel(emulated, deterministic):
    problem = Problem("one", 1, 8, 4, 9, 9, G=1)
    tensors = problem.tensors(torch.float32)
    row, column = torch.arange(9.0).reshape(9, 1), torch.arange(9.0)
    taps = torch.stack([torch.stack((4.25 - row - i + 1 + 0 * column, 4.5 - column - j + 1 + 0 * row))
                        for i in range(3) for j in range(3)])  # fmt: skip
    tensors[1] = taps.reshape(1, 18, 9, 9)
    emulator = emulated("deform_conv2d", seed=6)
    assert_gradients_agree(problem, tensors)
    grad_y = torch.randn(1, 4, 9, 9)
    first = run_with_gradients(problem, tensors, grad_y)
    emulator.seed = 7
    assert all(torch.equal(a, b) for a, b in zip(run_with_gradients(problem, tensors, grad_y), first, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_ordered_gradient_of_non_finite_values(emulated, deterministic, bad):
    problem = Problem("bad", 1, 8, 4, 6, 7, G=2)
    tensors = problem.tensors(torch.float32)
    grad_y = torch.randn(1, 4, 6, 7)
    emulated("deform_conv2d")
    clean = run_with_gradients(problem, tensors, grad_y)[1]
    grad_y[0, 2, 3, 4] = bad
    exact = gradients(lambda t: problem.run(reference, t), tensors, grad_y)[1]
    got = run_with_gradients(problem, tensors, grad_y)[1]
    touched = ~exact.isfinite()
    assert touched.any() and not touched.all() and torch.equal(~got.isfinite(), touched)
    torch.testing.assert_close(got[~touched], exact[~touched])
    assert clean.isfinite().all()


@pytest.mark.parametrize("scale", [1e-30, 1e30, 0.0])
def test_ordered_gradient_of_any_magnitude(emulated, deterministic, scale):
    problem = Problem("scaled", 1, 8, 4, 6, 7, G=2)
    tensors = problem.tensors(torch.float32)
    grad_y = torch.randn(1, 4, 6, 7)
    emulated("deform_conv2d")
    base = run_with_gradients(problem, tensors, grad_y)[1]
    got = run_with_gradients(problem, tensors, grad_y * scale)[1]
    torch.testing.assert_close(got.double(), base.double() * scale, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("index", range(5), ids=NAMES)
def test_each_gradient_alone(emulated, index):
    problem = Problem("alone", 1, 8, 4, 5, 6, G=2)
    tensors = problem.tensors(torch.float32)
    emulator = emulated("deform_conv2d")
    everything = run_with_gradients(problem, tensors, torch.ones(1, 4, 5, 6))[1 + index]
    emulator.clear()
    got = compute_one_gradient(problem, tensors, index)
    assert torch.equal(got, everything)
    names = [launch.name for launch in emulator.launches]
    samples, weight = "deform_conv2d_backward_samples_kernel", "deform_conv2d_backward_weight_kernel"
    extra = {2: [weight, "deform_conv2d_sum_weight_kernel"], 3: []}.get(index, [samples])
    assert names == ["deform_conv2d_forward_kernel", *extra]
    assert all(launch.shared_bytes == 0 for launch in emulator.launches)


def test_empty_batch(emulated):
    problem = Problem("plain")
    tensors = [t if i in (2, 3) else t[:0] for i, t in enumerate(problem.tensors(torch.float32))]
    emulator = emulated("deform_conv2d")
    y, *grads = run_with_gradients(problem, tensors, torch.zeros(0, problem.O, *problem.out))
    assert y.shape == (0, problem.O, *problem.out) and emulator.launches == []
    assert all(torch.equal(g, torch.zeros_like(t)) for g, t in zip(grads, tensors, strict=True))


@pytest.mark.parametrize("source", ["cuda_forward.cu", "cuda_backward.cu"])
def test_registers_and_spills(source):
    for kernel in ptxas_report("deform_conv2d", 80, 90, source=source):
        double = "Id" in kernel.name  # the mangled template argument
        held = 160 if "window" in kernel.name else 0  # bytes: of 512 threads, whose registers are 128
        assert kernel.spills <= held and kernel.stack <= held, kernel
        assert kernel.registers <= (255 if double else 128) and kernel.shared <= 48 << 10, kernel
