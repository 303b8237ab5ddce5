# SPDX-License-Identifier: Apache-2.0
"""Picture of a forecast and the observed fields, or animation of the forecast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from fastds.data import to_reflectivity
from fastds.inference.tables import format_count
from fastds.plot import forecast_strip
from fastds.plot.field_styles import choose_style
from fastds.plot.location import Location
from fastds.plot.panels import MapPanels, MapRow
from fastds.plot.saving import is_animation, save_animation, save_figure
from fastds.plot.selection import format_map_time, select_leads
from fastds.tasks.nowcast.forecasts import Forecasts
from fastds.tasks.nowcast.starts import Timeline, read_frames_at

# maximum number of lead times in the picture, in addition to the start
_MAX_LEADS = 4


def write_picture(
    path: Path,
    forecast: xr.Dataset,
    observed: xr.Dataset,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
) -> None:
    """Draw the first forecast of a dataset and write it, atomically.

    Args:
        path: PNG, SVG or PDF file to write, or GIF or MP4 with the last observed frame and all forecast frames.
        forecast: output of nowcast.
        observed: input of the forecast; frames after the initialization time are drawn, too, if it has them, but not in
            an animation.
        var: name of the variable in observed, see to_reflectivity.
        z_r: a and b of Z = a R^b for observed.
    """
    forecasts, source = Forecasts(forecast), to_reflectivity(observed, var, z_r=z_r)
    line, start, fields = Timeline.of(source), forecasts.starts[0], forecasts.read_frames(0)
    location = Location.of(forecasts.variable, forecast)
    of_members = f", mean of {format_count(forecasts.count, 'member')}" if forecasts.count else ""
    title = f"Nowcast from {format_map_time(start)} with {forecasts.name}{of_members}"
    if is_animation(path):
        frames = [("observed", read_frames_at(source, line, start, [0.0], forecasts.cells)[0])]
        frames += [(f"+{lead / 60:g} min", field) for lead, field in zip(forecasts.leads, fields, strict=True)]
        frames = [frame for frame in frames if frame[1] is not None]
        panels = MapPanels([MapRow("", [frames[0][1]], choose_style({"units": "dBZ"}), location)], [""], title)
        save_animation(panels, ((f"{title}: {label}", [[field]]) for label, field in frames), path)
        return
    columns = [None, *select_leads(np.asarray(forecasts.leads), _MAX_LEADS)]
    leads = [0.0 if k is None else forecasts.leads[k] for k in columns]
    figure = forecast_strip(
        read_frames_at(source, line, start, leads, forecasts.cells),
        [None if k is None else fields[k] for k in columns],
        [f"+{lead / 60:g} min" if lead else "start" for lead in leads],
        location=location,
        title=title,
    )
    save_figure(figure, path)
