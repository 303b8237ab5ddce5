# SPDX-License-Identifier: Apache-2.0
"""Alignment of the variables of several files to common points, levels and times, without reading values."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import pandas as pd
import xarray as xr

from fastds.data.grid.times import JITTER, compute_seconds_since_first, estimate_time_step, format_time, match_times
from fastds.tasks.fields.geometry import Geometry, Plane

MEMBER = "realization"  # dimension of ensemble members
_POSITION_TOLERANCE = 0.1  # tolerance of positions in grid cells


def make_member_coordinate(count: int) -> xr.Variable:
    """Return the coordinate variable of `count` ensemble members."""
    return xr.Variable((MEMBER,), np.arange(count, dtype=np.int32), {"standard_name": MEMBER})


def make_noise_seed(seed: int, member: int, time: object) -> list[int]:
    """Return the random seed of the noise of an ensemble member.

    The seed depends on the time itself and not on its index in the file, so that files with other times give the same
    seed.

    Args:
        seed: random seed of the ensemble.
        member: index of the member.
        time: time of the field.

    Returns:
        Three integers.
    """
    return [seed, member, int.from_bytes(format_time(time).encode())]


def select_grid_points(
    field: xr.DataArray, field_grid: Geometry, grid: Geometry, called: str, what: str
) -> xr.DataArray:
    """Select the points of a field that lie on another grid with the same spacing, and adopt the names of that grid.

    Args:
        field: field on grid `field_grid`.
        field_grid: grid of the field.
        grid: target grid.
        called: label of the target grid in error messages.
        what: label of the field in error messages.

    Raises:
        ValueError: the field does not have all points.
    """
    indexers = {}
    positions = field_grid.positions(grid.latitude, grid.longitude)
    for axis, (name, at) in enumerate(zip(field_grid.names, positions, strict=True)):
        index, n = at.round(), field.sizes[name]
        away = float((at - index).abs().max())
        steps = index.diff().abs()
        has_gaps = bool(((steps != 1) & (steps != n - 1)).any())  # a step of n - 1 crosses the seam of a periodic grid
        if away > _POSITION_TOLERANCE or has_gaps or int(index.min()) < 0 or int(index.max()) >= n:
            raise ValueError(
                f"the grids differ: {called} has {_describe_axis(axis, grid)}, "
                f"{what} has {_describe_axis(axis, field_grid)}; "
                f"`fastds downscale {what} NEW.nc --like {called} --model bicubic` makes one that fits"
            )
        indexers[name] = _to_slice(index.long().numpy())
    field = field.isel(indexers)
    return field.rename({a: b for a, b in zip(field_grid.names, grid.names, strict=True) if a != b})


def _to_slice(index: np.ndarray) -> slice | np.ndarray:
    """Convert consecutive indices to a slice, which files and dask read faster."""
    return slice(int(index[0]), int(index[-1]) + 1) if (np.diff(index) == 1).all() else index


def _describe_axis(axis: int, grid: Geometry) -> str:
    values = (grid.latitude, grid.longitude)[axis]
    kind = f"values of {grid.names[axis]}" if isinstance(grid, Plane) else ("latitudes", "longitudes")[axis]
    return f"{values.numel()} {kind} from {float(values[0]):.6g} to {float(values[-1]):.6g}"


def align_dimensions(
    fields: Mapping[str, xr.DataArray], horizontal: tuple[str, str]
) -> tuple[dict[str, xr.DataArray], list[str]]:
    """Select the times and levels that all fields have.

    Args:
        fields: label for error messages -> field. The first may be an ensemble; the others are given its leading
            dimensions.
        horizontal: names of the horizontal dimensions.

    Returns:
        The fields, and notes on values that are left out.

    Raises:
        ValueError: the fields have no values of a dimension in common.
    """
    (first, like), *_ = fields.items()
    lead = [dim for dim in like.dims if dim not in (MEMBER, *horizontal)]
    fields = {what: field if what == first else _adopt_times(field, like, lead) for what, field in fields.items()}
    out = {what: _match_dimensions(field, like, lead, horizontal, what, first) for what, field in fields.items()}
    notes = []
    for dim in lead:
        common = _find_common_values(out, dim, first)
        if common is None:
            continue
        lost = like.sizes[dim] - len(common)
        if lost:
            notes.append(f"left out: {lost} of {like.sizes[dim]} values of {dim} of {first}, which not all files have")
        for what, field in out.items():
            if dim in field.coords:
                out[what] = field.isel({dim: _to_slice(field.indexes[dim].get_indexer(common))})
    return out, notes


def _adopt_times(field: xr.DataArray, like: xr.DataArray, lead: list[Hashable]) -> xr.DataArray:
    """Replace times by those of another field where they differ by at most 10 % of the time step.

    Such differences are due to the encoding of the times.
    """
    for dim in lead:
        if dim not in field.indexes or dim not in like.indexes or like.sizes[dim] < 2:
            continue
        times, field_times = like[dim].values, field[dim].values
        if (
            times.dtype.kind not in "MO"
            or times.dtype.kind != field_times.dtype.kind
            or not np.all(times[:-1] < times[1:])
        ):
            continue
        found = match_times(times, field_times, JITTER * estimate_time_step(compute_seconds_since_first(times)))
        if len(set(found[found >= 0])) == (found >= 0).sum():
            field = field.assign_coords({dim: np.where(found >= 0, times[found], field_times)})
    return field


def _match_dimensions(
    field: xr.DataArray, like: xr.DataArray, lead: list[Hashable], horizontal: tuple[str, str], what: str, first: str
) -> xr.DataArray:
    """Match the leading dimensions of another field: select its level, or drop or add dimensions of length 1.

    Args:
        field: field to change.
        like: field with the expected dimensions.
        lead: leading dimensions of `like`.
        horizontal: names of the horizontal dimensions.
        what: label of `field` in error messages.
        first: label of `like` in error messages.

    Raises:
        ValueError: a dimension that does not fit.
    """
    further = set(field.dims) - {*like.dims, *horizontal} | ({MEMBER} & set(field.dims) if what != first else set())
    for dim in further:
        if dim in like.coords and like[dim].ndim == 0 and dim in field.coords:
            place = int(_get_index(field, dim, what).get_indexer(np.atleast_1d(like[dim].values))[0])
            if place < 0:
                raise ValueError(f"{what} has no {dim} {like[dim].values}; it has {_describe_ends(field.indexes[dim])}")
            field = field.isel({dim: place})
        elif field.sizes[dim] == 1:
            field = field.isel({dim: 0})
        else:
            raise ValueError(f"{what} has the dimension {dim} of length {field.sizes[dim]}, which {first} has not")
    for dim in lead:
        if dim not in field.dims:
            if like.sizes[dim] > 1:
                hint = (
                    f"; the dimension of ensemble members must have the name {MEMBER}"
                    if MEMBER not in like.dims
                    else ""
                )
                raise ValueError(f"{what} has no dimension {dim}, of which {first} has {like.sizes[dim]}{hint}")
            field = field.expand_dims(dim)
    return field


def _find_common_values(fields: Mapping[str, xr.DataArray], dim: Hashable, first: str) -> pd.Index | None:
    """Return the values of a dimension that all fields have, in the order of the first field.

    The result is None if a field has no coordinate of this dimension. All lengths must then be equal.
    """
    known = {what: _get_index(field, dim, what) for what, field in fields.items() if dim in field.coords}
    lengths = {what: field.sizes[dim] for what, field in fields.items()}
    if len(known) < len(fields):
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{what} {n}" for what, n in lengths.items())
            raise ValueError(f"the lengths along {dim} differ: {found}")
        return None
    common = known[first]
    for index in known.values():
        common = common[index.get_indexer(common) >= 0]
    if not len(common):
        found = "; ".join(f"{what} has {_describe_ends(index)}" for what, index in known.items())
        raise ValueError(f"there is no {dim} that all files have: {found}")
    return common


def _get_index(field: xr.DataArray, dim: Hashable, what: str) -> pd.Index:
    index = field.indexes[dim]
    if not index.is_unique:
        raise ValueError(f"{what} has the {dim} {index[index.duplicated()][0]} twice")
    return index


def _describe_ends(index: pd.Index) -> str:
    values = [str(np.datetime64(v, "s")) if isinstance(v, pd.Timestamp) else f"{v}" for v in index[[0, -1]]]
    return values[0] if len(index) == 1 else f"{len(index)} from {values[0]} to {values[1]}"
