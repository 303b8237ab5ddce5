# SPDX-License-Identifier: Apache-2.0
"""What is known around a pixel of a forecast: the echo that arrives there, and moments of it and of the forecast."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fastds.models.baselines.advection import warp
from fastds.models.baselines.extrapolation import fill_missing
from fastds.models.baselines.rims import Origins, known_weight, local_mean

WIDTHS = (4, 8, 16, 32, 64)  # pixels, standard deviations of the windows
FEATURES = 2 + 5 * len(WIDTHS) + 6
_DBZ = 20.0  # the unit of the features of echo, dB


class Surroundings:
    """Features of a forecast in the frame of the moving air, from which the law of its errors is read.

    Args:
        known: (m >= 2, H, W), the last fields, dB above the floor, no echo = 0; NaN where missing.
        mean: (n, H, W), the forecast, the same unit, without NaN.
        paths: (n, 2, H, W), pixels: displacement from each pixel to where its echo is in the last field.

    Attributes: valid (H, W): where the last field is known. origins: of the forecast's air. last, before (H, W): the
    last two fields, filled, the first moved to the second.
    """

    def __init__(self, known: Tensor, mean: Tensor, paths: Tensor):
        self.mean, self.valid = mean, ~known[-1].isnan()
        self.origins = Origins.of(paths, self.valid)
        filled = fill_missing(known[-2:, None])[:, 0]
        self.last = filled[1]
        both = (self.valid & ~known[-2].isnan()).float()
        self.before = warp(filled[:1, None], paths[:1])[0, 0]
        change = (self.last - self.before).square() * both
        self.weights = {width: known_weight(self.valid, width) for width in WIDTHS}
        parts = torch.stack([self.last * self.valid, self.last.square() * self.valid, change])
        self.moments = {width: local_mean(parts, width) / self.weights[width] for width in WIDTHS}
        self.similar = _correlation(self.last[both > 0], self.before[both > 0])
        self.shifts = paths.square().sum(1).sqrt().flatten(1).median(1).values
        self.average = float(self.last[self.valid].mean()) if self.valid.any() else 0.0

    def moved(self, field: Tensor) -> Iterator[Tensor]:
        """(H, W) by lead: a field of the last time, without NaN, where a forecast has moved it; what comes from
        outside, at a distance, is its mean in the widest window, as in features."""
        mean = local_mean((field * self.valid)[None], WIDTHS[-1])[0] / self.weights[WIDTHS[-1]]
        for lead, place in enumerate(self.origins.place):
            yield torch.lerp(mean.flatten()[place], field.flatten()[place], self.known(lead))

    def known(self, lead: int, width: int = WIDTHS[0]) -> Tensor:
        """(H, W): how well what a forecast moves to a pixel is known, 1 where it was observed, less with its distance
        from there in widths of a window."""
        return torch.exp(-self.origins.distance[lead] / width)

    def features(self, lead: int, least: float) -> Tensor:
        """(FEATURES, H, W) of one forecast field, numbers of about 1.

        lead: k = 0 ... n - 1. least: the weakest echo there is, dB above the floor.

        Where the echo comes from outside the known pixels, at a distance, all windows of the last field are wider than
        that distance, and the forecast is their mean: nothing that is known at the edge is drawn out to stripes.
        """
        place = self.origins.place[lead]
        widest = self.moments[WIDTHS[-1]].flatten(1)[:, place]

        def nearby(values: Tensor, width: int) -> Tensor:
            return torch.lerp(widest[: len(values)], values, self.known(lead, width))

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
        return torch.cat([*parts, scalars.view(-1, 1, 1).expand(-1, *self.last.shape)])


def _correlation(a: Tensor, b: Tensor) -> float:
    """Of two fields' pixels, from .3 to .99; where one does not vary, .99 of equal ones, else .3."""
    if a.numel() < 2 or not (a.std() > 0 and b.std() > 0):
        return 0.99 if torch.equal(a, b) else 0.3
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1].clamp(0.3, 0.99))
