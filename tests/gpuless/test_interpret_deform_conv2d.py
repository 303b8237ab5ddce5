# SPDX-License-Identifier: Apache-2.0
"""Tests of the interpreted Triton kernels of deform_conv2d, against float64."""

import pytest
import torch
from fastds.kernels import deform_conv2d as forward_kernels
from fastds.kernels import deform_conv2d_backward as backward_kernels
from gpuless.triton_rig import guard, untouched

import fastds
from fastds.ops import deform_conv2d
from fastds.ops.impl.deform_conv2d import guided as guided
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference
from tests.support.deform_cases import NAMES, Problem, assert_within_rule, gradients, torch_in_dtype

pytestmark = pytest.mark.interpreted

# Problems have few pixels, because the interpreter takes milliseconds for each operation on a tile.
PROBLEMS = [
    Problem("plain", 1, 8, 6, 5, 6, (2, 3), padding=(1, 1)),
    Problem("torchvision", 2, 6, 2, 5, 4, (3, 2), (2, 1), (1, 0), (2, 1), groups=2, G=3),
    Problem("groups_not_nested", 1, 12, 9, 4, 3, (1, 2), padding=(0, 1), groups=3, G=2),
    Problem("offset_groups_inside", 1, 12, 8, 4, 5, (2, 1), padding=(1, 0), groups=2, G=6),
    Problem("depthwise", 1, 4, 8, 5, 4, (1, 2), padding=(0, 0), groups=4, G=1),
    Problem("channels19", 1, 38, 17, 3, 5, (1, 2), padding=(0, 1), G=2),
    Problem("free_points", 1, 8, 20, 4, 4, (1, 3), padding=(0, 0), dilation=(0, 0), G=1),
    Problem("one_channel_bare", 1, 1, 1, 5, 7, (1, 1), padding=(0, 0), G=1, bias=False, mask=False),
    # A batch, as one sample in eight lies inside: the peer measures nothing where one or two values are not 0.
    Problem("pixel", 24, 4, 4, 1, 1, (2, 2), padding=(1, 1), stride=(2, 2)),
]
HALF = [(PROBLEMS[0], torch.float16), (PROBLEMS[5], torch.float32)]  # problem and dtype of the offset
CASES = [pytest.param(p, torch.float32, torch.float32, id=p.id) for p in PROBLEMS]
CASES += [pytest.param(p, torch.float16, offset, id=f"{p.id}-float16-{offset}") for p, offset in HALF]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Select small tiles, so that tiny problems have several programs along each axis of the grid."""
    tiles = forward_kernels.Tiles(16, 16, 16, 4, 1)
    monkeypatch.setattr(forward_kernels, "select_forward_tiles", lambda *_: tiles)
    monkeypatch.setattr(backward_kernels, "select_map_tiles", lambda *_: (tiles, False))
    monkeypatch.setattr(backward_kernels, "select_weight_tiles", lambda *_: tiles)


def run(function):
    with fastds.use_backend("triton"):
        return function()


@pytest.mark.parametrize("problem, dtype, offset_dtype", CASES)
def test_agrees_with_reference(problem, dtype, offset_dtype):
    tensors = problem.tensors(dtype, offset_dtype)
    grad_y = torch.randn(problem.B, problem.O, *problem.out)
    exact = gradients(lambda t: problem.run(reference, t), [t if t is None else t.double() for t in tensors], grad_y)
    peer = gradients(lambda t: torch_in_dtype(problem, t), tensors, grad_y)
    ours = run(lambda: gradients(lambda t: problem.run(deform_conv2d, t), tensors, grad_y))
    names = ["output", *(n for n, t in zip(NAMES, tensors, strict=True) if t is not None)]
    assert_within_rule(ours, peer, exact, names, grad_y)


def test_results_equal_with_64_bit_addresses(monkeypatch):
    problem = PROBLEMS[1]
    tensors, grad_y = problem.tensors(torch.float32), torch.randn(2, 2, *problem.out)

    def compute():
        return run(lambda: gradients(lambda t: problem.run(deform_conv2d, t), tensors, grad_y))

    narrow = compute()
    for kernels in (forward_kernels, backward_kernels):
        monkeypatch.setattr(kernels, "needs_int64", lambda *_: True)
    assert all(torch.equal(a, b) for a, b in zip(narrow, compute(), strict=True))


def test_no_out_of_bounds_access():
    """All memory around the tensors is NaN; x, offset and mask are slices of larger tensors."""
    problem = Problem("slices", 2, 8, 6, 4, 5, (1, 3), padding=(0, 1))
    x, offset, weight, bias, mask = problem.tensors(torch.float32)
    expected = gradients(lambda t: problem.run(reference, t), [x, offset, weight, bias, mask], torch.ones(2, 6, 4, 5))
    slices = [torch.full((2, t.shape[1] + 16, *t.shape[2:]), torch.nan) for t in (x, offset, mask)]
    slices = [s.contiguous(memory_format=torch.channels_last)[:, 8:-8] for s in slices]
    x, offset, mask = (s.copy_(t) for s, t in zip(slices, (x, offset, mask), strict=True))
    weight = guard(weight.contiguous(memory_format=torch.channels_last))
    kernel = forward_kernels.Problem(problem.kernel, *problem.geometry, 1, 2)
    empty = [torch.zeros_like(t, memory_format=torch.channels_last) for t in (expected[0], expected[1])]
    y, grad_x, grad_y = (guard(t) for t in (*empty, torch.ones_like(empty[0])))
    grads = [guard(torch.empty(t.shape).contiguous(memory_format=torch.channels_last)) for t in (offset, mask)]
    forward_kernels.launch_forward(x, offset, mask, weight, guard(bias), y, kernel)
    backward_kernels.launch_maps(grad_y, x, offset, mask, weight, grad_x, *grads, kernel)
    grad_weight = backward_kernels.compute_weight_gradient(grad_y, x, offset, mask, weight, kernel)
    ours = [y, grad_x, grads[0], grad_weight, grads[1]]
    for got, wish in zip(ours, [*expected[:4], expected[5]], strict=True):
        torch.testing.assert_close(got, wish, rtol=1e-4, atol=1e-4)
    assert all(untouched(t) for t in (y, grad_x, *grads))


def test_samples_at_and_outside_the_border():
    places = [-1.0, -1.0 + 2**-20, -0.5, 0.0, 2.0, 3.0, 4.0 - 2**-20, 4.0, 1e10, torch.nan, torch.inf, -torch.inf]
    x, weight = torch.randn(1, 4, 4, len(places)), torch.randn(3, 4, 1, 1)
    offset, mask = torch.full((1, 2, 4, len(places)), 0.25), torch.rand(1, 1, 4, len(places)) - 0.5
    offset[0, 0, 0] = torch.tensor(places)

    def compute(function, dtype):
        tensors = [t.to(dtype) for t in (x, offset, weight, mask)]
        return gradients(lambda t: function(*t[:3], mask=t[3]), tensors, torch.ones(1, 3, 4, len(places)))

    ours = run(lambda: compute(deform_conv2d, torch.float32))
    for got, wish in zip(ours, compute(reference, torch.float64), strict=True):
        torch.testing.assert_close(got.double(), wish, rtol=1e-5, atol=1e-5)
    assert (ours[0][0, :, 0, 7:] == 0).all() and (ours[2][0, :, 0, 7:] == 0).all()


@pytest.mark.parametrize("modulated, based", [(True, True), (False, False)], ids=["mask_base_act", "plain"])
def test_guided_agrees_with_composition_of_ops(modulated, based):
    groups, taps = 2, 3
    x, weight, bias = torch.randn(2, 8, 4, 5), torch.randn(6, 8, 1, 3), torch.randn(6)
    raw = 2 * torch.randn(2, (3 if modulated else 2) * groups * taps, 4, 5)
    base = torch.randn(2, 2, 4, 5) if based else None
    grad_y = torch.randn(2, 6, 4, 5)

    def compute(function, dtype):
        tensors = [t if t is None else t.to(dtype) for t in (x, raw, weight, bias, base)]
        return gradients(lambda t: function(*t, groups, modulated, 0.1 if based else 1.0), tensors, grad_y)

    if based:  # the activation's kink: no output within rounding of it
        bias += 3 * bias.sign()
    ours = run(lambda: compute(guided.guided_deform_conv2d, torch.float32))
    for got, wish in zip(ours, compute(guided.reference, torch.float64), strict=True):
        torch.testing.assert_close(got.double(), wish, rtol=1e-5, atol=1e-5)


def test_guided_op_is_registered_completely():
    x, raw, base = (torch.randn(1, n, 2, 3).to(memory_format=torch.channels_last) for n in (4, 6, 2))
    weight, bias = torch.randn(3, 4, 1, 1), torch.randn(3)
    args = [t.requires_grad_() for t in (x, raw, weight, bias, base)]
    with fastds.use_backend("triton"):
        torch.library.opcheck(torch.ops.fastds.guided_deform_conv2d.default, (*args, 2, True, 0.5))
        second = torch.autograd.grad(guided.guided_deform_conv2d(*args, 2, True).square().sum(), x, create_graph=True)
        assert torch.autograd.grad(second[0].square().sum(), raw)[0].isfinite().all()
    with pytest.raises(ValueError, match="raw has 6 channels, expected 3 for 1 offset groups"):
        guided.guided_deform_conv2d(*args, 1, True)
    with pytest.raises(ValueError, match=r"base_offset has shape \(1, 4, 2, 3\), expected \(1, 2, 2, 3\)"):
        guided.guided_deform_conv2d(*args[:4], x, 2, True)
    with pytest.raises(ValueError, match="slope must be a finite number > 0, got 0.0"):
        guided.guided_deform_conv2d(*args, 2, True, 0)
    with pytest.raises(TypeError, match="raw has dtype torch.float16, expected torch.float32"):
        guided.guided_deform_conv2d(x, raw.half(), *args[2:], 2, True)


def test_empty_batch_and_frozen_subsets():
    problem = Problem("small", 1, 4, 3, 3, 4, (2, 2), padding=(1, 0))
    x, offset, weight, bias, mask = problem.tensors(torch.float32)
    ones = torch.ones(1, 3, *problem.out)
    with fastds.use_backend("triton"):
        assert deform_conv2d(x[:0], offset[:0], weight, bias, 1, (1, 0), 1, mask[:0]).shape == (0, 3, *problem.out)
        every = gradients(lambda t: problem.run(deform_conv2d, t), [x, offset, weight, bias, mask], ones)
        for i in range(5):
            leaves = [x, offset, weight, bias, mask]
            leaves[i] = leaves[i].detach().requires_grad_()
            (grad,) = torch.autograd.grad(problem.run(deform_conv2d, leaves).sum(), leaves[i])
            torch.testing.assert_close(grad, every[1 + i], rtol=1e-5, atol=1e-5)
