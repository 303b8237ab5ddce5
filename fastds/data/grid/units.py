# SPDX-License-Identifier: Apache-2.0
"""Units of any UDUNITS spelling, by pint; those that most files have without it."""

import functools
import re
from typing import Any

_METRES = {
    **dict.fromkeys(("m", "metre", "meter", "metres", "meters"), 1.0),
    **dict.fromkeys(("km", "kilometre", "kilometer", "kilometres", "kilometers"), 1e3),
}
# UDUNITS writes powers without a sign ("m-2", "s2"), pint with one.
_POWER = re.compile(r"(?<=[A-Za-z)])(?<![\d.][eE])([-+]?\d+)(?![A-Za-z0-9])")
_DEFINITIONS = (
    "degrees_north = degree = degree_north = degree_N = degrees_N = degreeN = degreesN",
    "degrees_east = degree = degree_east = degree_E = degrees_E = degreeE = degreesE",
    "geopotential_meter = meter = gpm = geopotential_metre",
    "@alias degree_Celsius = degree_C = degrees_Celsius = degrees_C = degreeC = degreesC = degrees_celsius",
    "@alias survey_foot = us_survey_foot = US_survey_feet = US_survey_foot",
    "@alias percent = per_cent",
)


def metres_of(units: object) -> float | None:
    """Metres in a unit of length, in any UDUNITS spelling ("km", "Kilometers", "US_survey_foot", "100 m"); None for
    other units."""
    text = str(units).strip()
    if text.lower() in _METRES:
        return _METRES[text.lower()]
    parsed = parse(text)
    if parsed is None or not parsed.check("[length]"):
        return None
    return float(parsed.to("meter").magnitude)


@functools.cache
def parse(text: str) -> Any:
    """The pint.Quantity of one such unit; None for what is no unit or has an offset, such as degrees Celsius."""
    if not text or not re.search("[A-Za-z%]", text) or " since " in text:
        return None
    registry = _registry()
    plain = re.sub(r"\s+(?=\()", " * ", re.sub(r"(?<!\d)(\*\*|\^)", "", text)).replace(".", " ").replace("%", "percent")
    plain = plain.replace("^", "**")
    plain = re.sub(r"(\d) (\d)", r"\1.\2", plain)  # decimal points, which a dot between units is not
    plain = re.sub(r"(?<=[A-Za-z0-9)]) +(?=[A-Za-z(])", " * ", _POWER.sub(r"**\1", plain))
    for spelling in (plain, plain.lower()):
        try:
            return registry.Quantity(1.0, "") * registry.parse_expression(spelling)
        except Exception:  # pint raises errors of Python's tokenizer, of its own and of arithmetic
            continue
    return None


@functools.cache
def _registry() -> Any:
    import pint  # here, for it takes a while and most files have units that are known without it

    registry = pint.UnitRegistry(on_redefinition="ignore")
    for definition in _DEFINITIONS:
        registry.define(definition)
    return registry
