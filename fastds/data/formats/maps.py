# SPDX-License-Identifier: Apache-2.0
"""Radar maps as CF datasets: what the readers of the formats build."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from fastds.data.grid.projections import cf_attributes, in_metres
from fastds.data.packages import import_pyproj, require

Fields = Mapping[str, tuple[np.ndarray, dict[str, Any]]]
Coordinates = tuple[np.ndarray, np.ndarray]


def reflectivity(values: np.ndarray, no_echo: float | None) -> Fields:
    """The field `reflectivity`, dBZ; no_echo: the value where nothing was detected, None where it is not told."""
    attrs = {"standard_name": "equivalent_reflectivity_factor", "long_name": "radar reflectivity", "units": "dBZ"}
    return {"reflectivity": (values, attrs if no_echo is None else attrs | {"no_echo_value": no_echo})}


def rainfall_rate(values: np.ndarray) -> Fields:
    """The field `rainfall_rate`, mm h-1."""
    return {"rainfall_rate": (values, {"standard_name": "rainfall_rate", "long_name": "rain rate", "units": "mm h-1"})}


def rainfall_amount(values: np.ndarray, minutes: float) -> Fields:
    """The field `rainfall_amount`, kg m-2 (mm), each the sum over the `minutes` before its time."""
    said = "rain amount of the interval before the time"  # how long that is changes in a result, with cell_methods
    attrs = {"standard_name": "rainfall_amount", "long_name": said, "units": "kg m-2"}
    return {"rainfall_amount": (values, attrs | {"cell_methods": f"time: sum (interval: {minutes:g} min)"})}


def equals_code(codes: np.ndarray, code: float | None) -> np.ndarray:
    """Where codes equal a code, NaN included; None equals nothing. Floating codes are compared in the precision of
    float32, since files may store the array or the attribute in it."""
    if codes.dtype.kind != "f":
        return np.zeros(codes.shape, bool) if code is None else codes == code
    return np.zeros(codes.shape, bool) if code is None else np.isclose(codes, code, rtol=1e-6, atol=0, equal_nan=True)


def centres(corner: float, step: float, size: int) -> np.ndarray:
    """Centres of `size` cells of width `step` (negative: descending) whose first edge is at `corner`."""
    return corner + step * (np.arange(size) + 0.5)


def read_crs(text: str) -> Any:
    """The pyproj.CRS of a PROJ string or WKT. Raises: ImportError without pyproj; ValueError for what PROJ does not
    read."""
    pyproj = _pyproj()
    try:
        return pyproj.CRS.from_user_input(text)
    except pyproj.exceptions.CRSError as error:
        raise ValueError(f"the projection {text!r} cannot be read ({str(error).splitlines()[0]})") from error


def projection(text: str, coordinates: Coordinates) -> dict[str, Any]:
    """CF attributes of a grid mapping in metres from a PROJ string or WKT in any unit of length.

    Args: text: the projection. coordinates: y and x of the grid, metres, on which some projections can be described
        only nearly, see cf_attributes. Raises: as read_crs."""
    y, x = coordinates
    return cf_attributes(in_metres(read_crs(text))[0], x, y)


def project(text: str, longitude: float, latitude: float) -> tuple[float, float]:
    """x and y in metres of a place in degrees; of a geographic projection the degrees."""
    crs = read_crs(text)
    if crs.is_geographic:
        return longitude, latitude
    x, y = _pyproj().Proj(crs)(longitude, latitude)
    factor = float(crs.axis_info[0].unit_conversion_factor)
    return x * factor, y * factor


def check_corners(
    corners: Mapping[str, tuple[float, float]], text: str, edges: Mapping[str, tuple[float, float]], cell: Coordinates
) -> None:
    """Compare the corners that a file names with those of its grid.

    Args:
        corners: longitude and latitude in degrees by the corner's name. text: the projection.
        edges: x and y of the same corners of the grid. cell: widths of a cell along y and x.

    Raises: ValueError where one lies more than half a cell from the other, with both."""
    for name, (longitude, latitude) in corners.items():
        x, y = project(text, longitude, latitude)
        if not np.isfinite([x, y]).all():
            continue
        across, down = abs(x - edges[name][0]) / abs(cell[1]), abs(y - edges[name][1]) / abs(cell[0])
        if max(across, down) > 0.51:
            said = f"the corner {name} is {longitude:.6g} E, {latitude:.6g} N, at x {x:.10g}, y {y:.10g}"
            raise ValueError(
                f"{said}, and by projection, size and cells of the file at x {edges[name][0]:.10g}, y "
                f"{edges[name][1]:.10g}: {max(across, down):.3g} cells apart"
            )


def _pyproj() -> Any:
    require("pyproj", "projections of radar grids")
    return import_pyproj()


def projected_map(
    fields: Fields, times: Any, coordinates: Coordinates, mapping: dict[str, Any], **attributes: str
) -> xr.Dataset:
    """Fields (T, H, W) on projected coordinates (y, x) in metres with a grid mapping; attributes are of the dataset."""
    axes = {}
    for name, values in zip(("y", "x"), coordinates, strict=True):
        attrs = {"standard_name": f"projection_{name}_coordinate", "units": "m", "axis": name.upper()}
        axes[name] = (name, np.asarray(values, np.float64), attrs)
    found = _dataset(fields, times, ("y", "x"), axes, attributes)
    found["crs"] = ((), np.int32(0), mapping)
    for name in fields:
        found[name].attrs["grid_mapping"] = "crs"
    return found


def geographic_map(fields: Fields, times: Any, coordinates: Coordinates, **attributes: str) -> xr.Dataset:
    """Fields (T, H, W) on 1-D latitudes and longitudes in degrees."""
    axes, units = {}, {"latitude": "degrees_north", "longitude": "degrees_east"}
    for name, values in zip(units, coordinates, strict=True):
        axes[name] = (name, np.asarray(values, np.float64), {"standard_name": name, "units": units[name]})
    return _dataset(fields, times, tuple(units), axes, attributes)


def _dataset(fields: Fields, times: Any, plane: tuple[str, str], axes: dict, attributes: dict) -> xr.Dataset:
    times = np.asarray(times, "datetime64[ns]").reshape(-1)
    data = {}
    for name, (values, attrs) in fields.items():
        values = np.asarray(values, np.float32)
        data[name] = (("time", *plane), values.reshape(len(times), *values.shape[-2:]), dict(attrs))
    time = {"time": ("time", times, {"standard_name": "time", "axis": "T"})}
    return xr.Dataset(data, time | axes, {"Conventions": "CF-1.8", **attributes})
