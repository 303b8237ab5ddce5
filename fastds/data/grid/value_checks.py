# SPDX-License-Identifier: Apache-2.0
"""Checks of values against plausible ranges, and declaration of missing values and units that a file lacks."""

import math
import warnings
from collections.abc import Hashable, Iterable
from numbers import Real
from typing import Any

import numpy as np
import xarray as xr

from fastds._options import OptionError, spell_argument
from fastds.data.grid.variables import is_same_unit, list_fields, parse_rain_units, split_names

# Each row has a standard name, units, and the smallest and largest plausible value. The ranges are wide, so that values
# outside are codes, values in another unit, or damage. For rain, compute_plausible_rain_range converts the limits to
# the units of a field.
PLAUSIBLE_RANGES = (
    ("equivalent_reflectivity_factor", "dBZ", -60.0, 90.0),
    ("rainfall_rate", "mm h-1", -0.5, 2000.0),
    ("rainfall_amount", "mm", -0.5, 2000.0),
    ("air_temperature", "K", 150.0, 350.0),
    ("air_temperature", "degC", -123.0, 77.0),
    ("dew_point_temperature", "K", 120.0, 330.0),
    ("sea_surface_temperature", "K", 250.0, 330.0),
    ("relative_humidity", "%", -10.0, 180.0),
    ("relative_humidity", "1", -0.1, 1.8),
    ("specific_humidity", "kg kg-1", -0.01, 0.1),
    ("geopotential", "m2 s-2", -2e4, 1e6),
    ("geopotential_height", "m", -2e3, 1e5),
    ("surface_air_pressure", "Pa", 3e4, 1.2e5),
    ("air_pressure_at_mean_sea_level", "Pa", 8e4, 1.2e5),
    ("eastward_wind", "m s-1", -250.0, 250.0),
    ("northward_wind", "m s-1", -250.0, 250.0),
)
# Standard names of quantities that are never negative.
NON_NEGATIVE = {
    "air_pressure", "air_pressure_at_mean_sea_level", "surface_air_pressure", "atmosphere_boundary_layer_thickness",
    "wind_speed", "wind_speed_of_gust", "visibility_in_air", "surface_roughness_length", "surface_snow_thickness",
    "relative_humidity", "specific_humidity", "humidity_mixing_ratio", "atmosphere_mass_content_of_water_vapor",
    "rainfall_rate", "rainfall_flux", "rainfall_amount", "snowfall_flux", "snowfall_amount", "precipitation_flux",
    "precipitation_amount", "lwe_precipitation_rate", "lwe_thickness_of_precipitation_amount",
    "convective_precipitation_flux", "cloud_area_fraction", "sea_ice_area_fraction",
    "sea_surface_wave_significant_height", "surface_downwelling_shortwave_flux_in_air",
    "surface_downwelling_longwave_flux_in_air",
}  # fmt: skip
Limits = tuple[float, float]
ALL_MISSING = "every pixel of the input is missing, and so is the output"


def find_plausible_range(standard_name: object, units: object) -> Limits | None:
    """Return the plausible range (smallest, largest) of a standard name in these units, or None if unknown."""
    for name, unit, low, high in PLAUSIBLE_RANGES:
        if standard_name == name and is_same_unit(units, unit):
            return low, high
    return None


def compute_plausible_rain_range(units: object) -> Limits:
    """Return (smallest, largest) plausible value of rain in `units`, which `parse_rain_units` must understand."""
    rain = parse_rain_units(units)
    assert rain is not None
    millimetres, seconds = rain
    one = millimetres if seconds is None else millimetres * 3600.0 / seconds
    plausible = (
        find_plausible_range("rainfall_amount", "mm")
        if seconds is None
        else find_plausible_range("rainfall_rate", "mm h-1")
    )
    assert plausible is not None  # the table has both
    low, high = plausible
    return low / one, high / one


def apply_metadata(
    dataset: xr.Dataset, missing: float | None = None, units: str | None = None, var: str | None = None
) -> xr.Dataset:
    """Add metadata that a file lacks as attributes of its variables. Values do not change.

    Args:
        dataset: xarray.Dataset.
        missing: Value that stands for missing data in the variables `var`, or in all fields if `var` is None.
        units: Units of the variable `var`, or of the only field if `var` is None.
        var: Name of a variable, names as in `split_names`, or None.

    Returns:
        xarray.Dataset with the new attributes.

    Raises:
        ValueError: `missing` is not finite, `var` does not exist, or `units` is given for several fields.
    """
    if missing is None and units is None:
        return dataset
    if missing is not None and not math.isfinite(missing):
        raise OptionError("missing", f"must be a finite number, got {missing!r}")
    fields = list_fields(dataset)
    names = split_names(var, dataset.variables)
    unknown = [name for name in names or () if name not in dataset.variables]
    if unknown:
        there = ", ".join(map(str, fields)) or "none"
        raise ValueError(f"there is no variable {unknown[0]!r} in the file, which has {there}")
    chosen: list[Hashable] = fields if names is None else [*names]
    if units is not None and len(chosen) != 1:
        raise ValueError(
            f"units {units!r} are of one variable; name it with {spell_argument('var')}: {', '.join(map(str, chosen))}"
        )
    dataset = dataset.copy(deep=False)
    for name in chosen:
        dataset[name].attrs |= ({} if missing is None else {"missing_value": missing}) | (
            {} if units is None else {"units": units}
        )
    return dataset


def mask_fill_values(values: np.ndarray, attrs: dict[str, Any]) -> np.ndarray:
    """Return float32 values with NaN where they equal the attribute missing_value of a decoded variable."""
    values = np.array(values, dtype=np.float32)
    for flag in np.ravel(attrs.get("missing_value", [])):
        values[np.isclose(values, np.float32(flag), rtol=1e-6, atol=0)] = np.nan
    return values


def mask_outside(values: np.ndarray, limits: Limits | None) -> np.ndarray:
    """Return the values with NaN outside the limits; None: unchanged values."""
    if limits is None:
        return values
    return np.where((values < limits[0]) | (values > limits[1]), np.float32(np.nan), values)


def check_plausible(
    name: str,
    fields: Iterable[np.ndarray],
    limits: Limits | None,
    units: object,
    *,
    codes: bool = False,
    refuse: bool = False,
    hint: str = "",
    remedy: str | None = None,
    all_missing: str = ALL_MISSING,
    stacklevel: int = 2,
) -> None:
    """Check arrays of values, one after another, against plausible limits.

    Warns (UserWarning) if some values are outside the limits or if all values are missing.

    Args:
        name: Name of the variable, for messages.
        fields: Arrays, NaN where missing.
        limits: Smallest and largest plausible value; None: count missing values only.
        units: Units of the variable, for messages.
        codes: Whether the values may be packed codes, see `is_stored_as_codes`; then a single value outside is an
            error.
        refuse: Whether a single value outside is an error.
        hint: Text that is appended to the messages about values outside.
        remedy: What the user can do, for messages about values outside. None: declare the missing value or the units.
        all_missing: Message for the case that all values are missing.
        stacklevel: As in warnings.warn.

    Raises:
        ValueError: More than half of the values are outside the limits, or one value with `codes` or `refuse`.
    """
    count, total, ends = 0, 0, []
    for values in fields:
        total += int((~np.isnan(values)).sum())
        if limits is not None:
            outside = values[(values < limits[0]) | (values > limits[1])]
            count += outside.size
            ends += [float(outside.min()), float(outside.max())] if outside.size else []
    if total == 0:
        warnings.warn(all_missing, UserWarning, stacklevel + 1)
    if not count:
        return
    assert limits is not None  # nothing is counted without limits
    found = f"{min(ends):g}" if min(ends) == max(ends) else f"{min(ends):g} to {max(ends):g}"
    finding = (
        f"{count} of {total} values of variable {name} are {found} {units}, outside the plausible "
        f"{limits[0]:g} to {limits[1]:g} {units}"
    )
    if remedy is None:
        remedy = f"give the value that stands for missing, or the units, with {spell_argument('missing', 'units')}"
    if codes:
        remedy = f"they are whole numbers without a scale_factor, so packed codes maybe: unpack them, or {remedy}"
    if codes or refuse or count > total / 2:
        raise ValueError(f"{finding}; {remedy}{hint}")
    warnings.warn(f"{finding}, and are taken as missing; {remedy}{hint}", UserWarning, stacklevel + 1)


def load_plausible_values(
    field: xr.DataArray, where: str = "", remedy: str | None = None, stacklevel: int = 2
) -> np.ndarray:
    """Load the values of a field as float32, NaN where missing, and check that all are plausible.

    Warns (UserWarning) if all values are missing.

    Args:
        field: DataArray.
        where: Text that follows the name of the field in messages.
        remedy: As in `check_plausible`.
        stacklevel: As in warnings.warn.

    Raises:
        ValueError: A value is implausible, or the packing is invalid, see `check_packing`.
    """
    check_packing(field)
    units = field.attrs.get("units")
    limits = None if units is None else find_plausible_range(field.attrs.get("standard_name"), units)
    values = mask_fill_values(field.values, field.attrs)
    form: dict[str, Any] = {
        "codes": is_stored_as_codes(field),
        "refuse": True,
        "remedy": remedy,
        "stacklevel": stacklevel + 1,
    }
    check_plausible(f"{field.name}{where}", [values], limits, units, **form)
    return values


def check_packing(variable: xr.DataArray) -> None:
    """Raise ValueError if scale_factor is 0, or if scale_factor or add_offset of a variable is not finite."""
    for name in ("scale_factor", "add_offset"):
        value = variable.encoding.get(name)
        number = isinstance(value, Real)
        if value is not None and (not number or not np.isfinite(value) or (name == "scale_factor" and value == 0)):
            text = f"{value:g}" if number else repr(value)
            raise ValueError(f"variable {variable.name} is packed with {name} {text}, so its values are lost")


def get_stored_kind(variable: xr.DataArray) -> str:
    """Return the kind of the numbers in the file, as in numpy.dtype.kind."""
    return np.dtype(variable.encoding.get("dtype", variable.dtype)).kind


def is_stored_as_codes(variable: xr.DataArray) -> bool:
    """Return True if the file holds integers without scale_factor and add_offset."""
    return get_stored_kind(variable) in "iu" and not {"scale_factor", "add_offset"} & set(variable.encoding)
