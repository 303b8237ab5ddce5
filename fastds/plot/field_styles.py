# SPDX-License-Identifier: Apache-2.0
"""One colour table for each quantity: colours, class edges and unit of a field, chosen by its attributes.

Reflectivity, rain rate, precipitation amount, temperature, relative humidity and probability have a fixed colour for
each value, so that maps of several times, regions and models can be compared. Other quantities have about ten classes
between their smallest and largest value.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import BoundaryNorm, Colormap, LinearSegmentedColormap, ListedColormap
from matplotlib.ticker import MaxNLocator

from fastds.data.grid.variables import is_dbz, is_same_unit, parse_rain_units
from fastds.plot.style import (
    MISSING_COLOUR,
    NO_ECHO_COLOUR,
    difference_style,
    probability_style,
    reflectivity_style,
)

RAIN_RATE_LEVELS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # mm/h
RAIN_AMOUNT_LEVELS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 100.0)  # mm
HUMIDITY_LEVELS = tuple(range(10, 101, 10))  # %
# from pale blue through green and yellow to violet, light to dark
_RAIN_COLOURS = ("#d2e9f7", "#9fcdf0", "#5aa7e0", "#2475c0", "#2c9a4b", "#f5dd3c", "#f59b21", "#e5352b", "#a0134d")
_RAIN_OVER = "#5b1a7c"
# from brown (dry) to blue (saturated)
_HUMIDITY_COLOURS = (
    "#8a5a1c", "#b98339", "#dab56f", "#efdcae", "#f3f0df", "#cfe8dc", "#98d0c0", "#55ada6", "#1f7f8b",
)  # fmt: skip
_HUMIDITY_UNDER, _HUMIDITY_OVER = "#5e3a0c", "#0f4d73"
# degrees Celsius -> colour; colours in between are interpolated
_TEMPERATURE_COLOURS = {
    -80: "#f0d9ec", -60: "#c583c0", -50: "#9a4aa6", -40: "#632f8e", -30: "#3d47a3", -20: "#2f74c6", -10: "#6bb3e8",
    -5: "#a8d8f0", 0: "#e3f3ee", 5: "#8fcf9a", 10: "#3d9f57", 15: "#c5d94e", 20: "#f7df4a", 25: "#f6a43a",
    30: "#e5562d", 35: "#b3182d", 40: "#7a0c3f", 50: "#3f0530",
}  # fmt: skip
_TEMPERATURE_STEPS = (0.5, 1.0, 2.0, 5.0, 10.0)
_MOST_CLASSES = 14
_ZERO_CELSIUS = 273.15
_TEMPERATURES = ("air_temperature", "dew_point_temperature", "surface_temperature", "sea_surface_temperature")


@dataclasses.dataclass(frozen=True)
class FieldStyle:
    """Colours of a quantity.

    Attributes:
        label: name and unit of the values on the colour bar.
        colour_map: colours of the classes, of values beyond them, and of missing values.
        norm: assignment of values to classes.
        levels: class edges in the unit of the label, ascending.
        extend: ends of the colour bar with values beyond: "neither", "min", "max" or "both".
        factor: values of the field times `factor` plus `offset` are in the unit of the label.
        offset: see factor.
    """

    label: str
    colour_map: Colormap
    norm: BoundaryNorm
    levels: tuple[float, ...]
    extend: str = "neither"
    factor: float = 1.0
    offset: float = 0.0

    def convert(self, values: Any) -> np.ndarray:
        """Convert values of the field to the unit of the label; shares of members in float32 keep their class."""
        return np.round(np.asarray(values, dtype=float) * self.factor + self.offset, 6)


def _make_listed(name: str, levels: tuple[float, ...], colours: tuple[str, ...], under: str, over: str):
    colour_map = ListedColormap(colours, name=name).with_extremes(under=under, over=over, bad=MISSING_COLOUR)
    return colour_map, BoundaryNorm(levels, len(colours)), levels


def rain_rate_style() -> tuple[Colormap, BoundaryNorm, tuple[float, ...]]:
    """Return colour map, norm and class edges (mm/h) of rain rates. Values below 0.1 mm/h are white, missing grey."""
    return _make_listed("rain_rate", RAIN_RATE_LEVELS, _RAIN_COLOURS, NO_ECHO_COLOUR, _RAIN_OVER)


def rain_amount_style() -> tuple[Colormap, BoundaryNorm, tuple[float, ...]]:
    """Return colour map, norm and class edges (mm) of rain amounts. Values below 0.1 mm are white, missing grey."""
    return _make_listed("rain_amount", RAIN_AMOUNT_LEVELS, _RAIN_COLOURS, NO_ECHO_COLOUR, _RAIN_OVER)


def humidity_style() -> tuple[Colormap, BoundaryNorm, tuple[float, ...]]:
    """Return colour map, norm and class edges (%) of relative humidity, from brown (dry) to blue (above 100 %)."""
    return _make_listed("humidity", HUMIDITY_LEVELS, _HUMIDITY_COLOURS, _HUMIDITY_UNDER, _HUMIDITY_OVER)


def temperature_style(low: float, high: float) -> tuple[Colormap, BoundaryNorm, tuple[float, ...]]:
    """Return colour map, norm and class edges (degrees Celsius) of temperatures.

    A temperature has the same colour on every map, apart from the width of the classes.

    Args:
        low: lowest temperature on the map.
        high: highest temperature on the map.
    """
    span = max(high - low, 1e-3)
    step = next((step for step in _TEMPERATURE_STEPS if span / step <= _MOST_CLASSES), _TEMPERATURE_STEPS[-1])
    levels = np.arange(np.floor(low / step), np.ceil(high / step) + 1) * step
    levels = levels if len(levels) > 2 else np.arange(-1, 2) * step + np.round(low / step) * step
    anchors = sorted(_TEMPERATURE_COLOURS)
    places = (np.array(anchors) - anchors[0]) / (anchors[-1] - anchors[0])
    scale = LinearSegmentedColormap.from_list(
        "temperature", list(zip(places, (_TEMPERATURE_COLOURS[a] for a in anchors), strict=True)), N=1024
    )

    def find_colour(value: float) -> Any:
        return scale((value - anchors[0]) / (anchors[-1] - anchors[0]))

    colours = [find_colour(middle) for middle in (levels[1:] + levels[:-1]) / 2]
    colour_map = ListedColormap(colours, name="temperature").with_extremes(
        under=find_colour(levels[0] - step / 2), over=find_colour(levels[-1] + step / 2), bad=MISSING_COLOUR
    )
    return colour_map, BoundaryNorm(levels, len(colours)), tuple(levels.tolist())


def generic_style(low: float, high: float) -> tuple[Colormap, BoundaryNorm, tuple[float, ...]]:
    """Return colour map, norm and class edges of a quantity without a table: about ten round classes of viridis.

    Args:
        low: smallest value on the map.
        high: largest value on the map.
    """
    edges = np.asarray(MaxNLocator(12).tick_values(low, high if high > low else low + 1))
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 1, len(edges) - 1))
    colour_map = ListedColormap(colours, name="generic").with_extremes(
        under=colours[0], over=colours[-1], bad=MISSING_COLOUR
    )
    return colour_map, BoundaryNorm(edges, len(colours)), tuple(edges.tolist())


def choose_style(
    attrs: Mapping[Any, Any], name: str = "", low: float = 0.0, high: float = 1.0, *, is_probability: bool = False
) -> FieldStyle:
    """Choose the colours of a field by its units, standard name and name.

    Args:
        attrs: attributes of the variable, with `units`, and `standard_name` or `long_name` if known.
        name: name of the variable.
        low: smallest value of the fields that are drawn, for quantities without fixed classes.
        high: largest value.
        is_probability: whether the values are probabilities.
    """
    units, standard = str(attrs.get("units", "")).strip(), str(attrs.get("standard_name", ""))
    if is_probability or name.startswith("probability_of_") or standard.startswith("probability_"):
        return FieldStyle("probability (%)", *probability_style(), factor=1.0 if units in ("%", "percent") else 100.0)
    if is_dbz(units):
        return FieldStyle("reflectivity (dBZ)", *reflectivity_style(), extend="max")
    rain = _find_rain(units, standard, name)
    if rain is not None:
        return rain
    if standard == "relative_humidity" and (units in ("%", "percent", "1") or not units):
        factor = 100.0 if units == "1" else 1.0
        return FieldStyle("relative humidity (%)", *humidity_style(), extend="both", factor=factor)
    if standard in _TEMPERATURES or name.lower() in ("t2m", "d2m", "2t", "2d"):
        offset = _find_celsius_offset(units)
        if offset is not None:
            label = _make_label({**attrs, "units": "°C"}, name)
            return FieldStyle(label, *temperature_style(low + offset, high + offset), extend="neither", offset=offset)
    return FieldStyle(_make_label(attrs, name), *generic_style(low, high))


def make_difference(label: str, limit: float = 10.0) -> FieldStyle:
    """Return the colours of a difference, from blue (below) to red (above).

    Args:
        label: name and unit.
        limit: last class edge, > 0.
    """
    return FieldStyle(label, *difference_style(limit), extend="both")


def _find_rain(units: str, standard: str, name: str) -> FieldStyle | None:
    """Return the colours of a rain rate or of an amount of precipitation, or None for other quantities."""
    words = f"{standard} {name}".lower()
    if not re.search(r"(?<![a-z])rain|precip|\btp$", words):  # but not terrain
        return None
    parsed = parse_rain_units(units)
    if parsed is None:
        return None
    millimetres, seconds = parsed
    if seconds is not None:
        return FieldStyle("rain rate (mm/h)", *rain_rate_style(), extend="max", factor=millimetres * 3600 / seconds)
    return FieldStyle("precipitation amount (mm)", *rain_amount_style(), extend="max", factor=millimetres)


def _find_celsius_offset(units: str) -> float | None:
    """Return what is added to a temperature in degrees Celsius or kelvin to convert it to degrees Celsius, or None."""
    offsets = {"K": -_ZERO_CELSIUS, "degC": 0.0}
    return next((offset for unit, offset in offsets.items() if is_same_unit(units, unit)), None)


def _make_label(attrs: Mapping[Any, Any], name: str) -> str:
    """Return name and unit of a quantity for a colour bar."""
    title = attrs.get("long_name") or str(attrs.get("standard_name", "")).replace("_", " ") or name or "value"
    units = attrs.get("units", "no units")
    return f"{title} ({'no units' if units in ('1', '') else units})"
