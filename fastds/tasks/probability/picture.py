# SPDX-License-Identifier: Apache-2.0
"""Picture or animation of probabilities by threshold and lead time."""

from __future__ import annotations

import os

import xarray as xr

from fastds.plot import draw_probability_maps
from fastds.plot.field_styles import choose_style
from fastds.plot.location import Location
from fastds.plot.panels import MapPanels, MapRow
from fastds.plot.saving import is_animation, save_animation, save_figure
from fastds.plot.selection import format_map_time, select_leads
from fastds.tasks.probability.forecasts import ProbabilityForecasts

_MAX_THRESHOLDS = 6  # maximum number of thresholds in the picture


def write_picture(path: str | os.PathLike, dataset: xr.Dataset) -> str:
    """Draw the probabilities of the first initialization time and write them, atomically.

    Args:
        path: PNG, SVG or PDF file to write, or GIF or MP4 with one frame for each lead time.
        dataset: probabilities.

    Returns:
        Sentence about what is drawn.
    """
    forecasts = ProbabilityForecasts(dataset)
    fields, thresholds = forecasts.read(0), range(min(len(forecasts.thresholds), _MAX_THRESHOLDS))
    location, start = Location.of(forecasts.variable, dataset), format_map_time(forecasts.starts[0])
    events = [f"at least {forecasts.labels[t]}" for t in thresholds]
    leads = [f"+{lead / 60:g} min" if forecasts.has_leads else start for lead in forecasts.leads]
    title = f"Probabilities from {start} with {forecasts.name}" + _describe_members(dataset)
    if is_animation(path):
        style = choose_style({"units": "1"}, is_probability=True)
        panels = MapPanels([MapRow("", [fields[t, 0] for t in thresholds], style, location)], events, title)
        frames = ((f"{title}: {lead}", [[fields[t, k] for t in thresholds]]) for k, lead in enumerate(leads))
        save_animation(panels, frames, path)
    else:
        chosen = select_leads(forecasts.leads)
        maps = [[fields[t, k] for k in chosen] for t in thresholds]
        figure = draw_probability_maps(maps, events, [leads[k] for k in chosen], location=location, title=title)
        save_figure(figure, path)
    highest = forecasts.labels[thresholds[-1]]
    return f"wrote {path}" + f", without thresholds above {highest}" * (len(thresholds) < len(forecasts.thresholds))


def _describe_members(dataset: xr.Dataset) -> str:
    return f", {dataset.attrs['fastds_members']} members" if "fastds_members" in dataset.attrs else ""
