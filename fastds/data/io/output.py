# SPDX-License-Identifier: Apache-2.0
"""From finer fields of reflectivity back to a Dataset like the one they came from, and coarse Datasets from fine
ones."""

import datetime
from typing import Any

import numpy as np
import xarray as xr

from fastds._argument_types import checks_types
from fastds.data.grid.grids import coarsen_grid, refine_grid, scalar_coordinates
from fastds.data.grid.kept import field_attributes, global_attributes, kept_attributes, with_bounds
from fastds.data.grid.plausible import stored_kind
from fastds.data.grid.times import refine_time, split_intervals, time_encoding
from fastds.data.grid.variables import rain_units
from fastds.data.radar import preparation
from fastds.data.radar.reflectivity import ReflectivityInput, interval_ends, split_amount, to_reflectivity


def output_frames(source: ReflectivityInput, time_factor: int = 2) -> int:
    """Number of fine frames that from_reflectivity expects of `source`, a ReflectivityInput: sum over its segments of
    time_factor (T - 1) + 1."""
    return sum(time_factor * (segment.stop - segment.start - 1) + 1 for segment in source.segments)


def output_shape(source: ReflectivityInput, factor: int = 2, time_factor: int = 2) -> tuple[int, int, int]:
    """Shape of the variable that from_reflectivity makes of `source`, `factor` times as fine in space; amounts have
    time_factor T frames, other kinds output_frames."""
    count = time_factor * source.shape[0] if source.kind == "amount" else output_frames(source, time_factor)
    return count, factor * source.shape[1], factor * source.shape[2]


def from_reflectivity(
    source: ReflectivityInput, z: np.ndarray, factor: int = 2, time_factor: int = 2, *, out: np.ndarray | None = None
) -> xr.Dataset:
    """A Dataset on the finer grid and times, in the variable and units that source came from.

    Args: source, z, factor, time_factor, out: as in fine_values, which says how rates and amounts come back.
    Returns: Dataset with the variable `source.source_name`, see fine_dataset.
    Raises: what fine_values raises.
    """
    values = fine_values(source, z, factor, time_factor, out=out)
    return fine_dataset(source, values, factor, time_factor)


def fine_values(
    source: ReflectivityInput, z: np.ndarray, factor: int = 2, time_factor: int = 2, *, out: np.ndarray | None = None
) -> np.ndarray:
    """Finer reflectivity z in the units of the source's variable, an array of `output_shape`.

    Reflectivity stays as it is; rates go back through R = (Z / a)^(1/b); amounts are distributed by `split_amount`, so
    that every cell and interval of the input keeps its amount.

    Args:
        source: ReflectivityInput.
        z: (n, factor H, factor W) dBZ float32, NaN = missing; the segments of source one after another, each with
            time_factor (T - 1) + 1 frames. It may be a memory map: rates and amounts are made frame by frame.
        factor, time_factor: whole numbers >= 1; time_factor even for amounts of several times.
        out: float32 array of `output_shape` (a memory map, say) for rates and amounts; None: a new one.
    Raises: ValueError if the shape of z or out does not fit, and for an odd time_factor with amounts of several times.
    """
    expected = (output_frames(source, time_factor), *(factor * size for size in source.shape[1:]))
    if z.shape != expected:
        raise ValueError(f"z must have the shape {expected} for an input {source.shape}, got {z.shape}")
    if source.kind == "amount" and time_factor % 2 and source.shape[0] > 1:
        raise ValueError(f"time_factor must be even for amounts, got {time_factor}")
    if source.kind == "reflectivity":
        return z
    shape = output_shape(source, factor, time_factor)
    out = np.empty(shape, np.float32) if out is None else out
    if out.shape != shape:
        raise ValueError(f"out must have the shape {shape}, got {out.shape}")
    if source.kind == "amount":
        _fill_amounts(source, z, factor, time_factor, out)
        return out
    millimetres, seconds = rain_units(source.units)
    for number, frame in enumerate(z):
        out[number] = source.to_rate(frame) * np.float32(seconds / (millimetres * 3600.0))
    return out


def fine_dataset(
    source: ReflectivityInput, values: Any, factor: int = 2, time_factor: int = 2, *, first: xr.Variable | None = None
) -> xr.Dataset:
    """A Dataset of values (an array of `output_shape`, float32, of dask, too) in the variable of source; first: the
    coordinate of a dimension of values before all others, None: there is none.

    Coordinates, time and space bounds, grid mapping, global attributes, calendar and _FillValue are carried over. Other
    variables over time, y or x are left out, since they do not fit the finer grid.
    """
    times, bounds = _times(source, time_factor)
    result = _add_time(refine_grid(source.dataset, source.raw, factor), source, times, bounds, time_factor)
    raw = source.raw
    dims = raw.dims if first is None else (*first.dims, *raw.dims)
    variable = xr.Variable(dims, values, _attributes(source, time_factor), {"_FillValue": _fill_value(raw)})
    result[source.source_name] = variable
    result = result if first is None else result.assign_coords({first.dims[0]: first})
    scalars = scalar_coordinates(raw)
    result = result.assign_coords({name: value for name, value in scalars.items() if name not in result.variables})
    return result.assign_attrs({"Conventions": "CF-1.8", **global_attributes(source.dataset)})


def add_history(dataset: xr.Dataset, text: str) -> xr.Dataset:
    """The dataset with a line "date text" put before its history attribute."""
    line = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ} {text}"
    return dataset.assign_attrs(history=f"{line}\n{dataset.attrs['history']}" if dataset.attrs.get("history") else line)


@checks_types
def coarsen_dataset(
    dataset: xr.Dataset,
    factor: int = 2,
    every: int = 2,
    *,
    var: str | None = None,
    mode: str = "dbz",
    floor: float = preparation.FLOOR_DBZ,
) -> xr.Dataset:
    """A coarse input made of a fine file of reflectivity: every `every`-th time, means of factor x factor cells.

    Where a block holds echo above the floor: the mean of floored reflectivity, as in training; where it holds weaker
    echo only: the mean of that in dBZ; else no echo. By plain_dbz: the mean of all, no echo included. A block with a
    missing pixel is missing. Other grids are cut at their end to a multiple of factor.

    Args: dataset, var as in to_reflectivity; mode as in `coarsen`; floor: dBZ.
    Returns: Dataset with the same variable name, coordinates, grid mapping and attributes; times as they are at every
        `every`-th frame.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
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
    out = out.assign(with_bounds(dataset, raw[source.dims[0]]))
    attrs = field_attributes(dataset, raw) | {"no_echo_value": source.no_echo}
    out[source.source_name] = xr.Variable(raw.dims, values, attrs)
    out = out.assign_coords(scalar_coordinates(raw))
    return out.assign_attrs(global_attributes(dataset))


def coarsen_with_weak_echo(z: np.ndarray, factor: int, *, mode: str, floor: float, no_echo: float) -> np.ndarray:
    """Block means of z (..., H, W) in dBZ that tell strong echo, weak echo and no echo apart (see coarsen_dataset),
    float32."""
    strong = preparation.coarsen(z, factor, mode, floor)
    echo = z > no_echo
    share = preparation.coarsen(echo.astype(np.float32), factor)
    if mode == "plain_dbz":
        return np.where(np.isnan(strong) | (share > 0), strong, no_echo).astype(np.float32)
    weak = preparation.coarsen(np.where(echo, z, 0.0), factor) / np.maximum(share, 1.0 / factor**2)
    weak = np.where(share > 0, np.minimum(weak, floor), no_echo)
    return np.where(np.isnan(strong) | (strong > floor), strong, weak).astype(np.float32)


def _fill_amounts(source: ReflectivityInput, z: np.ndarray, factor: int, time_factor: int, out: np.ndarray) -> None:
    """The amounts of the source, distributed by z over the cells and intervals of out."""
    (millimetres, seconds), start = rain_units(source.units), 0
    for segment in source.segments:
        frames = time_factor * (segment.stop - segment.start - 1) + 1
        for number in range(segment.start, segment.stop):
            ends = start + interval_ends(number - segment.start, frames, time_factor)
            hours = float(source.interval_seconds(number)) / 3600.0
            short = split_amount(source.amounts(number), [source.to_rate(z[end]) for end in ends], hours, factor)
            # A mean rate is the amount over the length of its interval, in its own unit of time.
            per = millimetres if seconds is None else millimetres * hours * 3600.0 / time_factor / seconds
            out[time_factor * number : time_factor * (number + 1)] = short / np.float32(per)
        start += frames


def _times(source: ReflectivityInput, time_factor: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Fine times, and for amounts the bounds of the short intervals."""
    if source.kind != "amount":
        return np.concatenate([refine_time(source.times[segment], time_factor) for segment in source.segments]), None
    bounds = split_intervals(source.bounds, time_factor)
    labels = source.raw[source.dims[0]].values
    position = (labels[0] - source.bounds[0, 0]) / (source.bounds[0, 1] - source.bounds[0, 0])
    return bounds[:, 0] + (bounds[:, 1] - bounds[:, 0]) * position, bounds


def _add_time(
    out: xr.Dataset, source: ReflectivityInput, times: np.ndarray, bounds: np.ndarray | None, time_factor: int
) -> xr.Dataset:
    name = source.dims[0]
    old = source.raw[name]
    attrs = kept_attributes(old)
    bounds_name = attrs.pop("bounds", None) or old.encoding.get("bounds")
    if bounds is None and bounds_name in source.dataset.variables:
        bounds = _instant_bounds(source, bounds_name, times, time_factor)
    elif bounds is not None:
        bounds_name = bounds_name or f"{name}_bnds"
    encoding = time_encoding(times if bounds is None else np.concatenate([times, bounds.reshape(-1)]), old.encoding)
    if bounds is not None:
        attrs["bounds"] = bounds_name
        width = source.dataset[bounds_name].dims[-1] if bounds_name in source.dataset.variables else "bnds"
        out[bounds_name] = xr.Variable((name, width), bounds, encoding=encoding)
    return out.assign_coords({name: xr.Variable((name,), times, attrs, encoding)})


def _instant_bounds(
    source: ReflectivityInput, bounds_name: str, times: np.ndarray, time_factor: int
) -> np.ndarray | None:
    """Bounds of finer times: as wide as the first bounds in the file over time_factor, at the same place around the
    time."""
    pairs, label = source.dataset[bounds_name].values, source.dataset[source.dims[0]].values[0]
    if pairs.dtype.kind not in "MO" or pairs.ndim != 2:
        return None
    before, width = label - pairs[0, 0], (pairs[0, 1] - pairs[0, 0]) / time_factor
    start = times - before / time_factor
    return np.stack([start, start + width], axis=1)


def _attributes(source: ReflectivityInput, time_factor: int) -> dict[str, Any]:
    attrs = field_attributes(source.dataset, source.raw)
    if source.kind == "reflectivity":
        attrs["no_echo_value"] = source.no_echo
    if source.kind == "amount" and "interval:" in str(attrs.get("cell_methods", "")):
        head, _, tail = attrs["cell_methods"].partition("interval:")
        minutes = float(np.ravel(source.interval_seconds(0))[0]) / 60.0 / time_factor
        attrs["cell_methods"] = f"{head}interval: {minutes:g} min{tail[tail.index(')') :] if ')' in tail else ''}"
    return attrs


def _fill_value(raw: xr.DataArray) -> np.float32:
    fill = raw.encoding.get("_FillValue")
    packed = raw.encoding.get("scale_factor") is not None or stored_kind(raw) != "f"
    return np.float32("nan") if fill is None or packed else np.float32(fill)
