# SPDX-License-Identifier: Apache-2.0
"""Tests of copies between memory formats and of sums over pixels."""

import pytest
import torch
import torch.nn.functional as F

from fastds.ops.core import layout
from fastds.ops.impl.conv3x3 import library

CHANNELS_LAST = torch.channels_last
SIZES = [(1, 16, 4, 4), (2, 3, 5, 7), (3, 33, 1, 17), (1, 100, 13, 9), (2, 64, 40, 30), (1, 1, 70, 3), (2, 31, 129, 1)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int32], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_transpose_preserves_bits(monkeypatch, native, isa, size, dtype, threads):
    """Copies between memory formats preserve the bits of all values, including NaN and infinity."""
    monkeypatch.setattr(layout, "MIN_NATIVE_ELEMENTS", 0)
    x = (100 * torch.randn(size)).to(dtype)
    if dtype.is_floating_point:
        x.view(-1)[::5], x.view(-1)[::7] = torch.nan, -torch.inf
    torch.set_num_threads(threads)
    try:
        last = layout.to_channels_last(x)
        back = layout.to_contiguous(last)
    finally:
        torch.set_num_threads(2)
    for got, fmt in ((last, CHANNELS_LAST), (back, torch.contiguous_format)):
        assert got.is_contiguous(memory_format=fmt)
        torch.testing.assert_close(got, x, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_is_written_beyond_the_result(native, isa, dtype):
    rows, columns = 19, 37
    x, memory = torch.randn(rows, columns).to(dtype), torch.full((rows * columns + 64,), 7.0).to(dtype)
    part = memory[32:-32]
    native.transpose(x.data_ptr(), part.data_ptr(), 1, rows, columns, dtype.itemsize, 1)
    assert torch.equal(part.view(columns, rows), x.t())
    assert (memory[:32] == 7).all() and (memory[-32:] == 7).all()


def test_transpose_matrices(monkeypatch):
    monkeypatch.setattr(layout, "MIN_NATIVE_ELEMENTS", 0)
    x = torch.randn(45, 77)
    assert torch.equal(layout.transpose_matrix(x), x.t()) and layout.transpose_matrix(x).is_contiguous()
    assert torch.equal(layout.transpose_matrix(x[:, ::2]), x[:, ::2].t())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sums_over_pixels_by_channel(native, isa, dtype, monkeypatch):
    monkeypatch.setattr(layout, "MIN_NATIVE_ELEMENTS", 0)
    for shape in (
        (1, 1, 1, 1),
        (2, 3, 1, 5),
        (3, 7, 40, 33),
        (1, 15, 9, 9),
        (2, 16, 3, 3),
        (2, 100, 40, 41),
        (1, 830, 7, 9),
    ):
        x = torch.rand(shape).to(dtype).contiguous(memory_format=CHANNELS_LAST)
        x[-1, -1, -1, -1] = torch.nan
        (got, again), want = (
            (layout.sum_per_channel(x), layout.sum_per_channel(x.contiguous())),
            x.double().sum((0, 2, 3)),
        )
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0, equal_nan=True)
        torch.testing.assert_close(again.double(), want, rtol=1e-5, atol=0, equal_nan=True)
    x = torch.rand(2, 5, 60, 60, dtype=dtype).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    assert torch.equal(torch.autograd.grad(layout.sum_per_channel(x).sum(), x)[0], torch.ones_like(x))


def test_channel_sums_do_not_depend_on_threads(native):
    x, before = torch.randn(3, 70, 50, 50).contiguous(memory_format=CHANNELS_LAST), torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(layout.sum_per_channel(x))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_matching_layout_is_not_copied():
    x = torch.randn(2, 4, 5, 6)
    last = x.contiguous(memory_format=CHANNELS_LAST)
    assert layout.to_channels_last(last) is last and layout.as_nhwc(last) is last and layout.to_contiguous(x) is x


def test_layout_conversion_is_differentiable(monkeypatch):
    monkeypatch.setattr(layout, "MIN_NATIVE_ELEMENTS", 0)
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    (grad,) = torch.autograd.grad((layout.to_channels_last(x) * 3).sum(), x)
    assert torch.equal(grad, torch.full_like(x, 3))


def test_tracers_record_the_copy(monkeypatch):
    monkeypatch.setattr(layout, "MIN_NATIVE_ELEMENTS", 0)
    x = torch.randn(3, 2, 4, 5, 6)
    grad = torch.func.grad(lambda t: layout.to_channels_last(t).square().sum())(x[0])
    assert torch.equal(grad, 2 * x[0])
    traced = torch.jit.trace(lambda t: layout.to_channels_last(t) + 1, x[0])
    assert torch.equal(traced(x[1]), x[1] + 1)
    compiled = torch.compile(lambda t: layout.to_channels_last(t) + 1, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x[1]), x[1] + 1)
    with torch.device("meta"):
        assert layout.to_channels_last(torch.empty(2, 4, 5, 6)).is_contiguous(memory_format=CHANNELS_LAST)


def test_negated_views(monkeypatch):
    monkeypatch.setattr(layout, "MIN_NATIVE_ELEMENTS", 0)
    x = torch.complex(torch.randn(1, 3, 4, 5), torch.randn(1, 3, 4, 5)).conj().imag
    assert (
        x.is_neg()
        and torch.equal(layout.to_channels_last(x), x.resolve_neg())
        and torch.equal(layout.to_contiguous(x), x.resolve_neg())
    )


@pytest.mark.parametrize("requires_grad", [True, False])
def test_one_channel_is_channels_last_by_its_strides(requires_grad):
    x, weight = torch.randn(2, 1, 9, 9, requires_grad=requires_grad), torch.randn(3, 1, 5, 5, requires_grad=True)
    y, expected = library.conv2d(x, weight, None, 1), F.conv2d(x, weight, padding=2)
    assert y.is_contiguous(memory_format=CHANNELS_LAST)
    torch.testing.assert_close(y, expected)
    leaves = (x, weight) if requires_grad else (weight,)
    grads = (torch.autograd.grad(result.square().sum(), leaves) for result in (y, expected))
    for grad, expected_grad in zip(*grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-4)
