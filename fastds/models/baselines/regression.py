# SPDX-License-Identifier: Apache-2.0
"""Statistics of one fixed region: what is gained by knowing its geography and nothing else."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.models.baselines.interpolation import interpolate


class StaticResidual:
    """Interpolation plus the mean error that it made at every fine point of the training fields.

    y = bicubic(x) + mean_n (fine_n - bicubic(coarse_n))

    Args: scale: factor in space. align: of the interpolation, see interpolate.
    """

    def __init__(self, scale: int, align: str = "center"):
        self.scale, self.align, self.residual = scale, align, None

    def fit(self, coarse: Tensor, fine: Tensor) -> "StaticResidual":
        """coarse (N, h, w), fine (N, H, W), one unit."""
        self.residual = (fine - interpolate(coarse, self.scale, "bicubic", self.align)).mean(0)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """(..., h, w) of the same region -> (..., H, W)."""
        if self.residual is None:
            raise ValueError("fit must be called first")
        return interpolate(x, self.scale, "bicubic", self.align) + self.residual


class LocationRidge:
    """A ridge regression of its own at every fine point on the 3 x 3 coarse points around it.

    y(p) = mean(p) + w(p) . (x_3x3(p) - mean_3x3(p)),  w(p) minimises sum_n (y_n - fine_n)^2 + penalty |w|^2

    Args:
        scale: factor in space.
        penalty: of the weights, in squared units of the field times samples.
    """

    def __init__(self, scale: int, penalty: float = 1.0):
        if not penalty > 0:
            raise ValueError(f"penalty must be positive, got {penalty}")
        self.scale, self.penalty, self.weights = scale, penalty, None

    def _neighbours(self, x: Tensor) -> Tensor:
        """(N, h, w) -> (N, h, w, 9), edges repeated."""
        padded = F.pad(x.double()[:, None], (1, 1, 1, 1), mode="replicate")
        return F.unfold(padded, 3).view(len(x), 9, *x.shape[1:]).movedim(1, -1)

    def fit(self, coarse: Tensor, fine: Tensor) -> "LocationRidge":
        """coarse (N, h, w), fine (N, H, W), one unit."""
        x = self._neighbours(coarse)  # (N, h, w, 9)
        y = self._blocks(fine.double())  # (N, h, w, r*r)
        self.mean_x, self.mean_y = x.mean(0), y.mean(0)
        x, y = (x - self.mean_x).movedim(0, 2), (y - self.mean_y).movedim(0, 2)  # (h, w, N, .)
        gram = x.mT @ x + self.penalty * torch.eye(9, dtype=torch.float64)
        self.weights = torch.linalg.solve(gram, x.mT @ y)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """(N, h, w) of the same region -> (N, H, W)."""
        if self.weights is None:
            raise ValueError("fit must be called first")
        inputs = self._neighbours(x) - self.mean_x
        blocks = (inputs[..., None, :] @ self.weights)[..., 0, :] + self.mean_y
        return F.pixel_shuffle(blocks.movedim(-1, 1), self.scale)[:, 0].to(x.dtype)

    def _blocks(self, fine: Tensor) -> Tensor:
        return F.pixel_unshuffle(fine[:, None], self.scale).movedim(1, -1)
