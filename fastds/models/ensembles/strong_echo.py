# SPDX-License-Identifier: Apache-2.0
"""Adjust the strong echo of an error model to its areas in the advected last frame."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastds.models.ensembles.error_model import quadrature, sample_reflectivity

_NODES, _WEIGHTS = quadrature(25)
_STEP = 1.0  # dB between two levels
_RAMP = 5.0  # dB above the first level over which the shift grows from nothing to that of the areas
_MOST = 6.0  # dB, limit of the shift
_FEWEST_PIXELS = 4  # smallest area in the target from which a shift follows
_HALF_WEIGHT_PIXELS = 8  # area in the target 1 dB above the first level that gives the shift half of its weight
_REACH = 5.0  # pixels whose m + _REACH s is below the first level do not reach it


class EchoShift:
    """Shift of reflectivity by an amount that depends on the reflectivity: z + shift(z).

    The shift is linear between levels. It is zero below the first level, and that of the last level above it.

    Args:
        first: first level in dB above the floor. The others follow at distances of 1 dB.
        shifts: (levels,) in dB. The first is zero, and levels plus shifts do not decrease.

    Shapes: z and the result are equal, in dB above the floor.
    """

    def __init__(self, first: float, shifts: Tensor):
        self.first, self.shifts = first, shifts

    def __call__(self, z: Tensor) -> Tensor:
        strong = (z > self.first).nonzero(as_tuple=True)
        position = ((z[strong] - self.first) / _STEP).clamp(0, len(self.shifts) - 1.001)
        level = position.long()
        shift = torch.lerp(self.shifts[level], self.shifts[level + 1], position - level)
        return z.index_put(strong, shift, accumulate=True)


def match_echo_areas(
    parameters: tuple[Tensor, ...], target: Tensor, counted: Tensor, weight: float, first: float, last: float
) -> EchoShift | None:
    """Compute the shift that gives strong echo of an error model the areas that it has in a target field.

    At each level the echo of the model is shifted to the level that echo of the target reaches on the same area. The
    expected areas of the model follow from its distributions at the pixels, so that no member depends on others. The
    tail of the distributions is fitted to few radars and events, and on others the areas of strong echo, and with them
    its probabilities, would be several times too small or too large.

    Args:
        parameters: m, s, g and e of the error model, each (H, W).
        target: (H, W), in dB above the floor.
        counted: (H, W) bool, the pixels whose areas are compared.
        weight: factor of the shift, from 0 to 1. It is multiplied by n / (n + 8) for n pixels of the target 1 dB above
            the first level, because single pixels that cross a level would change the shift from one field to the next.
        first: level in dB above the floor below which nothing is shifted. The shift grows over the 5 dB above it.
        last: highest level in dB above the floor.

    Returns:
        The shift, at most 6 dB up or down; None if the target has less than four pixels 1 dB above the first
        level, or the model less than four above the first level.
    """
    levels = np.arange(first, last, _STEP)
    target_areas = _count_pixels_above(target[counted], first, len(levels))
    target_levels = levels[target_areas >= _FEWEST_PIXELS]
    if len(target_levels) < 2:
        return None
    pixels = tuple(part[counted] for part in parameters)
    reaching = pixels[0] + _REACH * pixels[1] > first
    pixels = tuple(part[reaching] for part in pixels)
    areas = np.zeros(len(levels))
    for node, share in zip(_NODES, _WEIGHTS, strict=True):
        areas += float(share) * _count_pixels_above(sample_reflectivity(pixels, node), first, len(levels))
    if areas[0] < _FEWEST_PIXELS:
        return None
    # Levels of the target with the areas of the model; np.interp takes its first and last level beyond them.
    matched = np.interp(-_log(areas), -_log(target_areas[: len(target_levels)]), target_levels)
    strongest = int((areas >= _FEWEST_PIXELS).sum()) - 1
    shifts = (matched - levels)[np.minimum(np.arange(len(levels)), strongest)]
    shifts = shifts.clip(-_MOST, _MOST) * ((levels - first) / _RAMP).clip(0, 1)
    weight *= target_areas[1] / (target_areas[1] + _HALF_WEIGHT_PIXELS)
    shifts = np.maximum.accumulate(levels + weight * shifts) - levels
    return EchoShift(first, torch.from_numpy(shifts.astype(np.float32)))


def _count_pixels_above(z: Tensor, first: float, count: int) -> np.ndarray:
    """Count the pixels that reach each level.

    Args:
        z: reflectivity in dB above the floor.
        first: first level.
        count: number of levels.

    Returns:
        (count,) float64.
    """
    level = ((z - first) / _STEP).floor().clamp(-1, count - 1).to(torch.int64) + 1
    return torch.bincount(level, minlength=count + 1)[1:].numpy()[::-1].cumsum()[::-1].astype(float)


def _log(areas: np.ndarray) -> np.ndarray:
    return np.log(areas + 1e-9)
