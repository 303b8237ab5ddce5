# SPDX-License-Identifier: Apache-2.0
"""Units in UDUNITS spellings. Metres, kilometres and degrees are recognised without the slow import of pint."""

import functools
import re
from typing import Any

_METRES = {
    **dict.fromkeys(("m", "metre", "meter", "metres", "meters"), 1.0),
    **dict.fromkeys(("km", "kilometre", "kilometer", "kilometres", "kilometers"), 1e3),
}
# Exponent of a UDUNITS unit ("m-2", "s2"), which pint writes with "**".
_POWER = re.compile(r"(?<=[A-Za-z)])(?<![\d.][eE])([-+]?\d+)(?![A-Za-z0-9])")
_DEFINITIONS = (
    "degrees_north = degree = degree_north = degree_N = degrees_N = degreeN = degreesN",
    "degrees_east = degree = degree_east = degree_E = degrees_E = degreeE = degreesE",
    "geopotential_meter = meter = gpm = geopotential_metre",
    "@alias degree_Celsius = degree_C = degrees_Celsius = degrees_C = degreeC = degreesC = degrees_celsius",
    "@alias survey_foot = us_survey_foot = US_survey_feet = US_survey_foot",
    "@alias percent = per_cent",
)


def get_metres_per_unit(units: object) -> float | None:
    """Return the number of metres in a unit of length ("km", "US_survey_foot", "100 m"), or None for other units."""
    text = str(units).strip()
    if text.lower() in _METRES:
        return _METRES[text.lower()]
    if text.lower().startswith("degree"):
        return None
    parsed = parse_unit(text)
    if parsed is None or not parsed.check("[length]"):
        return None
    return float(parsed.to("meter").magnitude)


@functools.cache
def parse_unit(text: str) -> Any:
    """Return the pint.Quantity of one unit, or None for text that is no unit and for units with an offset."""
    if not text or not re.search("[A-Za-z%]", text) or " since " in text:
        return None
    registry = _create_registry()
    spelt = re.sub(r"\s+(?=\()", " * ", re.sub(r"(?<!\d)(\*\*|\^)", "", text)).replace(".", " ").replace("%", "percent")
    spelt = spelt.replace("^", "**")
    spelt = re.sub(r"(\d) (\d)", r"\1.\2", spelt)  # restore decimal points; dots between units stay spaces
    spelt = re.sub(r"(?<=[A-Za-z0-9)]) +(?=[A-Za-z(])", " * ", _POWER.sub(r"**\1", spelt))
    for spelling in (spelt, spelt.lower()):
        try:
            return registry.Quantity(1.0, "") * registry.parse_expression(spelling)
        except Exception:  # pint raises its own errors, those of Python's tokenizer and arithmetic errors
            continue
    return None


@functools.cache
def _create_registry() -> Any:
    import pint  # slow import that most files do not need

    registry: Any = pint.UnitRegistry(on_redefinition="ignore")
    for definition in _DEFINITIONS:
        registry.define(definition)
    return registry
