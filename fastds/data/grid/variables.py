# SPDX-License-Identifier: Apache-2.0
"""Variables of a file by their attributes, and units."""

import re
from collections.abc import Hashable, Iterable

import xarray as xr

from fastds.data.grid.units import parse

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
# Parts of common units that no unit of rain has; others are looked up by pint, whose import takes a while.
_NO_RAIN = {"k", "degc", "pa", "hpa", "mb", "j", "w", "n", "v", "mol", "deg", "degree", "rad", "sr", "gpm", "dbz"}
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*([a-z]+)$")
_COUNTED = re.compile(r"(?:(/)|\s)\s*\(?\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*\)?(-1)?$")  # "/5min", " (5 min)-1"
_TOKEN = re.compile(r"^([a-z]+)(-?\d+)?$")


def is_dbz(units: object) -> bool:
    """True for dBZ in any spelling of the letters' case."""
    return isinstance(units, str) and units.strip().lower() == "dbz"


def rain_units(units: object) -> tuple[float, float | None] | None:
    """Millimetres (= kg m-2) and seconds of a unit of rain.

    "mm h-1" -> (1, 3600), "mm/5min" -> (1, 300), "kg m-2 s-1" -> (1, 1), "kg m-2" -> (1, None), "m" -> (1000, None);
    None for anything else.
    A value v is v * millimetres / seconds in mm s-1 (a rate), or v * millimetres in mm (an amount, seconds None).
    """
    units, count = _one_of_many(units)
    powers = _powers(units)
    known = powers is not None and all(name in _TIME_S or name in _LENGTH_MM or name == "kg" for name in powers)
    if not known:
        others = powers is not None and not _NO_RAIN.isdisjoint(powers)
        return None if others else _rain_by_parts(str(units))
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


def _rain_by_parts(text: str) -> tuple[float, float | None] | None:
    """As rain_units, of any other spelling; of a rate the seconds are 1."""
    quantity = parse(text)
    if quantity is None:
        return None
    for unit, millimetres in (("meter", 1000.0), ("kilogram / meter ** 2", 1.0)):
        if quantity.is_compatible_with(unit):
            return millimetres * float(quantity.to(unit).magnitude), None
        if quantity.is_compatible_with(f"{unit} / second"):
            return millimetres * float(quantity.to(f"{unit} / second").magnitude), 1.0
    return None


def _one_of_many(units: object) -> tuple[object, float]:
    """A rate over several minutes, "mm/5min" or "mm (5 min)-1", as one over a minute and how many they are: "mm/min",
    5."""
    match = _COUNTED.search(units.strip().lower()) if isinstance(units, str) else None
    if match is None or bool(match[1]) == bool(match[4]):
        return units, 1.0
    return f"{units.strip().lower()[: match.start()]}/{match[3]}", float(match[2])


def interval_seconds(text: str) -> float | None:
    """Seconds of an interval such as "5 min" or "1 hour"; None if it is not one."""
    parts = str(text).split()
    try:
        return float(parts[0]) * _TIME_S[parts[1].lower()] if len(parts) == 2 else None
    except (ValueError, KeyError):
        return None


def duration_seconds(text: str, name: str) -> float:
    """Seconds of a duration such as "60min", "90 s" or "1h"; ValueError naming the argument for anything else."""
    match = _DURATION.match(str(text).strip().lower())
    seconds = float(match[1]) * _TIME_S[match[2]] if match and match[2] in _TIME_S else 0.0
    if not seconds > 0:
        raise ValueError(f"{name} must be a duration with its unit such as 60min or 1h, got {text!r}")
    return seconds


def same_units(one: object, other: object) -> bool:
    """True for two spellings of a unit: "m**2 s**-2" and "m2/s2", "degC" and "Celsius", "%" and "percent"; "", "1" and
    "(0 - 1)" are all no unit."""
    if _plain_unit(one) == _plain_unit(other):
        return True
    first, second = parse(str(one)), parse(str(other))
    if first is None or second is None or first.dimensionality != second.dimensionality:
        return False
    return bool(abs(float((first / second).to_base_units().magnitude) - 1.0) < 1e-9)


def _plain_unit(units: object) -> str | frozenset:
    """One form of all spellings of a unit: the powers of its parts where they can be read, else its letters."""
    text = re.sub(r"[\s_]+", " ", str(units)).strip().lower()
    text = _SPELLINGS.get(text, text)
    powers = _powers(text)
    return re.sub(r"[\s*^.]", "", text) if powers is None else frozenset(powers.items())


def _powers(units: object) -> dict[str, int] | None:
    """{"kg": 1, "m": -2, "s": -1} of "kg m-2 s-1", "kg/m2/s" or "kg m**-2 s**-1"; None if it cannot be read."""
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
_RAIN_WORDS = re.compile(r"(?<!ter)(?<![dgt])rain|precip|snowfall|prate|(?<![a-z])(tp|rr)(?![a-z])")  # no terrain


def choose_variable(dataset: xr.Dataset, var: str | None = None, convert: bool = False) -> tuple[str, str, list[str]]:
    """Name and kind ("reflectivity", "rate", "amount") of the variable to use, and notes about the choice.

    With `var` that variable, whatever its kind. Without: the only variable of reflectivity by standard_name and
    units, else the only one by name and units, else by units; if there is none, the only variable of rain, where
    `convert` is set or it is the only field but for those without a unit, such as a quality. Otherwise ValueError with
    the list of candidates.
    """
    if var is not None:
        if var not in dataset.variables:
            raise ValueError(f"there is no variable {var!r} in the file; {_candidates_sentence(dataset)}")
        return var, _kind_or_refuse(dataset[var]), [f"variable {var} was asked for"]
    fields = field_names(dataset)
    by_standard_name = [name for name in fields if _standard_name(dataset[name]).startswith(_REFLECTIVITY_PREFIX)]
    by_name = [name for name in fields if str(name).lower() in _REFLECTIVITY_NAMES]
    by_units = [name for name in fields if is_dbz(dataset[name].attrs.get("units"))]
    for matches, reason in ((by_standard_name, "standard_name"), (by_name, "name"), (by_units, "kind")):
        if not matches:
            continue
        right = [name for name in matches if is_dbz(dataset[name].attrs.get("units"))]
        if len(right) == 1:
            return (
                right[0],
                "reflectivity",
                [f"variable {right[0]} was chosen: the only one whose {reason} and units (dBZ) say reflectivity"],
            )
        if not right:
            raise ValueError(_wrong_units(dataset[matches[0]]))
        raise ValueError(
            f"{len(right)} variables hold reflectivity: {_list(dataset, right)}; name one of them with the argument var"
        )
    rain = [name for name in fields if rain_kind(dataset[name])]
    others = [name for name in fields if name not in rain and not _without_unit(dataset[name])]
    if len(rain) == 1 and (convert or not others):
        return rain[0], rain_kind(dataset[rain[0]]), [f"variable {rain[0]} was chosen: the only one of rain"]
    raise ValueError(f"no variable of reflectivity was found; {_candidates_sentence(dataset)}")


def named_reflectivity(variable: xr.DataArray) -> bool:
    """Whether name or standard_name of a variable say reflectivity, whatever its units."""
    by_name = str(variable.name).lower() in _REFLECTIVITY_NAMES
    return by_name or _standard_name(variable).startswith(_REFLECTIVITY_PREFIX)


def only_rain(dataset: xr.Dataset) -> str | None:
    """The only field of rain; None where there are several or none."""
    rain = [name for name in field_names(dataset) if rain_kind(dataset[name])]
    return rain[0] if len(rain) == 1 else None


def _without_unit(variable: xr.DataArray) -> bool:
    return str(variable.attrs.get("units", "")).strip() in ("", "1", "%")


def _kind_or_refuse(variable: xr.DataArray) -> str:
    if not _is_field(variable):
        raise ValueError(f"variable {variable.name} {_dims(variable)} is no field of numbers over (time, y, x)")
    units = variable.attrs.get("units")
    if is_dbz(units):
        return "reflectivity"
    kind = rain_kind(variable, named=True)
    if kind is None:
        raise ValueError(_wrong_units(variable))
    return kind


def rain_kind(variable: xr.DataArray, named: bool = False) -> str | None:
    """ "rate", "amount" or None; a rate with cell_methods "time: mean" is an amount over its interval. named: by the
    user, so that units of rain suffice, except m and m s-1, which are those of heights and winds."""
    rain = rain_units(variable.attrs.get("units"))
    words = f"{variable.name} {_standard_name(variable)} {variable.attrs.get('long_name', '')}".lower()
    if rain is None or not (_RAIN_WORDS.search(words) or (named and rain[0] != _LENGTH_MM["m"])):
        return None
    return "amount" if rain[1] is None or time_method(variable) in ("mean", "sum") else "rate"


def time_method(variable: xr.DataArray) -> str | None:
    """The CF cell method over time ("sum", "mean", "point", ...), or None."""
    words = str(variable.attrs.get("cell_methods", "")).split()
    for word, following in zip(words, words[1:], strict=False):
        if word in ("time:", "valid_time:", "t:"):
            return following
    return None


def _is_field(variable: xr.DataArray) -> bool:
    return variable.dtype.kind in "fiu" and variable.ndim >= 2


def field_names(dataset: xr.Dataset) -> list[Hashable]:
    """The variables of numbers over two dimensions or more, but bounds of coordinates."""
    told = [attrs for c in dataset.variables.values() for attrs in (c.attrs, c.encoding)]
    bounds = {attrs.get(key) for attrs in told for key in ("bounds", "climatology")}
    return [name for name in dataset.data_vars if name not in bounds and _is_field(dataset[name])]


def _standard_name(variable: xr.DataArray) -> str:
    return str(variable.attrs.get("standard_name", ""))


def _wrong_units(variable: xr.DataArray) -> str:
    units = variable.attrs.get("units")
    said = "has no units" if units is None else f"has units {str(units)!r}"
    remedy = "; tell the right ones with the argument units"
    if rain_units(units) is not None:
        remedy = "; to convert it by Z-R name it with the argument var"
    return (
        f"variable {variable.name} {said}; expected dBZ, a rain rate such as mm h-1, or a rain amount such as kg m-2"
        f"{remedy}"
    )


def _candidates_sentence(dataset: xr.Dataset) -> str:
    fields = field_names(dataset)
    if not fields:
        return "the file holds no field over (time, y, x)"
    sentence = f"candidates: {_list(dataset, fields)}"
    if any(rain_kind(dataset[name]) for name in fields):
        sentence += "; rain is converted by Z-R when it is named with the argument var"
    if any(not dataset[name].attrs.get("units") for name in fields):
        sentence += "; units that a file does not tell are given with the argument units"
    return sentence


def _list(dataset: xr.Dataset, names: Iterable[Hashable]) -> str:
    return ", ".join(
        f"{name} {_dims(dataset[name])} [{dataset[name].attrs.get('units', 'no units')}]" for name in names
    )


def _dims(variable: xr.DataArray) -> str:
    return "(" + ", ".join(map(str, variable.dims)) + ")"
