# SPDX-License-Identifier: Apache-2.0
"""Units of reflectivity, rain rates and rain amounts, as they are written in CF files."""

import re

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
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*([a-z]+)$")
_TOKEN = re.compile(r"^([a-z]+)(-?\d+)?$")


def is_dbz(units):
    """True for dBZ in any spelling of the letters' case."""
    return isinstance(units, str) and units.strip().lower() == "dbz"


def rain_units(units):
    """Millimetres (= kg m-2) and seconds of a unit of rain.

    "mm h-1" -> (1, 3600), "kg m-2 s-1" -> (1, 1), "kg m-2" -> (1, None), "m" -> (1000, None); None for anything else.
    A value v is v * millimetres / seconds in mm s-1 (a rate), or v * millimetres in mm (an amount, seconds None).
    """
    powers = _powers(units)
    if powers is None:
        return None
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
    return (millimetres, _TIME_S[times[0]]) if len(times) == 1 and powers[times[0]] == -1 else None


def interval_seconds(text):
    """Seconds of an interval such as "5 min" or "1 hour"; None if it is not one."""
    parts = str(text).split()
    try:
        return float(parts[0]) * _TIME_S[parts[1].lower()] if len(parts) == 2 else None
    except (ValueError, KeyError):
        return None


def duration_seconds(text, name):
    """Seconds of a duration such as "60min", "90 s" or "1h"; ValueError naming the argument for anything else."""
    match = _DURATION.match(str(text).strip().lower())
    seconds = float(match[1]) * _TIME_S[match[2]] if match and match[2] in _TIME_S else 0.0
    if not seconds > 0:
        raise ValueError(f"{name} must be a duration with its unit such as 60min or 1h, got {text!r}")
    return seconds


def same_units(one, other):
    """True for two spellings of a unit, "m**2 s**-2" and "m2 s-2"; "", "1" and "(0 - 1)" are all no unit."""
    plain = [re.sub(r"[\s*^.]", "", str(units)).lower() for units in (one, other)]
    return plain[0] == plain[1] or set(plain) <= {"", "1", "(0-1)"}


def _powers(units):
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
