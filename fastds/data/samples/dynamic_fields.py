# SPDX-License-Identifier: Apache-2.0
"""Time-dependent fields besides reflectivity, such as the probability of rain, as further channels of a network."""

import copy
import os
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from fastds.data.formats.opening import open_dataset
from fastds.data.grid.axes import find_axes
from fastds.data.grid.times import sort_times
from fastds.data.grid.value_checks import mask_fill_values
from fastds.data.radar.reflectivity import to_reflectivity

_STEPS, _MISSING = 254, np.uint8(255)


class DynamicFields:
    """Fields at the times and on the grid of a file's reflectivity, in memory with one byte a pixel.

    Args:
        path: File.
        ranges: Variable -> (low, high) in its units, which become 0 and 1; in the order of the channels.
        frames: Slice of the frames, sorted by time.
        var: Name of the reflectivity variable; None: choose.

    Attributes:
        variables: [{"name", "standard_name", "units", "range"}].
        codes: (D, T, H, W) uint8.

    Raises:
        ValueError: A variable is missing, has other times or another grid, or an empty range.

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
            found = [_find_aligned_variable(dataset, name, raw, path)[frames] for name in ranges]
            self.codes = np.stack([_encode(v, _check_range(str(v.name), ranges[str(v.name)])) for v in found])
        self.variables = [
            {
                "name": str(v.name),
                **{key: v.attrs[key] for key in ("standard_name", "units") if key in v.attrs},
                "range": [float(end) for end in ranges[str(v.name)]],
            }
            for v in found
        ]

    def coarsen(
        self, frames: Sequence[int] | np.ndarray, factor: int, rows: slice = slice(None), columns: slice = slice(None)
    ) -> np.ndarray:
        """Return some frames as channels, averaged over blocks of factor x factor pixels.

        Args:
            frames: Indices of frames.
            factor: Side of a block. Rows and columns at the end that fill no block are left out.
            rows: Rows of the crop.
            columns: Columns of the crop.

        Returns:
            (len(frames), D, h, w) float32 in [0, 1]: means over the pixels that are not missing; 0 without such pixels.
        """
        part = self.codes[:, np.asarray(frames)][..., rows, columns]
        h, w = (n // factor for n in part.shape[-2:])
        blocks = part[..., : h * factor, : w * factor].reshape(*part.shape[:2], h, factor, w, factor)
        valid = blocks != _MISSING
        total = np.where(valid, blocks, 0).sum((3, 5), dtype=np.float32)
        mean = total / np.maximum(valid.sum((3, 5)), 1) / _STEPS
        return mean.transpose(1, 0, 2, 3).astype(np.float32)


class DynamicChannels:
    """Variables at the times and on the grid of a dataset's reflectivity, as channels of a network, read on access.

    Args:
        dataset: Dataset of the variables.
        raw: Reflectivity (time, y, x), sorted by time, see `to_reflectivity`.
        ranges: Pairs of a variable and (low, high) in its units, which become 0 and 1; in the order of the channels.
        source: Description of the dataset for messages.

    Attributes:
        names: Names of the variables.
        ranges: Ranges of the variables.

    Raises:
        ValueError: A variable is missing, has other times or another grid, or an empty range.
    """

    def __init__(
        self,
        dataset: xr.Dataset,
        raw: xr.DataArray,
        ranges: Sequence[tuple[str, Sequence[float]]],
        source: str | os.PathLike = "the data",
    ):
        found = [_find_aligned_variable(dataset, name, raw, source) for name, _ in ranges]
        self.names = [name for name, _ in ranges]
        self.ranges = [_check_range(name, ends) for name, ends in ranges]
        self._time = raw.dims[0]
        self._fields = xr.Dataset({f"channel_{k}": field.variable for k, field in enumerate(found)})

    def part(self, steps: slice) -> "DynamicChannels":
        """Return a copy with some consecutive frames, loaded into memory."""
        part = copy.copy(self)
        part._fields = self._fields.isel({self._time: steps}).compute()
        return part

    def frame(self, number: int) -> np.ndarray:
        """Return one frame, (D, H, W) float32 in [0, 1], 0 where a value is missing."""
        fields = self._fields.isel({self._time: number}).compute()  # in one call, since the variables may share a file
        variables = zip(fields.data_vars.values(), self.ranges, strict=True)
        return np.nan_to_num(np.stack([_scale(field, ends) for field, ends in variables]))


def _find_aligned_variable(dataset: xr.Dataset, name: str, raw: xr.DataArray, path: str | os.PathLike) -> xr.DataArray:
    """Return a variable that has the times and the grid of the reflectivity.

    Args:
        dataset: Dataset.
        name: Name of the variable.
        raw: Reflectivity.
        path: Description of the dataset for messages.

    Raises:
        ValueError: The variable is missing or has other times or another grid.
    """
    if name not in dataset.data_vars:
        held = ", ".join(map(str, dataset.data_vars))
        raise ValueError(f"there is no variable {name!r} in {path}, which has {held}")
    time, field = raw.dims[0], dataset[name]
    if raw.sizes[time] == 1 and time not in field.dims:  # see expand_scalar_time
        field = field.drop_vars([time], errors="ignore").expand_dims({time: raw[time].values})
    field, _ = sort_times(find_axes(field)[0], least=1)
    if field.dims != raw.dims or field.shape != raw.shape or not np.array_equal(field[time].values, raw[time].values):
        raise ValueError(f"{name} of {path} has not the times and the grid of {raw.name}: {field.shape}, {raw.shape}")
    return field


def _check_range(name: str, ends: Sequence[float]) -> tuple[float, float]:
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise ValueError(f"the range of {name} must be [low, high], got {list(ends)}")
    return float(ends[0]), float(ends[1])


def _scale(field: xr.DataArray, ends: tuple[float, float]) -> np.ndarray:
    """Scale a field to float32 in [0, 1] by a range, NaN where a value is missing."""
    low, high = ends
    return np.clip((mask_fill_values(field.values, field.attrs) - low) / (high - low), 0, 1)


def _encode(field: xr.DataArray, ends: tuple[float, float]) -> np.ndarray:
    codes = np.rint(_STEPS * _scale(field, ends))
    return np.where(np.isnan(codes), _MISSING, np.nan_to_num(codes)).astype(np.uint8)
