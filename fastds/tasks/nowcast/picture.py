# SPDX-License-Identifier: Apache-2.0
"""A picture of a forecast and of what was observed, from the last known field on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from fastds.data import to_reflectivity
from fastds.data.grid.times import text_of
from fastds.plot import forecast_strip, save_png
from fastds.tasks.common.tables import counted
from fastds.tasks.nowcast.forecasts import Forecasts
from fastds.tasks.nowcast.starts import Timeline, coarse_fields

# Leads shown beside the start.
_LEADS = 5


def write_picture(
    path: Path,
    forecast: xr.Dataset,
    observed: xr.Dataset,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
) -> None:
    """Draw the first forecast of a dataset that nowcast made as a PNG, by a temporary name.

    observed: the dataset it was made from; fields after the start are drawn where it has them. var, z_r: as for
    to_reflectivity.
    """
    forecasts, source = Forecasts(forecast), to_reflectivity(observed, var, z_r=z_r)
    line = Timeline(source.raw[source.dims[0]].values, source.cadence)
    start, fields = line.seconds_at(forecasts.starts[0]), forecasts.fields(0)
    columns = range(0, len(fields) + 1, -(-len(fields) // _LEADS))  # evenly, so that motion between them compares
    leads = [0.0 if k == 0 else forecasts.leads[k - 1] for k in columns]
    places = [line.find(start + lead) for lead in leads]
    (x, unit), (y, unit_y) = (_axis(forecast, dim) for dim in (source.dims[2], source.dims[1]))
    if unit != unit_y:
        x, y, unit = None, None, "pixels"
    of_members = f", mean of {counted(forecasts.count, 'member')}" if forecasts.count else ""
    figure = forecast_strip(
        [None if p is None else coarse_fields(source, [p], forecasts.factor, forecasts.floor)[0] for p in places],
        [None if k == 0 else fields[k - 1] for k in columns],
        [f"+{lead / 60:g} min" if lead else "start" for lead in leads],
        x=x,
        y=y,
        unit=unit,
        title=f"Nowcast from {text_of(forecasts.starts[0])} with {forecasts.name}{of_members}",
    )
    save_png(figure, path)


def _axis(dataset: xr.Dataset, dim: str) -> tuple[np.ndarray | None, str]:
    """The coordinate in km where it is a length, or in degrees, and its unit; else None and pixels."""
    units = str(dataset[dim].attrs.get("units", "")).strip().lower() if dim in dataset.coords else ""
    scale = {"m": 1e-3, "metre": 1e-3, "meter": 1e-3, "km": 1.0}.get(units)
    if units.startswith("degree"):
        return dataset[dim].values, "degrees"
    return (None, "pixels") if scale is None else (dataset[dim].values * scale, "km")
