# SPDX-License-Identifier: Apache-2.0
"""Picture or animation of a downscaled file: input, result, and of an ensemble its mean and a member."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np
import xarray as xr

from fastds.data.grid.axes import find_time_dimension
from fastds.data.grid.times import to_seconds
from fastds.data.grid.variables import parse_rain_units
from fastds.inference.files import InputFiles, check_target
from fastds.inference.tables import format_count
from fastds.plot.field_styles import FieldStyle, choose_style
from fastds.plot.fields import MEMBER, arrange_field, find_limits, is_auxiliary
from fastds.plot.location import Location
from fastds.plot.panels import MapPanels, MapRow
from fastds.plot.saving import check_picture, is_animation, save_animation, save_figure
from fastds.plot.selection import format_map_time, select_equally

_MAX_TIMES = 4  # columns
_MAX_VARIABLES = 3


def prepare_picture(source: InputFiles, picture: str | os.PathLike) -> Callable[[xr.Dataset, xr.Dataset], str]:
    """Check the name of a picture before anything is computed, and return the function that draws it.

    Args:
        source: input files, which the picture must not replace.
        picture: name of the picture.

    Returns:
        write_picture with its first argument.

    Raises:
        ValueError: the name ends in no known format, or is that of an input.
    """
    check_target(source, Path(picture))
    check_picture(picture)
    return functools.partial(write_picture, picture)


def write_picture(path: str | os.PathLike, given: xr.Dataset, out: xr.Dataset) -> str:
    """Draw input and result of a downscaling and write them, atomically.

    Args:
        path: PNG, SVG or PDF file to write, or GIF or MP4 with one frame of the result for each time.
        given: input.
        out: result.

    Returns:
        Sentence about what is drawn.
    """
    names = [name for name, field in out.data_vars.items() if _is_drawn(field, out)]
    most = max(out[name].ndim for name in names)
    names = [name for name in names if out[name].ndim == most]
    model = out.attrs.get("fastds_model")
    title = "Downscaled fields" + (f" with {model}" if model else "")
    if is_animation(path):
        drawn = names[:1]
        _write_animation(path, out, out[drawn[0]], title)
    else:
        drawn = names[:_MAX_VARIABLES]
        parts = [_make_rows(given, out, name, several=len(drawn) > 1) for name in drawn]
        columns = parts[0][1]
        if len(columns) > 1:
            rows = [row for made, _ in parts for row in made]
        else:  # a single time: input and result are next to each other
            rows, columns = _transpose([made for made, _ in parts], columns[0])
        save_figure(MapPanels(rows, columns, title).figure, path)
    left_out = names[len(drawn) :]
    return f"wrote {path}" + (f", without {', '.join(map(str, left_out))}" if left_out else "")


def _is_drawn(field: xr.DataArray, out: xr.Dataset) -> bool:
    return field.ndim >= 2 and field.dtype.kind in "fiu" and not is_auxiliary(field, out)


def _make_rows(given: xr.Dataset, out: xr.Dataset, name: Hashable, several: bool) -> tuple[list[MapRow], list[str]]:
    """Return the rows of a variable and the names of the columns.

    Args:
        given: input.
        out: result.
        name: name of the variable.
        several: whether the picture has several variables, so that the rows need their names.
    """
    fine, level = _select_level(arrange_field(out[name]))
    coarse = _select_level(arrange_field(given[name]), fine)[0] if name in given else None
    time = find_time_dimension(fine)
    places, labels = _select_times(fine, coarse, time)
    parts = {"input": coarse} if coarse is not None else {}
    if MEMBER in fine.dims:
        parts["member 1"] = fine.isel({MEMBER: 0})
        parts[f"mean of {format_count(fine.sizes[MEMBER], 'member')}"] = fine
    else:
        parts["downscaled"] = fine
    seen = {label: [_read(part, time, place[label == "input"]) for place in places] for label, part in parts.items()}
    rates = _find_rate_factors(fine, coarse, time)
    if rates:
        seen = {
            label: [None if field is None else field * rates[label == "input"] for field in fields]
            for label, fields in seen.items()
        }
        style = choose_style({"units": "mm h-1"}, "rain")
    else:
        style = _choose_shared_style(fine, seen)
    locations = {"input": Location.of(coarse, given) if coarse is not None else Location()}
    fine_location = Location.of(fine, out)
    prefix = ", ".join(filter(None, (str(name) if several else "", level)))
    rows = [
        MapRow(": ".join(filter(None, (prefix, label))), fields, style, locations.get(label, fine_location))
        for label, fields in seen.items()
    ]
    return rows, labels


def _find_rate_factors(
    fine: xr.DataArray, coarse: xr.DataArray | None, time: Hashable | None
) -> tuple[float, float] | None:
    """Return the factors from amounts of the result and of the input to mm/h, or None.

    Amounts of different intervals cannot be compared on maps, rates can. None: no amounts of rain, or equal intervals.
    """
    units = parse_rain_units(fine.attrs.get("units"))
    if units is None or units[1] is not None or coarse is None or time not in fine.dims or time not in coarse.dims:
        return None
    if min(fine.sizes[time], coarse.sizes[time]) < 2:
        return None
    step, coarse_step = (to_seconds(field[time].values[1] - field[time].values[0]) for field in (fine, coarse))
    return None if step == coarse_step else (units[0] * 3600 / step, units[0] * 3600 / coarse_step)


def _transpose(parts: list[list[MapRow]], time: str) -> tuple[list[MapRow], list[str]]:
    """Return one row per variable with input and result in columns, for fields at a single time."""
    rows, columns = [], [row.label.rpartition(": ")[2] for row in max(parts, key=len)]
    for made in parts:
        fields = [None] * (len(columns) - len(made)) + [row.fields[0] for row in made]
        locations = [Location()] * (len(columns) - len(made)) + [row.get_location(0) for row in made]
        name = made[0].label.rpartition(": ")[0]
        rows.append(MapRow(", ".join(filter(None, (name, time))), fields, made[0].style, locations))
    return rows, columns


def _choose_shared_style(field: xr.DataArray, seen: dict[str, list[np.ndarray | None]]) -> FieldStyle:
    """Return the colours of a quantity for the values of all rows."""
    values = np.concatenate([f.ravel() for fields in seen.values() for f in fields if f is not None])
    return choose_style(field.attrs, str(field.name), *find_limits(xr.DataArray(values)))


def _select_level(field: xr.DataArray, like: xr.DataArray | None = None) -> tuple[xr.DataArray, str]:
    """Select the first value of dimensions other than member, time, y and x, or the one of another field.

    Returns:
        The field, and a text about the selected values.
    """
    time, words = find_time_dimension(field), []
    for dim in field.dims[:-2]:
        if dim in (MEMBER, time):
            continue
        if like is not None and dim in like.coords and dim in field.coords:
            field = field.sel({dim: like[dim]}, method="nearest")
            continue
        if field.sizes[dim] > 1 and dim in field.coords:
            units = field[dim].attrs.get("units", "")
            words.append(f"{dim} {field[dim].values[0]} {units}".strip())
        field = field.isel({dim: 0})
    return field, ", ".join(words)


def _select_times(
    fine: xr.DataArray, coarse: xr.DataArray | None, time: Hashable | None
) -> tuple[list[tuple[int, int | None]], list[str]]:
    """Return the indices of (result, input) for each column, at times of the input, and the names of the columns."""
    if time is None or time not in fine.dims:
        return [(0, 0)], [""]
    labels = fine[time].values if time in fine.coords else np.arange(fine.sizes[time])
    there = {}
    if coarse is not None and time in coarse.dims:
        known = coarse[time].values if time in coarse.coords else np.arange(coarse.sizes[time])
        there = {label: k for k, label in enumerate(known.tolist())}
    common = [k for k, label in enumerate(labels.tolist()) if label in there] or list(range(len(labels)))
    chosen = [common[k] for k in select_equally(len(common), _MAX_TIMES)]
    return [(k, there.get(labels[k].item())) for k in chosen], [_format(labels[k]) for k in chosen]


def _format(label: np.generic) -> str:
    return format_map_time(label) if label.dtype.kind in "MO" else f"field {label}"


def _read(field: xr.DataArray, time: Hashable | None, place: int | None) -> np.ndarray | None:
    """Read a field (H, W), the mean if it has members; None for no place."""
    if place is None:
        return None
    field = field.isel({time: place}) if time in field.dims else field
    return np.asarray((field.mean(MEMBER, skipna=False) if MEMBER in field.dims else field).values, dtype=float)


def _write_animation(path: str | os.PathLike, out: xr.Dataset, field: xr.DataArray, title: str) -> None:
    """Write one frame for each time of a variable, of an ensemble of its mean."""
    field, level = _select_level(arrange_field(field))
    if MEMBER in field.dims:
        title = f"{title}, mean of {format_count(field.sizes[MEMBER], 'member')}"
    title = ", ".join(filter(None, (title, level)))
    time = find_time_dimension(field)
    count = field.sizes[time] if time in field.dims else 1
    labels = [_format(field[time].values[k]) if time in field.coords else f"field {k}" for k in range(count)]
    style = choose_style(field.attrs, str(field.name), *find_limits(field))
    panels = MapPanels([MapRow("", [_read(field, time, 0)], style, Location.of(field, out))], [""], title)
    frames = ((f"{title}: {label}", [[_read(field, time, k)]]) for k, label in enumerate(labels))
    save_animation(panels, frames, path)
