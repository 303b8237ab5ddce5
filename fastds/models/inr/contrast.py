# SPDX-License-Identifier: Apache-2.0
"""Local contrast normalisation: fields in units of their own variation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.models.inr.encoders import extend

_ROUNDING = 1e-6  # of the mean: variation below it is of rounding, which must not become texture


def local_contrast(x: Tensor, valid: Tensor | None, window: int, periodic: bool) -> tuple[Tensor, Tensor]:
    """Mean m and spread s of the window x window pixels around every pixel of (B, C, H, W), in the units of x.

        m = box(x), s = sqrt(box((x - m)^2) + (1e-6 m)^2), exactly 0 where all is 0

    valid: (B, C, H, W) bool, the pixels that count, None: all. periodic: columns go round the globe; beyond other
    borders the outer pixels are repeated.

    Source: Jarrett et al. 2009, with a box for the Gaussian.
    """
    weight = None if valid is None else _box(valid.to(x.dtype), window, periodic).clamp(min=0.5 / window**2)

    def mean(t: Tensor) -> Tensor:
        if valid is None:
            return _box(t, window, periodic)
        return _box(torch.where(valid, t, 0), window, periodic) / weight

    m = mean(x)
    variance = mean((x - m).square()) + (_ROUNDING * m).square()
    return m, torch.where(variance > 0, variance, 1).sqrt() * (variance > 0)


def _box(x: Tensor, window: int, periodic: bool) -> Tensor:
    """Means of window x window pixels."""
    return F.avg_pool2d(extend(x, window // 2, "circular_x" if periodic else "replicate"), window, stride=1)
