# SPDX-License-Identifier: Apache-2.0
"""Maps at another resolution."""

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample2(x: Tensor) -> Tensor:
    """Bilinear, twice as fine, half-pixel centres: (B, C, H, W) -> (B, C, 2 H, 2 W), layout kept.

    Autocast on a GPU would go through float32 and back to the same bits, by two copies; there the dtype is kept, too,
    where nobody differentiates. The gradient, a sum of up to 16 pixels, is left in float32.
    """
    size = (2 * x.shape[2], 2 * x.shape[3])
    if x.is_cuda and not torch.is_grad_enabled():
        with torch.autocast("cuda", enabled=False):
            return F.interpolate(x, size, mode="bilinear", align_corners=False)
    return F.interpolate(x, size, mode="bilinear", align_corners=False)
