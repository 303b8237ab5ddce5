# SPDX-License-Identifier: Apache-2.0
"""Maps of any quantity in rows and columns, with coasts, graticule and one colour bar for each quantity."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text

from fastds.plot.field_styles import FieldStyle
from fastds.plot.location import Location
from fastds.plot.maps import colour_bar, compute_ratio, draw_cells, finish_map, note_missing, thin_field

_WIDEST, _WIDEST_ALONE = 3.6, 5.5  # inches, of a map in several columns, and in one
_WIDTH, _MIN_WIDTH, _HEIGHT = 17.0, 5.0, 18.0  # inches, of all maps
_LETTERS_PER_INCH = 11  # of the title


@dataclasses.dataclass
class MapRow:
    """A row of maps of one quantity.

    Attributes:
        label: name of the row, such as "mean of 20 members".
        fields: one field (H, W) per column, NaN where missing; None where there is none.
        style: colours of the quantity.
        location: location of the fields, or one location per column.
    """

    label: str
    fields: Sequence[np.ndarray | None]
    style: FieldStyle
    location: Location | Sequence[Location]

    def get_location(self, column: int) -> Location:
        """Return the location of the field in a column."""
        return self.location if isinstance(self.location, Location) else self.location[column]

    def compute_ratio(self) -> float:
        """Return height over width of the first map on the ground."""
        column, field = next((k, field) for k, field in enumerate(self.fields) if field is not None)
        return compute_ratio(np.shape(field), self.get_location(column))


class MapPanels:
    """Maps in rows and columns whose fields can be replaced, as frames of an animation do.

    Args:
        rows: rows of maps; rows without any field are left out.
        columns: names of the columns.
        title: title of the figure.
        outlines: draw coasts, borders and cities.

    Attributes:
        figure: the figure.

    Raises:
        ValueError: a row has another number of fields than columns, or no row has a field.
    """

    def __init__(self, rows: Sequence[MapRow], columns: Sequence[str], title: str = "", outlines: bool = True):
        for row in rows:
            if len(row.fields) != len(columns):
                raise ValueError(f"row {row.label!r} must have {len(columns)} fields, got {len(row.fields)}")
        self._rows = [row for row in rows if any(field is not None for field in row.fields)]
        if not self._rows:
            raise ValueError("there is no field to draw")
        ratios = [row.compute_ratio() for row in self._rows]
        side = min(_WIDEST if len(columns) > 1 or len(self._rows) > 1 else _WIDEST_ALONE, _WIDTH / len(columns))
        side = min(side, _HEIGHT / sum(ratios))
        groups = self._group_rows()
        width = max(side * len(columns) + 0.9, _MIN_WIDTH)
        lines = textwrap.wrap(title, int(_LETTERS_PER_INCH * width))
        height = sum(side * ratio + 0.25 for ratio in ratios) + 0.65 * len(groups) + 0.2 * len(lines) + 0.2
        self.figure = Figure(figsize=(width, height), layout="constrained")
        grid = self.figure.subplots(len(self._rows), len(columns), squeeze=False, height_ratios=ratios)
        self._images: list[list[QuadMesh | None]] = []
        self._axes = grid
        for number, (row, ratio) in enumerate(zip(self._rows, ratios, strict=True)):
            is_last = number == len(self._rows) - 1
            size = side, side * ratio
            self._images.append(
                [self._draw(grid[number, k], row, k, is_last, size, outlines) for k in range(len(columns))]
            )
        self.set_columns(columns)
        for first, last in groups:
            self._add_colour_bar(grid[first : last + 1], first, last)
        self._letters = int(_LETTERS_PER_INCH * width)
        self._title: Text | None = None
        if lines:
            self.set_title(title)

    def _group_rows(self) -> list[tuple[int, int]]:
        """Return first and last number of successive rows with the same colours."""
        groups: list[tuple[int, int]] = []
        for number, row in enumerate(self._rows):
            if groups and self._rows[groups[-1][0]].style is row.style:
                groups[-1] = groups[-1][0], number
            else:
                groups.append((number, number))
        return groups

    def _draw(
        self, axes: Axes, row: MapRow, column: int, last: bool, size: tuple[float, float], outlines: bool
    ) -> QuadMesh | None:
        field = row.fields[column]
        if field is None:
            axes.set_visible(False)
            return None
        style, location = row.style, row.get_location(column)
        colours = style.colour_map, style.norm, style.levels
        image = draw_cells(axes, style.convert(field), location.x, location.y, colours)
        first = next(k for k, other in enumerate(row.fields) if other is not None)
        finish_map(axes, "", location, column == first, last, size=size, outlines=outlines)
        return image

    def _add_colour_bar(self, axes: np.ndarray, first: int, last: int) -> None:
        image = next(image for image in self._images[first] if image is not None)
        style = self._rows[first].style
        fields = (field for row in self._rows[first : last + 1] for field in row.fields if field is not None)
        colour_bar(self.figure, image, axes, style.levels, style.label + note_missing(fields), style.extend)

    def set_title(self, title: str) -> None:
        """Set the title of the figure."""
        text = textwrap.fill(title, self._letters)
        if self._title is None:
            self._title = self.figure.suptitle(text, fontsize=11)
        self._title.set_text(text)  # the position stays that of the layout

    def set_columns(self, columns: Sequence[str]) -> None:
        """Set the names of the columns in the titles of the maps."""
        for row, axes in zip(self._rows, self._axes, strict=True):
            for name, one in zip(columns, axes, strict=True):
                one.set_title(", ".join(filter(None, (row.label, name))), fontsize=8, pad=3)

    def set_fields(self, fields: Sequence[Sequence[np.ndarray | None]]) -> None:
        """Replace the fields of all rows; None hides a map.

        Args:
            fields: for each drawn row, one field per column of the same shape as before.
        """
        for row, images, axes, new in zip(self._rows, self._images, self._axes, fields, strict=True):
            for image, one, field in zip(images, axes, new, strict=True):
                one.set_visible(image is not None and field is not None)
                if image is not None and field is not None:
                    image.set_array(np.ma.masked_invalid(thin_field(row.style.convert(field))))


def draw_panels(rows: Sequence[MapRow], columns: Sequence[str], *, title: str = "", outlines: bool = True) -> Figure:
    """Draw maps in rows and columns and return the Figure. The arguments are those of MapPanels.

    Args:
        rows: rows of maps; rows without any field are left out.
        columns: names of the columns.
        title: title of the figure.
        outlines: draw coasts, borders and cities.
    """
    return MapPanels(rows, columns, title, outlines).figure
