# SPDX-License-Identifier: Apache-2.0
"""Tests of packed Winograd filters of conv3x3, cached or packed in parts during a call."""

import pytest
import torch
import torch.nn.functional as F

from fastds.ops import conv3x3
from fastds.ops.core import packed_weight_cache
from fastds.ops.impl.conv3x3 import winograd

pytestmark = pytest.mark.usefixtures("native")

CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
# Batch, inputs, outputs, height, width, shuffle: odd channels, several pieces of inputs, sub-pixels ending in a vector.
SHAPES = [
    (2, 33, 70, 8, 7, 1),
    (1, 64, 36, 5, 9, 3),
    (2, 200, 130, 4, 4, 1),
    (1, 17, 5, 16, 16, 1),
    (1, 70, 260, 9, 9, 2),
]


def weight_of(kind, outputs, inputs, dtype):
    """Return a random weight.

    Args:
        kind: "contiguous", "channels_last", "part" (a slice of a larger weight) or "transposed" (rows and columns
            of the kernel are transposed in memory).
        outputs: number of output channels.
        inputs: number of input channels.
        dtype: dtype of the weight.
    """
    whole = (torch.randn(outputs, inputs + 3, 3, 3) / (3 * inputs**0.5)).to(dtype)
    part = whole[:, 2 : inputs + 2]
    if kind == "part":
        return part
    if kind == "transposed":
        return part.mT.contiguous().mT
    return part.contiguous(memory_format=CHANNELS_LAST if kind == "channels_last" else CONTIGUOUS)


def value_and_gradient(x, weight, bias, shuffle):
    y = conv3x3(x, weight, bias, upscale_factor=shuffle, activation="relu", algorithm="winograd")
    return y.detach(), torch.autograd.grad(y, x, torch.ones_like(y))[0]


@pytest.mark.parametrize("kind", ["contiguous", "channels_last", "part", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_filters_are_packed_in_parts(engine_isa, two_threads, monkeypatch, dtype, kind):
    """Filters that are packed in parts give the same bits as cached filters, with one thread and with two."""
    for batch, inputs, outputs, height, width, shuffle in SHAPES:
        x = torch.randn(batch, inputs, height, width).to(dtype).requires_grad_()
        weight, bias = weight_of(kind, outputs, inputs, dtype), torch.randn(outputs).to(dtype)
        expected = value_and_gradient(x, weight, bias, shuffle)
        with monkeypatch.context() as patch:
            patch.setattr(winograd, "get_uncached_threshold", lambda tiles, trained: 0)
            patch.setattr(winograd, "get_packed_filters", None)
            found = value_and_gradient(x, weight, bias, shuffle)
            torch.set_num_threads(1)
            alone = value_and_gradient(x, weight, bias, shuffle)
            torch.set_num_threads(2)
        for one, two, three in zip(expected, found, alone, strict=True):
            assert torch.equal(one, two) and torch.equal(one, three), (inputs, outputs, shuffle)
        exact = F.conv2d(x.detach().double(), weight.double(), bias.double(), padding=1)
        exact = F.pixel_shuffle(exact.relu(), shuffle)
        slack = 2e-5 if dtype == torch.float32 else 2**-8 if dtype == torch.bfloat16 else 2**-11
        torch.testing.assert_close(found[0].double(), exact, rtol=slack, atol=3e-5)


@pytest.mark.parametrize(
    ("trained", "cases"),
    [
        # Channels and side: least bytes of 16 tiles, of 32 tiles, more tiles.
        (False, [(8, 16, True), (9, 16, False), (16, 17, True), (17, 17, False), (17, 23, True)]),
        (True, [(4, 16, True), (5, 16, False), (16, 17, True), (17, 17, False), (17, 23, True)]),
    ],
)
def test_large_packed_filters_with_few_tiles_are_not_cached(two_threads, monkeypatch, trained, cases):
    calls, known = [], winograd.get_packed_filters
    monkeypatch.setattr(winograd, "get_packed_filters", lambda *args: calls.append(args) or known(*args))
    # In units of 144 bytes, what a filter of 3 x 3 takes.
    monkeypatch.setattr(packed_weight_cache, "MAX_CACHE_BYTES", 4 * 144 * 16 * 16)
    monkeypatch.setattr(winograd, "INFERENCE_THRESHOLD_BYTES", 144 * 8 * 8)
    monkeypatch.setattr(winograd, "TRAINING_THRESHOLD_BYTES", 144 * 4 * 4)
    for channels, side, cached in cases:
        calls.clear()
        weight = torch.randn(channels, channels, 3, 3, requires_grad=True)
        x = torch.randn(1, channels, side, side, requires_grad=trained)
        y = conv3x3(x, weight, algorithm="winograd")
        assert bool(calls) == cached, (channels, side)
        if trained:
            calls.clear()
            y.sum().backward()
            assert bool(calls) == cached, (channels, side)


def test_oversized_filters_are_rejected(native):
    """The native module raises the errors, because its kernels rely on the checked properties."""
    described = (64, 0, 8, 8, 3, 72, 9, 3, 1, False, 1)
    geometry, map_of = (
        (1, 4, 4, 4, 4, 1, 1, 0, 0),
        lambda channels: (64, 0, channels, 16 * channels, 4 * channels, channels, 1),
    )
    for filters, address, message in (
        ([described], 64, "expected either packed filters or one weight"),
        ([], 0, "expected either packed filters or one weight"),
        ([(64, 0, 8, 9, 3, 72, 9, 3, 1, False, 1)], 0, "filters and tensors differ in channels"),
        ([(64, 0, 8, 8, 3, 72, 9, 3, 1, False, 3)], 0, "no kernel for these filters"),
    ):
        with pytest.raises(ValueError, match=message):
            native.conv3x3_run(
                geometry, [map_of(8)], 1, 0, [map_of(8)], 1, address, filters, 0, 0, [], 0, 0.0, False, 1, 0, 0
            )
