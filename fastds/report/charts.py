# SPDX-License-Identifier: Apache-2.0
"""Line charts for the page, drawn for light and for dark backgrounds."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import is_color_like, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from fastds.plot import draw_by_lead
from fastds.report.maps import encode_data_uri

_INKS = {"light": "#1c2330", "dark": "#dfe4ec"}
_INK_SETTINGS = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
_SIZE, _DPI = (5.0, 3.5), 150  # inches; small, so that the text is readable on a narrow screen


@dataclasses.dataclass(frozen=True)
class Chart:
    """A line chart.

    Attributes:
        title: title.
        alt: description of the chart, for the alt text.
        draw: function that makes the Figure.
    """

    title: str
    alt: str
    draw: Callable[[], Figure]

    def uri(self, theme: str) -> str:
        """Return the chart as the data URI of a PNG image with transparent background.

        Args:
            theme: "light" or "dark".
        """
        return self._uris[theme]

    @functools.cached_property
    def _uris(self) -> dict[str, str]:
        """Data URIs by theme. The figure is drawn once; only its ink differs between themes."""
        first, *others = _INKS
        colours: dict[Any, str] = dict.fromkeys(_INK_SETTINGS, _INKS[first])
        grounds: dict[Any, str] = dict.fromkeys(("figure.facecolor", "axes.facecolor", "legend.facecolor"), "none")
        with matplotlib.rc_context(colours | grounds | {"grid.color": "#808895", "legend.edgecolor": "#808895"}):
            figure = self.draw()
            figure.set_size_inches(_SIZE)
            uris = {first: _encode(figure)}
            figure.set_layout_engine("none")  # the layout is that of the first theme
            for theme in others:
                _replace_ink(figure, _INKS[first], _INKS[theme])
                uris[theme] = _encode(figure)
        return uris


def make_lead_chart(title: str, leads: np.ndarray, curves: Mapping[str, np.ndarray]) -> Chart:
    """Return a chart of curves by lead time.

    Args:
        title: name of the score, with its unit.
        leads: (n,) lead times in seconds.
        curves: name -> (n,) values.
    """
    ends = "; ".join(f"{name}: {values[0]:.3g} to {values[-1]:.3g}" for name, values in curves.items())
    figure = functools.partial(draw_by_lead, leads / 60, curves, title)
    return Chart(f"{title} by lead", f"From the first to the last lead. {ends}", figure)


def _encode(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    return encode_data_uri(file.getvalue())


def _replace_ink(figure: Figure, old: str, new: str) -> None:
    """Replace a colour of texts, ticks and axes."""

    def has_ink(colour: Any) -> bool:
        return is_color_like(colour) and to_hex(colour) == old

    for artist in figure.findobj(lambda one: isinstance(one, Text | Line2D)):
        if isinstance(artist, Text | Line2D) and has_ink(artist.get_color()):
            artist.set_color(new)
    for axes in figure.axes:
        for spine in axes.spines.values():
            if has_ink(spine.get_edgecolor()):
                spine.set_edgecolor(new)
