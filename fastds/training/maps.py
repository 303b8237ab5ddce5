# SPDX-License-Identifier: Apache-2.0
"""Maps of one validation sample after each validation, for TensorBoard: input, output and truth side by side."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from torch import Tensor

from fastds.plot.field_styles import FieldStyle, choose_style
from fastds.plot.selection import select_equally

MOST_ROWS = 4
TAG = "validation sample"
_COLUMNS = ("input", "output", "truth")
_SIDE, _DPI = 2.4, 80  # inches of a map


@dataclasses.dataclass(frozen=True)
class SampleRow:
    """Fields of one time or variable of a sample, in physical units, NaN where missing.

    Attributes:
        label: name of the row.
        output: (H, W).
        truth: (H, W).
        input: (h, w), or None if there is none at this time.
        attrs: units and, if known, standard_name or long_name; they choose the colours.
        name: name of the variable, if known.
    """

    label: str
    output: Tensor
    truth: Tensor
    input: Tensor | None = None
    attrs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    name: str = ""


class SampleMaps:
    """Maps of a validation sample, which are drawn only if a log takes pictures.

    Args:
        writers: TensorBoard writers, with add_image.

    Attributes:
        rows: rows of the sample of this validation; empty until the sample is validated.
    """

    def __init__(self, writers: Sequence[Any]):
        self.writers, self.rows = writers, list[SampleRow]()

    def write(self, step: int) -> None:
        """Write the maps to all logs.

        Args:
            step: number of training steps so far.
        """
        if not self.rows:
            return
        canvas = FigureCanvasAgg(draw_sample(self.rows, f"step {step}"))
        canvas.draw()
        picture = np.asarray(canvas.buffer_rgba())[..., :3]
        for writer in self.writers:
            writer.add_image(TAG, picture, step, dataformats="HWC")


def select_rows(count: int) -> list[int]:
    """Return the indices of at most MOST_ROWS equally spaced times or variables out of `count`."""
    return select_equally(count, MOST_ROWS)


def draw_sample(rows: Sequence[SampleRow], title: str) -> Figure:
    """Draw a sample, one row of maps for each of its rows, and one colour bar for successive rows of a quantity.

    Args:
        rows: at least one row.
        title: title of the figure.
    """
    figure = Figure(figsize=(3 * _SIDE + 1.1, len(rows) * _SIDE + 0.5), dpi=_DPI)
    height = figure.get_figheight()
    grid = figure.add_gridspec(
        len(rows), 4, width_ratios=(1, 1, 1, 0.06), left=0.04, right=0.91, bottom=0.1 / height, top=1 - 0.45 / height,
        wspace=0.04, hspace=0.04,
    )  # fmt: skip
    figure.suptitle(title, fontsize=9, y=1 - 0.12 / height, va="center")
    quantities = itertools.groupby(range(len(rows)), lambda number: (rows[number].name, dict(rows[number].attrs)))
    for _, numbers in quantities:
        same = list(numbers)
        style = _choose_style([rows[number] for number in same])
        for number in same:
            for column, name in enumerate(_COLUMNS):
                field = getattr(rows[number], name)
                axes = figure.add_subplot(grid[number, column])
                axes.set_xticks([])
                axes.set_yticks([])
                if number == 0:
                    axes.set_title(name, fontsize=8, pad=3)
                if column == 0:
                    axes.set_ylabel(rows[number].label, fontsize=8, labelpad=3)
                if field is None:
                    axes.set_frame_on(False)
                    continue
                values = np.ma.masked_invalid(style.convert(field.float().cpu().numpy()))
                axes.imshow(values, cmap=style.colour_map, norm=style.norm, interpolation="nearest")
        bar = figure.add_subplot(grid[same[0] : same[-1] + 1, 3])
        mappable = ScalarMappable(style.norm, style.colour_map)
        figure.colorbar(mappable, cax=bar, ticks=style.levels, extend=style.extend).set_label(style.label, fontsize=8)
        bar.tick_params(labelsize=7)
    return figure


def _choose_style(rows: Sequence[SampleRow]) -> FieldStyle:
    """Choose the colours of a quantity; those without fixed classes get the range of the truth."""
    values = np.concatenate([row.truth.float().cpu().numpy().ravel() for row in rows])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    return choose_style(rows[0].attrs, rows[0].name, low, high)
