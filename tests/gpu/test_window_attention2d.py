# SPDX-License-Identifier: Apache-2.0
"""Tests of window_attention2d on a GPU, against float64 on the CPU."""

import pytest
import torch
from gpu import checks

from fastds.ops import window_attention2d
from fastds.ops.impl.window_attention2d.reference import window_attention2d as reference

DTYPES = {torch.float32: 2e-5, torch.bfloat16: 6e-2, torch.float16: 1e-2}
SHAPES = [(1, 1, 1, 1, 4), (2, 24, 5, 19, 6), (1, 3, 7, 2, 3), (2, 17, 3, 33, 1), (1, 64, 9, 10, 7), (1, 8, 3, 4, 30)]
LARGE = (1, 24, 37, 41, 30)


@pytest.fixture(autouse=True)
def triton(forced, device):
    q = torch.ones(1, 1, 2, 2, device=device)
    with forced("window_attention2d", "triton", q, q, q, 2):
        yield


def inputs(shape, dtype=torch.float32):
    maps = [scale * torch.randn(shape[:4]) for scale in (0.7, 0.7, 1.0)]
    return [t.to(dtype).contiguous(memory_format=torch.channels_last) for t in maps]


def op(window, function=window_attention2d):
    return lambda q, k, v: function(q, k, v, window=window)


def compare(shape, dtype, device):
    tensors = inputs(shape, dtype)
    exact = checks.value_and_gradients(op(shape[4], reference), [t.double() for t in tensors])
    checks.close(checks.value_and_gradients(op(shape[4]), checks.moved(tensors, device)), exact, DTYPES[dtype])


@pytest.mark.parametrize("dtype", checks.dtypes(DTYPES))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_reference(shape, dtype, device):
    compare(shape, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_tiles(dtype, device):
    compare(LARGE, dtype, device)


def test_streams_graphs_compile_and_layouts(device):
    checks.check_everything(op(6), checks.moved(inputs(SHAPES[1]), device))


def test_other_device(device):
    checks.check_other_device(op(6), checks.moved(inputs(SHAPES[1]), device))


def test_autocast_empty_batch_and_bad_input(device):
    q, k, v = checks.moved(inputs(SHAPES[1]), device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        y = window_attention2d(q, k, v, window=6)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), window_attention2d(q, k, v, window=6), rtol=5e-2, atol=5e-2)
    assert window_attention2d(q[:0], k[:0], v[:0], window=6).shape == (0, 24, 5, 19)
    if device.type == "cuda":
        with pytest.raises(ValueError, match="k is on device cpu, expected cuda:0"):
            window_attention2d(q, k.cpu(), v, window=6)
    with pytest.raises(TypeError, match="v has dtype torch.float16, expected torch.float32"):
        window_attention2d(q, k, v.half(), window=6)
