# SPDX-License-Identifier: Apache-2.0
"""Selection of variables by their attributes, and units of rain."""

import itertools
import re
from collections.abc import Collection, Hashable, Iterable
from typing import cast

import xarray as xr

from fastds._options import OptionError, has_option, spell_argument
from fastds.data.grid.units import parse_unit

_LENGTH_MM = {
    "mm": 1.0,
    "millimeter": 1.0,
    "millimetre": 1.0,
    "millimeters": 1.0,
    "millimetres": 1.0,
    "cm": 10.0,
    "m": 1000.0,
    "meter": 1000.0,
    "metre": 1000.0,
}
_TIME_S = {
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "seconds": 1.0,
    "min": 60.0,
    "minute": 60.0,
    "minutes": 60.0,
    "h": 3600.0,
    "hr": 3600.0,
    "hour": 3600.0,
    "hours": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
    "days": 86400.0,
}
# Symbols that no unit of rain contains. Units with other unknown symbols are parsed by pint, whose import is slow.
_NO_RAIN = {"k", "degc", "pa", "hpa", "mb", "j", "w", "n", "v", "mol", "deg", "degree", "rad", "sr", "gpm", "dbz"}
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*([a-z]+)$")
_COUNTED = re.compile(r"(?:(/)|\s)\s*\(?\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*\)?(-1)?$")  # "/5min", " (5 min)-1"
_TOKEN = re.compile(r"^([a-z]+)(-?\d+)?$")
REPAIR_FIRST = "mend the file first"  # remedy where no argument can declare the missing value or the units


def is_dbz(units: object) -> bool:
    """Return True for dBZ, case-insensitively."""
    return isinstance(units, str) and units.strip().lower() == "dbz"


def parse_rain_units(units: object) -> tuple[float, float | None] | None:
    """Parse a unit of rain into millimetres (= kg m-2) and seconds.

    A value v is v * millimetres / seconds in mm s-1 (a rate), or v * millimetres in mm (an amount; seconds is None).
    Examples: "mm h-1" -> (1, 3600), "mm/5min" -> (1, 300), "kg m-2 s-1" -> (1, 1), "kg m-2" -> (1, None), "m" -> (1000,
    None).

    Returns:
        (millimetres, seconds), or None for other units.
    """
    units, count = _split_count(units)
    powers = _parse_powers(units)
    if powers is None or not all(name in _TIME_S or name in _LENGTH_MM or name == "kg" for name in powers):
        others = powers is not None and not _NO_RAIN.isdisjoint(powers)
        return None if others else _parse_rain_with_pint(str(units))
    times = [name for name in powers if name in _TIME_S]
    rest = {name: power for name, power in powers.items() if name not in _TIME_S}
    if rest == {"kg": 1, "m": -2}:
        millimetres = 1.0
    elif len(rest) == 1 and next(iter(rest)) in _LENGTH_MM and next(iter(rest.values())) == 1:
        millimetres = _LENGTH_MM[next(iter(rest))]
    else:
        return None
    if not times:
        return millimetres, None
    return (millimetres, count * _TIME_S[times[0]]) if len(times) == 1 and powers[times[0]] == -1 else None


def _parse_rain_with_pint(text: str) -> tuple[float, float | None] | None:
    """Parse a unit of rain with pint. The result is that of `parse_rain_units`; seconds is 1 for rates."""
    quantity = parse_unit(text)
    if quantity is None:
        return None
    for unit, millimetres in (("meter", 1000.0), ("kilogram / meter ** 2", 1.0)):
        if quantity.is_compatible_with(unit):
            return millimetres * float(quantity.to(unit).magnitude), None
        if quantity.is_compatible_with(f"{unit} / second"):
            return millimetres * float(quantity.to(f"{unit} / second").magnitude), 1.0
    return None


def _split_count(units: object) -> tuple[object, float]:
    """Split a rate over several units of time, "mm/5min" or "mm (5 min)-1", into "mm/min" and the number 5."""
    match = _COUNTED.search(units.strip().lower()) if isinstance(units, str) else None
    if not isinstance(units, str) or match is None or bool(match[1]) == bool(match[4]):
        return units, 1.0
    return f"{units.strip().lower()[: match.start()]}/{match[3]}", float(match[2])


def parse_interval(text: str) -> float | None:
    """Return the seconds of an interval such as "5 min" or "1 hour", or None."""
    parts = str(text).split()
    try:
        return float(parts[0]) * _TIME_S[parts[1].lower()] if len(parts) == 2 else None
    except (ValueError, KeyError):
        return None


def parse_duration(text: str, name: str) -> float:
    """Return the seconds of a duration such as "60min", "90 s" or "1h".

    Args:
        text: Duration.
        name: Name of the argument, for the message.

    Raises:
        ValueError: The text is not a duration.
    """
    match = _DURATION.match(str(text).strip().lower())
    seconds = float(match[1]) * _TIME_S[match[2]] if match and match[2] in _TIME_S else 0.0
    if not seconds > 0:
        raise OptionError(name, f"must be a duration with its unit such as 60min or 1h, got {text!r}")
    return seconds


def is_same_unit(one: object, other: object) -> bool:
    """Return True for two spellings of one unit, such as "m**2 s**-2" and "m2/s2", or "degC" and "Celsius".

    "", "1" and "(0 - 1)" all mean dimensionless.
    """
    if _normalise_unit(one) == _normalise_unit(other):
        return True
    dimensions = _find_dimension(one), _find_dimension(other)
    if None not in dimensions and dimensions[0] != dimensions[1]:
        return False
    first, second = parse_unit(str(one)), parse_unit(str(other))
    if first is None or second is None or first.dimensionality != second.dimensionality:
        return False
    return bool(abs(float((first / second).to_base_units().magnitude) - 1.0) < 1e-9)


def _normalise_unit(units: object) -> str | frozenset:
    """Return one form for all spellings of a unit: the powers of its symbols, or else its letters."""
    text = re.sub(r"[\s_]+", " ", str(units)).strip().lower()
    text = _SPELLINGS.get(text, text)
    powers = _parse_powers(text)
    return re.sub(r"[\s*^.]", "", text) if powers is None else frozenset(powers.items())


def _find_dimension(units: object) -> tuple[int, ...] | None:
    """Return the exponents of length, mass, time and temperature of a unit of common symbols; None for other units.

    Units that differ in them are compared without pint, whose import is slow.
    """
    text = str(units).strip().lower()
    text = _SPELLINGS.get(text, text)
    powers = {} if text in ("1", "%") else _parse_powers(text)
    if powers is None or not powers.keys() <= _DIMENSIONS.keys():
        return None
    return tuple(sum(power * _DIMENSIONS[name][axis] for name, power in powers.items()) for axis in range(4))


def _parse_powers(units: object) -> dict[str, int] | None:
    """Return the powers of the symbols of a unit, {"kg": 1, "m": -2, "s": -1} for "kg m-2 s-1"; None if unparsable."""
    if not isinstance(units, str):
        return None
    text = units.strip().lower().replace("**", "").replace("^", "").replace("*", " ").replace(".", " ")
    powers = {}
    for index, part in enumerate(text.split("/")):
        for token in part.split():
            match = _TOKEN.match(token)
            if match is None or match[1] in powers:
                return None
            power = int(match[2] or 1)
            powers[match[1]] = -power if index else power
    return powers or None


_CELSIUS = ("celsius", "deg c", "degree c", "degrees c", "degree celsius", "degrees celsius", "°c", "° c", "c")
_KELVIN = ("kelvin", "kelvins", "degk", "deg k", "degree k", "degrees k", "degree kelvin", "degrees kelvin", "°k")
_ONE = ("", "(0 - 1)", "(0-1)", "fraction", "dimensionless", "unitless", "-")
_SPELLINGS = (
    dict.fromkeys(_CELSIUS, "degc")
    | dict.fromkeys(_KELVIN, "k")
    | dict.fromkeys(("percent", "per cent"), "%")
    | dict.fromkeys(_ONE, "1")
    | {"kg/kg": "1", "kg kg-1": "1", "kg kg**-1": "1", "kg kg^-1": "1"}
)
# Exponents of length, mass, time and temperature.
_DIMENSIONS = (
    dict.fromkeys(_LENGTH_MM.keys() | {"km", "gpm"}, (1, 0, 0, 0))
    | dict.fromkeys(("kg", "g"), (0, 1, 0, 0))
    | dict.fromkeys(_TIME_S, (0, 0, 1, 0))
    | dict.fromkeys(("k", "degc"), (0, 0, 0, 1))
    | dict.fromkeys(("pa", "hpa", "kpa", "mb", "mbar", "millibar", "millibars"), (-1, 1, -2, 0))
    | {"j": (2, 1, -2, 0), "w": (2, 1, -3, 0), "n": (1, 1, -2, 0)}
)
_REFLECTIVITY_PREFIX = "equivalent_reflectivity_factor"
_REFLECTIVITY_NAMES = {
    "reflectivity",
    "reflectivity_factor",
    "corrected_reflectivity",
    "dbz",
    "dbzh",
    "dbzv",
    "th",
    "refl",
    "refd",
    "refc",
    "zh",
    "equivalent_reflectivity_factor",
    "composite_reflectivity",
    "maximum_reflectivity",
    "cappi",
    "base_reflectivity",
}
_RAIN_WORDS = re.compile(r"(?<!ter)(?<![dgt])rain|precip|snowfall|prate|(?<![a-z])(tp|rr)(?![a-z])")  # not "terrain"


ALL_VARIABLES = "all"


def split_names(var: str | None, known: Collection[Hashable]) -> list[str] | None:
    """Split the names of requested variables, "t2m" or "t2m,r2m".

    Args:
        var: names, ALL_VARIABLES for all, or None if none is named. A variable whose name is "all" or has a comma can
            be named.
        known: names of variables.

    Returns:
        The names without repetition, or None for None and ALL_VARIABLES.
    """
    if var is None or (var == ALL_VARIABLES and var not in known):
        return None
    if var in known or "," not in var:
        return [var]
    return list(dict.fromkeys(name.strip() for name in var.split(",") if name.strip())) or [var]


def choose_variable(dataset: xr.Dataset, var: str | None = None, convert: bool = False) -> tuple[str, str, list[str]]:
    """Choose the variable of reflectivity or rain of a dataset.

    Without `var`, this is the only variable that declares reflectivity by its standard_name and dBZ, else by its name
    and dBZ, else by dBZ alone. If no variable declares reflectivity, it is the only variable of rain, provided that
    `convert` is True or that all other fields are dimensionless, such as a quality index.

    Args:
        dataset: Dataset.
        var: Name of a variable, which is taken whatever its kind; None: choose.
        convert: Whether to choose rain although there are other fields.

    Returns:
        Name, kind ("reflectivity", "rate" or "amount"), and notes about the choice.

    Raises:
        ValueError: There is no such variable, or no unique choice. The message lists the candidates.
    """
    if var is not None:
        if var not in dataset.variables:
            raise ValueError(f"there is no variable {var!r} in the file; {_describe_candidates(dataset)}")
        return var, _determine_kind(dataset[var]), [f"variable {var} was requested"]
    fields = list_fields(dataset)
    by_standard_name = [name for name in fields if _get_standard_name(dataset[name]).startswith(_REFLECTIVITY_PREFIX)]
    by_name = [name for name in fields if str(name).lower() in _REFLECTIVITY_NAMES]
    by_units = [name for name in fields if is_dbz(dataset[name].attrs.get("units"))]
    for matches, reason in ((by_standard_name, "standard_name"), (by_name, "name"), (by_units, "kind")):
        if not matches:
            continue
        right = [name for name in matches if is_dbz(dataset[name].attrs.get("units"))]
        if len(right) == 1:
            return (
                cast(str, right[0]),
                "reflectivity",
                [f"variable {right[0]} was chosen: the only one whose {reason} and units (dBZ) say reflectivity"],
            )
        if not right:
            raise ValueError(_describe_wrong_units(dataset[matches[0]]))
        raise ValueError(
            f"{len(right)} variables hold reflectivity: {_format_variables(dataset, right)}; name one of them with "
            f"{spell_argument('var')}"
        )
    rain = [name for name in fields if classify_rain(dataset[name])]
    others = [name for name in fields if name not in rain and not _is_unitless(dataset[name])]
    if len(rain) == 1 and (convert or not others):
        kind = cast(str, classify_rain(dataset[rain[0]]))
        return cast(str, rain[0]), kind, [f"variable {rain[0]} was chosen: the only one of rain"]
    raise ValueError(f"no variable of reflectivity was found; {_describe_candidates(dataset)}")


def is_named_reflectivity(variable: xr.DataArray) -> bool:
    """Return True if name or standard_name of a variable declare reflectivity, whatever its units."""
    by_name = str(variable.name).lower() in _REFLECTIVITY_NAMES
    return by_name or _get_standard_name(variable).startswith(_REFLECTIVITY_PREFIX)


def find_only_rain_field(dataset: xr.Dataset) -> str | None:
    """Return the name of the only field of rain, or None if there are none or several."""
    rain = [name for name in list_fields(dataset) if classify_rain(dataset[name])]
    return cast(str, rain[0]) if len(rain) == 1 else None


def _is_unitless(variable: xr.DataArray) -> bool:
    return str(variable.attrs.get("units", "")).strip() in ("", "1", "%")


def _determine_kind(variable: xr.DataArray) -> str:
    if not _is_field(variable):
        raise ValueError(f"variable {variable.name} {_format_dims(variable)} is no field of numbers over (time, y, x)")
    units = variable.attrs.get("units")
    if is_dbz(units):
        return "reflectivity"
    kind = classify_rain(variable, named=True)
    if kind is None:
        raise ValueError(_describe_wrong_units(variable))
    return kind


def classify_rain(variable: xr.DataArray, named: bool = False) -> str | None:
    """Return "rate", "amount" or None for a variable.

    A rate with cell_methods "time: mean" is an amount over its interval.

    Args:
        variable: DataArray.
        named: Whether the user named the variable. Units of rain then suffice, except m and m s-1, which are also units
            of heights and winds; otherwise name, standard_name or long_name must also contain a word for rain.
    """
    rain = parse_rain_units(variable.attrs.get("units"))
    text = f"{variable.name} {_get_standard_name(variable)} {variable.attrs.get('long_name', '')}".lower()
    if rain is None or not (_RAIN_WORDS.search(text) or (named and rain[0] != _LENGTH_MM["m"])):
        return None
    return "amount" if rain[1] is None or get_time_method(variable) in ("mean", "sum") else "rate"


def get_time_method(variable: xr.DataArray) -> str | None:
    """Return the CF cell method over time ("sum", "mean", "point", ...), or None."""
    words = str(variable.attrs.get("cell_methods", "")).split()
    for word, following in itertools.pairwise(words):
        if word in ("time:", "valid_time:", "t:"):
            return following
    return None


def _is_field(variable: xr.DataArray) -> bool:
    return variable.dtype.kind in "fiu" and variable.ndim >= 2


def list_fields(dataset: xr.Dataset) -> list[Hashable]:
    """List the numeric variables with two or more dimensions, without bounds of coordinates."""
    metadata = [attrs for c in dataset.variables.values() for attrs in (c.attrs, c.encoding)]
    bounds = {attrs.get(key) for attrs in metadata for key in ("bounds", "climatology")}
    return [name for name in dataset.data_vars if name not in bounds and _is_field(dataset[name])]


def _get_standard_name(variable: xr.DataArray) -> str:
    return str(variable.attrs.get("standard_name", ""))


def _describe_wrong_units(variable: xr.DataArray) -> str:
    units = variable.attrs.get("units")
    finding = "has no units" if units is None else f"has units {str(units)!r}"
    # `fastds train` has no option for units
    remedy = f"give the right ones with {spell_argument('units')}" if has_option("units") else REPAIR_FIRST
    if parse_rain_units(units) is not None:
        remedy = f"to convert it by Z-R name it with {spell_argument('var')}"
    return (
        f"variable {variable.name} {finding}; expected dBZ, a rain rate such as mm h-1, or a rain amount such as kg m-2"
        f"; {remedy}"
    )


def _describe_candidates(dataset: xr.Dataset) -> str:
    fields = list_fields(dataset)
    if not fields:
        return "the file holds no field over (time, y, x)"
    message = f"candidates: {_format_variables(dataset, fields)}"
    if any(classify_rain(dataset[name]) for name in fields):
        message += f"; rain is converted by Z-R when it is named with {spell_argument('var')}"
    if any(not dataset[name].attrs.get("units") for name in fields):
        message += f"; units that the file does not declare are given with {spell_argument('units')}"
    return message


def _format_variables(dataset: xr.Dataset, names: Iterable[Hashable]) -> str:
    return ", ".join(
        f"{name} {_format_dims(dataset[name])} [{dataset[name].attrs.get('units', 'no units')}]" for name in names
    )


def _format_dims(variable: xr.DataArray) -> str:
    return "(" + ", ".join(map(str, variable.dims)) + ")"
