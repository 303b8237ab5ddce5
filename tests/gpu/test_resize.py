# SPDX-License-Identifier: Apache-2.0
"""Tests of the kernel that doubles the resolution on a GPU, against float64 on the CPU."""

import pytest
import torch
from gpu import checks

from fastds.nn.resize import upsample2

DTYPES = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 64, 25, 30), (1, 5, 7, 1), (3, 24, 40, 40)], ids=str)
def test_agrees_with_torch(shape, dtype, device):
    x = torch.randn(shape).to(dtype)
    exact = torch.nn.functional.interpolate(x.double(), scale_factor=2, mode="bilinear", align_corners=False)
    with torch.no_grad():
        checks.close([upsample2(x.to(device))], [exact], DTYPES[dtype])
