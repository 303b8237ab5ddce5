# SPDX-License-Identifier: Apache-2.0
"""What is known around a pixel of a downscaled field, and noise with the texture of what such a field lacks."""

import math
from collections.abc import Sequence

import numpy as np
import scipy  # its parts are imported at first use
import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.models.baselines.rims import local_mean

WIDTHS = (2, 4, 8, 16)  # fine pixels, standard deviations of the windows
_WIDER = (8, 32)  # of those in which the texture of the coarse field is averaged
FEATURES = 3 + 4 * len(WIDTHS) + 3 * len(_WIDER) + 4
LACKING, ECHO = 1, 3 + 3 * len(WIDTHS) + 1  # places of the likely error, and of the share of echo in WIDTHS[1]
_DBZ = 20.0  # the unit of the features of echo, dB
_ROWS = 1024  # of the fine grid, features of which are made at once
_MARGIN = 128  # rows read beyond them, which the widest window reaches; a multiple of its cells
_SHARED = 1.6  # see correlation


class Detail:
    """Features of a fine field, from which the law of its errors is read.

    Args:
        fine: (H, W), the field, dB above the floor, no echo = 0.
        coarse: (h, w), what it was made of, the same unit; between two input times the mean of both.
        apart: (H, W), dB, between input times the field before less the one behind, both moved to its time; at an input
            time 0.

    Coarse fields have most of what fine ones lack in common with them: what is lost from blocks of 2 to those of 4
    cells tells what was lost from fine pixels to cells, as radars differ much in it (the variance by a factor of 40).
    """

    def __init__(self, fine: Tensor, coarse: Tensor, apart: Tensor):
        self.fine, self.apart = fine, apart
        self.texture, echo = _texture(coarse), coarse > 0
        inner, outer = (math.log((mean(part[echo]) if echo.any() else 0.0) + 0.1) for part in self.texture)
        change = math.sqrt(mean(apart.square()))
        self.overall = torch.tensor([inner / 2, inner - outer, change / 10, mean(fine) / 10])
        self.factor = fine.shape[-1] // coarse.shape[-1]

    def bands(self) -> list[slice]:
        """Rows of the fine grid, in pieces that bound memory."""
        height = self.fine.shape[0]
        return [slice(start, min(start + _ROWS, height)) for start in range(0, height, _ROWS)]

    def whole(self) -> Tensor:
        """(FEATURES, H, W) of all rows."""
        return torch.cat([self.features(rows) for rows in self.bands()], 1)

    def features(self, rows: slice) -> Tensor:
        """(FEATURES, n, W) of some rows as of bands(), numbers of about 1."""
        window = slice(max(rows.start - _MARGIN, 0), min(rows.stop + _MARGIN, self.fine.shape[0]))
        cells = slice(window.start // self.factor, -(-window.stop // self.factor))
        own, apart = self.fine[window], self.apart[window]
        parts = torch.stack([own, own.square(), apart.square(), (own > 0).float()])
        means, squares, changes, echo = torch.stack([local_mean(parts, width) for width in WIDTHS], 1)
        deviations = (squares - means.square()).clamp(min=0).add(0.01).sqrt()
        lost = self.texture[:, cells].repeat_interleave(self.factor, 1).repeat_interleave(self.factor, 2)
        lost = lost[:, window.start - self.factor * cells.start :][:, : len(own)]
        lost = torch.stack([local_mean(lost, width) for width in _WIDER])
        logs = torch.log(lost + 0.1)
        inner, outer = lost[0]
        likely = 0.5 * inner * (inner + 0.1) / (outer + 0.1) + 0.2 * changes[0].clamp(min=0)
        maps = [
            own[None] / _DBZ, (likely + 0.01).sqrt()[None] / 10, (own - means[0]).abs()[None] / 5, means / _DBZ,
            deviations / 10, changes.clamp(min=0).add(0.01).sqrt() / 10, echo, logs.flatten(0, 1) / 2,
            logs[:, 0] - logs[:, 1], self.overall.view(-1, 1, 1).expand(-1, *own.shape),
        ]  # fmt: skip
        return torch.cat(maps)[:, rows.start - window.start : rows.stop - window.start]


def mean(values: Tensor) -> float:
    """The same bits with any number of threads."""
    return float(values.numpy().mean(dtype=float))


def _texture(coarse: Tensor) -> Tensor:
    """(2, h, w): variance within blocks of 2 x 2 cells from each cell on, and of those within blocks of 4 x 4."""

    def blocks(x: Tensor, size: int) -> Tensor:
        return F.avg_pool2d(F.pad(x[None, None], (0, size - 1, 0, size - 1), mode="replicate"), size, 1)[0, 0]

    inner, whole = (blocks(coarse.square(), size) - blocks(coarse, size).square() for size in (2, 4))
    return torch.stack([inner, whole - blocks(inner, 4)]).clamp(min=0)


def correlation(at_inputs: float, between: float) -> float:
    """Of neighbouring pixels' errors between input times, from the mean variance of errors at them and between them:
    w^1.6, w = 1 - at_inputs / between, since what motion and growth add is smooth where lost detail is not; at least
    .01 and at most .98. Measured on four radars at 10, 20 and 30 minutes: .3 to .9, within .06."""
    added = max(1 - at_inputs / between, 0) if between > 0 else 0
    return min(max(added**_SHARED, 0.01), 0.98)


def lost_detail(seed: Sequence[int], shape: tuple[int, int], factor: int) -> Tensor:
    """Noise (H, W) of variance one that is white, but that blocks of factor x factor pixels have the mean zero: what
    means of cells have lost."""
    rows, columns = (size // factor for size in shape)
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32))
    blocks = noise.view(rows, factor, columns, factor)
    blocks = (blocks - blocks.mean((1, 3), keepdim=True)) * (factor**2 / (factor**2 - 1)) ** 0.5
    return blocks.view(shape)


def smooth_noise(seed: Sequence[int], shape: tuple[int, int], neighbours: float) -> Tensor:
    """Noise (H, W) of variance one whose correlation at a distance of d pixels is neighbours^d. It is periodic on a
    somewhat larger plane."""
    margin = 16 + round(3 / -math.log(neighbours))  # where the correlation is .05
    plane = tuple(scipy.fft.next_fast_len(size + margin, real=True) for size in shape)
    rows, columns = (np.minimum(np.arange(size), size - np.arange(size)) for size in plane)
    power = scipy.fft.rfft2(neighbours ** np.hypot(rows[:, None], columns[None]), workers=torch.get_num_threads()).real
    noise = np.random.default_rng(seed).standard_normal(plane, np.float32)
    spectrum = scipy.fft.rfft2(noise, workers=torch.get_num_threads()) * np.sqrt(power.clip(0)).astype(np.float32)
    drawn = scipy.fft.irfft2(spectrum, plane, workers=torch.get_num_threads())
    return torch.from_numpy(np.ascontiguousarray(drawn[: shape[0], : shape[1]], np.float32))
