# SPDX-License-Identifier: Apache-2.0
"""Training loss that combines relative squared error and soft CSI by lead time."""

from typing import Any

import torch
from torch import Tensor, nn


class RainLoss(nn.Module):
    """Mean over lead times of the squared error relative to the reference, plus weight (1 - soft CSI).

        error = mean over floors f of |max(y, f) - max(x, f)|^2 / (|max(x_0, f) - max(x, f)|^2 + e)
        soft CSI = H / U,  H = sum p o,  U = sum (p + o - p o),  p = sigmoid((y - tau) / width),  o = [x >= tau]

    Here y is the forecast, x the truth and x_0 the reference. A forecast of least squared error is smooth and misses
    heavy rain; the second term preserves the area above each threshold. CSI is computed over many batches, because a
    mean of the CSI of batches would favour forecasts without rain. H and U are exponentially decaying sums over
    batches, and the gradient of a batch is that of H / U, (dH - H / U dU) / U, scaled to the share of one batch.

    Input: forward(y, truth, reference, valid), each (B, n, 1, H, W) on the scale of the fields; output: a scalar.

    Args:
        thresholds: tau, on the scale of the fields.
        floors: f, on the scale of the fields.
        width: width of the soft threshold, on the scale of the fields.
        weight: weight of the second term.
        unit: 1 dBZ on the scale of the fields; e is its square.
        leads: number n of lead times.
    """

    DECAY = 0.98  # decay of H and U per batch

    def __init__(
        self, thresholds: list[float], floors: list[float], width: float, weight: float, unit: float, leads: int
    ):
        super().__init__()
        self.sums: Tensor
        self.batches: Tensor
        self.thresholds, self.floors, self.width, self.weight, self.unit = thresholds, floors, width, weight, unit
        self.register_buffer("sums", torch.zeros(2, len(thresholds), leads))  # H and U
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, y: Tensor, truth: Tensor, reference: Tensor, valid: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            y: (B, n, 1, H, W), forecast.
            truth: (B, n, 1, H, W).
            reference: (B, n, 1, H, W), reference forecast.
            valid: (B, n, 1, H, W) bool, pixels that count.

        Returns:
            A scalar.
        """
        loss = self.compute_relative_error(y, truth, reference, valid)
        return loss + self.weight * self.compute_csi_deficit(y, truth, valid) if self.weight > 0 else loss

    def compute_relative_error(self, y: Tensor, truth: Tensor, reference: Tensor, valid: Tensor) -> Tensor:
        """Compute the squared error relative to the reference, averaged over floors and lead times.

        Args:
            y: (B, n, 1, H, W), forecast.
            truth: (B, n, 1, H, W).
            reference: (B, n, 1, H, W), reference forecast.
            valid: (B, n, 1, H, W) bool, pixels that count.

        Returns:
            A scalar.
        """
        total: Any = 0.0
        for floor in self.floors:
            x = truth.clamp(min=floor)
            error, least = (_average_by_lead((z.clamp(min=floor) - x).square(), valid) for z in (y, reference))
            total = total + (error / (least + self.unit**2)).mean()
        return total / len(self.floors)

    def compute_csi_deficit(self, y: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """Compute the loss 1 - soft CSI, and update the sums H and U over the batches.

        Args:
            y: (B, n, 1, H, W), forecast.
            truth: (B, n, 1, H, W).
            valid: (B, n, 1, H, W) bool, pixels that count.

        Returns:
            A scalar, the mean over thresholds and lead times. Its gradient is described in the class.
        """
        parts = []
        for threshold in self.thresholds:
            p = torch.sigmoid((y - threshold) / self.width) * valid
            o = ((truth >= threshold) & valid).to(y.dtype)
            parts.append(torch.stack([(p * o).sum((0, 2, 3, 4)), (p + o - p * o).sum((0, 2, 3, 4))]))
        hits, union = torch.stack(parts, 1)
        self.sums.mul_(self.DECAY).add_(torch.stack([hits, union]).detach())
        self.batches.mul_(self.DECAY).add_(1)
        csi = self.sums[0] / self.sums[1].clamp(min=1)
        gain = (hits - csi * union) / (self.sums[1] / self.batches).clamp(min=1)
        return (1 - csi - gain).mean()


def _average_by_lead(values: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid, values, 0.0).sum((0, 2, 3, 4)) / valid.sum((0, 2, 3, 4)).clamp(min=1)
