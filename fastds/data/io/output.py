# SPDX-License-Identifier: Apache-2.0
"""Conversion of refined reflectivity to a Dataset like the input's, and coarsening of datasets."""

import datetime
from typing import Any

import numpy as np
import xarray as xr

from fastds._argument_types import validate_arguments
from fastds._options import OptionError
from fastds.data.grid.grids import coarsen_grid, get_scalar_coordinates, refine_grid
from fastds.data.grid.metadata import (
    get_coordinate_with_bounds,
    get_field_attributes,
    get_global_attributes,
    get_preserved_attributes,
)
from fastds.data.grid.times import refine_time, split_intervals, time_encoding
from fastds.data.grid.value_checks import get_stored_kind
from fastds.data.grid.variables import parse_rain_units
from fastds.data.radar import preparation
from fastds.data.radar.reflectivity import ReflectivityInput, find_interval_ends, split_amount, to_reflectivity


def output_frames(source: ReflectivityInput, time_factor: int = 2) -> int:
    """Return the number of fine frames that `from_reflectivity` expects.

    This is the sum of time_factor (T - 1) + 1 over the segments of `source`.

    Args:
        source: ReflectivityInput.
        time_factor: Refinement in time.
    """
    return sum(time_factor * (segment.stop - segment.start - 1) + 1 for segment in source.segments)


def output_shape(source: ReflectivityInput, factor: int = 2, time_factor: int = 2) -> tuple[int, int, int]:
    """Return the shape (T, H, W) of the variable that `from_reflectivity` makes.

    Args:
        source: ReflectivityInput.
        factor: Refinement in space.
        time_factor: Refinement in time. Amounts have time_factor T frames, other kinds `output_frames`.
    """
    count = time_factor * source.shape[0] if source.kind == "amount" else output_frames(source, time_factor)
    return count, factor * source.shape[1], factor * source.shape[2]


def from_reflectivity(
    source: ReflectivityInput, z: np.ndarray, factor: int = 2, time_factor: int = 2, *, out: np.ndarray | None = None
) -> xr.Dataset:
    """Make a Dataset of finer reflectivity, on the finer grid and times, in the variable and units of the input.

    Args:
        source: ReflectivityInput.
        z: (n, factor H, factor W) float32 dBZ, NaN where missing: the segments of `source` one after another, each with
            time_factor (T - 1) + 1 frames.
        factor: Integer >= 1.
        time_factor: Integer >= 1. For amounts of several times it must be even.
        out: float32 array of `output_shape`, such as a memory map, for the values of rates and amounts; None: a new
            array.

    Returns:
        xarray.Dataset with the variable `source.source_name`.

    Raises:
        ValueError: `z` or `out` has another shape, or `time_factor` is odd for amounts of several times.
    """
    values = compute_fine_values(source, z, factor, time_factor, out=out)
    return make_fine_dataset(source, values, factor, time_factor)


def compute_fine_values(
    source: ReflectivityInput, z: np.ndarray, factor: int = 2, time_factor: int = 2, *, out: np.ndarray | None = None
) -> np.ndarray:
    """Convert finer reflectivity to the units of the input's variable.

    Reflectivity is returned unchanged. Rates are computed by R = (Z / a)^(1/b). Amounts are distributed by
    `split_amount`, which preserves the amount of every cell and interval of the input.

    Args:
        source: ReflectivityInput.
        z: (n, factor H, factor W) float32 dBZ, NaN where missing: the segments of `source` one after another, each with
            time_factor (T - 1) + 1 frames. May be a memory map; rates and amounts are computed frame by frame.
        factor: Integer >= 1.
        time_factor: Integer >= 1. For amounts of several times it must be even.
        out: float32 array of `output_shape`, such as a memory map, for rates and amounts; None: a new array.

    Returns:
        float32 array of `output_shape`.

    Raises:
        ValueError: `z` or `out` has another shape, or `time_factor` is odd for amounts of several times.
    """
    expected = (output_frames(source, time_factor), *(factor * size for size in source.shape[1:]))
    if z.shape != expected:
        raise ValueError(f"z must have the shape {expected} for an input {source.shape}, got {z.shape}")
    if source.kind == "amount" and time_factor % 2 and source.shape[0] > 1:
        raise OptionError("time_factor", f"must be even for amounts, got {time_factor}")
    if source.kind == "reflectivity":
        return z
    shape = output_shape(source, factor, time_factor)
    out = np.empty(shape, np.float32) if out is None else out
    if out.shape != shape:
        raise ValueError(f"out must have the shape {shape}, got {out.shape}")
    if source.kind == "amount":
        _fill_amounts(source, z, factor, time_factor, out)
        return out
    rain = parse_rain_units(source.units)
    assert rain is not None and rain[1] is not None  # a rate
    millimetres, seconds = rain[0], rain[1]
    for number, frame in enumerate(z):
        out[number] = source.to_rate(frame) * np.float32(seconds / (millimetres * 3600.0))
    return out


def make_fine_dataset(
    source: ReflectivityInput, values: Any, factor: int = 2, time_factor: int = 2, *, first: xr.Variable | None = None
) -> xr.Dataset:
    """Make a Dataset of values on the finer grid and times, in the variable of the input.

    Coordinates, bounds, grid mapping, global attributes, calendar and _FillValue are carried over. Other variables over
    time, y or x are left out, since they do not fit the finer grid.

    Args:
        source: ReflectivityInput.
        values: float32 array of `output_shape`, also of dask, with a leading dimension if `first` is given.
        factor: Refinement in space.
        time_factor: Refinement in time.
        first: Coordinate of the leading dimension, such as ensemble members; None: there is none.
    """
    times, bounds = _compute_times(source, time_factor)
    result = _add_time(refine_grid(source.dataset, source.raw, factor), source, times, bounds, time_factor)
    raw = source.raw
    dims = raw.dims if first is None else (*first.dims, *raw.dims)
    variable = xr.Variable(dims, values, _make_attributes(source, time_factor), {"_FillValue": _choose_fill_value(raw)})
    result[source.source_name] = variable
    result = result if first is None else result.assign_coords({first.dims[0]: first})
    scalars = get_scalar_coordinates(raw)
    result = result.assign_coords({name: value for name, value in scalars.items() if name not in result.variables})
    return result.assign_attrs({"Conventions": "CF-1.8", **get_global_attributes(source.dataset)})


def add_history(dataset: xr.Dataset, text: str) -> xr.Dataset:
    """Prepend a line "DATE text" to the attribute `history` of a dataset.

    Args:
        dataset: xarray.Dataset.
        text: Text of the line.
    """
    line = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ} {text}"
    return dataset.assign_attrs(history=f"{line}\n{dataset.attrs['history']}" if dataset.attrs.get("history") else line)


@validate_arguments
def coarsen_dataset(
    dataset: xr.Dataset,
    factor: int = 2,
    every: int = 2,
    *,
    var: str | None = None,
    mode: str = "dbz",
    floor: float = preparation.FLOOR_DBZ,
) -> xr.Dataset:
    """Coarsen a dataset of reflectivity in space and time, to make an input from a fine file.

    Every `every`-th time is taken. A block of factor x factor cells becomes, with mode "dbz" or "linear_z": the mean of
    reflectivity clipped to the floor, as in training, if that is above the floor; else the mean in dBZ of the pixels
    with echo, at most the floor; else no echo. With "plain_dbz" it becomes the mean of all pixels, no-echo values
    included, or no echo if no pixel has echo. A block with a missing pixel is missing. Rows and columns at the end that
    fill no block are left out.

    Args:
        dataset: See `to_reflectivity`.
        factor: Side of a block in cells.
        every: Step in time, frames.
        var: See `to_reflectivity`.
        mode: See `coarsen`.
        floor: Floor in dBZ.

    Returns:
        xarray.Dataset with the same variable name, grid mapping and attributes, on the coarse grid.

    Raises:
        ValueError: `every` is less than 1, `factor` exceeds the grid, or the variable is not reflectivity.
    """
    if every < 1:
        raise OptionError("every", f"must be at least 1, got {every}")
    factor, every = int(factor), int(every)
    source = to_reflectivity(dataset, var)
    if factor > min(source.shape[1:]):
        raise ValueError(f"factor must be at most {min(source.shape[1:])}, the fewest pixels of a side, got {factor}")
    if source.kind != "reflectivity":
        raise ValueError(f"coarsen_dataset needs reflectivity, variable {source.source_name} is a rain {source.kind}")
    raw = source.raw.isel({source.dims[0]: slice(None, None, every)})
    z = preparation.cut_to_multiple(source.frames(slice(None, None, every)), factor)
    values = coarsen_with_weak_echo(z, factor, mode=mode, floor=floor, no_echo=source.no_echo)
    out = coarsen_grid(dataset, raw, factor)
    out = out.assign(get_coordinate_with_bounds(dataset, raw[source.dims[0]]))
    attrs = get_field_attributes(dataset, raw) | {"no_echo_value": source.no_echo}
    out[source.source_name] = xr.Variable(raw.dims, values, attrs)
    out = out.assign_coords(get_scalar_coordinates(raw))
    return out.assign_attrs(get_global_attributes(dataset))


def coarsen_with_weak_echo(z: np.ndarray, factor: int, *, mode: str, floor: float, no_echo: float) -> np.ndarray:
    """Compute block means of reflectivity that distinguish strong echo, weak echo and no echo, see `coarsen_dataset`.

    Args:
        z: (..., H, W) dBZ.
        factor: Side of a block in pixels.
        mode: See `coarsen`.
        floor: Floor in dBZ.
        no_echo: Value of no echo in dBZ.

    Returns:
        (..., H / factor, W / factor) float32.
    """
    strong = preparation.coarsen(z, factor, mode, floor)
    echo = z > no_echo
    share = preparation.coarsen(echo.astype(np.float32), factor)
    if mode == "plain_dbz":
        return np.where(np.isnan(strong) | (share > 0), strong, no_echo).astype(np.float32)
    weak = preparation.coarsen(np.where(echo, z, 0.0), factor) / np.maximum(share, 1.0 / factor**2)
    weak = np.where(share > 0, np.minimum(weak, floor), no_echo)
    return np.where(np.isnan(strong) | (strong > floor), strong, weak).astype(np.float32)


def _fill_amounts(source: ReflectivityInput, z: np.ndarray, factor: int, time_factor: int, out: np.ndarray) -> None:
    """Distribute the amounts of `source` by the reflectivity `z` over the cells and intervals of `out`, in place."""
    rain, start = parse_rain_units(source.units), 0
    assert rain is not None
    millimetres, seconds = rain
    for segment in source.segments:
        frames = time_factor * (segment.stop - segment.start - 1) + 1
        for number in range(segment.start, segment.stop):
            ends = start + find_interval_ends(number - segment.start, frames, time_factor)
            hours = float(source.interval_seconds(number)) / 3600.0
            short = split_amount(source.amounts(number), [source.to_rate(z[end]) for end in ends], hours, factor)
            # A mean rate is the amount divided by the length of its interval, in the time unit of the rate.
            per = millimetres if seconds is None else millimetres * hours * 3600.0 / time_factor / seconds
            out[time_factor * number : time_factor * (number + 1)] = short / np.float32(per)
        start += frames


def _compute_times(source: ReflectivityInput, time_factor: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the fine times and, for amounts, the bounds of the short intervals."""
    if source.kind != "amount":
        return np.concatenate([refine_time(source.times[segment], time_factor) for segment in source.segments]), None
    assert source.bounds is not None  # an amount has bounds
    bounds = split_intervals(source.bounds, time_factor)
    labels = source.raw[source.dims[0]].values
    position = (labels[0] - source.bounds[0, 0]) / (source.bounds[0, 1] - source.bounds[0, 0])
    return bounds[:, 0] + (bounds[:, 1] - bounds[:, 0]) * position, bounds


def _add_time(
    out: xr.Dataset, source: ReflectivityInput, times: np.ndarray, bounds: np.ndarray | None, time_factor: int
) -> xr.Dataset:
    """Add the coordinate of time and its bounds to a dataset.

    Args:
        out: Dataset of the output.
        source: Input.
        times: Fine times.
        bounds: Bounds of the short intervals of amounts; None for other kinds.
        time_factor: Refinement in time.
    """
    name = source.dims[0]
    old = source.raw[name]
    attrs = get_preserved_attributes(old)
    bounds_name: Any = attrs.pop("bounds", None) or old.encoding.get("bounds")
    if bounds is None and bounds_name in source.dataset.variables:
        bounds = _compute_instant_bounds(source, bounds_name, times, time_factor)
    elif bounds is not None:
        bounds_name = bounds_name or f"{name}_bnds"
    encoding = time_encoding(times if bounds is None else np.concatenate([times, bounds.reshape(-1)]), old.encoding)
    if bounds is not None:
        attrs["bounds"] = bounds_name
        width = source.dataset[bounds_name].dims[-1] if bounds_name in source.dataset.variables else "bnds"
        out[bounds_name] = xr.Variable((name, width), bounds, encoding=encoding)
    return out.assign_coords({name: xr.Variable((name,), times, attrs, encoding)})


def _compute_instant_bounds(
    source: ReflectivityInput, bounds_name: str, times: np.ndarray, time_factor: int
) -> np.ndarray | None:
    """Return bounds of the finer times, or None if the bounds in the file are not pairs of times.

    The width of the new bounds is the width of the first bounds in the file divided by `time_factor`. Each time has the
    same relative position in its bounds as the first time in the file.
    """
    pairs, label = source.dataset[bounds_name].values, source.dataset[source.dims[0]].values[0]
    if pairs.dtype.kind not in "MO" or pairs.ndim != 2:
        return None
    before, width = label - pairs[0, 0], (pairs[0, 1] - pairs[0, 0]) / time_factor
    start = times - before / time_factor
    return np.stack([start, start + width], axis=1)


def _make_attributes(source: ReflectivityInput, time_factor: int) -> dict[str, Any]:
    attrs: dict[Any, Any] = get_field_attributes(source.dataset, source.raw)
    if source.kind == "reflectivity":
        attrs["no_echo_value"] = source.no_echo
    if source.kind == "amount" and "interval:" in str(attrs.get("cell_methods", "")):
        head, _, tail = attrs["cell_methods"].partition("interval:")
        minutes = float(np.ravel(source.interval_seconds(0))[0]) / 60.0 / time_factor
        attrs["cell_methods"] = f"{head}interval: {minutes:g} min{tail[tail.index(')') :] if ')' in tail else ''}"
    return attrs


def _choose_fill_value(raw: xr.DataArray) -> np.float32:
    fill = raw.encoding.get("_FillValue")
    packed = raw.encoding.get("scale_factor") is not None or get_stored_kind(raw) != "f"
    return np.float32("nan") if fill is None or packed else np.float32(fill)
