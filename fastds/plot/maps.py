# SPDX-License-Identifier: Apache-2.0
"""Maps of reflectivity and of reflectivity differences, one or many on a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .colours import difference_style, reflectivity_style


def _edges(centres: np.ndarray | None, size: int) -> np.ndarray:
    """Cell edges of equally spaced centres; pixel numbers where no centres are given."""
    if centres is None:
        return np.arange(size + 1, dtype=float)
    centres = np.asarray(centres, dtype=float)
    if centres.shape != (size,):
        raise ValueError(f"coordinate must have {size} cell centres, got shape {centres.shape}")
    step = centres[1] - centres[0] if size > 1 else 1.0
    return np.concatenate([centres - step / 2, centres[-1:] + step / 2])


def _image(axes: Axes, values, x, y, style):
    values = np.ma.masked_invalid(np.asarray(values, dtype=float))
    if values.ndim != 2:
        raise ValueError(f"field must have two dimensions (y, x), got shape {values.shape}")
    colour_map, norm, _ = style
    image = axes.pcolormesh(
        _edges(x, values.shape[1]), _edges(y, values.shape[0]), values, cmap=colour_map, norm=norm, rasterized=True
    )
    if y is None:
        axes.invert_yaxis()
    axes.set_aspect("equal")
    return image


def draw_field(axes: Axes, field, x=None, y=None, scale: str = "nws"):
    """Draw reflectivity on axes as cells in the colours of `scale` and return the artist.

    field: (H, W) in dBZ, NaN = missing (grey). x (W,), y (H,): cell centres, equally spaced, any unit; without them
    pixel numbers with row 0 at the top. Raises ValueError for another number of dimensions or of coordinates.
    """
    return _image(axes, field, x, y, reflectivity_style(scale))


def draw_difference(axes: Axes, difference, x=None, y=None, limit: float = 10.0):
    """Draw a reflectivity difference on axes in blue (too weak) to red (too strong) and return the artist.

    difference: (H, W) in dB, prediction minus truth, NaN = missing (grey). x, y as in draw_field; limit: last class
    edge in dB.
    """
    return _image(axes, difference, x, y, difference_style(limit))


def field_panel(
    fields: Mapping[str, Sequence],
    times: Sequence[str],
    *,
    differences: Mapping[str, Sequence] | None = None,
    x=None,
    y=None,
    unit: str = "km",
    scale: str = "nws",
    limit: float = 10.0,
    title: str | None = None,
) -> Figure:
    """Draw a panel of maps, one row per product and one column per time, and return the Figure.

    fields: row name -> one (H, W) field in dBZ per time (None leaves the place empty). times: column titles.
    differences: row name -> one (H, W) difference in dB per time, drawn below the fields with a colour bar of their
    own.
    x (W,), y (H,): cell centres in `unit`. limit: last class edge of the differences in dB. title: above the panel.
    Raises ValueError where a row has another number of maps than there are times.
    """
    rows = [(name, maps, draw_field) for name, maps in fields.items()]
    rows += [(name, maps, draw_difference) for name, maps in (differences or {}).items()]
    for name, maps, _ in rows:
        if len(maps) != len(times):
            raise ValueError(f"row {name!r} must have {len(times)} maps, one per time, got {len(maps)}")
    height, width = next(np.shape(m) for _, maps, _ in rows for m in maps if m is not None)
    map_width = 3.0
    map_height = map_width * height / width
    figure = Figure(figsize=(map_width * len(times) + 2.0, map_height * len(rows) + 1.0), layout="constrained")
    grid = figure.subplots(len(rows), len(times), squeeze=False, sharex=True, sharey=True)
    last = {}
    for row, (name, maps, draw) in enumerate(rows):
        for column, values in enumerate(maps):
            axes = grid[row, column]
            if values is None:
                axes.set_axis_off()
                continue
            extra = {"scale": scale} if draw is draw_field else {"limit": limit}
            last[draw] = draw(axes, values, x, y, **extra)
            axes.tick_params(labelsize=7)
            axes.grid(True, color="0.6", linewidth=0.3)
        _label_row(grid[row], name, unit)
    for axes, text in zip(grid[0], times, strict=True):
        axes.set_title(text, fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel(f"x ({unit})", fontsize=8)
    count = len(fields)
    _colour_bar(figure, last[draw_field], grid[:count], reflectivity_style(scale)[2], "reflectivity (dBZ)")
    if differences:
        _colour_bar(
            figure, last[draw_difference], grid[count:], difference_style(limit)[2], "difference from truth (dB)"
        )
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _label_row(row, name: str, unit: str) -> None:
    """Name and axis label at the row's first axes; empty places keep the name."""
    first = row[0]
    if first.axison:
        first.set_ylabel(f"{name}\ny ({unit})", fontsize=9)
    else:
        first.text(0.5, 0.5, name, transform=first.transAxes, ha="center", va="center", fontsize=9)


def _colour_bar(figure: Figure, image, axes, levels, label: str) -> None:
    extend = "both" if levels[0] < 0 < levels[-1] and np.isclose(levels[0], -levels[-1]) else "neither"
    bar = figure.colorbar(image, ax=axes, ticks=levels, extend=extend, shrink=min(1.0, 0.9), aspect=30, pad=0.01)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=7)
    bar.ax.set_yticklabels([f"{level:g}" for level in levels])
