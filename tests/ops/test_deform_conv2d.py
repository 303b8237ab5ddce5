# SPDX-License-Identifier: Apache-2.0
"""Tests of values and gradients of deform_conv2d against the float64 reference."""

import functools

import pytest
import torch
import torch.nn.functional as F

from fastds.ops import deform_conv2d
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference
from tests.support.deform_cases import (
    FEW,
    NAMES,
    PROBLEMS,
    Problem,
    assert_within_rule,
    by_id,
    far_problem,
    gradients,
    torch_in_dtype,
)
from tests.support.thread_cases import assert_same_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
pytestmark = pytest.mark.usefixtures("native")


def compare(problem, tensors, function=deform_conv2d):
    """Check the value and all gradients of a problem against float64, and return them.

    Args:
        problem: sizes and options of the call.
        tensors: x, offset, weight, bias and mask; bias and mask may be None.
        function: implementation to check.
    """
    exact = [t if t is None else t.double() for t in tensors]
    grad_y = torch.randn(problem.B, problem.O, *problem.out, dtype=torch.float64).to(tensors[0].dtype)
    ours = gradients(lambda t: problem.run(function, t), tensors, grad_y)
    peer = gradients(lambda t: torch_in_dtype(problem, t), tensors, grad_y)
    true = gradients(lambda t: problem.run(reference, t), exact, grad_y)
    present = [t for t in tensors if t is not None]
    assert [g.dtype for g in ours[1:]] == [t.dtype for t in present]
    assert [g.shape for g in ours[1:]] == [t.shape for t in present]
    names = ["value", *(n for n, t in zip(NAMES, tensors, strict=True) if t is not None)]
    assert_within_rule(ours, peer, true, names, grad_y)
    return ours


@pytest.mark.parametrize("problem", **by_id(PROBLEMS))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_and_gradients(problem, dtype, two_threads):
    compare(problem, problem.tensors(dtype))


@pytest.mark.parametrize("problem", **by_id(FEW))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_offset_in_float32(problem, dtype):
    compare(problem, problem.tensors(dtype, offset_dtype=torch.float32))


def compare_float64(problem, offset_dtype=None):
    """Check the value and all gradients with float64 tensors against the reference."""
    tensors = problem.tensors(torch.float64, offset_dtype)
    grad_y = torch.randn(problem.B, problem.O, *problem.out, dtype=torch.float64)
    ours, true = (gradients(lambda t, f=f: problem.run(f, t), tensors, grad_y) for f in (deform_conv2d, reference))
    for a, b in zip(ours, true, strict=True):
        tolerance = 1e-12 if a.dtype == torch.float64 else 1e-6
        torch.testing.assert_close(a, b, rtol=tolerance, atol=20 * tolerance)


@pytest.mark.parametrize("problem", **by_id(PROBLEMS))
@pytest.mark.parametrize("offset_dtype", [None, torch.float32], ids=["float64", "offset32"])
def test_float64(problem, offset_dtype):
    compare_float64(problem, offset_dtype)


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=str)
@pytest.mark.parametrize("problem", **by_id(FEW))
def test_every_instruction_set(native, isa, dtype, problem):
    assert native.isa() == isa
    if dtype == torch.float64:
        compare_float64(problem)
    else:
        compare(problem, problem.tensors(dtype, offset_dtype=torch.float32))


def views(name, tensor):
    """Return tensor with other strides, or None if the view is not possible for its shape."""
    if name == "contiguous":
        return tensor.contiguous()
    if name == "channel_slice":
        wide = torch.randn(tensor.shape[0], tensor.shape[1] + 5, *tensor.shape[2:]).to(tensor.dtype)
        wide = wide.contiguous(memory_format=torch.channels_last)
        wide[:, 3:-2] = tensor
        return wide[:, 3:-2]
    if name == "every_other_pixel":
        wide = torch.randn(tensor.shape[0], tensor.shape[1], 2 * tensor.shape[2], 2 * tensor.shape[3]).to(tensor.dtype)
        wide = wide.contiguous(memory_format=torch.channels_last)
        wide[:, :, ::2, ::2] = tensor
        return wide[:, :, ::2, ::2]
    if name == "every_other_channel":
        return tensor.repeat_interleave(2, 1)[:, ::2]
    if name == "transposed":
        return tensor.transpose(2, 3).contiguous().transpose(2, 3)
    if name == "misaligned":
        storage = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)
        flat = storage[1:].view(tensor.shape[0], *tensor.shape[2:], tensor.shape[1])
        flat.copy_(tensor.permute(0, 2, 3, 1))
        return flat.permute(0, 3, 1, 2)
    raise AssertionError(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("wide_offset", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_contiguous_maps_give_the_same_bits(native, isa, dtype, wide_offset, masked):
    x, offset, mask = torch.randn(3, 8, 19, 27), 2 * torch.randn(3, 36, 19, 27), torch.rand(3, 18, 19, 27)
    maps = [x.to(dtype), offset.to(torch.promote_types(dtype, torch.float32) if wide_offset else dtype), mask.to(dtype)]
    weight, bias = torch.randn(37, 8, 3, 3).to(dtype), torch.randn(37).to(dtype)

    def run(*formats):
        x, offset, mask = (t.contiguous(memory_format=fmt) for t, fmt in zip(maps, formats, strict=True))
        return deform_conv2d(x, offset, weight, bias, 1, 1, 1, mask if masked else None)

    rows, planes = torch.channels_last, torch.contiguous_format
    y = run(planes, planes, planes)
    assert y.is_contiguous() and torch.equal(y, run(rows, rows, rows))
    for formats in ((planes, rows, rows), (planes, rows, planes), (planes, planes, rows)):
        mixed = run(*formats)
        assert mixed.is_contiguous() and torch.equal(y, mixed)


def test_sliced_and_whole_inputs():
    """Only the offset or only the mask is a slice of a larger tensor."""
    problem = Problem("slices", 1, 4, 5, 6, 7, G=1)
    tensors = problem.tensors(torch.float32)
    grad_y = torch.randn(1, 5, 6, 7)
    expected = gradients(lambda t: problem.run(deform_conv2d, t), tensors, grad_y)
    for i in (1, 4):
        changed = [views("channel_slice", t) if n == i else t for n, t in enumerate(tensors)]
        got = gradients(lambda t: problem.run(deform_conv2d, t), changed, grad_y)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


LAYOUTS = ["contiguous", "channel_slice", "every_other_pixel", "every_other_channel", "transposed", "misaligned"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_do_not_depend_on_strides(layout, dtype):
    problem = Problem("strides", 2, 16, 8, 6, 7, G=2)
    tensors = problem.tensors(dtype, offset_dtype=torch.float32)
    grad_y = torch.randn(2, 8, 6, 7).to(dtype)
    expected = gradients(lambda t: problem.run(deform_conv2d, t), tensors, grad_y)
    changed = [views(layout, t) if t.dim() == 4 and i != 2 else t for i, t in enumerate(tensors)]
    got = gradients(lambda t: problem.run(deform_conv2d, t), changed, grad_y)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_expanded_tensors():
    problem = Problem("expanded", 3, 8, 4, 5, 6, G=2)
    x, offset, weight, bias, mask = problem.tensors(torch.float32)
    x, mask = x[:1].expand(3, -1, -1, -1), mask[:, :, :1, :1].expand(-1, -1, 5, 6)
    offset = offset[:1, :, :, :1].expand(3, -1, -1, 6)
    weight, bias = weight[:1].expand(4, -1, -1, -1), bias[:1].expand(4)
    grad_y = torch.ones(()).expand(3, 4, 5, 6)
    tensors = [x, offset, weight, bias, mask]
    dense = gradients(lambda t: problem.run(deform_conv2d, t), [t.contiguous() for t in tensors], grad_y.contiguous())
    for a, b in zip(gradients(lambda t: problem.run(deform_conv2d, t), tensors, grad_y), dense, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("far", ["batch", "row", "pixel"])
def test_elements_beyond_32_bits(far):
    """Strides of 2^30 elements give what a compact field gives."""
    problem, values, far_values = far_problem(far)
    grad_y = torch.randn(problem.B, problem.O, *problem.out)
    got = gradients(lambda t: problem.run(deform_conv2d, t), far_values, grad_y)
    expected = gradients(lambda t: problem.run(deform_conv2d, t), values, grad_y)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_layout_of_the_result():
    problem = Problem("layout")
    x, *rest = problem.tensors(torch.float32)
    assert problem.run(deform_conv2d, [x, *rest]).is_contiguous(memory_format=torch.channels_last)
    assert problem.run(deform_conv2d, [x.contiguous(), *rest]).is_contiguous()


def test_guide_slices_are_not_copied(native, monkeypatch):
    G, seen = 2, {}
    forward, backward = native.deform_conv2d_forward, native.deform_conv2d_backward

    def spy_forward(x, offset, mask, *rest):
        seen["forward"] = (offset, mask)
        forward(x, offset, mask, *rest)

    def spy_backward(grad_y, x, offset, mask, *rest):
        seen["backward"] = (offset, mask)
        backward(grad_y, x, offset, mask, *rest)

    monkeypatch.setattr(native, "deform_conv2d_forward", spy_forward)
    monkeypatch.setattr(native, "deform_conv2d_backward", spy_backward)
    guide = torch.randn(1, 27 * G, 6, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    x, weight = torch.randn(1, 8, 6, 5).contiguous(memory_format=torch.channels_last), torch.randn(4, 8, 3, 3)
    deform_conv2d(x, guide[:, : 18 * G], weight, None, 1, 1, 1, guide[:, 18 * G :]).sum().backward()
    addresses = (guide.data_ptr(), guide.data_ptr() + 18 * G * guide.element_size())
    assert seen == {"forward": addresses, "backward": addresses}


@pytest.mark.parametrize("problem", **by_id([p for p in PROBLEMS if p.id in ("plain", "torchvision")]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_empty_batch(problem, dtype):
    tensors = [t if i in (2, 3) else t[:0] for i, t in enumerate(problem.tensors(dtype))]
    y, *grads = gradients(lambda t: problem.run(deform_conv2d, t), tensors, torch.zeros(0, problem.O, *problem.out))
    assert y.shape == (0, problem.O, *problem.out)
    assert [g.shape for g in grads] == [t.shape for t in tensors]
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_zero_offset_and_unit_mask_is_conv2d(dtype):
    x, weight, bias = torch.randn(2, 12, 9, 11).to(dtype), torch.randn(8, 6, 3, 3).to(dtype), torch.randn(8).to(dtype)
    offset, mask = torch.zeros(2, 54, 5, 6), torch.ones(2, 27, 5, 6, dtype=dtype)
    y = deform_conv2d(x, offset.to(dtype), weight, bias, (2, 2), (2, 1), (2, 1), mask)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), (2, 2), (2, 1), (2, 1), 2)
    torch.testing.assert_close(
        y.double(), expected, rtol=0, atol=float(4 * torch.finfo(dtype).eps * expected.abs().max())
    )


def test_integer_offset_is_a_shift():
    x = torch.randn(1, 4, 8, 9)
    shifts = torch.tensor([[1.0, -2.0], [-3.0, 0.0]])  # (dy, dx) per offset group
    offset = shifts.reshape(1, 4, 1, 1).expand(1, 4, 8, 9)
    y = deform_conv2d(x, offset, torch.eye(4).reshape(4, 4, 1, 1))
    padded = F.pad(x, (3, 3, 3, 3))
    assert torch.equal(y[:, :2], padded[:, :2, 4:12, 1:10])
    assert torch.equal(y[:, 2:], padded[:, 2:, 0:8, 3:12])


@pytest.mark.parametrize("problem", **by_id(FEW + [Problem("wide", 4, 32, 32, 41, 43, G=4)]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_repeatable_and_independent_of_threads(problem, dtype):
    tensors = problem.tensors(dtype, offset_dtype=torch.float32)
    grad_y = torch.randn(problem.B, problem.O, *problem.out)
    run = functools.partial(gradients, lambda t: problem.run(deform_conv2d, t), tensors, grad_y)
    assert_same_bits(run, (1, 1, 2, 3, 7))
