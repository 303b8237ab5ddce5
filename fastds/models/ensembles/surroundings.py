# SPDX-License-Identifier: Apache-2.0
"""What is known around a pixel of a forecast: the echo that arrives there, and moments of it and of the forecast."""

import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from fastds.models.baselines.advection import warp
from fastds.models.baselines.extrapolation import fill_missing

WIDTHS = (4, 8, 16, 32, 64)  # pixels, standard deviations of the windows
FEATURES = 2 + 5 * len(WIDTHS) + 6
_DBZ = 20.0  # the unit of the features of echo, dB
_LEAST_WEIGHT = 1e-3


def local_mean(x: Tensor, width: int) -> Tensor:
    """Means of fields in a Gaussian window, edges repeated.

    Computed on cells of width / 2 pixels and interpolated, so that a wide window costs no more than a narrow one.

    Args:
        x: (B, H, W). width: standard deviation, pixels, even.

    Returns: (B, H, W).
    """
    cell, (h, w) = width // 2, x.shape[-2:]
    coarse = F.avg_pool2d(F.pad(x[:, None], (0, -w % cell, 0, -h % cell), mode="replicate"), cell)
    places = torch.arange(-6, 7, dtype=x.dtype)
    kernel = torch.exp(-places.square() / 8)
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    coarse = F.conv2d(F.pad(coarse, (0, 0, 6, 6), mode="replicate"), kernel)
    coarse = F.conv2d(F.pad(coarse, (6, 6, 0, 0), mode="replicate"), kernel.transpose(2, 3))
    size = [n * cell for n in coarse.shape[-2:]]
    return F.interpolate(coarse, size, mode="bilinear", align_corners=False)[:, 0, :h, :w]


class Surroundings:
    """Features of a forecast in the frame of the moving air, from which the law of its errors is read.

    Args:
        known: (m >= 2, H, W), the last fields, dB above the floor, no echo = 0; NaN where missing.
        mean: (n, H, W), the forecast, the same unit, without NaN.
        paths: (n, 2, H, W), pixels: displacement from each pixel to where its echo is in the last field.

    Attributes: valid (H, W): where the last field is known. rows, columns (n, H, W): the pixel of the last field whose
    echo arrives, which may lie outside the grid. last, before (H, W): the last two fields, filled, the first moved to
    the second.
    """

    def __init__(self, known: Tensor, mean: Tensor, paths: Tensor):
        h, w = known.shape[-2:]
        self.mean, self.valid = mean, ~known[-1].isnan()
        self.rows, self.columns = (
            (torch.arange(size).view(shape) + paths[:, axis]).round().long()
            for axis, (size, shape) in enumerate(((h, (-1, 1)), (w, (1, -1))))
        )
        filled = fill_missing(known[-2:, None])[:, 0]
        self.last = filled[1]
        both = (self.valid & ~known[-2].isnan()).float()
        self.before = warp(filled[:1, None], paths[:1])[0, 0]
        change = (self.last - self.before).square() * both
        self.weights = {
            width: local_mean(self.valid.float()[None], width)[0].clamp(min=_LEAST_WEIGHT) for width in WIDTHS
        }
        parts = torch.stack([self.last * self.valid, self.last.square() * self.valid, change])
        self.moments = {width: local_mean(parts, width) / self.weights[width] for width in WIDTHS}
        gaps = torch.from_numpy(distance_transform_edt(~self.valid.numpy())).float()
        self.gaps = gaps if self.valid.any() else torch.full_like(gaps, float(h + w))
        self.similar = _correlation(self.last[both > 0], self.before[both > 0])
        self.shifts = paths.square().sum(1).sqrt().flatten(1).median(1).values
        self.average = float(self.last[self.valid].mean()) if self.valid.any() else 0.0

    def features(self, lead: int, least: float) -> Tensor:
        """(FEATURES, H, W) of one forecast field, numbers of about 1.

        lead: k = 0 ... n - 1. least: the weakest echo there is, dB above the floor.

        Where the echo comes from outside the known pixels, at a distance, all windows of the last field are wider than
        that distance, and the forecast is their mean: nothing that is known at the edge is drawn out to stripes.
        """
        h, w = self.last.shape
        rows, columns = self.rows[lead].clamp(0, h - 1), self.columns[lead].clamp(0, w - 1)
        outside = torch.hypot((self.rows[lead] - rows).float(), (self.columns[lead] - columns).float())
        distance, place = outside + self.gaps[rows, columns], rows * w + columns
        widest = self.moments[WIDTHS[-1]].flatten(1)[:, place]

        def nearby(values: Tensor, width: int) -> Tensor:
            return torch.lerp(widest[: len(values)], values, torch.exp(-distance / width))

        moved = [nearby(self.moments[width].flatten(1)[:, place], width) for width in WIDTHS]
        first, second, change = (torch.stack(part) for part in zip(*moved, strict=True))
        mean = nearby(self.mean[lead][None], WIDTHS[0])[0]
        last = nearby(self.last.flatten()[place][None], WIDTHS[0])[0]
        own = torch.stack([mean, mean.square()]) * self.valid
        around = torch.stack([local_mean(own, width) / self.weights[width] for width in WIDTHS], 1)
        missing = (second - around[1]).clamp(min=0)
        step = lead + 1.0
        scalars = torch.tensor([
            torch.log(torch.tensor(step + 1)), 4 * (self.similar - 0.8), self.similar**step,
            torch.log(self.shifts[lead] + 1) / 4, self.average / 10, least / 10,
        ])  # fmt: skip
        maps = mean[None], last[None], first, around[0], second.clamp(min=0).sqrt()
        parts = [part / _DBZ for part in maps]
        parts += [(missing + 0.01).sqrt() / 10, (change.clamp(min=0) + 0.01).sqrt() / 10]
        return torch.cat([*parts, scalars.view(-1, 1, 1).expand(-1, h, w)])


def _correlation(a: Tensor, b: Tensor) -> float:
    """Of two fields' pixels, from .3 to .99; where one does not vary, .99 of equal ones, else .3."""
    if a.numel() < 2 or not (a.std() > 0 and b.std() > 0):
        return 0.99 if torch.equal(a, b) else 0.3
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1].clamp(0.3, 0.99))
