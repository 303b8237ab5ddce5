# SPDX-License-Identifier: Apache-2.0
"""Tests of the gradients of deform_conv2d in two passes, on the emulator against float64."""

import pytest
import torch
from gpuless.two_passes_cases import DTYPES, draw_cases, limit_columns

from fastds.ops import deform_conv2d
from fastds.ops.impl.deform_conv2d import guided, kernel_times, selection
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference
from fastds.ops.impl.deform_conv2d.selection import use_two_passes
from tests.support.deform_cases import (
    NAMES,
    Problem,
    assert_gradients_agree,
    compute_one_gradient,
    far_problem,
    gradients,
    run_with_gradients,
    views,
)

SAMPLE, SCATTER = "deform_conv2d_sample_kernel", "deform_conv2d_scatter_kernel"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("first", range(0, 70, 10))
def test_random_shapes(emulated, columns, monkeypatch, first, dtype):
    emulator = emulated("deform_conv2d")
    for problem, tensors in draw_cases(emulator, monkeypatch, range(first, first + 10), dtype):
        assert_gradients_agree(problem, tensors)
        assert {launch.name for launch in emulator.launches} == {SAMPLE, SCATTER}, problem


WIDE = [
    Problem("several_packs_a_lane", 1, 160, 6, 5, 6, (3, 2), G=1),
    Problem("groups_inside_an_offset_group", 1, 192, 8, 5, 6, (2, 2), groups=8, G=1),
    Problem("three_packs", 2, 48, 6, 5, 9, groups=2, G=2),
    Problem("overlapping_groups", 1, 96, 9, 5, 6, groups=3, G=2),
]


@pytest.mark.parametrize("problem", WIDE, ids=[problem.id for problem in WIDE])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wide_offset_groups(emulated, columns, problem, dtype):
    emulated("deform_conv2d", seed=1)
    assert_gradients_agree(problem, problem.tensors(dtype, torch.float32))


def test_chunks_of_columns(emulated, columns, monkeypatch):
    """Only sums over pixels depend on the chunks."""
    problem = Problem("chunks", 3, 16, 5, 11, 9, G=2)
    tensors = problem.tensors(torch.bfloat16)
    grad_y = torch.randn(3, 5, 11, 9)
    emulator = emulated("deform_conv2d")
    expected = run_with_gradients(problem, tensors, grad_y)
    limit_columns(monkeypatch, 9 * 9 * 16 * 2 * 17)  # 17 lines
    emulator.clear()
    got = run_with_gradients(problem, tensors, grad_y)
    assert [launch.name for launch in emulator.launches] == [SAMPLE] * 3 + [SAMPLE, SCATTER] * 3
    for name, a, b in zip(("value", *NAMES), got, expected, strict=True):
        if name in ("input", "weight"):
            torch.testing.assert_close(a, b)
        else:
            assert torch.equal(a, b), name
    assert len(columns[-1]) == 9 * 9 * 16 * 16 + 64


@pytest.mark.sanitized
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_no_out_of_bounds_access(emulated, columns, dtype):
    emulated("deform_conv2d", seed=4)
    for problem in (Problem("odd", 1, 16, 20, 5, 7, G=2), Problem("wide", 1, 48, 4, 9, 3, groups=2, G=1, mask=False)):
        assert_gradients_agree(problem, problem.tensors(dtype))


@pytest.mark.parametrize("offset_groups", [1, 8])
def test_only_the_gradient_of_input_depends_on_thread_order(emulated, columns, offset_groups):
    problem = Problem("order", 1, 64, 16, 9, 17, G=offset_groups)
    tensors, grad_y = problem.tensors(torch.float32), torch.randn(1, 16, 9, 17)
    emulator = emulated("deform_conv2d")
    first, changed = run_with_gradients(problem, tensors, grad_y), False
    for emulator.seed in (1, 2, 3):
        for name, a, b in zip(("value", *NAMES), run_with_gradients(problem, tensors, grad_y), first, strict=True):
            if name == "input":
                torch.testing.assert_close(a, b)
                changed |= not torch.equal(a, b)
            else:
                assert torch.equal(a, b), name
    assert changed  # the seeds do change the order


@pytest.mark.parametrize("layout", ["contiguous", "channel_slice"])
def test_results_do_not_depend_on_strides(emulated, columns, layout):
    problem = Problem("strides", 2, 16, 8, 5, 6, G=2)
    tensors = problem.tensors(torch.bfloat16, offset_dtype=torch.float32)
    grad_y = torch.randn(2, 8, 5, 6)
    emulated("deform_conv2d")
    expected = run_with_gradients(problem, tensors, grad_y)
    changed = [views(layout, t) if i in (0, 1, 4) else t for i, t in enumerate(tensors)]
    got = run_with_gradients(problem, changed, views(layout, grad_y))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_batches_beyond_32_bits(emulated, columns):
    problem, values, far_values = far_problem("batch", 16, 16)
    grad_y = torch.randn(problem.B, problem.O, *problem.out)
    emulated("deform_conv2d")
    expected = run_with_gradients(problem, values, grad_y)
    assert all(
        torch.equal(a, b) for a, b in zip(run_with_gradients(problem, far_values, grad_y), expected, strict=True)
    )


@pytest.mark.parametrize("index", range(5), ids=NAMES)
def test_each_gradient_alone(emulated, columns, index):
    problem = Problem("alone", 1, 16, 4, 5, 6, G=2)
    tensors = problem.tensors(torch.float32)
    emulator = emulated("deform_conv2d")
    everything = run_with_gradients(problem, tensors, torch.ones(1, 4, 5, 6))[1 + index]
    emulator.clear()
    got = compute_one_gradient(problem, tensors, index)
    torch.testing.assert_close(got, everything, **({} if index == 0 else {"rtol": 0, "atol": 0}))  # atomic additions
    extra = {2: [SAMPLE], 3: []}.get(index, [SCATTER])
    assert [launch.name for launch in emulator.launches] == [SAMPLE, *extra]


SPECIAL = [float("nan"), float("inf"), float("-inf"), 1e10, -1e10, 65504.0, -1.0, -1.0 + 2**-6, -2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_outside_and_non_finite_offsets(emulated, columns, dtype):
    """A sample outside the image has no gradient, even where its mask or the gradient of the result is not finite."""
    problem = Problem("special", 1, 8, 4, 3, len(SPECIAL), (1, 1), padding=(0, 0), G=1)
    tensors = problem.tensors(dtype, offset_dtype=torch.float32)
    tensors[1] = torch.tensor(SPECIAL).repeat(3, 1)[None, None].repeat(1, 2, 1, 1)
    tensors[1][:, 1] -= torch.arange(len(SPECIAL))  # columns get the special position itself
    tensors[1][:, 0] = 0.25
    emulated("deform_conv2d")
    assert_gradients_agree(problem, tensors)
    outside = torch.arange(len(SPECIAL)) != 7
    for changed in ("mask", "grad_y"):
        values, grad_y = [t.clone() for t in tensors], torch.ones(1, 4, *problem.out)
        (values[4] if changed == "mask" else grad_y)[..., outside] = float("nan")
        _, grad_x, grad_offset, _, _, grad_mask = run_with_gradients(problem, values, grad_y)
        assert torch.equal(grad_offset[:, 0] != 0, ~outside.expand(1, 3, -1)), changed
        assert torch.equal(grad_mask[:, 0] != 0, ~outside.expand(1, 3, -1)), changed
        assert grad_x.isfinite().all(), changed


def test_values_that_are_not_finite_spread_as_in_the_reference(emulated, columns):
    problem = Problem("special", 1, 16, 16, 4, 8, (1, 1), padding=(0, 0), G=1)
    x, offset, weight, bias, mask = problem.tensors(torch.float32)
    offset[:] = 0.25
    x[0, 0, 1, 1], x[0, 3, -1, -1], mask[0, 0, 2, 5] = float("nan"), float("inf"), float("nan")
    grad_y = torch.randn(1, 16, 4, 8)
    tensors = (x, offset, weight, bias, mask)
    emulated("deform_conv2d")
    got = run_with_gradients(problem, tensors, grad_y)
    exact = gradients(lambda t: problem.run(reference, t), tensors, grad_y)
    for name, a, b in zip(("value", *NAMES), got, exact, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite()), name
        torch.testing.assert_close(a[b.isfinite()], b[b.isfinite()], rtol=1e-4, atol=1e-4)


def test_deterministic_algorithms_use_the_ordered_kernel(emulated, monkeypatch):
    """The two passes, which are faster by their estimates, run without deterministic algorithms only."""
    monkeypatch.setattr(kernel_times, "UNTRIED", frozenset())
    monkeypatch.setattr(selection, "rank_kernels", kernel_times.rank_kernels.__wrapped__)  # without its cache
    problem = Problem("deterministic", 1, 16, 4, 5, 6)
    tensors = problem.tensors(torch.float32)
    emulator = emulated("deform_conv2d")
    assert_gradients_agree(problem, tensors)
    assert SCATTER in {launch.name for launch in emulator.launches}
    emulator.clear()
    torch.use_deterministic_algorithms(True)
    try:
        assert_gradients_agree(problem, tensors)
    finally:
        torch.use_deterministic_algorithms(False)
    names = {launch.name for launch in emulator.launches}
    assert "deform_conv2d_backward_samples_kernel" in names and not names & {SAMPLE, SCATTER}


@pytest.mark.parametrize("modulated, shift", [(True, 0.0), (True, 5.0), (True, None), (False, 0.3)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_offsets(emulated, columns, monkeypatch, dtype, modulated, shift):
    """Gradients of logits and of the base offset, in slices of the channels of one tensor."""
    limit_columns(monkeypatch, 1 << 16)
    for groups in (2, 4):
        x = torch.randn(2, 32, 11, 13).to(dtype).contiguous(memory_format=torch.channels_last)
        raw = torch.randint(-32, 32, (2, (3 if modulated else 2) * groups * 9, 11, 13)) / 8 + 1 / 16
        raw = raw.to(dtype).contiguous(memory_format=torch.channels_last)
        weight = (torch.randn(20, 32, 3, 3) / 17).to(dtype)
        base = (
            None
            if shift is None
            else torch.randint(-8, 8, (2, 2, 11, 13)) / 8 + torch.tensor([0, shift])[:, None, None]
        )
        grad_y = torch.randn(2, 20, 11, 13).to(dtype)
        needs = [True] * 4 + [base is not None]
        args = (grad_y, x, raw, weight, base, groups, modulated, needs)
        emulator = emulated("deform_conv2d", seed=groups)
        got = guided.GUIDED_DEFORM_CONV2D_BACKWARD(*args)
        assert {launch.name for launch in emulator.launches} == {SAMPLE, SCATTER}
        exact = guided._backward_reference(*(t.double() if isinstance(t, torch.Tensor) else t for t in args))
        for name, a, b in zip(("input", "raw", "weight", "bias", "base_offset"), got, exact, strict=False):
            error = (a.double() - b).abs().max() / b.abs().max()
            assert error <= (1e-5 if dtype == torch.float32 else 1.2e-2), (name, error)


def test_gradients_of_an_unsupported_call_name_the_reason(emulated):
    problem = Problem("unsupported", 1, 12, G=1)
    tensors = [t.requires_grad_() for t in problem.tensors(torch.bfloat16)]
    emulated("deform_conv2d")
    y = problem.run(deform_conv2d, tensors)
    with use_two_passes(True), pytest.raises(RuntimeError, match="a multiple of 8"):
        y.sum().backward()
