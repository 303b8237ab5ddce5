# SPDX-License-Identifier: Apache-2.0
"""Line charts for the page, drawn for light and for dark backgrounds."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from fastds.report.maps import encode_data_uri

_INKS = {"light": "#1c2330", "dark": "#dfe4ec"}
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
        """Draw the chart and return it as the data URI of a PNG image with transparent background.

        Args:
            theme: "light" or "dark".
        """
        ink = _INKS[theme]
        colours: dict[Any, str]
        colours = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink)
        grounds: dict[Any, str] = dict.fromkeys(("figure.facecolor", "axes.facecolor", "legend.facecolor"), "none")
        with matplotlib.rc_context(colours | grounds | {"grid.color": "#808895", "legend.edgecolor": "#808895"}):
            figure = self.draw()
            figure.set_size_inches(_SIZE)
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=_DPI)
        return encode_data_uri(file.getvalue())
