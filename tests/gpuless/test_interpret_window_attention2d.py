# SPDX-License-Identifier: Apache-2.0
"""Tests of the interpreted Triton kernels of window_attention2d, against float64."""

import pytest
import torch
from fastds.kernels import window_attention2d as kernels
from gpuless.triton_rig import guard, untouched

import fastds
from fastds.ops import window_attention2d
from fastds.ops.impl.window_attention2d.reference import window_attention2d as reference

pytestmark = pytest.mark.interpreted

# B, C, H, W, window: ragged tiles, windows wider than the field, even, odd and 1, every padding of the channels.
SHAPES = [(2, 24, 5, 7, 6), (1, 3, 7, 2, 3), (1, 17, 3, 9, 1), (1, 64, 4, 5, 2), (1, 8, 3, 4, 14), (1, 1, 1, 1, 4)]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3}
CASES = [pytest.param(s, torch.float32, id=str(s)) for s in SHAPES]
CASES += [pytest.param(SHAPES[0], torch.float16, id="float16")]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Select small tiles, so that tiny fields have several tiles and blocks."""
    monkeypatch.setattr(kernels, "select_tiles", lambda _: kernels.Tiles(4, 16, 4, 1))


def inputs(shape, dtype=torch.float32):
    return [scale * torch.randn(shape).to(dtype) for scale in (0.7, 0.7, 1.0)]


def results(function, tensors, along):
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, along.to(y.dtype))]


def ours(tensors, window, along):
    with fastds.use_backend("triton"):
        return results(lambda *t: window_attention2d(*t, window=window), tensors, along)


def exact(tensors, window, along):
    return results(lambda *t: reference(*t, window), [t.double() for t in tensors], along)


@pytest.mark.parametrize("shape, dtype", CASES)
def test_agrees_with_reference(shape, dtype):
    *size, window = shape
    tensors, along = inputs(size, dtype), torch.randn(size)
    for got, wish in zip(ours(tensors, window, along), exact(tensors, window, along), strict=True):
        assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
        assert (got.double() - wish).abs().max() <= TOLERANCES[dtype] * wish.abs().max().clamp_min(1)


def test_large_logits_do_not_overflow():
    tensors = [60 * t if i < 2 else t for i, t in enumerate(inputs((1, 24, 5, 5)))]
    along = torch.ones(1, 24, 5, 5)
    for got, wish in zip(ours(tensors, 5, along), exact(tensors, 5, along), strict=True):
        assert (got.double() - wish).abs().max() <= 1e-3 * wish.abs().max().clamp_min(1)


def test_results_equal_with_64_bit_addresses(monkeypatch):
    tensors, along = inputs((2, 8, 5, 6)), torch.randn(2, 8, 5, 6)
    narrow = ours(tensors, 3, along)
    monkeypatch.setattr(kernels, "needs_int64", lambda *_: True)
    assert all(torch.equal(a, b) for a, b in zip(narrow, ours(tensors, 3, along), strict=True))


def test_no_out_of_bounds_access():
    """All memory around the tensors is NaN; q, k and v are slices of one tensor."""
    size, window = (2, 8, 5, 6), 4
    tensors, along = inputs(size), torch.randn(size).contiguous(memory_format=torch.channels_last)
    expected = exact(tensors, window, along)
    packed = torch.full((2, 40, 5, 6), torch.nan).contiguous(memory_format=torch.channels_last)
    q, k, v = (packed[:, 4 + 12 * i : 12 + 12 * i].copy_(t) for i, t in enumerate(tensors))
    y, *grads = (guard(torch.zeros(size).contiguous(memory_format=torch.channels_last)) for _ in range(4))
    lse = guard(torch.zeros(2, 5, 6))
    kernels.launch_forward(q, k, v, y, lse, window)
    kernels.launch_backward(guard(along), q, k, v, y, lse, *grads, window)
    for got, wish in zip((y, *grads), expected, strict=True):
        torch.testing.assert_close(got.double(), wish, rtol=1e-4, atol=1e-5)
    assert all(untouched(t) for t in (y, lse, *grads))


def test_each_gradient_alone_and_empty_batch():
    tensors = inputs((1, 8, 4, 5))
    everything = ours(tensors, 3, torch.ones(1, 8, 4, 5))[1:]
    with fastds.use_backend("triton"):
        for i, expected in enumerate(everything):
            leaves = [t.detach().requires_grad_(j == i) for j, t in enumerate(tensors)]
            (grad,) = torch.autograd.grad(window_attention2d(*leaves, window=3).sum(), leaves[i])
            assert torch.equal(grad, expected)
        assert window_attention2d(*(t[:0] for t in tensors), window=3).shape == (0, 8, 4, 5)


def test_registration():
    tensors = [t.requires_grad_() for t in inputs((1, 3, 4, 5))]
    with fastds.use_backend("triton"):
        torch.library.opcheck(torch.ops.fastds.window_attention2d.default, (*tensors, 2))
    found = fastds.explain("window_attention2d", *tensors, 3)
    assert found["triton"] in ("usable", "chosen"), found
    doubles = [t.detach().double() for t in tensors]
    assert fastds.explain("window_attention2d", *doubles, 3)["triton"] == "refused: no Triton kernel for torch.float64"
