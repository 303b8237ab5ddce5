# SPDX-License-Identifier: Apache-2.0
"""Maps of radar fields: panels, sequences over time, differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import BoundaryNorm, Colormap
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from fastds.plot.graticule import draw_graticule
from fastds.plot.location import Location, find_edges
from fastds.plot.outlines import draw_outlines
from fastds.plot.style import difference_style, reflectivity_style

_MOST_CELLS = 2000  # drawn along each axis, more than the pixels of a picture
_BAR_ASPECT = 4.5  # length over thickness of a colour bar, for each inch of the width of the figure


def thin_field(values: np.ndarray) -> np.ndarray:
    """Select every n-th row and column of a field (H, W), so that at most 2000 of each are drawn."""
    rows, columns = (
        np.minimum(np.arange(0, size, _find_step(size)) + _find_step(size) // 2, size - 1) for size in values.shape
    )
    return values if len(rows) == values.shape[0] and len(columns) == values.shape[1] else values[np.ix_(rows, columns)]


def _find_step(size: int) -> int:
    return -(-size // _MOST_CELLS)


def draw_cells(
    axes: Axes,
    values: ArrayLike,
    x: ArrayLike | None,
    y: ArrayLike | None,
    style: tuple[Colormap, BoundaryNorm, Sequence[float]],
) -> QuadMesh:
    """Draw a field as coloured cells on axes and return the artist.

    Args:
        axes: matplotlib axes.
        values: (H, W), NaN where missing.
        x: see draw_field.
        y: see draw_field.
        style: colour map, norm and class edges.
    """
    values = np.ma.masked_invalid(np.asarray(values, dtype=float))
    if values.ndim != 2:
        raise ValueError(f"field must have two dimensions (y, x), got shape {values.shape}")
    colour_map, norm, _ = style
    edges = [
        find_edges(centres, size)[np.append(np.arange(0, size, _find_step(size)), size)]
        for centres, size in zip((x, y), values.shape[::-1], strict=True)
    ]
    image = axes.pcolormesh(*edges, thin_field(values), cmap=colour_map, norm=norm, rasterized=True)
    if y is None:
        axes.invert_yaxis()
    axes.set_aspect("equal")
    return image


def draw_field(
    axes: Axes, field: ArrayLike, x: ArrayLike | None = None, y: ArrayLike | None = None, scale: str = "nws"
) -> QuadMesh:
    """Draw reflectivity as cells on axes and return the artist.

    Args:
        axes: matplotlib axes.
        field: (H, W) in dBZ, NaN where missing (grey).
        x: (W,) equally spaced cell centres in any unit; None: pixel numbers.
        y: (H,) equally spaced cell centres in any unit; None: pixel numbers with row 0 at the top.
        scale: colour scale, see reflectivity_style.

    Raises:
        ValueError: if field is not two-dimensional, or x or y have another length.
    """
    return draw_cells(axes, field, x, y, reflectivity_style(scale))


def draw_difference(
    axes: Axes, difference: ArrayLike, x: ArrayLike | None = None, y: ArrayLike | None = None, limit: float = 10.0
) -> QuadMesh:
    """Draw a difference of reflectivity from blue (too low) to red (too high) on axes and return the artist.

    Args:
        axes: matplotlib axes.
        difference: (H, W) prediction minus truth in dB, NaN where missing (grey).
        x: see draw_field.
        y: see draw_field.
        limit: last class edge in dB.
    """
    return draw_cells(axes, difference, x, y, difference_style(limit))


def field_panel(
    fields: Mapping[str, Sequence],
    times: Sequence[str],
    *,
    differences: Mapping[str, Sequence] | None = None,
    inputs: Sequence | None = None,
    x: ArrayLike | None = None,
    y: ArrayLike | None = None,
    unit: str = "km",
    scale: str = "nws",
    limit: float = 10.0,
    title: str | None = None,
) -> Figure:
    """Draw maps in one row per entry of `fields` and one column per time, and return the Figure.

    The maps of differences and of inputs are drawn to the right of these columns.

    Args:
        fields: row name -> one field (h, w) in dBZ per time, None where there is none. All fields cover the same area;
            resolutions may differ if they divide one another.
        times: column titles.
        differences: row name -> one difference (H, W) in dB per time, drawn to the right of the row of that name.
        inputs: fields drawn to the right of the first row, unless this row has differences.
        x: (W,) cell centres of the finest grid in `unit`; None: pixel numbers.
        y: (H,) cell centres of the finest grid in `unit`; None: pixel numbers.
        unit: unit of x and y.
        scale: colour scale, see reflectivity_style.
        limit: last class edge of the differences in dB.
        title: title of the figure.

    Raises:
        ValueError: if a row has another number of maps than times, if differences name no row of fields, or if
            resolutions do not divide one another.
    """
    differences = differences or {}
    for name, maps in (*fields.items(), *differences.items(), ("input", inputs)):
        if maps is not None and len(maps) != len(times):
            raise ValueError(f"row {name!r} must have {len(times)} maps, one per time, got {len(maps)}")
        if maps is not None and maps is not inputs and name not in fields:
            raise ValueError(f"differences {name!r} have no row among the fields {', '.join(fields)}")
    finest = tuple(np.max([np.shape(m) for maps in fields.values() for m in maps if m is not None], axis=0))
    count, blocks = len(times), 2 if differences or inputs is not None else 1
    side = min(2.6, 17.0 / (count * blocks))
    size = (side * count * blocks + 0.7, (side * finest[0] / finest[1] + 0.28) * len(fields) + 1.5)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(fields), count * blocks, squeeze=False, sharex=True, sharey=True)
    drawn: dict[Callable, QuadMesh] = {}
    for row, (name, maps) in enumerate(fields.items()):
        cells: list[tuple[Any, Any, Any, str]] = [(values, draw_field, scale, name) for values in maps]
        if name in differences:
            cells += [(values, draw_difference, limit, f"{name} minus truth") for values in differences[name]]
        elif row == 0 and inputs is not None:
            cells += [(values, draw_field, scale, "input") for values in inputs]
        cells += [(None, None, None, "")] * (count * blocks - len(cells))
        for column, (values, draw, style, label) in enumerate(cells):
            axes = grid[row, column]
            if values is None:
                axes.set_visible(False)
                continue
            drawn[draw] = draw(axes, values, *_block_centres(x, y, np.shape(values), finest), style)
            label_map(axes, f"{label}, {times[column % count]}", unit, left=column == 0, bottom=row == len(fields) - 1)
    colour_bar(
        figure, drawn[draw_field], grid[:, :count], reflectivity_style(scale)[2], "reflectivity (dBZ)", "neither"
    )
    if differences:
        levels = difference_style(limit)[2]
        colour_bar(figure, drawn[draw_difference], grid[:, count:], levels, "difference from truth (dB)", "both")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def label_map(axes: Axes, title: str, unit: str, left: bool, bottom: bool) -> None:
    """Set title, ticks and grid lines of a map.

    Args:
        axes: matplotlib axes.
        title: title.
        unit: unit of the axes.
        left: label the y axis.
        bottom: label the x axis.
    """
    axes.set_title(title, fontsize=8, pad=3)
    axes.tick_params(labelsize=7, labelbottom=bottom, labelleft=left)
    axes.grid(True, color="0.55", linewidth=0.3)
    if bottom:
        axes.set_xlabel(f"x ({unit})", fontsize=8)
    if left:
        axes.set_ylabel(f"y ({unit})", fontsize=8)


def make_location(x: ArrayLike | None, y: ArrayLike | None, unit: str) -> Location:
    """Return the location of coordinates in a unit; without coordinates, of pixel numbers.

    Args:
        x: (W,) cell centres, or None.
        y: (H,) cell centres, or None.
        unit: unit of x and y.
    """
    across, up = (None if values is None else np.asarray(values, dtype=float) for values in (x, y))
    return Location(across, up, unit)


def finish_map(
    axes: Axes,
    title: str,
    location: Location,
    left: bool,
    bottom: bool,
    *,
    size: tuple[float, float] = (3.0, 3.0),
    outlines: bool = True,
) -> None:
    """Set title and ticks of a map, and draw graticule, coasts, borders and cities if its location is known.

    Args:
        axes: matplotlib axes of the map.
        title: title.
        location: location of the field.
        left: label the y axis.
        bottom: label the x axis.
        size: (width, height) of the map in inches.
        outlines: draw coasts, borders and cities.
    """
    label_map(axes, title, location.unit, left=left, bottom=bottom)
    if not location.is_known:
        return
    axes.set(xlabel="", ylabel="")
    axes.tick_params(left=left, bottom=bottom)
    if location.unit == "degrees":
        axes.set_aspect(1 / _compute_shrinking(location))
    draw_graticule(axes, location, most=int(np.clip(1.7 * size[0], 3, 7)))
    if outlines:
        draw_outlines(axes, location, size)


def compute_ratio(shape: Sequence[int], location: Location) -> float:
    """Return height over width of a map on the ground.

    Args:
        shape: (H, W) of the field.
        location: location of the field.
    """
    if location.x is None or location.y is None:
        return shape[0] / shape[1]
    (left, right), (bottom, top) = location.x_edges, location.y_edges
    across = _compute_shrinking(location) if location.unit == "degrees" else 1.0
    return (top - bottom) / ((right - left) * across)


def _compute_shrinking(location: Location) -> float:
    """Return the length of a degree of longitude over that of latitude in the middle of a map."""
    return max(0.1, float(np.cos(np.deg2rad(np.mean(location.y_edges)))))


def note_missing(fields: Iterable[ArrayLike]) -> str:
    """Return a text for the label of a colour bar, if a field has missing values, else ""."""
    return "; grey: missing" if any(np.isnan(np.asarray(field, dtype=float)).any() for field in fields) else ""


def _block_centres(
    x: ArrayLike | None, y: ArrayLike | None, shape: Sequence[int], finest: Sequence[int]
) -> list[np.ndarray]:
    """Return the cell centres of a grid `shape` that covers the area of the finest grid with centres x and y."""
    centres = []
    for values, size, fine in ((x, shape[1], finest[1]), (y, shape[0], finest[0])):
        values = np.arange(fine) + 0.5 if values is None else np.asarray(values, dtype=float)
        if fine % size:
            raise ValueError(f"grids must divide one another, got {size} and {fine} pixels")
        centres.append(values.reshape(size, fine // size).mean(axis=1))
    return centres


def colour_bar(
    figure: Figure, image: QuadMesh, axes: np.ndarray, levels: Sequence[float], label: str, extend: str
) -> None:
    """Draw one colour bar below several maps.

    Args:
        figure: figure of the maps.
        image: one of the maps, which determines colours and norm.
        axes: axes of the maps.
        levels: values of the ticks.
        label: label of the colour bar.
        extend: ends of the bar with a triangle: "neither", "both", "min" or "max".
    """
    aspect = max(30.0, _BAR_ASPECT * figure.get_figwidth())  # bars of wide figures are as thick as others
    bar = figure.colorbar(
        image, ax=axes, ticks=levels, extend=extend, location="bottom", shrink=0.8, aspect=aspect, pad=0.01
    )
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=7)
    bar.ax.set_xticklabels([f"{level:g}" for level in levels])


# Values below the colour scale are not drawn, so both fields are clipped to it before they are subtracted.
_FLOOR_DBZ = 5.0


def forecast_strip(
    observed: Sequence,
    forecast: Sequence,
    times: Sequence[str],
    *,
    x: ArrayLike | None = None,
    y: ArrayLike | None = None,
    unit: str = "km",
    location: Location | None = None,
    title: str = "",
) -> Figure:
    """Draw observations, forecasts and their differences in three rows and return the Figure.

    There is one column per time. If no time has both an observation and a forecast, all fields are in one row.

    Args:
        observed: one field (H, W) in dBZ per time, None where there is none.
        forecast: one field (H, W) in dBZ per time, None where there is none.
        times: column titles.
        x: (W,) cell centres in `unit`; None: pixel numbers.
        y: (H,) cell centres in `unit`; None: pixel numbers.
        unit: unit of x and y.
        location: location of the fields in place of x, y and unit, for coasts, borders, cities and a graticule.
        title: title of the figure.

    Raises:
        ValueError: if observed or forecast have another length than times.
    """
    if len(observed) != len(times) or len(forecast) != len(times):
        raise ValueError(f"expected {len(times)} fields, one per time, got {len(observed)} and {len(forecast)}")
    differences = [
        None if o is None or f is None else np.maximum(f, _FLOOR_DBZ) - np.maximum(o, _FLOOR_DBZ)
        for o, f in zip(observed, forecast, strict=True)
    ]
    rows: list[tuple[str, Sequence, Callable]] = [
        ("observed", observed, draw_field),
        ("forecast", forecast, draw_field),
    ]
    names = ["forecast" if o is None else "observed" for o in observed]
    if any(d is not None for d in differences):
        rows.append(("forecast minus observed", differences, draw_difference))
    else:
        rows = [("", [f if o is None else o for o, f in zip(observed, forecast, strict=True)], draw_field)]
    shape = next(np.shape(f) for f in (*observed, *forecast) if f is not None)
    location = make_location(x, y, unit) if location is None else location
    side = min(3.0, 17.0 / len(times))
    high = side * compute_ratio(shape, location)
    size = (side * len(times) + 0.7, (high + 0.28) * len(rows) + (1.6 if len(rows) > 1 else 1.0))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(times), squeeze=False, sharex=True, sharey=True)
    drawn: dict[Callable, QuadMesh] = {}
    for row, (name, maps, draw) in enumerate(rows):
        first = next((column for column, values in enumerate(maps) if values is not None), None)
        for column, values in enumerate(maps):
            axes = grid[row, column]
            axes.set_visible(values is not None)
            if values is not None:
                drawn[draw] = draw(axes, values, location.x, location.y)
                label = f"{name or names[column]}, {times[column]}"
                finish_map(axes, label, location, column == first, row == len(rows) - 1, size=(side, high))
    missing = note_missing(f for f in (*observed, *forecast) if f is not None)
    colour_bar(figure, drawn[draw_field], grid[:2], reflectivity_style()[2], f"reflectivity (dBZ){missing}", "neither")
    if len(rows) == 3:
        colour_bar(
            figure, drawn[draw_difference], grid[2], difference_style()[2], "forecast minus observed (dB)", "both"
        )
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
