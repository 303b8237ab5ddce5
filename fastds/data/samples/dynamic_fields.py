# SPDX-License-Identifier: Apache-2.0
"""Fields beside the reflectivity that change with time, such as the probability of rain: further channels of a
network."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from fastds.data.formats.opening import open_dataset
from fastds.data.grid.axes import find_axes
from fastds.data.grid.times import sort_times
from fastds.data.radar.reflectivity import to_reflectivity

_STEPS, _MISSING = 254, np.uint8(255)


class DynamicFields:
    """Fields of the times and the grid of a file's reflectivity, in memory as one byte a pixel.

    Args:
        path: of the file.
        ranges: variable -> (low, high) in its units, which become 0 and 1, in the order of the channels.
        frames: which of them, sorted by time.
        var: name of the reflectivity variable; None finds it.
    Attributes: variables: [{"name", "standard_name", "units", "range"}]; codes (D, T, H, W).
    Raises: ValueError for a variable that is missing or has other times or another grid, and an empty range.
    Source: Chen, Qin and Dai 2022 (rain probability 0 to 100 %, height of the measurement 0 to 20000 m).
    """

    def __init__(
        self,
        path: str | os.PathLike,
        ranges: Mapping[str, Sequence[float]],
        frames: slice = slice(None),
        var: str | None = None,
    ):
        with open_dataset(path) as dataset:
            raw = to_reflectivity(dataset, var).raw
            found = [_beside(dataset, name, raw, path)[frames] for name in ranges]
            self.codes = np.stack([_codes(v, *_checked(v.name, ranges[v.name])) for v in found])
        self.variables = [
            {
                "name": str(v.name),
                **{key: v.attrs[key] for key in ("standard_name", "units") if key in v.attrs},
                "range": [float(end) for end in ranges[v.name]],
            }
            for v in found
        ]

    def coarse(
        self, frames: Sequence[int] | np.ndarray, factor: int, rows: slice = slice(None), columns: slice = slice(None)
    ) -> np.ndarray:
        """Some frames as channels, (len(frames), D, h, w) float32 in [0, 1]: the means over blocks of factor x factor
        pixels of what is not missing there, 0 where all is. Rows and columns that fill no block are left out."""
        part = self.codes[:, np.asarray(frames)][..., rows, columns]
        h, w = (n // factor for n in part.shape[-2:])
        blocks = part[..., : h * factor, : w * factor].reshape(*part.shape[:2], h, factor, w, factor)
        there = blocks != _MISSING
        total = np.where(there, blocks, 0).sum((3, 5), dtype=np.float32)
        mean = total / np.maximum(there.sum((3, 5)), 1) / _STEPS
        return mean.transpose(1, 0, 2, 3).astype(np.float32)


def _beside(dataset: xr.Dataset, name: str, raw: xr.DataArray, path: str | os.PathLike) -> xr.DataArray:
    """A variable of the times and the grid of the reflectivity."""
    if name not in dataset.data_vars:
        held = ", ".join(map(str, dataset.data_vars))
        raise ValueError(f"there is no variable {name!r} in {path}, which has {held}")
    field, _ = sort_times(find_axes(dataset[name])[0])
    time = raw.dims[0]
    if field.dims != raw.dims or field.shape != raw.shape or not np.array_equal(field[time].values, raw[time].values):
        raise ValueError(f"{name} of {path} has not the times and the grid of {raw.name}: {field.shape}, {raw.shape}")
    return field


def _checked(name: str, ends: Sequence[float]) -> tuple[float, float]:
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise ValueError(f"the range of {name} must be [low, high], got {list(ends)}")
    return float(ends[0]), float(ends[1])


def _codes(field: xr.DataArray, low: float, high: float) -> np.ndarray:
    values = (np.asarray(field.values, np.float32) - low) / (high - low)
    codes = np.rint(_STEPS * np.clip(values, 0, 1))
    return np.where(np.isnan(codes), _MISSING, np.nan_to_num(codes)).astype(np.uint8)
