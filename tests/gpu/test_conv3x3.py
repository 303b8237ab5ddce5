# SPDX-License-Identifier: Apache-2.0
"""conv3x3 and convolve on a GPU, with all that follows the convolution in one pass, against float64 on the CPU."""

import pytest
import torch
from gpu import checks

from fastds.nn.convolutions import convolve


@pytest.mark.parametrize("dtype", checks.dtypes([torch.float32, torch.bfloat16]))
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shuffle, act", [(1, None), (1, "relu"), (2, "leaky_relu")])
def test_all_that_follows(shuffle, act, kernel, dtype, device):
    x, x2 = torch.randn(2, 16, 13, 21), torch.randn(2, 8, 13, 21)
    weight, bias, residual = torch.randn(32, 24, kernel, kernel) / 10, torch.randn(32), torch.randn(2, 32, 13, 21)
    given = checks.moved([x, weight, bias, x2, residual], device, dtype)

    def run(x, weight, bias, x2, residual):
        with torch.no_grad():
            return convolve(x, weight, bias, x2=x2, residual=residual, act=act, shuffle=shuffle)

    exact = run(*(z.cpu().double() for z in given))
    tolerance = 2e-2 if dtype == torch.bfloat16 else 5e-3  # cuDNN may use tf32
    checks.close([run(*given)], [exact], tolerance)
