# SPDX-License-Identifier: Apache-2.0
"""Tests of deform_conv2d by one kernel whose warps sample or multiply (csrc/deform_conv2d/cuda_fused.cuh), emulated."""

import pytest
import torch
from gpuless.conv3x3_window_cases import is_untouched
from gpuless.deform_fused_cases import KERNEL, Case, draw_case

import fastds
from fastds.ops import deform_conv2d
from fastds.ops.impl.deform_conv2d import fused, guided
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference
from fastds.ops.impl.deform_conv2d.selection import use_fused, use_two_passes
from tests.support.deform_cases import Problem, assert_agrees, far_problem, run_with_gradients, views

BF16, F32 = torch.bfloat16, torch.float32
ORDER = Case(Problem("order", 1, 16, 12, 9, 17, (2, 3), padding=(0, 1), G=2))


@pytest.mark.parametrize("seed", range(64))
def test_drawn_calls(emulated, fused_outputs, seed):
    case = draw_case(seed)
    torch.manual_seed(seed)
    emulator = emulated("deform_conv2d", seed=seed)
    assert_agrees(case.problem, case.make_tensors())
    assert [launch.name for launch in emulator.launches] == [KERNEL]
    assert is_untouched(fused_outputs), case


@pytest.mark.parametrize(
    "outputs, threads, blocks", [(8, 576, 2), (64, 640, 2), (72, 704, 2), (128, 768, 2), (136, 704, 2)]
)
def test_sizes_of_blocks(emulated, fused_outputs, outputs, threads, blocks):
    """Blocks have two multiplying warps for 32 outputs. More than 128 outputs are divided among blocks."""
    case = Case(Problem("sizes", 1, 8, outputs, 9, 9, G=1))
    emulator = emulated("deform_conv2d", seed=1)
    assert_agrees(case.problem, case.make_tensors())
    (launch,) = emulator.launches
    assert launch.block == (threads, 1, 1) and launch.grid == (blocks, 1, 1) and launch.shared_bytes <= 227 << 10
    assert is_untouched(fused_outputs)


def test_results_do_not_depend_on_the_order_of_threads(emulated, fused_outputs):
    tensors = ORDER.make_tensors()
    emulator = emulated("deform_conv2d")
    first = ORDER.compute(tensors)
    assert_agrees(ORDER.problem, tensors)
    for emulator.seed in range(1, 21):
        assert torch.equal(ORDER.compute(tensors), first), emulator.seed


@pytest.mark.sanitized
def test_no_out_of_bounds_access(emulated, fused_outputs):
    emulated("deform_conv2d", seed=4)
    for problem in (Problem("odd", 1, 16, 5, 5, 9, G=2), Problem("wide", 1, 24, 72, 3, 4, (1, 2), G=3, mask=False)):
        assert_agrees(problem, Case(problem, reach=7).make_tensors())


def test_results_do_not_depend_on_strides(emulated, fused_outputs):
    problem = Problem("strides", 2, 16, 8, 5, 6, G=2)
    tensors = problem.tensors(BF16, offset_dtype=F32)
    emulator = emulated("deform_conv2d")
    expected = problem.run(deform_conv2d, tensors)
    for layout in ("contiguous", "channel_slice"):
        changed = [views(layout, t) if i in (0, 1, 4) else t for i, t in enumerate(tensors)]
        assert torch.equal(problem.run(deform_conv2d, changed), expected)
    tensors[2] = views("misaligned", tensors[2])  # copied
    assert torch.equal(problem.run(deform_conv2d, tensors), expected)
    assert len(emulator.launches) == 4


@pytest.mark.parametrize("far", ["batch", "row"])
def test_elements_beyond_32_bits(emulated, fused_outputs, far):
    problem, values, far_values = far_problem(far, 16, 16)
    x = far_values[0]
    far_values[0] = x.as_strided(x.shape, (max(x.stride(0), 16), *x.stride()[1:]))  # that of one image is 1
    emulated("deform_conv2d")
    expected = problem.run(deform_conv2d, values)
    if far == "batch":  # positions are relative to an image
        assert torch.equal(problem.run(deform_conv2d, far_values), expected)
    else:
        with pytest.raises(RuntimeError, match="an image is larger than 32-bit positions reach"):
            problem.run(deform_conv2d, far_values)


def test_non_finite_values_match_the_reference(emulated, fused_outputs):
    """A NaN reaches only the pixels that sample it, also where terms fill up a slab or pixels fill up a tile."""
    problem = Problem("special", 1, 24, 8, 4, 10, (1, 1), padding=(0, 0), G=1)
    x, offset, weight, bias, mask = problem.tensors(BF16, F32)
    offset[:] = 0.25
    offset[0, 1, 0, :6] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e10, -6.0, 65504.0])
    x[0, 0, 2, :8:2] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30]).to(BF16)
    x[0, 1, -1, -1] = float("inf")
    mask[0, 0, 1, 9] = float("nan")
    tensors = (x, offset, weight, bias, mask)
    emulated("deform_conv2d")
    got, exact = problem.run(deform_conv2d, tensors), problem.run(reference, [t.double() for t in tensors])
    assert torch.equal(got.isnan(), exact.isnan()) and exact.isnan().any()
    finite = exact.isfinite() & (exact.abs() < 1e20)
    torch.testing.assert_close(got[finite].double(), exact[finite], rtol=0.03, atol=0.1)


@pytest.mark.parametrize("modulated, shift, slope", [(True, 0.0, 0.1), (True, 35.0, 1.0), (False, None, 0.1)])
def test_fused_offsets(emulated, fused_outputs, modulated, shift, slope):
    groups, channels = 2, 16
    x = torch.randn(2, channels, 7, 10).bfloat16().contiguous(memory_format=torch.channels_last)
    raw = torch.randn(2, (3 if modulated else 2) * groups * 9, 7, 10).bfloat16()
    raw = raw.contiguous(memory_format=torch.channels_last)
    weight, bias = (torch.randn(20, channels, 3, 3) / 12).bfloat16(), torch.randn(20).bfloat16()
    base = None if shift is None else torch.randn(2, 2, 7, 10) + torch.tensor([0.3, shift])[:, None, None]
    args = (x, raw, weight, bias, base, groups, modulated, slope)
    emulator = emulated("deform_conv2d")
    got = guided.GUIDED_DEFORM_CONV2D(*args)
    assert [launch.name for launch in emulator.launches] == [KERNEL]
    exact = guided.reference(*(t.double() if isinstance(t, torch.Tensor) else t for t in args))
    torch.testing.assert_close(got.double(), exact, rtol=1.6e-2, atol=1.6e-2)


def test_gradients_are_those_of_other_kernels(emulated):
    problem = Problem("gradients", 1, 16, 16, 5, 6, G=2)
    tensors = problem.tensors(BF16)
    grad_y = torch.randn(1, 16, 5, 6)
    emulator = emulated("deform_conv2d")
    found = []
    for enabled in (True, False):
        with use_two_passes(enabled):
            expected = run_with_gradients(problem, tensors, grad_y)
            emulator.clear()
            with use_fused():
                found = run_with_gradients(problem, tensors, grad_y)
        names = [launch.name for launch in emulator.launches]
        assert names[0] == KERNEL and ("deform_conv2d_scatter_kernel" in names) == enabled
        for gradient, other in zip(found[1:], expected[1:], strict=True):
            torch.testing.assert_close(gradient, other)


def test_reasons_why_the_kernel_does_not_take_a_call(emulated):
    emulated("deform_conv2d")

    def reason(dtype=BF16, layout=None, **changes):
        problem = Problem("refused", **({"B": 1, "C": 16, "O": 4, "H": 5, "W": 6} | changes))
        x, offset, weight, _, mask = problem.tensors(dtype)
        x = x if layout is None else views(layout, x)
        return fused.get_unsupported_reason(x, offset, weight, mask, *problem.geometry[:2])

    assert reason() is None and reason(torch.float16, C=80, groups=5, O=5, G=1) is None
    assert "no torch.float32" in reason(F32)
    assert "a multiple of 8" in reason(C=12) and "a multiple of 8" in reason(G=4)
    assert "aligned" in reason(layout="misaligned") and "channels_last" in reason(layout="contiguous")
    assert "do not fit in shared memory" in reason(C=2048, kernel=(5, 7), padding=(2, 3), G=1, O=128)


def test_request_that_cannot_run_names_the_reason(emulated, fused_outputs):
    problem = Problem("float32", 1, 16, 4, 5, 6)
    emulated("deform_conv2d")
    with pytest.raises(RuntimeError, match="requested, but cannot run: the fused kernel has no torch.float32"):
        problem.run(deform_conv2d, problem.tensors(F32))
    problem = Problem("cpu", 1, 8, 4, 5, 6, G=1)
    with fastds.use_backend("reference"):
        problem.run(deform_conv2d, problem.tensors(F32))
