# SPDX-License-Identifier: Apache-2.0
"""Plausible ranges of variables; codes for missing values and units that a file does not tell."""

import math
import warnings
from collections.abc import Iterable
from numbers import Real
from typing import Any

import numpy as np
import xarray as xr

from fastds.data.grid.variables import field_names, rain_units, same_units

# Standard name, units, smallest and largest value. Wide on purpose: what lies outside is a code, another unit or
# damage, never weather. Rain is compared in mm and mm h-1, whatever its units.
PLAUSIBLE = (
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
NOT_NEGATIVE = {
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
REMEDY = "give the value that stands for missing, or the units, with the arguments missing and units"
MEND_FIRST = "mend the file first"  # where no argument says what the file does not
ALL_MISSING = "every pixel of the input is missing, and so is the output"


def plausible_range(standard_name: object, units: object) -> Limits | None:
    """(smallest, largest) plausible value of a standard name in these units; None where the table has none."""
    for name, wanted, low, high in PLAUSIBLE:
        if standard_name == name and same_units(units, wanted):
            return low, high
    return None


def plausible_rain(units: object) -> Limits:
    """(smallest, largest) plausible value of rain in its own units, which rain_units reads."""
    millimetres, seconds = rain_units(units)
    one = millimetres if seconds is None else millimetres * 3600.0 / seconds
    low, high = (
        plausible_range("rainfall_amount", "mm") if seconds is None else plausible_range("rainfall_rate", "mm h-1")
    )
    return low / one, high / one


def declared(
    dataset: xr.Dataset, missing: float | None = None, units: str | None = None, var: str | None = None
) -> xr.Dataset:
    """The dataset with what its file does not tell, in new attributes; values are not touched.

    Args:
        missing: value that stands for a missing one, of the variable var, or None: of all fields.
        units: of the variable var, or None: of the only field.

    Raises: ValueError for an infinite value, a variable that is not there, and units of several fields.
    """
    if missing is None and units is None:
        return dataset
    if missing is not None and not math.isfinite(missing):
        raise ValueError(f"missing must be a finite number, got {missing!r}")
    fields = field_names(dataset)
    if var is not None and var not in dataset.variables:
        raise ValueError(f"there is no variable {var!r} in the file, which has {', '.join(map(str, fields)) or 'none'}")
    chosen = fields if var is None else [var]
    if units is not None and len(chosen) != 1:
        raise ValueError(
            f"units {units!r} are of one variable; name it with the argument var: {', '.join(map(str, chosen))}"
        )
    dataset = dataset.copy(deep=False)
    for name in chosen:
        dataset[name].attrs |= ({} if missing is None else {"missing_value": missing}) | (
            {} if units is None else {"units": units}
        )
    return dataset


def without_missing(values: np.ndarray, attrs: dict[str, Any]) -> np.ndarray:
    """float32 values, NaN where they equal the missing_value that a decoded variable still has as an attribute."""
    values = np.array(values, dtype=np.float32)
    for flag in np.ravel(attrs.get("missing_value", [])):
        values[np.isclose(values, np.float32(flag), rtol=1e-6, atol=0)] = np.nan
    return values


def within(values: np.ndarray, limits: Limits | None) -> np.ndarray:
    """The values, NaN where they lie outside the limits."""
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
    remedy: str = REMEDY,
    all_missing: str = ALL_MISSING,
    stacklevel: int = 2,
) -> None:
    """Count what lies outside the limits in fields, NaN = missing, that are read one after another.

    name, units: of the variable. codes: they are whole numbers without a scale_factor, see stored_as_codes. refuse: a
    single value outside is too much. hint: added to what is said about values outside. remedy: what to do about them.
    all_missing: said where all are.
    Warns (UserWarning) about some values outside and where all are missing. Raises: ValueError where more than half of
    the values lie outside, or any with codes or refuse, naming the remedy.
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
    found = f"{min(ends):g}" if min(ends) == max(ends) else f"{min(ends):g} to {max(ends):g}"
    said = (
        f"{count} of {total} values of variable {name} are {found} {units}, outside the plausible "
        f"{limits[0]:g} to {limits[1]:g} {units}"
    )
    if codes:
        remedy = f"they are whole numbers without a scale_factor, so packed codes maybe: unpack them, or {remedy}"
    if codes or refuse or count > total / 2:
        raise ValueError(f"{said}; {remedy}{hint}")
    warnings.warn(f"{said}, and are taken as missing; {remedy}{hint}", UserWarning, stacklevel + 1)


def plausible_values(field: xr.DataArray, where: str = "", remedy: str = REMEDY, stacklevel: int = 2) -> np.ndarray:
    """The values of a field float32, NaN where missing.

    where: added to its name in messages. Warns (UserWarning) where all are missing. Raises: ValueError, with the
    remedy, where a single one is implausible, and what check_packing raises."""
    check_packing(field)
    units = field.attrs.get("units")
    limits = None if units is None else plausible_range(field.attrs.get("standard_name"), units)
    values = without_missing(field.values, field.attrs)
    form = {"codes": stored_as_codes(field), "refuse": True, "remedy": remedy, "stacklevel": stacklevel + 1}
    check_plausible(f"{field.name}{where}", [values], limits, units, **form)
    return values


def check_packing(variable: xr.DataArray) -> None:
    """ValueError where a variable was unpacked by a scale_factor that is 0 or not finite, or by an add_offset that is
    not finite."""
    for name in ("scale_factor", "add_offset"):
        value = variable.encoding.get(name)
        number = isinstance(value, Real)
        if value is not None and (not number or not np.isfinite(value) or (name == "scale_factor" and value == 0)):
            said = f"{value:g}" if number else repr(value)
            raise ValueError(f"variable {variable.name} is packed with {name} {said}, so its values are lost")


def stored_kind(variable: xr.DataArray) -> str:
    """The kind of the numbers in the file, as in numpy.dtype.kind."""
    return np.dtype(variable.encoding.get("dtype", variable.dtype)).kind


def stored_as_codes(variable: xr.DataArray) -> bool:
    """Whether the file holds whole numbers that no scale_factor or add_offset unpacks."""
    return stored_kind(variable) in "iu" and not {"scale_factor", "add_offset"} & set(variable.encoding)
