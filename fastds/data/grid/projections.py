# SPDX-License-Identifier: Apache-2.0
"""Projections as CF attributes that hold without their crs_wkt, too."""

import warnings
from typing import Any

import numpy as np

from fastds.data.packages import import_pyproj

TOLERANCE = 1e-4  # degrees, some 10 m: what MLCast's validator allows
_OF_OBLIQUE_MERCATOR = (
    "azimuth_of_central_line",
    "longitude_of_projection_origin",
    "scale_factor_at_projection_origin",
)


_METRE = {"type": "LinearUnit", "name": "metre", "conversion_factor": 1}


def in_metres(crs: Any) -> tuple[Any, float]:
    """The same projection with axes and parameters in metres, and the metres in a unit of the given one.

    Args: crs: a projected pyproj.CRS in any unit of length."""
    factor = float(crs.axis_info[0].unit_conversion_factor)
    if factor == 1.0:
        return crs, 1.0
    told = (crs.sub_crs_list[0] if crs.is_compound else crs.source_crs if crs.is_bound else crs).to_json_dict()
    for axis in told["coordinate_system"]["axis"]:
        axis["unit"] = _METRE
    for parameter in told["conversion"].get("parameters", ()):
        unit = parameter.get("unit")
        if isinstance(unit, dict) and unit.get("type") == "LinearUnit":
            parameter["value"] *= unit["conversion_factor"]
            parameter["unit"] = _METRE
    told.pop("id", None)
    told["name"] = f"{told['name']} in metres"
    return import_pyproj().CRS.from_json_dict(told), factor


def cf_attributes(crs: Any, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """CF attributes of a grid mapping, with the exact crs_wkt.

    CF has no angle that turns the axes of an oblique Mercator projection, so its attributes alone would swap x and y
    of the Swiss grid. Where its central line runs along a parallel, they tell the Lambert cone that touches the
    ellipsoid there instead, moved to lie nearest on the grid; the attribute comment says how near that is.

    Args:
        crs: a pyproj.CRS. x, y: 1-D coordinates of the grid, metres."""
    with warnings.catch_warnings():  # of the angle
        warnings.simplefilter("ignore", UserWarning)
        attrs = crs.to_cf()
    if attrs.get("grid_mapping_name") != "oblique_mercator":
        return attrs
    cone = _touching_cone(crs, attrs, x, y)
    return cone if deviation(crs, cone, x, y) <= TOLERANCE else attrs


def deviation(crs: Any, attrs: dict[str, Any], x: np.ndarray, y: np.ndarray) -> float:
    """The largest distance, degrees, between the places of a grid by a pyproj.CRS and by CF attributes without their
    crs_wkt; infinite where these tell no projection."""
    pyproj = import_pyproj()
    alone = {name: value for name, value in attrs.items() if name not in ("crs_wkt", "spatial_ref", "proj4")}
    try:
        told = pyproj.CRS.from_cf(alone)
    except (pyproj.exceptions.CRSError, KeyError):
        return np.inf
    return float(np.abs(_places(crs, x, y) - _places(told, x, y)).max())


def _touching_cone(crs: Any, attrs: dict[str, Any], x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    pyproj = import_pyproj()
    cone = {name: value for name, value in attrs.items() if name not in _OF_OBLIQUE_MERCATOR}
    cone |= {
        "grid_mapping_name": "lambert_conformal_conic",
        "standard_parallel": attrs["latitude_of_projection_origin"],
        "longitude_of_central_meridian": attrs["longitude_of_projection_origin"],
    }
    alone = {name: value for name, value in cone.items() if name != "crs_wkt"}
    project = pyproj.Transformer.from_crs("EPSG:4326", pyproj.CRS.from_cf(alone), always_xy=True)
    off = np.stack(project.transform(*_places(crs, x, y))) - _points(x, y)
    middle = (off.min(1) + off.max(1)) / 2
    for name, shift in zip(("false_easting", "false_northing"), middle, strict=True):
        cone[name] -= float(shift)
    most = np.hypot(*(off - middle[:, None])).max()
    said = (
        "crs_wkt is exact; the other attributes tell a Lambert cone, as CF cannot turn the axes of an oblique Mercator"
    )
    return cone | {"comment": f"{said} projection: up to {most:.0f} m from it on this grid"}


def _points(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x and y (2, 25) of a grid's ends and between."""
    chosen = (np.asarray(axis, float)[np.linspace(0, len(axis) - 1, 5).round().astype(int)] for axis in (x, y))
    return np.stack([values.ravel() for values in np.meshgrid(*chosen)])


def _places(crs: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Longitudes and latitudes (2, 25) of those points."""
    to_degrees = import_pyproj().Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    return np.stack(to_degrees.transform(*_points(x, y)))
