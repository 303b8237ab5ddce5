# SPDX-License-Identifier: Apache-2.0
"""Figures that studies share: validation curves, and maps of fields next to the truth with their differences."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fastds.plot import field_panel, training_curves
from fastds.report import MapGrid


def draw_validation_curves(
    curves: Mapping[str, pathlib.Path], score: str, log_y: bool = True, column: str = "error"
) -> Figure:
    """Draw a validation score against steps.

    Args:
        curves: method -> validation.csv of its run.
        score: axis label, name and unit.
        log_y: use a logarithmic axis; for positive scores.
        column: column of the CSV files.
    """
    figure = training_curves(curves, (column,), log_y=log_y)
    axes = figure.axes[0]
    axes.set_ylabel(score)
    for line, name in zip(axes.lines, curves, strict=True):
        line.set_label(name)
    axes.legend(fontsize=8)
    return figure


def draw_radar_panel(
    fields: Mapping[str, np.ndarray], truth: np.ndarray, times: Sequence[str], grid: MapGrid, title: str, floor: float,
    inputs: Sequence[np.ndarray | None] | None = None,
) -> Figure:  # fmt: skip
    """Draw the truth and the fields of each time, with their differences.

    Args:
        fields: method -> (times, H, W) in dBZ.
        truth: (times, H, W) in dBZ, NaN where missing.
        times: labels.
        grid: grid of the fields.
        title: title of the figure.
        floor: reflectivity in dBZ of pixels without echo, see clear_below_floor.
        inputs: inputs at these times, None where there is none.
    """

    def from_south(
        maps: Iterable[np.ndarray | None],
    ) -> list[np.ndarray | None]:  # matplotlib draws the first row at the bottom
        return [None if z is None else grid.up(z)[::-1] for z in maps]

    def shown(maps: Iterable[np.ndarray | None]) -> list[np.ndarray | None]:
        return from_south(None if z is None else clear_below_floor(z, floor) for z in maps)

    masked = {name: np.where(np.isnan(truth), np.nan, z) for name, z in fields.items()}
    rows = {"truth": shown(truth), **{name: shown(z) for name, z in masked.items()}}
    differences = {name: from_south(z - truth) for name, z in masked.items()}
    known = None if inputs is None else shown(inputs)
    return field_panel(rows, times, differences=differences, inputs=known, unit="pixels", title=title)


def clear_below_floor(z: np.ndarray, floor: float) -> np.ndarray:
    """Set reflectivity below the floor plus 0.5 dB to zero, so that it is drawn as no echo.

    0.5 dB is a common quantisation step of radar files.
    """
    return np.where(z < floor + 0.5, 0.0, z)


def draw_field_maps(fields: Mapping[str, np.ndarray], truth: np.ndarray, label: str, title: str) -> Figure:
    """Draw the truth and the fields (H, W), with their differences from the truth below them.

    Args:
        fields: method -> (H, W).
        truth: (H, W).
        label: quantity and unit.
        title: title of the figure.
    """
    count, (height, width) = 1 + len(fields), truth.shape
    side = 2.2
    figure = Figure(figsize=(side * count + 0.8, 2 * side * height / width + 1.2), layout="constrained")
    axes = figure.subplots(2, count, squeeze=False, sharex=True, sharey=True)
    limits = {"vmin": float(np.nanmin(truth)), "vmax": float(np.nanmax(truth))}
    limit = float(np.nanpercentile([np.abs(z - truth) for z in fields.values()], 99)) or 1.0
    shown: Any = None
    shown_difference: Any = None
    for column, (name, z) in enumerate({"truth": truth, **fields}.items()):
        shown = axes[0, column].imshow(z, cmap="viridis", **limits)
        axes[0, column].set_title(name, fontsize=8)
        if column:
            shown_difference = axes[1, column].imshow(z - truth, cmap="RdBu_r", vmin=-limit, vmax=limit)
            axes[1, column].set_title(f"rms {np.sqrt(np.nanmean((z - truth) ** 2)):.3g}", fontsize=8)
    axes[1, 0].set_visible(False)
    for one in axes.flat:
        one.tick_params(labelsize=6)
    figure.colorbar(shown, ax=axes[0], label=label)
    figure.colorbar(shown_difference, ax=axes[1], label="difference")
    figure.suptitle(title, fontsize=10)
    return figure
