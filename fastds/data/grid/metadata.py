# SPDX-License-Identifier: Apache-2.0
"""Propagation of CF metadata from input to output: attributes, grid mappings and bounds of coordinates."""

import re
from collections.abc import Hashable

import numpy as np
import xarray as xr

from fastds.data.grid.grids import find_grid_mappings
from fastds.data.grid.times import time_encoding

# Attributes that describe the stored numbers or name variables that an output does not contain.
_STORAGE_ATTRIBUTES = (
    "valid_min",
    "valid_max",
    "valid_range",
    "actual_range",
    "missing_value",
    "flag_values",
    "flag_masks",
    "flag_meanings",
    "undetect",
    "_Undetect",
    "no_rain_value",
    "ancillary_variables",
    "cell_measures",
    "comment",
    "_ChunkSizes",
)
_BOUNDS = ("bounds", "climatology")
_STALE_GLOBAL_ATTRIBUTES = (
    "cadence_minutes",
    "time_coverage_resolution",
    "geospatial_lat_resolution",
    "geospatial_lon_resolution",
    "DX",  # of WRF, as the following
    "DY",
)
_WRF_SIZES = re.compile(r"(WEST-EAST|SOUTH-NORTH)_(GRID_DIMENSION|PATCH_\w+)")


def get_preserved_attributes(variable: xr.DataArray | xr.Variable) -> dict[Hashable, object]:
    """Return the attributes of a variable that remain valid for other values."""
    return {key: value for key, value in variable.attrs.items() if key not in _STORAGE_ATTRIBUTES}


def get_global_attributes(dataset: xr.Dataset, *others: str) -> dict[Hashable, object]:
    """Return the attributes of a dataset that remain valid for an output on another grid.

    Args:
        dataset: Dataset.
        *others: Names of further attributes to leave out.
    """
    stale = {*_STALE_GLOBAL_ATTRIBUTES, *others}
    return {k: v for k, v in dataset.attrs.items() if k not in stale and not _WRF_SIZES.fullmatch(str(k))}


def get_field_attributes(dataset: xr.Dataset, field: xr.DataArray) -> dict[Hashable, object]:
    """Return the preserved attributes of a field, with its grid mapping if the dataset contains that."""
    attrs = get_preserved_attributes(field)
    attrs.pop("grid_mapping", None)
    return attrs | get_grid_mapping_attribute(dataset, field)


def get_grid_mapping_attribute(dataset: xr.Dataset, field: xr.DataArray) -> dict[str, object]:
    """Return {"grid_mapping": ...} for a field whose grid mapping exists in the dataset, else {}."""
    mappings = find_grid_mappings(dataset, field)
    if not mappings:
        return {}
    return {"grid_mapping": field.attrs.get("grid_mapping") or field.encoding.get("grid_mapping") or mappings[0]}


def find_bounds(dataset: xr.Dataset, name: Hashable) -> str | None:
    """Return the name of the bounds of a coordinate if the dataset contains them, else None."""
    bounds = _find_bounds_attribute(dataset, name)[1]
    return bounds if bounds in dataset.variables else None


def _find_bounds_attribute(dataset: xr.Dataset, name: Hashable) -> tuple[str, str | None]:
    """Return the attribute of a coordinate that names its bounds, and the name of the bounds or None."""
    coordinate = dataset[name]
    found = ((key, coordinate.attrs.get(key) or coordinate.encoding.get(key)) for key in _BOUNDS)
    return next((pair for pair in found if pair[1]), ("bounds", None))


def get_coordinate_with_bounds(dataset: xr.Dataset, coordinate: xr.DataArray) -> dict[Hashable, xr.Variable]:
    """Return a coordinate and its bounds, as name -> Variable.

    Args:
        dataset: Dataset of the coordinate and the bounds.
        coordinate: The coordinate, or some of its values, in any order.
    """
    name, variable = coordinate.name, coordinate.variable.to_base_variable().copy(deep=False)
    for metadata in (variable.attrs, variable.encoding):
        for attribute in _BOUNDS:
            metadata.pop(attribute, None)
    bounds = find_bounds(dataset, name)
    if bounds is None or dataset[name].dims != coordinate.dims:
        return {name: variable}
    pairs = dataset[bounds]
    if not coordinate.equals(dataset[name]):
        pairs = pairs.sel({name: coordinate.values})
    computed = pairs.variable.compute()
    if computed.dtype.kind in "MO":
        dates = np.concatenate([variable.values.reshape(-1), computed.values.reshape(-1)])
        variable.encoding = computed.encoding = time_encoding(dates, variable.encoding)
    variable.attrs[_find_bounds_attribute(dataset, name)[0]] = bounds
    return {name: variable, bounds: computed}
