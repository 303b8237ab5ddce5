# SPDX-License-Identifier: Apache-2.0
"""Construction of CF datasets from radar fields, shared by the readers of radar formats."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from fastds.data.grid.projections import convert_to_metres, make_cf_attributes
from fastds.data.packages import import_pyproj, require

Fields = Mapping[str, tuple[np.ndarray, dict[str, Any]]]
Coordinates = tuple[np.ndarray, np.ndarray]


def make_reflectivity_field(values: np.ndarray, no_echo: float | None) -> Fields:
    """Make the field `reflectivity` in dBZ.

    Args:
        values: Reflectivity, NaN where missing.
        no_echo: Value that means no echo; None if the file does not declare it.
    """
    attrs = {"standard_name": "equivalent_reflectivity_factor", "long_name": "radar reflectivity", "units": "dBZ"}
    return {"reflectivity": (values, attrs if no_echo is None else attrs | {"no_echo_value": no_echo})}


def make_rain_rate_field(values: np.ndarray) -> Fields:
    """Make the field `rainfall_rate` in mm h-1."""
    return {"rainfall_rate": (values, {"standard_name": "rainfall_rate", "long_name": "rain rate", "units": "mm h-1"})}


def make_rain_amount_field(values: np.ndarray, minutes: float) -> Fields:
    """Make the field `rainfall_amount` in kg m-2 (mm), the sum over the `minutes` before the time."""
    # The long_name does not contain the length of the interval, which changes when a field is refined in time.
    long_name = "rain amount of the interval before the time"
    attrs = {"standard_name": "rainfall_amount", "long_name": long_name, "units": "kg m-2"}
    return {"rainfall_amount": (values, attrs | {"cell_methods": f"time: sum (interval: {minutes:g} min)"})}


def match_code(codes: np.ndarray, code: float | None) -> np.ndarray:
    """Return True where codes equal `code` (NaN equals NaN). If `code` is None, nothing matches.

    Floating-point codes are compared with the precision of float32, since the array or the attribute may be stored so.
    """
    if codes.dtype.kind != "f":
        return np.zeros(codes.shape, bool) if code is None else codes == code
    return np.zeros(codes.shape, bool) if code is None else np.isclose(codes, code, rtol=1e-6, atol=0, equal_nan=True)


def compute_cell_centres(corner: float, step: float, size: int) -> np.ndarray:
    """Compute the centres of equally spaced cells.

    Args:
        corner: outer edge of the first cell.
        step: width of a cell; negative for descending centres.
        size: number of cells.

    Returns:
        (size,), in the unit of `corner`.
    """
    return corner + step * (np.arange(size) + 0.5)


def parse_crs(text: str) -> Any:
    """Return the pyproj.CRS of a PROJ string or WKT.

    Raises:
        ImportError: pyproj is not installed.
        ValueError: PROJ cannot read the text.
    """
    pyproj = _import_pyproj()
    try:
        return pyproj.CRS.from_user_input(text)
    except pyproj.exceptions.CRSError as error:
        raise ValueError(f"the projection {text!r} cannot be read ({str(error).splitlines()[0]})") from error


def make_grid_mapping(text: str, coordinates: Coordinates) -> dict[str, Any]:
    """Return CF attributes of a grid mapping in metres.

    Args:
        text: Projection as PROJ string or WKT, in any unit of length.
        coordinates: y and x of the grid in metres. A projection that CF cannot describe exactly is approximated for
            this grid, see `make_cf_attributes`.

    Raises:
        ImportError, ValueError: see `parse_crs`.
    """
    y, x = coordinates
    return make_cf_attributes(convert_to_metres(parse_crs(text))[0], x, y)


def project(text: str, longitude: float, latitude: float) -> tuple[float, float]:
    """Project a position.

    Args:
        text: Projection as PROJ string or WKT.
        longitude: Degrees.
        latitude: Degrees.

    Returns:
        x and y in metres; for a geographic projection, longitude and latitude in degrees.
    """
    crs = parse_crs(text)
    if crs.is_geographic:
        return longitude, latitude
    x, y = _import_pyproj().Proj(crs)(longitude, latitude)
    factor = float(crs.axis_info[0].unit_conversion_factor)
    return x * factor, y * factor


def check_corners(
    corners: Mapping[str, tuple[float, float]],
    text: str,
    edges: Mapping[str, tuple[float, float]],
    cell: tuple[float, float],
) -> None:
    """Compare the corners that a file declares with those of its grid.

    Args:
        corners: Name of a corner -> longitude and latitude in degrees from the file.
        text: Projection.
        edges: Name of a corner -> x and y of the grid's corner.
        cell: Width of a cell along y and x.

    Raises:
        ValueError: The distance of a corner of the file from that of the grid is more than half a cell.
    """
    for name, (longitude, latitude) in corners.items():
        x, y = project(text, longitude, latitude)
        if not np.isfinite([x, y]).all():
            continue
        across, down = abs(x - edges[name][0]) / abs(cell[1]), abs(y - edges[name][1]) / abs(cell[0])
        if max(across, down) > 0.51:
            raise ValueError(
                f"the corner {name} is {longitude:.6g} E, {latitude:.6g} N, at x {x:.10g}, y {y:.10g}, and by "
                f"projection, size and cells of the file at x {edges[name][0]:.10g}, y {edges[name][1]:.10g}: "
                f"a distance of {max(across, down):.3g} cells"
            )


def _import_pyproj() -> Any:
    require("pyproj", "projections of radar grids")
    return import_pyproj()


def make_projected_dataset(
    fields: Fields, times: Any, coordinates: Coordinates, mapping: dict[str, Any], **attributes: str
) -> xr.Dataset:
    """Make a CF dataset of fields on projected coordinates.

    Args:
        fields: Name -> values (T, H, W) or (H, W) and attributes.
        times: One or several times.
        coordinates: y and x in metres.
        mapping: Attributes of the grid mapping.
        **attributes: Attributes of the dataset.
    """
    axes = {}
    for name, values in zip(("y", "x"), coordinates, strict=True):
        attrs = {"standard_name": f"projection_{name}_coordinate", "units": "m", "axis": name.upper()}
        axes[name] = (name, np.asarray(values, np.float64), attrs)
    found = _make_dataset(fields, times, ("y", "x"), axes, attributes)
    found["crs"] = ((), np.int32(0), mapping)
    for name in fields:
        found[name].attrs["grid_mapping"] = "crs"
    return found


def make_geographic_dataset(fields: Fields, times: Any, coordinates: Coordinates, **attributes: str) -> xr.Dataset:
    """Make a CF dataset of fields on 1-D latitudes and longitudes.

    Args:
        fields: Name -> values (T, H, W) or (H, W) and attributes.
        times: One or several times.
        coordinates: Latitudes and longitudes in degrees.
        **attributes: Attributes of the dataset.
    """
    axes, units = {}, {"latitude": "degrees_north", "longitude": "degrees_east"}
    for name, values in zip(units, coordinates, strict=True):
        axes[name] = (name, np.asarray(values, np.float64), {"standard_name": name, "units": units[name]})
    return _make_dataset(fields, times, ("latitude", "longitude"), axes, attributes)


def _make_dataset(fields: Fields, times: Any, plane: tuple[str, str], axes: dict, attributes: dict) -> xr.Dataset:
    times = np.asarray(times, "datetime64[ns]").reshape(-1)
    data = {}
    for name, (values, attrs) in fields.items():
        values = np.asarray(values, np.float32)
        data[name] = (("time", *plane), values.reshape(len(times), *values.shape[-2:]), dict(attrs))
    time = {"time": ("time", times, {"standard_name": "time", "axis": "T"})}
    return xr.Dataset(data, time | axes, {"Conventions": "CF-1.8", **attributes})
