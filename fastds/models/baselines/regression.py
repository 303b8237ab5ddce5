# SPDX-License-Identifier: Apache-2.0
"""Statistical baselines for one fixed region. They show how much knowledge of the location alone improves a field."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.models.baselines.interpolation import interpolate


class StaticResidual:
    """Bicubic interpolation, corrected at each fine point by its mean error over the training fields.

        y = bicubic(x) + mean_n (fine_n - bicubic(coarse_n)),  n: training field

    Args:
        scale: factor in space.
        align: alignment of the interpolation, see `interpolate`.
    """

    def __init__(self, scale: int, align: str = "center"):
        self.scale, self.align = scale, align
        self.residual: Tensor | None = None

    def fit(self, coarse: Tensor, fine: Tensor) -> "StaticResidual":
        """Compute the mean error of training fields and return self.

        Args:
            coarse: (N, h, w).
            fine: (N, H, W), in the unit of coarse.
        """
        self.residual = (fine - interpolate(coarse, self.scale, "bicubic", self.align)).mean(0)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """Downscale fields (..., h, w) of the same region to (..., H, W)."""
        if self.residual is None:
            raise ValueError("fit must be called first")
        return interpolate(x, self.scale, "bicubic", self.align) + self.residual


class LocationRidge:
    """Ridge regression with separate weights for each fine point, on the 3 x 3 coarse points around it.

        y(p) = mean(p) + w(p) . (x_3x3(p) - mean_3x3(p)),  w(p) minimises sum_n (y_n - fine_n)^2 + penalty |w|^2

    The means and the sum run over the training fields n.

    Args:
        scale: factor in space.
        penalty: weight of |w|^2, in the squared unit of the field.
    """

    def __init__(self, scale: int, penalty: float = 1.0):
        if not penalty > 0:
            raise ValueError(f"penalty must be positive, got {penalty}")
        self.scale, self.penalty, self.weights = scale, penalty, None

    def _gather_neighbours(self, x: Tensor) -> Tensor:
        """Gather the 3 x 3 neighbours of each point, (N, h, w) -> (N, h, w, 9), with repeated edges."""
        padded = F.pad(x.double()[:, None], (1, 1, 1, 1), mode="replicate")
        return F.unfold(padded, 3).view(len(x), 9, *x.shape[1:]).movedim(1, -1)

    def fit(self, coarse: Tensor, fine: Tensor) -> "LocationRidge":
        """Fit the weights to training fields and return self.

        Args:
            coarse: (N, h, w).
            fine: (N, H, W), in the unit of coarse.
        """
        x = self._gather_neighbours(coarse)  # (N, h, w, 9)
        y = self._split_blocks(fine.double())  # (N, h, w, r*r)
        self.mean_x, self.mean_y = x.mean(0), y.mean(0)
        x, y = (x - self.mean_x).movedim(0, 2), (y - self.mean_y).movedim(0, 2)  # (h, w, N, .)
        gram = x.mT @ x + self.penalty * torch.eye(9, dtype=torch.float64)
        self.weights = torch.linalg.solve(gram, x.mT @ y)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """Downscale fields (N, h, w) of the same region to (N, H, W)."""
        if self.weights is None:
            raise ValueError("fit must be called first")
        inputs = self._gather_neighbours(x) - self.mean_x
        blocks = (inputs[..., None, :] @ self.weights)[..., 0, :] + self.mean_y
        return F.pixel_shuffle(blocks.movedim(-1, 1), self.scale)[:, 0].to(x.dtype)

    def _split_blocks(self, fine: Tensor) -> Tensor:
        return F.pixel_unshuffle(fine[:, None], self.scale).movedim(1, -1)
