# SPDX-License-Identifier: Apache-2.0
"""Maps of several methods beside each other over time, as small PNGs in the colours of fastds.plot."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.colors import to_hex, to_rgb
from matplotlib.ticker import MaxNLocator
from PIL import Image

from fastds.data import reflectivity_to_rate
from fastds.plot.style import MISSING_COLOUR, reflectivity_style
from fastds.report.grid import MapGrid

MAX_FRAMES = 24
MAX_PIXELS = 768
_WET_DBZ = 15.0


@dataclasses.dataclass(frozen=True)
class MapStyle:
    """Colours of a quantity.

    Attributes:
        label: its name and unit, such as "reflectivity (dBZ)".
        edges: of the classes, ascending. colours: one more than edges, the first for what lies below all of them.
        labels: of the edges; second: more labels of the edges in another unit, and second_label its name.
        below: name of the first class where it stands apart, such as "no echo"; "" where it is as the others.
        describe: (H, W) measured and missing values -> a few words about them.
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
        """Colours of the bar; `below` is told beside it."""
        return self.colours[1:] if self.below else self.colours


def radar_style(law: tuple[float, float] | None = None) -> MapStyle:
    """The scale of reflectivity in dBZ, with rain rates in mm/h where the law (a, b) of Z = a R^b is known."""
    colour_map, _, edges = reflectivity_style()
    colours = (to_hex(colour_map.get_under()), *map(to_hex, colour_map.colors))
    rates = () if law is None else tuple(_short(float(reflectivity_to_rate(edge, law))) for edge in edges)
    said = "" if law is None else f"rain rate (mm/h) by Z = {law[0]:g} R^{law[1]:g}"
    labels = tuple(map(str, edges))
    return MapStyle(
        "reflectivity (dBZ)", edges[:-1], colours, labels[:-1], _echo, "below 5 or no echo", rates[:-1], said
    )


def field_style(label: str, low: float, high: float) -> MapStyle:
    """A scale of about a dozen classes. label: name and unit. low, high: the range of the values."""
    edges = MaxNLocator(12).tick_values(low, high if high > low else low + 1)[1:-1]
    colours = tuple(map(to_hex, matplotlib.colormaps["viridis"](np.linspace(0, 1, len(edges) + 1))))
    return MapStyle(label, tuple(edges.tolist()), colours, tuple(f"{edge:g}" for edge in edges), _extremes)


def _extremes(field: np.ndarray) -> str:
    if np.isnan(field).all():
        return "all missing"
    return f"{np.nanmin(field):.4g} to {np.nanmax(field):.4g}, mean of the cells {np.nanmean(field):.4g}"


def _short(number: float) -> str:
    return f"{number:.{2 if number < 1 else int(number < 10)}f}"


def _echo(field: np.ndarray) -> str:
    """Strongest echo, its share of the measured area, and what is missing."""
    measured = field[~np.isnan(field)]
    if not measured.size:
        return "all missing"
    words = [f"up to {measured.max():.0f} dBZ" if measured.max() >= 0 else "no echo"]
    words.append(f"{100 * np.mean(measured >= _WET_DBZ):.0f} % of the area at least {_WET_DBZ:g} dBZ")
    missing = 1 - measured.size / field.size
    return ", ".join([*words, *([f"{100 * missing:.0f} % missing"] if missing >= 0.005 else [])])


@dataclasses.dataclass
class Picture:
    """A map: its PNG as a data URI, its title, and words about the field."""

    uri: str
    title: str
    words: str


class Maps:
    """Panels of maps over time.

    Args: grid that all panels cover; panels: their names, in order; style of all.
    Attributes: times: labels of the frames; pictures: panel -> one Picture a frame, None where it has no field; notes.
    """

    def __init__(self, grid: MapGrid, panels: Sequence[str], style: MapStyle):
        self.grid, self.style = grid, style
        self.times: list[str] = []
        self.pictures: dict[str, list[Picture | None]] = {name: [] for name in panels}
        self.notes: list[str] = []

    def add(self, time: str, fields: Mapping[str, np.ndarray | None]) -> None:
        """Add a frame: panel -> field (H, W), NaN = missing; panels without one have no field at that time."""
        self.times.append(time)
        for name, pictures in self.pictures.items():
            field = fields.get(name)
            pictures.append(None if field is None else self._picture(f"{name}, {time}", np.asarray(field)))

    @property
    def first(self) -> int:
        """The frame that is seen at first: the first in which every panel has a field, else the first."""
        full = (k for k in range(len(self.times)) if all(pictures[k] for pictures in self.pictures.values()))
        return next(full, 0)

    def _picture(self, title: str, field: np.ndarray) -> Picture:
        words = self.style.describe(field)
        step = math.ceil(max(field.shape) / MAX_PIXELS)
        if step > 1:
            self._note(f"Maps of {field.shape[0]} x {field.shape[1]} pixels show every {step}th pixel each way.")
        return Picture(png(self.grid.up(field[step // 2 :: step, step // 2 :: step]), self.style), title, words)

    def _note(self, text: str) -> None:
        text = text.replace("2th", "2nd").replace("3th", "3rd")
        if text not in self.notes:
            self.notes.append(text)


def png(field: np.ndarray, style: MapStyle) -> str:
    """A field (H, W), row 0 at the top, NaN = missing, as the data URI of a PNG with a palette, one pixel a cell."""
    classes = np.digitize(field, style.edges).astype(np.uint8)
    classes[np.isnan(field)] = len(style.colours)
    image = Image.fromarray(classes)
    image.putpalette([round(255 * part) for colour in (*style.colours, MISSING_COLOUR) for part in to_rgb(colour)])
    file = io.BytesIO()
    image.save(file, "png", optimize=True)
    return data_uri(file.getvalue())


def data_uri(content: bytes) -> str:
    """A PNG inside a page."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def evenly(count: int, most: int) -> list[int]:
    """At most so many numbers below count, from the first to the last, evenly spread."""
    return sorted(set(np.linspace(0, count - 1, max(1, min(count, most))).round().astype(int).tolist()))
