# SPDX-License-Identifier: Apache-2.0
"""Image of a forecast and the observed fields."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from fastds.data import to_reflectivity
from fastds.data.grid.times import format_time
from fastds.inference.tables import format_count
from fastds.plot import forecast_strip, save_png
from fastds.tasks.nowcast.forecasts import Forecasts
from fastds.tasks.nowcast.starts import Timeline, read_coarse_frames

# maximum number of lead times in the image
_MAX_LEADS = 5


def write_picture(
    path: Path,
    forecast: xr.Dataset,
    observed: xr.Dataset,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
) -> None:
    """Draw the first forecast of a dataset and write it as PNG, atomically.

    Args:
        path: file to write.
        forecast: output of nowcast.
        observed: input of the forecast; frames after the initialization time are drawn, too, if it has them.
        var: name of the variable in observed, see to_reflectivity.
        z_r: a and b of Z = a R^b for observed.
    """
    forecasts, source = Forecasts(forecast), to_reflectivity(observed, var, z_r=z_r)
    line = Timeline.of(source)
    start, fields = line.seconds_at(forecasts.starts[0]), forecasts.read_frames(0)
    # equally spaced, so that the motion between columns is comparable
    columns = range(0, len(fields) + 1, -(-len(fields) // _MAX_LEADS))
    leads = [0.0 if k == 0 else forecasts.leads[k - 1] for k in columns]
    places = [line.find(start + lead) for lead in leads]
    x, y, unit = get_map_axes(forecast, str(source.dims[2]), str(source.dims[1]))
    of_members = f", mean of {format_count(forecasts.count, 'member')}" if forecasts.count else ""
    figure = forecast_strip(
        [None if p is None else read_coarse_frames(source, [p], forecasts.cells)[0] for p in places],
        [None if k == 0 else fields[k - 1] for k in columns],
        [f"+{lead / 60:g} min" if lead else "start" for lead in leads],
        x=x,
        y=y,
        unit=unit,
        title=f"Nowcast from {format_time(forecasts.starts[0])} with {forecasts.name}{of_members}",
    )
    save_png(figure, path)


def get_map_axes(dataset: xr.Dataset, x_dim: str, y_dim: str) -> tuple[np.ndarray | None, np.ndarray | None, str]:
    """Return the coordinates along x and y for a map, with their unit: "km" or "degrees", or (None, None, "pixels")."""
    (x, unit), (y, unit_y) = (_get_axis(dataset, dim) for dim in (x_dim, y_dim))
    return (x, y, unit) if unit == unit_y else (None, None, "pixels")


def _get_axis(dataset: xr.Dataset, dim: str) -> tuple[np.ndarray | None, str]:
    """Return a coordinate in km or degrees with its unit, or (None, "pixels") for other units."""
    units = str(dataset[dim].attrs.get("units", "")).strip().lower() if dim in dataset.coords else ""
    scale = {"m": 1e-3, "metre": 1e-3, "meter": 1e-3, "km": 1.0}.get(units)
    if units.startswith("degree"):
        return dataset[dim].values, "degrees"
    return (None, "pixels") if scale is None else (dataset[dim].values * scale, "km")
