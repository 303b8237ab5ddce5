# SPDX-License-Identifier: Apache-2.0
"""A loss that wants small squared errors and rain areas of the right place and size, lead by lead."""

import torch
from torch import Tensor


class RainLoss:
    """Mean over leads of squared error over that of the reference, plus weight (1 - soft CSI).

        error = sum over floors f of |max(y, f) - max(x, f)|^2 / (|max(x_0, f) - max(x, f)|^2 + e_f), f = 0, 15 dBZ
        soft CSI = sum p o / sum (p + o - p o),  p = sigmoid((y - tau) / width),  o = [x >= tau]

    Sums over the valid pixels of the batch. A forecast of least squared error is smooth and misses heavy rain; the
    second term keeps the area above each threshold.

    Args:
        thresholds: tau, on the scale of the fields.
        floors: f, on the scale of the fields.
        width: of the soft threshold, on that scale.
        weight: of the second term.
        unit: of the scale: 1 dBZ, as a share of its range; e_f is its square.
    """

    PIXELS = 20.0  # added to both sums of CSI, so that a threshold nobody reaches counts little

    def __init__(self, thresholds: list[float], floors: list[float], width: float, weight: float, unit: float):
        self.thresholds, self.floors, self.width, self.weight, self.unit = thresholds, floors, width, weight, unit

    def __call__(self, y: Tensor, truth: Tensor, reference: Tensor, valid: Tensor) -> Tensor:
        """y, truth, reference and valid (B, n, 1, H, W) on the scale of the fields -> a scalar."""
        loss = self.relative_error(y, truth, reference, valid)
        return loss + self.weight * self.lack_of_csi(y, truth, valid) if self.weight > 0 else loss

    def relative_error(self, y: Tensor, truth: Tensor, reference: Tensor, valid: Tensor) -> Tensor:
        total = 0.0
        for floor in self.floors:
            x = truth.clamp(min=floor)
            error, least = (_mean_by_lead((z.clamp(min=floor) - x).square(), valid) for z in (y, reference))
            total = total + (error / (least + self.unit**2)).mean()
        return total / len(self.floors)

    def lack_of_csi(self, y: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        total = 0.0
        for threshold in self.thresholds:
            p = torch.sigmoid((y - threshold) / self.width) * valid
            o = ((truth >= threshold) & valid).to(y.dtype)
            both, every = (t.sum((0, 2, 3, 4)) + self.PIXELS for t in (p * o, p + o - p * o))
            total = total + (1.0 - both / every).mean()
        return total / len(self.thresholds)


def _mean_by_lead(values: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid, values, 0.0).sum((0, 2, 3, 4)) / valid.sum((0, 2, 3, 4)).clamp(min=1)
