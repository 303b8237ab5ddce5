# SPDX-License-Identifier: Apache-2.0
"""Tests of window_attention2d against a loop over pixels, and with torch."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fastds
from fastds.ops import window_attention2d
from tests.support.thread_cases import assert_same_bits

pytestmark = pytest.mark.usefixtures("native")

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(1, 1, 1, 1, 4), (2, 24, 5, 19, 6), (1, 3, 7, 2, 3), (2, 17, 3, 33, 1), (1, 64, 4, 5, 2), (1, 8, 3, 4, 30)]


def oracle(q, k, v, window):
    """Compute window attention in float64, one pixel at a time.

    A key outside the field has the score 0: it adds 1 to the denominator and nothing to the numerator.
    """
    batch, channels, height, width = q.shape
    half = window // 2
    rows = []
    for i in range(height):
        for j in range(width):
            top, left = max(i - half, 0), max(j - half, 0)
            bottom, right = min(i - half + window, height), min(j - half + window, width)
            keys = k[:, :, top:bottom, left:right].flatten(2)
            values = v[:, :, top:bottom, left:right].flatten(2)
            weights = torch.einsum("bc,bcn->bn", q[:, :, i, j], keys).exp()
            outside = window**2 - keys.shape[2]
            rows.append(torch.einsum("bn,bcn->bc", weights, values) / (weights.sum(1) + outside)[:, None])
    return torch.stack(rows, 2).unflatten(2, (height, width))


def inputs(shape, dtype=torch.float32, layout=torch.channels_last):
    return [
        (torch.randn(shape, dtype=torch.float64) * scale).to(dtype).contiguous(memory_format=layout).requires_grad_()
        for scale in (0.7, 0.7, 1.0)
    ]


def check(tensors, window, dtype):
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    got, expected = window_attention2d(*tensors, window=window), oracle(*doubles, window)
    along = torch.randn_like(got)
    grads = torch.autograd.grad(got, tensors, along)
    exact = torch.autograd.grad(expected, doubles, along.double())
    unit = {torch.float64: 1e-14, torch.float32: 4e-7}.get(dtype, torch.finfo(dtype).eps)
    for a, b in zip((got, *grads), (expected, *exact), strict=True):
        assert a.dtype == dtype and a.is_contiguous(memory_format=torch.channels_last)
        assert (a.double() - b).abs().max() <= 20 * unit * b.abs().max().clamp_min(1)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape, dtype, layout):
    *size, window = shape
    check(inputs(size, dtype, layout), window, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(isa, dtype):
    check(inputs((2, 29, 4, 18), dtype), 5, dtype)


def test_sliced_inputs_equal_the_reference():
    packed = torch.randn(2, 72, 6, 9).contiguous(memory_format=torch.channels_last)
    q, k, v = packed.chunk(3, 1)
    got = window_attention2d(q, k, v, window=7)
    assert torch.equal(got, window_attention2d(q.contiguous(), k.contiguous(), v.contiguous(), window=7))
    with fastds.use_backend("reference"):
        torch.testing.assert_close(got, window_attention2d(q, k, v, window=7), rtol=1e-5, atol=1e-5)


def test_large_logits_do_not_overflow():
    q, k, v = (t.detach() for t in inputs((1, 24, 5, 5)))
    got = window_attention2d(60 * q, 60 * k, v, window=5)
    expected = fastds.ops.impl.window_attention2d.reference.window_attention2d(
        60 * q.double(), 60 * k.double(), v.double(), 5
    )
    torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-3)


def test_results_are_bitwise_independent_of_threads():
    tensors = inputs((2, 24, 9, 20))

    def run():
        y = window_attention2d(*tensors, window=8)
        return y, *torch.autograd.grad(y.sum(), tensors)

    assert_same_bits(run)


def test_numerical_derivatives():
    tensors = inputs((1, 2, 2, 3), torch.float64)
    assert gradcheck(lambda *t: window_attention2d(*t, window=3), tensors)
    assert gradgradcheck(lambda *t: window_attention2d(*t, window=2), tensors)


@pytest.mark.parametrize("mask", range(1, 8))
def test_requires_grad_subsets(mask):
    everything = inputs((1, 8, 4, 5))
    expected = torch.autograd.grad(window_attention2d(*everything, window=4).sum(), everything)
    tensors = [t.detach().requires_grad_(bool(mask >> i & 1)) for i, t in enumerate(everything)]
    window_attention2d(*tensors, window=4).sum().backward()
    for t, g in zip(tensors, expected, strict=True):
        assert (t.grad is None) == (not t.requires_grad)
        assert t.grad is None or torch.equal(t.grad, g)


def test_opcheck_compile_and_transforms():
    tensors = inputs((1, 3, 4, 5))
    torch.library.opcheck(torch.ops.fastds.window_attention2d.default, (*tensors, 4))
    y, lse = torch.ops.fastds.window_attention2d(*tensors, 4)
    arguments = (torch.ones_like(y), *tensors, y.detach(), lse, 4, [True] * 3)
    torch.library.opcheck(torch.ops.fastds.window_attention2d_backward.default, arguments)

    def loss(q, k, v):
        return window_attention2d(2 * q, k, v, window=4).square().sum()

    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*tensors), tensors)
    for a, b in zip(compiled, torch.autograd.grad(loss(*tensors), tensors), strict=True):
        torch.testing.assert_close(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        y = window_attention2d(*tensors, window=4)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, window_attention2d(*(t.bfloat16() for t in tensors), window=4))


def test_forward_derivative():
    plain = tuple(t.detach() for t in inputs((1, 3, 4, 5)))
    along = tuple(torch.randn_like(t) for t in plain)
    got = torch.func.jvp(lambda *t: window_attention2d(*t, window=4), plain, along)
    doubles, doubly = (tuple(t.double() for t in tensors) for tensors in (plain, along))
    for a, b in zip(got, torch.func.jvp(lambda *t: oracle(*t, 4), doubles, doubly), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


def test_empty_batch():
    tensors = inputs((0, 3, 4, 5))
    y = window_attention2d(*tensors, window=4)
    assert y.shape == (0, 3, 4, 5) and torch.autograd.grad(y.sum(), tensors)[0].shape == y.shape


def test_error_messages():
    x = torch.ones(1, 2, 3, 3)
    for arguments, window, error, words in (
        ((1, x, x), 3, TypeError, "q is an int, expected a Tensor"),
        ((x, x.double(), x), 3, TypeError, "k has dtype torch.float64, expected torch.float32"),
        ((x, x, x[:, :1]), 3, ValueError, r"v has shape \(1, 1, 3, 3\), expected \(1, 2, 3, 3\)"),
        ((torch.ones(1, 65, 3, 3),) * 3, 3, ValueError, "expected 1 to 64 channels"),
        ((x, x, x), 65, ValueError, "window must be an int from 1 to 64, got 65"),
    ):
        with pytest.raises(error, match=words):
            window_attention2d(*arguments, window=window)
