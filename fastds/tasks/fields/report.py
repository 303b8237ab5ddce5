# SPDX-License-Identifier: Apache-2.0
"""The HTML report of downscaled gridded fields: maps of input and output, and what was run."""

from __future__ import annotations

import os
from typing import Unpack

import numpy as np
import xarray as xr

from fastds.data import opened
from fastds.data.reading import Reading
from fastds.report import MAX_FRAMES, MapGrid, Maps, Page, evenly, field_style
from fastds.tasks.common.reports import facts, settings_of, utc
from fastds.tasks.fields.methods import DEFAULT_MODEL

_MEMBER = "realization"
_MEMBERS = 3  # of an ensemble on the maps


def report_files(
    output: str | os.PathLike,
    given: str | os.PathLike,
    *,
    report: str | os.PathLike,
    model: str | os.PathLike | None = None,
    var: str | None = None,
    **reading: Unpack[Reading],
) -> None:
    """Write a report of a file of gridded fields that was downscaled.

    output: the file that was made. given: the file it was made of. report: the page. model: name or file of the weights
    whose card it tells; None: as output names them. var: the variable that is drawn; None: the first of output.
    reading: of given, see fastds.data.reading.
    """
    with opened(output) as fine, opened(given, var, **reading) as coarse:
        field = fine[var or next(name for name, v in fine.data_vars.items() if v.ndim >= 2)]
        source = _same_place(coarse[field.name], field)
        maps = _maps(fine, field, source)
        if len(fine.data_vars) > 1:
            maps.notes.insert(0, f"Maps of {field.name}, one of {', '.join(map(str, fine.data_vars))}.")
        named = model or fine.attrs.get("fastds_model", DEFAULT_MODEL)
        files = {"output": (fine, field), "input": (coarse, source)}
        Page(f"Downscaled fields: {field.name}", facts(named, settings_of(fine), files), maps=maps).write(report)


def _same_place(source: xr.DataArray, field: xr.DataArray) -> xr.DataArray:
    """The input at the level that the output has, with its dimensions in the order of the output."""
    for dim in set(source.dims) - set(field.dims):
        source = source.sel({dim: field[dim]}, method="nearest") if dim in field.coords else source.isel({dim: 0})
    return source.transpose(*(dim for dim in field.dims if dim in source.dims))


def _maps(fine: xr.Dataset, field: xr.DataArray, source: xr.DataArray) -> Maps:
    """Input and output, or the first members, one frame for each time and level."""
    members = range(min(_MEMBERS, field.sizes.get(_MEMBER, 0)))
    made = {f"member {k + 1}": field.isel({_MEMBER: k}) for k in members} or {"output": field}
    lead = [dim for dim in source.dims[:-2]]
    places = list(np.ndindex(*(source.sizes[dim] for dim in lead)))
    chosen = [dict(zip(lead, places[k], strict=True)) for k in evenly(len(places), MAX_FRAMES)]
    seen = [{"input": source.isel(at), **{name: part.isel(at) for name, part in made.items()}} for at in chosen]
    low, high = (f([f(np.ma.masked_invalid(part["input"].values)) for part in seen]) for f in (np.min, np.max))
    label = f"{field.attrs.get('long_name', field.name)} ({field.attrs.get('units', 'no units')})"
    maps = Maps(MapGrid.of(field), ["input", *made], field_style(label, float(low), float(high)))
    if len(chosen) < len(places):
        maps.notes.append(f"Maps of {len(chosen)} of {len(places)} fields.")
    for at, parts in zip(chosen, seen, strict=True):
        maps.add(_label(source, at), {name: part.values for name, part in parts.items()})
    return maps


def _label(source: xr.DataArray, at: dict) -> str:
    """Time and level of a field."""
    words = []
    for dim, k in at.items():
        value = source[dim].values[k] if dim in source.coords else k
        timed = dim in source.coords and source[dim].dtype.kind in "MO"
        words.append(utc(value) if timed else f"{dim} {value:g} {source[dim].attrs.get('units', '')}".rstrip())
    return ", ".join(words) or "the field"
