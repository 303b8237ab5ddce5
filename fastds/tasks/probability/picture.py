# SPDX-License-Identifier: Apache-2.0
"""Image of probabilities by threshold and lead time."""

from __future__ import annotations

import os

import numpy as np
import xarray as xr

from fastds.data.grid.grids import find_grid_mappings, find_latitude_longitude
from fastds.data.grid.projections import compute_latitude_longitude
from fastds.data.grid.times import format_time
from fastds.plot import draw_probability_maps, save_png
from fastds.tasks.nowcast.picture import get_map_axes
from fastds.tasks.probability.forecasts import ProbabilityForecasts

_MAX_LEADS = 6  # maximum number of lead times in the image
_MAX_THRESHOLDS = 6  # maximum number of thresholds in the image
_ROUND_MINUTES = 5


def write_picture(path: str | os.PathLike, dataset: xr.Dataset) -> str:
    """Draw the probabilities of the first initialization time and write them as PNG, atomically.

    Args:
        path: file to write.
        dataset: probabilities.

    Returns:
        Sentence about what is drawn.
    """
    forecasts = ProbabilityForecasts(dataset)
    fields, leads = forecasts.read(0), select_leads(forecasts.leads)
    thresholds = range(min(len(forecasts.thresholds), _MAX_THRESHOLDS))
    x, y, unit = get_map_axes(dataset, *map(str, forecasts.variable.dims[-1:-3:-1]))
    latitude, longitude = _find_positions(dataset, forecasts.variable) if unit == "km" else (None, None)
    start = format_time(forecasts.starts[0])
    figure = draw_probability_maps(
        [[fields[t, k] for k in leads] for t in thresholds],
        [f"at least {forecasts.labels[t]}" for t in thresholds],
        [f"+{forecasts.leads[k] / 60:g} min" if forecasts.has_leads else start for k in leads],
        x=x, y=y, unit=unit, latitude=latitude, longitude=longitude,
        title=f"Probabilities from {start} with {forecasts.name}" + _describe_members(dataset),
    )  # fmt: skip
    save_png(figure, path)
    highest = forecasts.labels[thresholds[-1]]
    return f"wrote {path}" + f", without thresholds above {highest}" * (len(thresholds) < len(forecasts.thresholds))


def _describe_members(dataset: xr.Dataset) -> str:
    return f", {dataset.attrs['fastds_members']} members" if "fastds_members" in dataset.attrs else ""


def select_leads(leads: np.ndarray) -> list[int]:
    """Select at most six equally spaced lead times, if possible whole multiples of five minutes such as 10, 20, 30.

    Args:
        leads: (n,) lead times in seconds.

    Returns:
        Indices.
    """
    count = len(leads)
    steps = [step for step in range(1, count + 1) if count // step <= _MAX_LEADS]
    for step in steps:
        chosen = list(range(step - 1, count, step))
        if len(chosen) > 1 and not np.any(leads[chosen] % (60 * _ROUND_MINUTES)):
            return chosen
    return list(range(steps[0] - 1, count, steps[0]))


def _find_positions(dataset: xr.Dataset, field: xr.DataArray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return latitudes and longitudes (H, W) of the cells, or (None, None) if they are unknown."""
    latitude, longitude = find_latitude_longitude(field)
    if latitude is not None and longitude is not None:
        return (latitude.values, longitude.values) if latitude.ndim == 2 else (None, None)
    mappings = find_grid_mappings(dataset, field)
    y, x = (field.coords.get(dim) for dim in field.dims[-2:])
    if not mappings or x is None or y is None:
        return None, None
    try:
        return compute_latitude_longitude(dataset[mappings[0]].attrs, x, y)
    except (ImportError, RuntimeError, KeyError):  # no pyproj, or no projection: axes in km
        return None, None
