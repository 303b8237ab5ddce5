# SPDX-License-Identifier: Apache-2.0
"""Variables of several files brought to the same places, levels and times, without reading their values."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import pandas as pd
import xarray as xr

from fastds.data.grid.times import JITTER, most_frequent_step, same_times, seconds_since_first, text_of
from fastds.tasks.fields.geometry import Geometry, Plane

MEMBER = "realization"  # the dimension of the members of an ensemble
_NEAR = 0.1  # cells: places that differ by less are the same


def members_of(count: int) -> xr.Variable:
    """The coordinate of so many members."""
    return xr.Variable((MEMBER,), np.arange(count, dtype=np.int32), {"standard_name": MEMBER})


def noise_seed(seed: int, member: int, time: object) -> list[int]:
    """What a member's noise is drawn from: its time in place of the time's number, which other files would change."""
    return [seed, member, int.from_bytes(text_of(time).encode())]


def on_grid(field: xr.DataArray, own: Geometry, grid: Geometry, called: str, what: str) -> xr.DataArray:
    """A field at the points of another grid with the same spacing, by its names; rows and columns beyond are left out.

    called, what: the other grid and the field in errors. Raises: ValueError where it has not all of them.
    """
    places = {}
    positions = own.positions(grid.latitude, grid.longitude)
    for axis, (name, at) in enumerate(zip(own.names, positions, strict=True)):
        index, n = at.round(), field.sizes[name]
        away = float((at - index).abs().max())
        steps = index.diff().abs()
        apart = bool(((steps != 1) & (steps != n - 1)).any())  # n - 1: over the seam of a globe
        if away > _NEAR or apart or int(index.min()) < 0 or int(index.max()) >= n:
            raise ValueError(
                f"the grids differ: {called} has {_span(axis, grid)}, {what} has {_span(axis, own)}; "
                f"`fastds downscale {what} NEW.nc --like {called} --model bicubic` makes one that fits"
            )
        places[name] = _slice(index.long().numpy())
    field = field.isel(places)
    return field.rename({a: b for a, b in zip(own.names, grid.names, strict=True) if a != b})


def _slice(index: np.ndarray) -> slice | np.ndarray:
    """Places that follow one another as a slice, which files and dask read faster."""
    return slice(int(index[0]), int(index[-1]) + 1) if (np.diff(index) == 1).all() else index


def _span(axis: int, grid: Geometry) -> str:
    values = (grid.latitude, grid.longitude)[axis]
    kind = f"values of {grid.names[axis]}" if isinstance(grid, Plane) else ("latitudes", "longitudes")[axis]
    return f"{values.numel()} {kind} from {float(values[0]):.6g} to {float(values[-1]):.6g}"


def same_places(
    fields: Mapping[str, xr.DataArray], horizontal: tuple[str, str]
) -> tuple[dict[str, xr.DataArray], list[str]]:
    """Fields at the times and levels that all have, with the leading dimensions of the first; and notes on those left
    out.

    fields: what it is in errors -> field; the first may be an ensemble. Raises: ValueError where none is common.
    """
    (first, like), *_ = fields.items()
    lead = [dim for dim in like.dims if dim not in (MEMBER, *horizontal)]
    fields = {what: field if what == first else _with_times_of(field, like, lead) for what, field in fields.items()}
    out = {what: _with_dimensions(field, like, lead, horizontal, what, first) for what, field in fields.items()}
    notes = []
    for dim in lead:
        wanted = _common(out, dim, first)
        if wanted is None:
            continue
        lost = like.sizes[dim] - len(wanted)
        if lost:
            notes.append(f"left out: {lost} of {like.sizes[dim]} values of {dim} of {first}, which not all files have")
        for what, field in out.items():
            if dim in field.coords:
                out[what] = field.isel({dim: _slice(field.indexes[dim].get_indexer(wanted))})
    return out, notes


def _with_times_of(field: xr.DataArray, like: xr.DataArray, lead: list[Hashable]) -> xr.DataArray:
    """The field with the times of another where they differ by 10 % of its step or less, as by other encodings."""
    for dim in lead:
        if dim not in field.indexes or dim not in like.indexes or like.sizes[dim] < 2:
            continue
        own, other = like[dim].values, field[dim].values
        if own.dtype.kind not in "MO" or own.dtype.kind != other.dtype.kind or not np.all(own[:-1] < own[1:]):
            continue
        found = same_times(own, other, JITTER * most_frequent_step(seconds_since_first(own)))
        if len(set(found[found >= 0])) == (found >= 0).sum():
            field = field.assign_coords({dim: np.where(found >= 0, own[found], other)})
    return field


def _with_dimensions(
    field: xr.DataArray, like: xr.DataArray, lead: list[Hashable], horizontal: tuple[str, str], what: str, first: str
) -> xr.DataArray:
    """The field with the leading dimensions of another: at the level where that is, or the only one."""
    further = set(field.dims) - {*like.dims, *horizontal} | ({MEMBER} & set(field.dims) if what != first else set())
    for dim in further:
        if dim in like.coords and like[dim].ndim == 0 and dim in field.coords:
            place = int(_index(field, dim, what).get_indexer(np.atleast_1d(like[dim].values))[0])
            if place < 0:
                raise ValueError(f"{what} has no {dim} {like[dim].values}; it has {_ends(field.indexes[dim])}")
            field = field.isel({dim: place})
        elif field.sizes[dim] == 1:
            field = field.isel({dim: 0})
        else:
            raise ValueError(f"{what} has the dimension {dim} of length {field.sizes[dim]}, which {first} has not")
    for dim in lead:
        if dim not in field.dims:
            if like.sizes[dim] > 1:
                hint = f"; members of an ensemble are told by the name {MEMBER}" if MEMBER not in like.dims else ""
                raise ValueError(f"{what} has no dimension {dim}, of which {first} has {like.sizes[dim]}{hint}")
            field = field.expand_dims(dim)
    return field


def _common(fields: Mapping[str, xr.DataArray], dim: Hashable, first: str) -> pd.Index | None:
    """The values of a dimension that all fields with a coordinate have, in the order of the first; None: no field but
    one has any, and the lengths are the same."""
    known = {what: _index(field, dim, what) for what, field in fields.items() if dim in field.coords}
    lengths = {what: field.sizes[dim] for what, field in fields.items()}
    if len(known) < len(fields):
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{what} {n}" for what, n in lengths.items())
            raise ValueError(f"the lengths along {dim} differ: {said}")
        return None
    wanted = known[first]
    for index in known.values():
        wanted = wanted[index.get_indexer(wanted) >= 0]
    if not len(wanted):
        said = "; ".join(f"{what} has {_ends(index)}" for what, index in known.items())
        raise ValueError(f"there is no {dim} that all files have: {said}")
    return wanted


def _index(field: xr.DataArray, dim: Hashable, what: str) -> pd.Index:
    index = field.indexes[dim]
    if not index.is_unique:
        raise ValueError(f"{what} has the {dim} {index[index.duplicated()][0]} twice")
    return index


def _ends(index: pd.Index) -> str:
    values = [str(np.datetime64(v, "s")) if isinstance(v, pd.Timestamp) else f"{v}" for v in index[[0, -1]]]
    return values[0] if len(index) == 1 else f"{len(index)} from {values[0]} to {values[1]}"
