# SPDX-License-Identifier: Apache-2.0
"""Colour scales of radar maps, and writing of figures."""

from __future__ import annotations

import os

from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap
from matplotlib.figure import Figure

from fastds._outputs import atomic_write

NO_ECHO_COLOUR = "#ffffff"
MISSING_COLOUR = "#d0d0d0"

# Scale -> (class edges in dBZ, colours of the classes). The classes of "nws" are 5 dBZ wide, as in maps of base
# reflectivity by the US weather service. The class edges of "meteonet" are those that Meteo-France publishes with
# MeteoNet; its colours go from pale blue through green and red to violet.
_SCALES = {
    "nws": (
        (5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75),
        (
            "#04e9e7", "#019ff4", "#0300f4", "#02fd02", "#01c501", "#008e00", "#fdf802",
            "#e5bc00", "#fd9500", "#fd0000", "#d40000", "#bc0000", "#f800fd", "#9854c6",
        ),
    ),
    "meteonet": (
        (-9, -4, 0, 4, 8, 12, 16, 20, 24, 32, 40, 48, 56, 66, 72),
        (
            "#eef3f9", "#dbe6f2", "#c3d6ea", "#9fc1e0", "#74a5d2", "#4384c2", "#2f9e74",
            "#55c13f", "#a9dc2c", "#f7e225", "#f9a11b", "#ef4b23", "#c2185b", "#7b1fa2",
        ),
    ),
}  # fmt: skip
REFLECTIVITY_LEVELS = {name: levels for name, (levels, _) in _SCALES.items()}


def reflectivity_style(scale: str = "nws") -> tuple[Colormap, BoundaryNorm, tuple[int, ...]]:
    """Return colour map, norm and class edges (dBZ) of a reflectivity scale.

    Values below the first edge are white, missing values grey.

    Args:
        scale: "nws" (classes of 5 dBZ from 5 dBZ) or "meteonet" (class edges of MeteoNet, from -9 dBZ).

    Raises:
        ValueError: for another scale.
    """
    if scale not in _SCALES:
        raise ValueError(f"scale must be one of {', '.join(_SCALES)}, got {scale!r}")
    levels, colours = _SCALES[scale]
    colour_map = ListedColormap(colours, name=f"reflectivity_{scale}").with_extremes(
        under=NO_ECHO_COLOUR, over=colours[-1], bad=MISSING_COLOUR
    )
    return colour_map, BoundaryNorm(levels, len(colours)), levels


PROBABILITY_LEVELS = (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
# from light to dark, so that the order is visible without the colours
_PROBABILITY_COLOURS = (
    "#f7f6bf", "#dcefae", "#b0dfa4", "#7fcca0", "#52b7a7", "#369dae", "#2f80ac", "#37619f", "#43428a", "#4a1f66",
)  # fmt: skip


def probability_style() -> tuple[Colormap, BoundaryNorm, tuple[int, ...]]:
    """Return colour map, norm and class edges (%) of probabilities: 5 %, 10 %, then every 10 %.

    Values below 5 % are white, missing values grey.
    """
    colour_map = ListedColormap(_PROBABILITY_COLOURS, name="probability").with_extremes(
        under=NO_ECHO_COLOUR, over=_PROBABILITY_COLOURS[-1], bad=MISSING_COLOUR
    )
    return colour_map, BoundaryNorm(PROBABILITY_LEVELS, len(_PROBABILITY_COLOURS)), PROBABILITY_LEVELS


def difference_style(limit: float = 10.0) -> tuple[Colormap, BoundaryNorm, tuple[float, ...]]:
    """Return colour map, norm and class edges of a difference in dB: eleven classes, white within limit / 20 of zero.

    Args:
        limit: last class edge in dB, > 0; larger differences have the end colours.

    Raises:
        ValueError: if limit <= 0.
    """
    if not limit > 0:
        raise ValueError(f"limit must be a positive difference in dB, got {limit!r}")
    blues = ("#08306b", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0")
    reds = ("#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#67001f")
    steps = (0.05, 0.2, 0.4, 0.6, 0.8, 1.0)
    levels = tuple(-limit * s for s in reversed(steps)) + tuple(limit * s for s in steps)
    colour_map = ListedColormap((*blues, "#ffffff", *reds), name="reflectivity_difference").with_extremes(
        under="#041c3f", over="#3d0013", bad=MISSING_COLOUR
    )
    return colour_map, BoundaryNorm(levels, 11), levels


def save_png(figure: Figure, path: str | os.PathLike, dpi: int = 110) -> None:
    """Write a figure as PNG atomically.

    Args:
        figure: the figure.
        path: PNG file; an existing file is replaced.
        dpi: pixels per inch.
    """
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)
