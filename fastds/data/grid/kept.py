# SPDX-License-Identifier: Apache-2.0
"""What a result keeps of what its file tells around the fields: attributes, projections, bounds of coordinates."""

from collections.abc import Hashable

import numpy as np
import xarray as xr

from fastds.data.grid.grids import grid_mappings
from fastds.data.grid.times import time_encoding

# Of the numbers as they are stored, or naming other variables, which a result leaves out.
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
)


def kept_attributes(variable: xr.DataArray | xr.Variable) -> dict[Hashable, object]:
    """Attributes of a variable that other values of it have, too."""
    return {key: value for key, value in variable.attrs.items() if key not in _STORAGE_ATTRIBUTES}


def global_attributes(dataset: xr.Dataset, *others: str) -> dict[Hashable, object]:
    """Attributes of a dataset that finer ones have, too, but these others."""
    return {key: value for key, value in dataset.attrs.items() if key not in (*_STALE_GLOBAL_ATTRIBUTES, *others)}


def field_attributes(dataset: xr.Dataset, field: xr.DataArray) -> dict[Hashable, object]:
    """kept_attributes of a field of a dataset, with the grid mapping that the dataset has."""
    attrs = kept_attributes(field)
    attrs.pop("grid_mapping", None)
    return attrs | mapping_attribute(dataset, field)


def mapping_attribute(dataset: xr.Dataset, field: xr.DataArray) -> dict[str, object]:
    """The attribute grid_mapping of a field, where the dataset has what it names; else none."""
    mappings = grid_mappings(dataset, field)
    if not mappings:
        return {}
    return {"grid_mapping": field.attrs.get("grid_mapping") or field.encoding.get("grid_mapping") or mappings[0]}


def bounds_of(dataset: xr.Dataset, name: Hashable) -> str | None:
    """The name of the bounds of a coordinate, where the dataset has them."""
    told = _bounds_attribute(dataset, name)[1]
    return told if told in dataset.variables else None


def _bounds_attribute(dataset: xr.Dataset, name: Hashable) -> tuple[str, str | None]:
    """Which attribute of a coordinate names its bounds, and their name; None where none does."""
    coordinate = dataset[name]
    found = ((key, coordinate.attrs.get(key) or coordinate.encoding.get(key)) for key in _BOUNDS)
    return next((pair for pair in found if pair[1]), ("bounds", None))


def with_bounds(dataset: xr.Dataset, coordinate: xr.DataArray) -> dict[Hashable, xr.Variable]:
    """A coordinate of a dataset, which may be some of its values or all in another order, and its bounds there."""
    name, variable = coordinate.name, coordinate.variable.to_base_variable().copy(deep=False)
    for told in (variable.attrs, variable.encoding):
        for attribute in _BOUNDS:
            told.pop(attribute, None)
    bounds = bounds_of(dataset, name)
    if bounds is None or dataset[name].dims != coordinate.dims:
        return {name: variable}
    pairs = dataset[bounds]
    if not coordinate.equals(dataset[name]):
        pairs = pairs.sel({name: coordinate.values})
    pairs = pairs.variable.compute()
    if pairs.dtype.kind in "MO":
        dates = np.concatenate([variable.values.reshape(-1), pairs.values.reshape(-1)])
        variable.encoding = pairs.encoding = time_encoding(dates, variable.encoding)
    variable.attrs[_bounds_attribute(dataset, name)[0]] = bounds
    return {name: variable, bounds: pairs}
