# SPDX-License-Identifier: Apache-2.0
"""Where points of latitude and longitude lie on the axes of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fastds.data.grid.grids import grid_mappings
from fastds.data.grid.units import metres_of
from fastds.data.packages import import_pyproj, require
from fastds.tasks.fields.geometry import Geometry, Plane
from fastds.tasks.fields.variables import on_grid


def projection_of(dataset: xr.Dataset, grid: Geometry) -> Any:
    """The pyproj.CRS of the fields on a Plane, None on latitudes and longitudes.

    Raises: ValueError where no grid mapping tells it; ImportError without pyproj."""
    if not isinstance(grid, Plane):
        return None
    if grid.indexed:
        raise ValueError(f"points need coordinates along rows and columns, and the fields are on {grid.said}")
    names = [mapping for name in on_grid(dataset, grid) for mapping in grid_mappings(dataset, dataset[name])]
    if not names:
        raise ValueError(
            f"points are latitudes and longitudes, and the fields are on {grid.said} without a grid mapping that tells "
            "where that is"
        )
    require("pyproj", "points on projected grids")
    pyproj = import_pyproj()
    try:
        return pyproj.CRS.from_cf(dataset[names[0]].attrs)
    except (pyproj.exceptions.CRSError, KeyError) as error:
        raise ValueError(f"the grid mapping {names[0]} cannot be read: {error}") from error


def on_axes(crs: Any, grid: Geometry, latitude: Sequence[float], longitude: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Rows and columns in the coordinates of a grid, of points in degrees; crs: see projection_of."""
    if crs is None:
        return torch.tensor(latitude, dtype=torch.float64), torch.tensor(longitude, dtype=torch.float64)
    pyproj = import_pyproj()
    found = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(longitude, latitude)
    # Of a rotated pole both are degrees.
    own = 1.0 if crs.is_geographic else crs.axis_info[0].unit_conversion_factor
    rows, columns = (
        np.asarray(at) * own / (1.0 if crs.is_geographic else _metres(name, unit, own))
        for at, name, unit in zip(found[::-1], grid.names, grid.units, strict=True)
    )
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _metres(name: str, unit: str, own: float) -> float:
    """Metres in the unit of a coordinate; own: those of its projection, which one without units is in."""
    metres = metres_of(unit) if unit else own
    if metres is None:
        raise ValueError(f"coordinate {name} is in {unit!r}, expected a unit of length: its projection is in such")
    return metres
