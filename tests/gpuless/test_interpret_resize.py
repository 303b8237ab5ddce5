# SPDX-License-Identifier: Apache-2.0
"""Tests of the interpreted kernel that doubles the resolution, against float64."""

import pytest
import torch
from fastds.kernels.resize import upsample2
from gpuless.triton_rig import guard, untouched

pytestmark = pytest.mark.interpreted


def channels_last(z):
    return guard(z.contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float16, 1e-3)], ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (1, 1, 1, 1), (2, 64, 5, 2), (1, 24, 1, 7)], ids=str)
def test_agrees_with_torch(shape, dtype, tolerance):
    x = channels_last(torch.randn(shape).to(dtype))
    exact = torch.nn.functional.interpolate(x.double(), scale_factor=2, mode="bilinear", align_corners=False)
    out = channels_last(torch.full(exact.shape, torch.nan, dtype=dtype))
    upsample2(x, out)
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)
    assert untouched(x) and untouched(out)
