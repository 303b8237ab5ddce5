# SPDX-License-Identifier: Apache-2.0
"""Tests of pixel_shuffle and pixel_unshuffle on a GPU, against float64."""

import pytest
import torch
from gpu import checks

from fastds.ops import pixel_shuffle, pixel_unshuffle
from fastds.ops.impl.pixel_shuffle.reference import pixel_shuffle as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SHAPES = [(2, 5, 7, 9, 1), (1, 33, 9, 11, 2), (2, 7, 5, 4, 3), (1, 150, 3, 2, 4), (1, 33, 3, 5, 8)]  # B, C, H, W, r


@pytest.fixture(autouse=True)
def native(forced, device):
    x = torch.ones(1, 4, 2, 2, device=device)
    with forced("pixel_shuffle", "native", x, 2, None, "none", 0.1):
        yield


def inputs(shape, dtype=torch.float32):
    batch, channels, height, width, r = shape
    x = torch.randn(batch, channels * r * r, height, width).to(dtype)
    return [x.contiguous(memory_format=torch.channels_last), torch.randn(channels * r * r).to(dtype)]


def op(r, function=pixel_shuffle):
    return lambda x, bias: function(x, r, bias, "leaky_relu")


@pytest.mark.parametrize("dtype", checks.dtypes(DTYPES))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_reference(shape, dtype, device):
    tensors, r = inputs(shape, dtype), shape[4]
    exact = checks.value_and_gradients(op(r, reference), [t.double() for t in tensors])
    ours = checks.value_and_gradients(op(r), checks.moved(tensors, device))
    checks.close(ours, exact, max(8 * torch.finfo(dtype).eps, 1e-6 if dtype == torch.float32 else 0))
    x = tensors[0].to(device)
    assert torch.equal(pixel_unshuffle(pixel_shuffle(x, r), r), x)


def test_streams_graphs_compile_and_layouts(device):
    checks.check_everything(op(2), checks.moved(inputs(SHAPES[1]), device))


def test_other_device(device):
    checks.check_other_device(op(2), checks.moved(inputs(SHAPES[1]), device))


def test_empty_batch_and_bad_input(device):
    x, bias = checks.moved(inputs(SHAPES[1]), device)
    assert pixel_shuffle(x[:0], 2, bias, "relu").shape == (0, 33, 18, 22)
    if device.type == "cuda":
        with pytest.raises(ValueError, match="bias is on device cpu"):
            pixel_shuffle(x, 2, bias.cpu())
    with pytest.raises(TypeError, match="bias has dtype torch.float64"):
        pixel_shuffle(x, 2, bias.double())
