# SPDX-License-Identifier: Apache-2.0
"""Conventions of WRF output that differ from CF: times, positions and the projection."""

import importlib.util
import re
from typing import Any

import numpy as np
import xarray as xr

from fastds.data.formats.cf_builder import make_grid_mapping, parse_crs
from fastds.data.grid.axes import is_latitude, is_longitude
from fastds.data.packages import import_pyproj

_ROWS, _COLUMNS = "south_north", "west_east"
_EARTH_RADIUS = 6370000.0  # metres, of the sphere that WRF uses
_POSITION_TOLERANCE = 0.05  # cells; the positions are stored in float32
_COMPARED_TIMES = 16  # of the positions of a file; a nest that moves does so step by step


def apply_wrf_conventions(dataset: xr.Dataset) -> xr.Dataset:
    """Return a dataset with decoded times, 2-D positions and projected coordinates.

    Datasets without the variable `Times` are returned unchanged.

    Args:
        dataset: Dataset of a file, with decoded values and not yet joined with others.
    """
    times = dataset.variables.get("Times")
    if times is None or times.dtype.kind not in "SU" or not times.dims:
        return dataset
    return _add_projection(_decode_times(_drop_time_of_positions(dataset, str(times.dims[0]))))


def _decode_times(dataset: xr.Dataset) -> xr.Dataset:
    """Decode the character variable `Times` and make it the coordinate of its dimension."""
    times = dataset.variables["Times"]
    if times.dims[0] in dataset.coords:
        return dataset
    letters = np.atleast_2d(times.values) if times.ndim == 2 else times.values[:, None]
    texts = [b"".join(np.asarray(row, "S").tolist()).decode("ascii", "replace") for row in letters]
    dates = [text.replace("_", "T") for text in texts]
    if not all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", date) for date in dates):
        return dataset
    attrs = {"standard_name": "time", "axis": "T"}
    return dataset.drop_vars("Times").assign_coords(
        {times.dims[0]: (times.dims[0], np.array(dates, "datetime64[ns]"), attrs)}
    )


def _drop_time_of_positions(dataset: xr.Dataset, time: str) -> xr.Dataset:
    """Replace latitudes and longitudes (time, row, column) that are the same at all times by those of the first time.

    Args:
        dataset: Dataset of a file.
        time: Name of the time dimension.
    """
    positions = {}
    for name, variable in dataset.variables.items():
        if variable.ndim != 3 or variable.dims[0] != time or not variable.shape[0]:
            continue
        if is_latitude(variable.attrs) or is_longitude(variable.attrs):
            compared = np.unique(np.linspace(0, variable.shape[0] - 1, _COMPARED_TIMES).astype(int))
            first = variable[0].values
            if all(np.array_equal(variable[k].values, first, equal_nan=True) for k in compared[1:]):
                positions[name] = xr.Variable(variable.dims[1:], first, variable.attrs)
    return dataset.drop_vars(positions).assign_coords(positions)


def _add_projection(dataset: xr.Dataset) -> xr.Dataset:
    """Add the projected coordinates of the mass points and their grid mapping, if they agree with XLAT and XLONG.

    Latitude-longitude and rotated grids, and grids whose positions are not those of the projection, are returned
    unchanged; their positions are 2-D coordinates.
    """
    text = _get_projection(dataset.attrs)
    lat, lon = (dataset.variables.get(name) for name in ("XLAT", "XLONG"))
    plane = (_ROWS, _COLUMNS)
    if text is None or lat is None or lon is None or lat.dims != plane or lon.dims != plane:
        return dataset
    if {*plane, "crs"} & set(dataset.variables) or importlib.util.find_spec("pyproj") is None:
        return dataset
    positions = import_pyproj().Proj(parse_crs(text))(lon.values.astype(float), lat.values.astype(float))
    axes = {}
    for dim, letter, values in zip(plane, "yx", (positions[1].T, positions[0]), strict=True):
        step = float(dataset.attrs[f"D{letter.upper()}"])
        steps = step * np.arange(values.shape[1])
        axis = (values - steps).mean() + steps
        if not np.abs(values - axis).max() <= _POSITION_TOLERANCE * abs(step):
            return dataset
        attrs = {"standard_name": f"projection_{letter}_coordinate", "units": "m", "axis": letter.upper()}
        axes[dim] = (dim, axis, attrs)
    fields = [name for name, field in dataset.data_vars.items() if field.dims[-2:] == plane]
    y, x = (axes[name][1] for name in plane)
    dataset = dataset.assign_coords(axes).assign(crs=((), np.int32(0), make_grid_mapping(text, (y, x))))
    for name in fields:
        dataset[name].attrs["grid_mapping"] = "crs"
    return dataset


def _get_projection(attrs: dict[Any, Any]) -> str | None:
    """Return the projection of WRF's global attributes as PROJ string; None for other grids or if one is missing."""
    needed = ("MAP_PROJ", "TRUELAT1", "TRUELAT2", "STAND_LON", "MOAD_CEN_LAT", "DX", "DY")
    if not all(isinstance(attrs.get(name), (int, float, np.number)) for name in needed):
        return None
    number, first, second, longitude, centre = (float(attrs[name]) for name in needed[:5])
    shape = {
        1: f"+proj=lcc +lat_1={first} +lat_2={second} +lat_0={centre}",
        2: f"+proj=stere +lat_ts={first} +lat_0={np.copysign(90.0, first)}",
        3: f"+proj=merc +lat_ts={first}",
    }.get(int(number))
    return None if shape is None else f"{shape} +lon_0={longitude} +R={_EARTH_RADIUS}"
