# SPDX-License-Identifier: Apache-2.0
"""Features of a downscaled field from which its error model is evaluated, and noise for the missing detail."""

import math
from collections.abc import Sequence

import numpy as np
import scipy  # its submodules are imported at first use
import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.models.baselines.boundary import compute_local_mean

WIDTHS = (2, 4, 8, 16)  # fine pixels: standard deviations of the windows
_TEXTURE_WIDTHS = (8, 32)  # fine pixels: windows in which the texture of the coarse input is averaged
FEATURES = 3 + 4 * len(WIDTHS) + 3 * len(_TEXTURE_WIDTHS) + 4
ERROR_INDEX, WET_SHARE_INDEX = (
    1,
    3 + 3 * len(WIDTHS) + 1,
)  # index of the expected error, and of the wet share in WIDTHS[1]
_DBZ = 20.0  # dB: unit of reflectivity features
_ROWS = 1024  # rows of the fine grid in one band
_MARGIN = 128  # halo of a band in rows, a multiple of the cells of the widest window
_EXPONENT = 1.6  # see estimate_correlation


class DownscalingFeatures:
    """Local features of a downscaled field.

    The variance that is missing below the grid spacing is estimated by scale similarity: the variance lost from blocks
    of 2 x 2 to blocks of 4 x 4 cells of the coarse input predicts the variance lost from fine pixels to cells.

    Args:
        fine: (H, W), the downscaled field in dB above the floor, 0 where dry.
        coarse: (h, w), the coarse input in the same unit. For a time between two inputs, the mean of both.
        difference: (H, W), in dB. For a time between two inputs, the earlier input minus the later one, both advected
            to this time. For an input time, 0.
    """

    def __init__(self, fine: Tensor, coarse: Tensor, difference: Tensor):
        self.fine, self.difference = fine, difference
        self.texture, echo = _compute_texture(coarse), coarse > 0
        inner, outer = (math.log((compute_mean(part[echo]) if echo.any() else 0.0) + 0.1) for part in self.texture)
        change = math.sqrt(compute_mean(difference.square()))
        self.overall = torch.tensor([inner / 2, inner - outer, change / 10, compute_mean(fine) / 10])
        self.factor = fine.shape[-1] // coarse.shape[-1]

    def split_rows(self) -> list[slice]:
        """Split the fine grid into bands of rows, to bound the memory."""
        height = self.fine.shape[0]
        return [slice(start, min(start + _ROWS, height)) for start in range(0, height, _ROWS)]

    def compute_all(self) -> Tensor:
        """Compute the features of all rows, (FEATURES, H, W)."""
        return torch.cat([self.compute(rows) for rows in self.split_rows()], 1)

    def compute(self, rows: slice) -> Tensor:
        """Compute the features of one band of rows.

        Args:
            rows: a band from `split_rows`.

        Returns:
            (FEATURES, n, W), of order one.
        """
        window = slice(max(rows.start - _MARGIN, 0), min(rows.stop + _MARGIN, self.fine.shape[0]))
        cells = slice(window.start // self.factor, -(-window.stop // self.factor))
        field, difference = self.fine[window], self.difference[window]
        parts = torch.stack([field, field.square(), difference.square(), (field > 0).float()])
        means, squares, changes, echo = torch.stack([compute_local_mean(parts, width) for width in WIDTHS], 1)
        deviations = (squares - means.square()).clamp(min=0).add(0.01).sqrt()
        texture = self.texture[:, cells].repeat_interleave(self.factor, 1).repeat_interleave(self.factor, 2)
        texture = texture[:, window.start - self.factor * cells.start :][:, : len(field)]
        texture = torch.stack([compute_local_mean(texture, width) for width in _TEXTURE_WIDTHS])
        logs = torch.log(texture + 0.1)
        inner, outer = texture[0]
        likely = 0.5 * inner * (inner + 0.1) / (outer + 0.1) + 0.2 * changes[0].clamp(min=0)
        maps = [
            field[None] / _DBZ, (likely + 0.01).sqrt()[None] / 10, (field - means[0]).abs()[None] / 5, means / _DBZ,
            deviations / 10, changes.clamp(min=0).add(0.01).sqrt() / 10, echo, logs.flatten(0, 1) / 2,
            logs[:, 0] - logs[:, 1], self.overall.view(-1, 1, 1).expand(-1, *field.shape),
        ]  # fmt: skip
        return torch.cat(maps)[:, rows.start - window.start : rows.stop - window.start]


def compute_mean(values: Tensor) -> float:
    """Compute a mean that does not depend on the number of threads."""
    return float(values.numpy().mean(dtype=float))


def _compute_texture(coarse: Tensor) -> Tensor:
    """Compute the variance of a coarse field at two scales, (2, h, w).

    Element 0 is the variance within a block of 2 x 2 cells. Element 1 is the variance within a block of 4 x 4 cells
    minus the mean of element 0 over these cells. The blocks at (i, j) have this cell as their first corner.
    """

    def average_blocks(x: Tensor, size: int) -> Tensor:
        return F.avg_pool2d(F.pad(x[None, None], (0, size - 1, 0, size - 1), mode="replicate"), size, 1)[0, 0]

    inner, whole = (average_blocks(coarse.square(), size) - average_blocks(coarse, size).square() for size in (2, 4))
    return torch.stack([inner, whole - average_blocks(inner, 4)]).clamp(min=0)


def estimate_correlation(at_inputs: float, between: float) -> float:
    """Estimate the correlation of errors of neighbouring pixels at times between the inputs.

    Errors of missing detail are present at all times and not correlated. Errors of motion and growth exist only between
    the inputs and are smooth, so the correlation increases with their share. It is (1 - at_inputs / between)^1.6,
    clipped to 0.01 ... 0.98.

    Args:
        at_inputs: mean error variance at input times.
        between: mean error variance between the input times.
    """
    added = max(1 - at_inputs / between, 0) if between > 0 else 0
    return min(max(added**_EXPONENT, 0.01), 0.98)


def draw_zero_block_mean_noise(seed: Sequence[int], shape: tuple[int, int], factor: int) -> Tensor:
    """Draw white noise of variance one with mean zero in each block of factor x factor pixels.

    The detail that is lost in cell means has such a texture.

    Args:
        seed: numbers that seed the generator.
        shape: (H, W), multiples of factor.
        factor: size of the blocks in pixels.

    Returns:
        (H, W) float32.
    """
    rows, columns = (size // factor for size in shape)
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32))
    blocks = noise.view(rows, factor, columns, factor)
    blocks = (blocks - blocks.mean((1, 3), keepdim=True)) * (factor**2 / (factor**2 - 1)) ** 0.5
    return blocks.view(shape)


def draw_smooth_noise(seed: Sequence[int], shape: tuple[int, int], neighbours: float) -> Tensor:
    """Draw noise of variance one whose correlation at a distance of d pixels is neighbours^d.

    The noise is periodic on a plane larger than the grid.

    Args:
        seed: numbers that seed the generator.
        shape: (H, W).
        neighbours: correlation of neighbouring pixels, between 0 and 1.

    Returns:
        (H, W) float32.
    """
    margin = 16 + round(3 / -math.log(neighbours))  # distance at which the correlation is 0.05
    plane = tuple(scipy.fft.next_fast_len(size + margin, real=True) for size in shape)
    rows, columns = (np.minimum(np.arange(size), size - np.arange(size)) for size in plane)
    power = scipy.fft.rfft2(neighbours ** np.hypot(rows[:, None], columns[None]), workers=torch.get_num_threads()).real
    noise = np.random.default_rng(seed).standard_normal(plane, np.float32)
    spectrum = scipy.fft.rfft2(noise, workers=torch.get_num_threads()) * np.sqrt(power.clip(0)).astype(np.float32)
    drawn = scipy.fft.irfft2(spectrum, plane, workers=torch.get_num_threads())
    return torch.from_numpy(np.ascontiguousarray(drawn[: shape[0], : shape[1]], np.float32))
