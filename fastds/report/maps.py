# SPDX-License-Identifier: Apache-2.0
"""Maps of several methods over time, encoded as small PNGs.

The colours of the quantities are those of fastds.plot.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from fastds.data import reflectivity_to_rate
from fastds.plot.field_styles import FieldStyle, choose_style, generic_style
from fastds.plot.style import MISSING_COLOUR, probability_style, reflectivity_style
from fastds.report.grid import MapGrid

MAX_FRAMES = 24
MAX_PIXELS = 768
MAX_STAMP_PIXELS = 256
_WET_DBZ = 15.0


@dataclasses.dataclass(frozen=True)
class MapStyle:
    """Colours of a quantity.

    Attributes:
        label: name and unit, such as "reflectivity (dBZ)".
        edges: class edges, ascending.
        colours: colours of the classes, one more than edges; the first is for values below all edges.
        labels: labels of the edges.
        describe: function from a field (H, W) with NaN for missing values to a short description.
        below: name of the first class if it is shown separately, such as "no echo"; otherwise "".
        second: labels of the edges in a second unit.
        second_label: name of the second unit.
    """

    label: str
    edges: tuple[float, ...]
    colours: tuple[str, ...]
    labels: tuple[str, ...]
    describe: Callable[[np.ndarray], str]
    below: str = ""
    second: tuple[str, ...] = ()
    second_label: str = ""

    @property
    def bars(self) -> tuple[str, ...]:
        """Colours of the colour bar, without the class `below`."""
        return self.colours[1:] if self.below else self.colours


def radar_style(z_r: tuple[float, float] | None = None) -> MapStyle:
    """Return the colours of reflectivity in dBZ.

    Args:
        z_r: (a, b) of the Z-R relation, with which the edges are also labelled in mm/h; None: no such labels.
    """
    colour_map: Any
    colour_map, _, edges = reflectivity_style()
    colours = (to_hex(colour_map.get_under()), *map(to_hex, colour_map.colors))
    rates = () if z_r is None else tuple(_format_rate(float(reflectivity_to_rate(edge, z_r))) for edge in edges)
    second_label = "" if z_r is None else f"rain rate (mm/h) by Z = {z_r[0]:g} R^{z_r[1]:g}"
    labels = tuple(map(str, edges))
    return MapStyle(
        "reflectivity (dBZ)",
        edges[:-1],
        colours,
        labels[:-1],
        _describe_echo,
        "below 5 or no echo",
        rates[:-1],
        second_label,
    )


def make_probability_style() -> MapStyle:
    """Return the colours of probabilities from 0 to 1, labelled in %."""
    colour_map: Any
    colour_map, _, levels = probability_style()
    colours = (to_hex(colour_map.get_under()), *map(to_hex, colour_map.colors))
    # the tolerance keeps shares of members such as 7 / 10 in float32 in their class
    edges = tuple(level / 100 - 1e-6 for level in levels[:-1])
    labels = tuple(map(str, levels[:-1]))
    return MapStyle("probability (%)", edges, colours, labels, _describe_probability, "below 5 %")


def field_style(label: str, low: float, high: float) -> MapStyle:
    """Make a colour scale of about ten classes with round limits, for a quantity without fixed colours.

    Args:
        label: name and unit.
        low: smallest value.
        high: largest value.
    """
    return _convert_style(FieldStyle(label, *generic_style(low, high)))


def choose_field_style(field: xr.DataArray, low: float, high: float) -> MapStyle:
    """Choose the colours of a field by its attributes, see fastds.plot.choose_style.

    Args:
        field: field with its name and attributes.
        low: smallest value on the maps.
        high: largest value.
    """
    return _convert_style(choose_style(field.attrs, str(field.name or ""), low, high))


def _convert_style(style: FieldStyle) -> MapStyle:
    """Return the colours of a quantity as classes with an open first and last class, in the units of the field."""
    colour_map: Any = style.colour_map
    levels, colours = style.levels, tuple(map(to_hex, colour_map.colors))
    below = ""
    if style.extend == "neither":  # the levels enclose all values
        levels = levels[1:-1]
    else:
        colours = (to_hex(colour_map.get_under()), *colours, to_hex(colour_map.get_over()))
        below = f"below {levels[0]:g}" if style.extend == "max" else ""
    edges = tuple((level - style.offset) / style.factor for level in levels)
    labels = tuple(f"{level:g}" for level in levels)
    # The unit of the label differs from that of the scores if values are converted.
    is_converted = style.factor != 1 or style.offset != 0
    unit = " " + style.label.rpartition(" (")[2].removesuffix(")") if is_converted else ""
    return MapStyle(
        style.label, edges, colours, labels, lambda field: _describe_range(style.convert(field), unit), below
    )


def _describe_probability(field: np.ndarray) -> str:
    if np.isnan(field).all():
        return "all missing"
    wide = 100 * np.mean(field[~np.isnan(field)] >= 0.5 - 1e-6)
    return f"up to {100 * np.nanmax(field):.0f} %, at least 50 % on {wide:.1f} % of the area"


def _describe_range(field: np.ndarray, unit: str = "") -> str:
    if np.isnan(field).all():
        return "all missing"
    return f"{np.nanmin(field):.4g} to {np.nanmax(field):.4g}{unit}, mean of the cells {np.nanmean(field):.4g}{unit}"


def _format_rate(number: float) -> str:
    return f"{number:.{2 if number < 1 else int(number < 10)}f}"


def _describe_echo(field: np.ndarray) -> str:
    """Describe the maximum, the area with rain, and the missing fraction of a reflectivity field."""
    measured = field[~np.isnan(field)]
    if not measured.size:
        return "all missing"
    words = [f"up to {measured.max():.0f} dBZ" if measured.max() >= 0 else "no echo"]
    words.append(f"{100 * np.mean(measured >= _WET_DBZ):.0f} % of the area at least {_WET_DBZ:g} dBZ")
    missing = 1 - measured.size / field.size
    return ", ".join([*words, *([f"{100 * missing:.0f} % missing"] if missing >= 0.005 else [])])


@dataclasses.dataclass
class Picture:
    """A map: PNG as a data URI, title, and description of the field."""

    uri: str
    title: str
    description: str


class Maps:
    """Panels of maps over time.

    Args:
        grid: grid that all panels cover.
        panels: names of the panels, in order.
        style: colours of all panels.
        title: heading of the group; "" without a heading.
        small: show small panels side by side, such as stamps of members, with at most MAX_STAMP_PIXELS pixels each way.

    Attributes:
        times: labels of the frames.
        pictures: panel -> one Picture for each frame, None where it has no field.
        notes: notes below the maps.
    """

    def __init__(self, grid: MapGrid, panels: Sequence[str], style: MapStyle, title: str = "", small: bool = False):
        self.grid, self.style, self.title, self.small = grid, style, title, small
        self.times: list[str] = []
        self.pictures: dict[str, list[Picture | None]] = {name: [] for name in panels}
        self.notes: list[str] = []

    def add(self, time: str, fields: Mapping[str, np.ndarray | None]) -> None:
        """Add a frame.

        Args:
            time: label of the frame.
            fields: panel -> field (H, W), NaN where missing; panels without a field are empty at this time.
        """
        self.times.append(time)
        for name, pictures in self.pictures.items():
            field = fields.get(name)
            pictures.append(None if field is None else self._make_picture(f"{name}, {time}", np.asarray(field)))

    @property
    def first(self) -> int:
        """Index of the frame that is shown first: the first in which every panel has a field, otherwise 0."""
        full = (k for k in range(len(self.times)) if all(pictures[k] for pictures in self.pictures.values()))
        return next(full, 0)

    def thin(self, fields: np.ndarray) -> np.ndarray:
        """Select every n-th pixel each way of fields (..., H, W), as `add` does, and note it."""
        height, width = fields.shape[-2:]
        step = math.ceil(max(height, width) / (MAX_STAMP_PIXELS if self.small else MAX_PIXELS))
        if step == 1:
            return fields
        self._add_note(f"Maps of {height} x {width} pixels show every {step}th pixel each way.")
        return fields[..., step // 2 :: step, step // 2 :: step]

    def _make_picture(self, title: str, field: np.ndarray) -> Picture:
        description = self.style.describe(field)
        return Picture(encode_png(self.grid.up(self.thin(field)), self.style), title, description)

    def _add_note(self, text: str) -> None:
        text = text.replace(" 2th", " 2nd").replace(" 3th", " 3rd")
        if text not in self.notes:
            self.notes.append(text)


def encode_png(field: np.ndarray, style: MapStyle) -> str:
    """Encode a field as the data URI of a palette PNG with one pixel per cell.

    Args:
        field: (H, W), NaN where missing; row 0 is the top.
        style: colours of the classes.
    """
    classes = np.digitize(field, style.edges).astype(np.uint8)
    classes[np.isnan(field)] = len(style.colours)
    image = Image.fromarray(classes)
    image.putpalette([round(255 * part) for colour in (*style.colours, MISSING_COLOUR) for part in to_rgb(colour)])
    file = io.BytesIO()
    image.save(file, "png", compress_level=6)  # level 9 takes five times as long for 12 % fewer bytes
    return encode_data_uri(file.getvalue())


def encode_data_uri(content: bytes) -> str:
    """Encode a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def select_evenly(count: int, most: int) -> list[int]:
    """Select evenly spaced indices from range(count), including the first and the last.

    Args:
        count: Number of indices to select from.
        most: Largest number of selected indices.
    """
    return sorted(set(np.linspace(0, count - 1, max(1, min(count, most))).round().astype(int).tolist()))
