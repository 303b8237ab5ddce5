# SPDX-License-Identifier: Apache-2.0
"""Projection of points in latitude and longitude onto the axes of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fastds.data.grid.grids import find_grid_mappings
from fastds.data.grid.units import get_metres_per_unit
from fastds.data.packages import import_pyproj, require
from fastds.tasks.fields.geometry import Geometry, Plane
from fastds.tasks.fields.variables import list_grid_variables


def find_projection(dataset: xr.Dataset, grid: Geometry) -> Any:
    """Return the pyproj.CRS of fields on a Plane; None on a latitude-longitude grid.

    Raises:
        ValueError: there is no usable grid mapping.
        ImportError: pyproj is not installed.
    """
    if not isinstance(grid, Plane):
        return None
    if grid.indexed:
        raise ValueError(f"points need coordinates along rows and columns, and the fields are on {grid.description}")
    names = [
        mapping for name in list_grid_variables(dataset, grid) for mapping in find_grid_mappings(dataset, dataset[name])
    ]
    if not names:
        raise ValueError(
            f"points are latitudes and longitudes, and the fields are on {grid.description} without a grid "
            "mapping that tells where that is"
        )
    require("pyproj", "points on projected grids")
    pyproj = import_pyproj()
    try:
        return pyproj.CRS.from_cf(dataset[names[0]].attrs)
    except (pyproj.exceptions.CRSError, KeyError) as error:
        raise ValueError(f"the grid mapping {names[0]} cannot be read: {error}") from error


def project_points(
    crs: Any, grid: Geometry, latitude: Sequence[float], longitude: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return the coordinates of points on the axes of a grid.

    Args:
        crs: see find_projection.
        grid: grid of the fields.
        latitude: latitudes in degrees.
        longitude: longitudes in degrees.

    Returns:
        Two float64 tensors: the coordinates of the points on the axis y or latitude, and on the axis x or longitude.

    Raises:
        ValueError: a coordinate of a projected grid has a unit that is no length.
    """
    if crs is None:
        return torch.tensor(latitude, dtype=torch.float64), torch.tensor(longitude, dtype=torch.float64)
    pyproj = import_pyproj()
    found = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(longitude, latitude)
    # coordinates with a rotated pole are in degrees
    projection_unit = 1.0 if crs.is_geographic else crs.axis_info[0].unit_conversion_factor
    rows, columns = (
        np.asarray(at) * projection_unit / (1.0 if crs.is_geographic else _get_metres(name, unit, projection_unit))
        for at, name, unit in zip(found[::-1], grid.names, cast(Plane, grid).units, strict=True)
    )
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _get_metres(name: str, unit: str, projection_unit: float) -> float:
    """Return the length in metres of the unit of a coordinate.

    Args:
        name: name of the coordinate.
        unit: unit of the coordinate; "" stands for the unit of the projection.
        projection_unit: length in metres of the unit of the projection.
    """
    metres = get_metres_per_unit(unit) if unit else projection_unit
    if metres is None:
        raise ValueError(f"coordinate {name} is in {unit!r}, expected a unit of length: its projection is in such")
    return metres
