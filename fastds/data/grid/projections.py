# SPDX-License-Identifier: Apache-2.0
"""CF attributes of projections that are valid without crs_wkt, and positions of projected grids."""

import warnings
from typing import Any

import numpy as np
import xarray as xr

from fastds.data.grid.units import get_metres_per_unit
from fastds.data.packages import import_pyproj

TOLERANCE = 1e-4  # degrees, about 10 m: the tolerance of MLCast's validator
_OBLIQUE_MERCATOR_ATTRIBUTES = (
    "azimuth_of_central_line",
    "longitude_of_projection_origin",
    "scale_factor_at_projection_origin",
)


_METRE = {"type": "LinearUnit", "name": "metre", "conversion_factor": 1}


def convert_to_metres(crs: Any) -> tuple[Any, float]:
    """Return a projection with axes and parameters in metres, and the number of metres in its original unit.

    Args:
        crs: Projected pyproj.CRS in any unit of length.
    """
    factor = float(crs.axis_info[0].unit_conversion_factor)
    if factor == 1.0:
        return crs, 1.0
    json = (crs.sub_crs_list[0] if crs.is_compound else crs.source_crs if crs.is_bound else crs).to_json_dict()
    for axis in json["coordinate_system"]["axis"]:
        axis["unit"] = _METRE
    for parameter in json["conversion"].get("parameters", ()):
        unit = parameter.get("unit")
        if isinstance(unit, dict) and unit.get("type") == "LinearUnit":
            parameter["value"] *= unit["conversion_factor"]
            parameter["unit"] = _METRE
    json.pop("id", None)
    json["name"] = f"{json['name']} in metres"
    return import_pyproj().CRS.from_json_dict(json), factor


def compute_latitude_longitude(
    attrs: dict[Any, Any], x: xr.DataArray, y: xr.DataArray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the positions of the cells of a projected grid.

    Args:
        attrs: CF attributes of the grid mapping.
        x: (W,) coordinate in a unit of length (its attribute, else the projection's), or degrees of a rotated pole.
        y: (H,) coordinate.

    Returns:
        Latitudes and longitudes (H, W) in degrees.

    Raises:
        ImportError: pyproj is not installed.
        RuntimeError: pyproj.exceptions.CRSError, the attributes describe no projection.
        KeyError: the attributes lack a parameter of the projection.
    """
    pyproj = import_pyproj()
    crs = pyproj.CRS.from_cf(attrs)
    values, geographic = [axis.values for axis in (x, y)], crs.geodetic_crs
    if crs.is_geographic:  # coordinates of a rotated pole are degrees, and its geodetic_crs is the rotated one
        geographic = crs.source_crs or geographic
    else:
        crs, unit = convert_to_metres(crs)
        values = [axis.values * (get_metres_per_unit(axis.attrs.get("units", "")) or unit) for axis in (x, y)]
    to_degrees = pyproj.Transformer.from_crs(crs, geographic, always_xy=True)
    lon, lat = to_degrees.transform(*np.meshgrid(*values))
    return lat, lon


def make_cf_attributes(crs: Any, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Return CF attributes of a grid mapping, including the exact crs_wkt.

    CF has no attribute for the rotation of the axes of an oblique Mercator projection, so that CF attributes alone
    would exchange x and y of the Swiss grid. For such a projection, the attributes describe a Lambert conformal conic
    projection that is tangent at the same origin and shifted to fit the grid best, provided that the difference is at
    most TOLERANCE. The attribute `comment` states the difference.

    Args:
        crs: pyproj.CRS.
        x: (W,) coordinates of the grid, metres.
        y: (H,) coordinates of the grid, metres.
    """
    with warnings.catch_warnings():  # pyproj warns that the angle is lost
        warnings.simplefilter("ignore", UserWarning)
        attrs = crs.to_cf()
    if attrs.get("grid_mapping_name") != "oblique_mercator":
        return attrs
    cone = _make_tangent_cone(crs, attrs, x, y)
    return cone if compute_deviation(crs, cone, x, y) <= TOLERANCE else attrs


def compute_deviation(crs: Any, attrs: dict[str, Any], x: np.ndarray, y: np.ndarray) -> float:
    """Return the largest difference in degrees between grid positions by a CRS and by CF attributes without crs_wkt.

    Args:
        crs: pyproj.CRS.
        attrs: CF attributes of a grid mapping.
        x: (W,) coordinates of the grid, metres.
        y: (H,) coordinates of the grid, metres.

    Returns:
        float; infinity if the attributes do not describe a projection.
    """
    pyproj = import_pyproj()
    alone = {name: value for name, value in attrs.items() if name not in ("crs_wkt", "spatial_ref", "proj4")}
    try:
        declared = pyproj.CRS.from_cf(alone)
    except (pyproj.exceptions.CRSError, KeyError):
        return np.inf
    return float(np.abs(_sample_positions(crs, x, y) - _sample_positions(declared, x, y)).max())


def _make_tangent_cone(crs: Any, attrs: dict[str, Any], x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Return CF attributes of the Lambert cone that is tangent at the central line of an oblique Mercator projection.

    Args:
        crs: pyproj.CRS of the oblique Mercator projection.
        attrs: CF attributes of this projection.
        x: (W,) coordinates of the grid, metres.
        y: (H,) coordinates of the grid, metres.
    """
    pyproj = import_pyproj()
    cone = {name: value for name, value in attrs.items() if name not in _OBLIQUE_MERCATOR_ATTRIBUTES}
    cone |= {
        "grid_mapping_name": "lambert_conformal_conic",
        "standard_parallel": attrs["latitude_of_projection_origin"],
        "longitude_of_central_meridian": attrs["longitude_of_projection_origin"],
    }
    alone = {name: value for name, value in cone.items() if name != "crs_wkt"}
    project = pyproj.Transformer.from_crs("EPSG:4326", pyproj.CRS.from_cf(alone), always_xy=True)
    off = np.stack(project.transform(*_sample_positions(crs, x, y))) - _sample_points(x, y)
    middle = (off.min(1) + off.max(1)) / 2
    for name, shift in zip(("false_easting", "false_northing"), middle, strict=True):
        cone[name] -= float(shift)
    most = np.hypot(*(off - middle[:, None])).max()
    comment = (
        "crs_wkt is exact; the other attributes tell a Lambert cone, as CF cannot turn the axes of an oblique Mercator"
    )
    return cone | {"comment": f"{comment} projection: up to {most:.0f} m from it on this grid"}


def _sample_points(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return x and y (2, 25) of a 5 x 5 sample of grid points that includes the corners."""
    chosen = (np.asarray(axis, float)[np.linspace(0, len(axis) - 1, 5).round().astype(int)] for axis in (x, y))
    return np.stack([values.ravel() for values in np.meshgrid(*chosen)])


def _sample_positions(crs: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return longitudes and latitudes (2, 25) of the sampled grid points."""
    to_degrees = import_pyproj().Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    return np.stack(to_degrees.transform(*_sample_points(x, y)))
