# SPDX-License-Identifier: Apache-2.0
"""Fields beside the reflectivity that change with time, such as the probability of rain: further channels of a
network."""

import copy
import os
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from fastds.data.formats.opening import open_dataset
from fastds.data.grid.axes import find_axes
from fastds.data.grid.plausible import without_missing
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
            self.codes = np.stack([_codes(v, _checked(v.name, ranges[v.name])) for v in found])
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


class DynamicChannels:
    """Variables of the times and the grid of a dataset's reflectivity as further channels of a network, read when they
    are asked for.

    Args:
        dataset: that holds them.
        raw: the reflectivity (time, y, x), sorted by time, see to_reflectivity.
        ranges: pairs of a variable and (low, high) in its units, which become 0 and 1, in the order of the channels.
        place: where the dataset is from, for errors.
    Attributes: names, ranges: of the variables, in the order of the channels.
    Raises: ValueError for a variable that is missing or has other times or another grid, and an empty range.
    """

    def __init__(
        self,
        dataset: xr.Dataset,
        raw: xr.DataArray,
        ranges: Sequence[tuple[str, Sequence[float]]],
        place: str | os.PathLike = "the data",
    ):
        found = [_beside(dataset, name, raw, place) for name, _ in ranges]
        self.names = [name for name, _ in ranges]
        self.ranges = [_checked(name, ends) for name, ends in ranges]
        self._time = raw.dims[0]
        self._fields = xr.Dataset({f"channel_{k}": field.variable for k, field in enumerate(found)})

    def part(self, steps: slice) -> "DynamicChannels":
        """Some consecutive frames, read at once."""
        part = copy.copy(self)
        part._fields = self._fields.isel({self._time: steps}).compute()
        return part

    def frame(self, number: int) -> np.ndarray:
        """One frame, (D, H, W) float32 in [0, 1], 0 where a value is missing."""
        fields = self._fields.isel({self._time: number}).compute()  # at once: they may be in the same file
        variables = zip(fields.data_vars.values(), self.ranges, strict=True)
        return np.nan_to_num(np.stack([_scaled(field, ends) for field, ends in variables]))


def _beside(dataset: xr.Dataset, name: str, raw: xr.DataArray, path: str | os.PathLike) -> xr.DataArray:
    """A variable of the times and the grid of the reflectivity."""
    if name not in dataset.data_vars:
        held = ", ".join(map(str, dataset.data_vars))
        raise ValueError(f"there is no variable {name!r} in {path}, which has {held}")
    time, field = raw.dims[0], dataset[name]
    if raw.sizes[time] == 1 and time not in field.dims:  # of the same single time, see with_time
        field = field.drop_vars(time, errors="ignore").expand_dims({time: raw[time].values})
    field, _ = sort_times(find_axes(field)[0], least=1)
    if field.dims != raw.dims or field.shape != raw.shape or not np.array_equal(field[time].values, raw[time].values):
        raise ValueError(f"{name} of {path} has not the times and the grid of {raw.name}: {field.shape}, {raw.shape}")
    return field


def _checked(name: str, ends: Sequence[float]) -> tuple[float, float]:
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise ValueError(f"the range of {name} must be [low, high], got {list(ends)}")
    return float(ends[0]), float(ends[1])


def _scaled(field: xr.DataArray, ends: tuple[float, float]) -> np.ndarray:
    """float32 in [0, 1] between the ends of a range, NaN where a value is missing."""
    low, high = ends
    return np.clip((without_missing(field.values, field.attrs) - low) / (high - low), 0, 1)


def _codes(field: xr.DataArray, ends: tuple[float, float]) -> np.ndarray:
    codes = np.rint(_STEPS * _scaled(field, ends))
    return np.where(np.isnan(codes), _MISSING, np.nan_to_num(codes)).astype(np.uint8)
