# SPDX-License-Identifier: Apache-2.0
"""Tests of the interpreted epilogue kernel of library convolutions, against float64."""

import itertools

import pytest
import torch
from fastds.kernels.conv3x3 import apply_epilogue
from gpuless.triton_rig import guard, untouched

pytestmark = pytest.mark.interpreted

SLOPES = {None: lambda y: y, 0.0: torch.relu, 0.1: lambda y: torch.nn.functional.leaky_relu(y, 0.1)}


def maps(*shape, dtype):
    return guard(torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float16, 2e-3)], ids=str)
@pytest.mark.parametrize("shuffle", [1, 2, 3])
def test_conv3x3_epilogues(shuffle, dtype, tolerance):
    for has, slope in itertools.product(itertools.product((True, False), repeat=3), SLOPES):
        y, second, residual = (maps(2, 5 * shuffle**2, 7, 9, dtype=dtype) for _ in range(3))
        bias = guard(torch.randn(5 * shuffle**2).to(dtype))
        second, residual, bias = (z if there else None for z, there in zip((second, residual, bias), has, strict=True))
        wide = [z.double() for z in (y, second, residual) if z is not None]
        exact = sum(wide) + (0 if bias is None else bias.double()[:, None, None])
        exact = torch.nn.functional.pixel_shuffle(SLOPES[slope](exact), shuffle)
        out = y if shuffle == 1 else maps(*exact.shape, dtype=dtype)
        apply_epilogue(y, out, bias, second, residual, slope, shuffle)
        torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)
        assert all(untouched(z) for z in (y, out, second, residual, bias) if z is not None)


def test_nan_does_not_spread():
    y = torch.zeros(1, 4, 2, 2).contiguous(memory_format=torch.channels_last)
    y[0, 1, 0, 1] = torch.nan
    apply_epilogue(y, y, torch.ones(4), None, None, 0.0, 1)
    assert torch.isnan(y).sum() == 1 and torch.isnan(y[0, 1, 0, 1])
