# SPDX-License-Identifier: Apache-2.0
"""Features of a nowcast from which its error model is evaluated: advected reflectivity and local moments."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fastds.models.baselines.advection import warp
from fastds.models.baselines.boundary import BackTrajectories, compute_coverage_weight, compute_local_mean, fill_missing

WIDTHS = (4, 8, 16, 32, 64)  # pixels: standard deviations of the windows
FEATURES = 2 + 5 * len(WIDTHS) + 6
_DBZ = 20.0  # dB: unit of reflectivity features


class ForecastFeatures:
    """Local features of a nowcast, evaluated at the origin of the air of each pixel.

    Args:
        known: (m >= 2, H, W), the last input frames in dB above the floor, 0 where dry, NaN where missing.
        mean: (n, H, W), the forecast frames in the same unit, without NaN.
        paths: (n, 2, H, W), backward trajectories in pixels, see `compute_trajectories`.

    Attributes:
        valid: (H, W) bool, pixels where the last input frame is not missing.
        origins: BackTrajectories of the forecast.
        last: (H, W), the last input frame, missing pixels filled.
        before: (H, W), the frame before, filled and advected to the time of the last one.
        similar: correlation of `last` and `before`, clipped to 0.3 ... 0.99.
    """

    def __init__(self, known: Tensor, mean: Tensor, paths: Tensor):
        self.mean, self.valid = mean, ~known[-1].isnan()
        self.origins = BackTrajectories.from_displacements(paths, self.valid)
        filled = fill_missing(known[-2:, None])[:, 0]
        self.last = filled[1]
        both = (self.valid & ~known[-2].isnan()).float()
        self.before = warp(filled[:1, None], paths[:1])[0, 0]
        change = (self.last - self.before).square() * both
        self.weights = {width: compute_coverage_weight(self.valid, width) for width in WIDTHS}
        parts = torch.stack([self.last * self.valid, self.last.square() * self.valid, change])
        self.moments = {width: compute_local_mean(parts, width) / self.weights[width] for width in WIDTHS}
        self.similar = _compute_correlation(self.last[both > 0], self.before[both > 0])
        self.shifts = paths.square().sum(1).sqrt().flatten(1).median(1).values
        self.average = float(self.last[self.valid].mean()) if self.valid.any() else 0.0

    def advect(self, field: Tensor) -> Iterator[Tensor]:
        """Advect a field of the last input time to each forecast time.

        Inflow from outside the coverage decays to the local mean in the widest window.

        Args:
            field: (H, W), without NaN.

        Yields:
            (H, W) for each lead time.
        """
        mean = compute_local_mean((field * self.valid)[None], WIDTHS[-1])[0] / self.weights[WIDTHS[-1]]
        for lead, place in enumerate(self.origins.pixel):
            yield torch.lerp(mean.flatten()[place], field.flatten()[place], self.compute_observed_weight(lead))

    def compute_observed_weight(self, lead: int, width: int = WIDTHS[0]) -> Tensor:
        """Compute the weight of observed values at the origin of each pixel's air: exp(-distance / width).

        Args:
            lead: index of the forecast frame.
            width: decay length in pixels.

        Returns:
            (H, W), 1 where the origin was observed.
        """
        return torch.exp(-self.origins.distance[lead] / width)

    def compute(self, lead: int, threshold: float) -> Tensor:
        """Compute the features of one forecast frame.

        Where the air comes from outside the coverage, the moments decay to those of the widest window with the
        distance, so that edge values are not drawn out to stripes.

        Args:
            lead: index of the forecast frame, 0 ... n - 1.
            threshold: detection threshold in dB above the floor.

        Returns:
            (FEATURES, H, W), of order one.
        """
        place = self.origins.pixel[lead]
        widest = self.moments[WIDTHS[-1]].flatten(1)[:, place]

        def blend_with_widest(values: Tensor, width: int) -> Tensor:
            return torch.lerp(widest[: len(values)], values, self.compute_observed_weight(lead, width))

        moved = [blend_with_widest(self.moments[width].flatten(1)[:, place], width) for width in WIDTHS]
        first, second, change = (torch.stack(part) for part in zip(*moved, strict=True))
        mean = blend_with_widest(self.mean[lead][None], WIDTHS[0])[0]
        last = blend_with_widest(self.last.flatten()[place][None], WIDTHS[0])[0]
        weighted = torch.stack([mean, mean.square()]) * self.valid
        around = torch.stack([compute_local_mean(weighted, width) / self.weights[width] for width in WIDTHS], 1)
        missing = (second - around[1]).clamp(min=0)
        step = lead + 1.0
        scalars = torch.tensor([
            torch.log(torch.tensor(step + 1)), 4 * (self.similar - 0.8), self.similar**step,
            torch.log(self.shifts[lead] + 1) / 4, self.average / 10, threshold / 10,
        ])  # fmt: skip
        maps = mean[None], last[None], first, around[0], second.clamp(min=0).sqrt()
        parts = [part / _DBZ for part in maps]
        parts += [(missing + 0.01).sqrt() / 10, (change.clamp(min=0) + 0.01).sqrt() / 10]
        return torch.cat([*parts, scalars.view(-1, 1, 1).expand(-1, *self.last.shape)])


def _compute_correlation(a: Tensor, b: Tensor) -> float:
    """Compute the correlation of two vectors of pixels, clipped to 0.3 ... 0.99.

    If a vector is constant or has less than two pixels, the result is 0.99 for equal vectors and 0.3 otherwise.
    """
    if a.numel() < 2 or not (a.std() > 0 and b.std() > 0):
        return 0.99 if torch.equal(a, b) else 0.3
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1].clamp(0.3, 0.99))
