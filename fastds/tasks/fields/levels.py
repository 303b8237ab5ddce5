# SPDX-License-Identifier: Apache-2.0
"""Temperatures and heights of pressure levels at points, from which lapse rates are fitted."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import numpy as np
import xarray as xr

from fastds._options import OptionError
from fastds.data.grid.value_checks import mask_fill_values
from fastds.data.grid.variables import is_same_unit
from fastds.tasks.fields.geometry import Geometry, orient_north_up
from fastds.tasks.fields.heights import convert_to_metres, find_level
from fastds.tasks.fields.variables import list_grid_variables


class LevelColumns:
    """Temperature and height of the pressure levels of a dataset.

    Args:
        dataset: all variables of the input.
        grid: grid of the dataset.
        interpolate: function that interpolates a field (H, W) to Q points.

    Raises:
        OptionError: there is no temperature with its geopotential or geopotential height on two or more levels.
    """

    def __init__(self, dataset: xr.Dataset, grid: Geometry, interpolate: Callable[[np.ndarray], np.ndarray]):
        on_levels = [dataset[name] for name in list_grid_variables(dataset, grid)]
        on_levels = [field for field in on_levels if _get_level_dimension(field) is not None]
        temperature = [field for field in on_levels if _is_named(field, "air_temperature", ("t", "ta", "temperature"))]
        names = "geopotential", "geopotential_height", "height"
        height = [field for field in on_levels if any(_is_named(field, name, ("z", "zg", "gh")) for name in names)]
        pair = [(t, z) for t in temperature for z in height if t.sizes == z.sizes]
        if len(pair) != 1 or not any(is_same_unit(pair[0][0].attrs.get("units"), unit) for unit in ("K", "degC")):
            found = ", ".join(str(field.name) for field in on_levels) or "none"
            raise OptionError(
                "lapse_rate",
                "levels needs one temperature in K or degC and one geopotential or geopotential height on the same two "
                f"or more pressure levels; the input has {found}",
            )
        level = _get_level_dimension(pair[0][0])
        assert level is not None
        oriented = orient_north_up(xr.Dataset({str(field.name): field for field in pair[0]}), grid)[0]
        self._temperature, self._height = (
            oriented[str(field.name)].transpose(level, ..., *grid.names) for field in pair[0]
        )
        self._level, self._grid, self._interpolate = level, grid, interpolate
        count = self._temperature.sizes[level]
        self.description = f"{self._temperature.name} and {self._height.name} on {count} levels"

    def read(self, at: Mapping[Hashable, int], field: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
        """Return temperatures in K or degC and heights in m, (L, Q), at indices of leading dimensions of a field.

        Raises:
            OptionError: the levels have other leading dimensions or coordinates than the field.
        """
        dims = [dim for dim in self._temperature.dims if dim not in (self._level, *self._grid.names)]
        for dim in dims:
            same = dim in at and self._temperature.sizes[dim] == field.sizes[dim]
            if same and dim in field.coords and dim in self._temperature.coords:
                same = bool(np.array_equal(field[dim].values, self._temperature[dim].values))
            if not same and self._temperature.sizes[dim] > 1:
                raise OptionError("lapse_rate", f"levels needs the same {dim} for {field.name} and {self.description}")
        index = {dim: at.get(dim, 0) if self._temperature.sizes[dim] > 1 else 0 for dim in dims}
        temperature, height = (
            np.stack([self._interpolate(values) for values in mask_fill_values(part.values, part.attrs)])
            for part in (variable.isel(index) for variable in (self._temperature, self._height))
        )
        units = self._height.attrs.get("units")
        return temperature, convert_to_metres(height, units, f"height {self._height.name} of the levels")


def _get_level_dimension(field: xr.DataArray) -> str | None:
    """Return the dimension of two or more pressure levels of a field, else None."""
    level = find_level(field)
    return level if level in field.dims and field.sizes[level] > 1 else None


def _is_named(field: xr.DataArray, standard_name: str, names: tuple[str, ...]) -> bool:
    found = str(field.attrs.get("standard_name", "unknown"))
    return found == standard_name or (found == "unknown" and str(field.name).lower() in names)
