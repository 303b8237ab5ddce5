# SPDX-License-Identifier: Apache-2.0
"""A method and the fields that it brings onto another grid, one by one."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fastds.data import add_history, open_dataset
from fastds.data.grid.axes import FULL_CIRCLE
from fastds.data.grid.grids import grid_mappings, places_between, scalar_coordinates, without_geotransform
from fastds.data.grid.kept import bounds_of, field_attributes, global_attributes, kept_attributes, with_bounds
from fastds.tasks.common.inference import Report, store
from fastds.tasks.common.pieces import Piece, apart
from fastds.tasks.common.progress import progress_bar
from fastds.tasks.common.settings import check_settings, computing, settle
from fastds.tasks.fields.agreement import WAYS, agreement_onto
from fastds.tasks.fields.geometry import Geometry, Plane, geometry, target_by_scale, target_by_spacing, values_at
from fastds.tasks.fields.methods import check_inside, pick_method
from fastds.tasks.fields.totals import RunningTotals, last_beginning
from fastds.tasks.fields.variables import Fields, on_grid, with_fields


class FieldsJob:
    """A method and a dataset's fields, see fastds.tasks.common.pieces.Job; arguments as in `downscale`."""

    least = 1

    def __init__(
        self, model, dataset, *, scale=None, grid=None, like=None, var=None, static=None, threads=None,
        precision=None, device=None, coarsened=None,
    ):  # fmt: skip
        if sum(v is not None for v in (scale, grid, like)) != 1:
            raise ValueError("give exactly one of the arguments scale, grid and like")
        check_settings(threads, precision, device)
        self.own = self.convention = geometry(dataset, var)
        if like is not None:
            self.convention = _grid_of(like, self.own)
            self.target = self.convention.latitude, self.convention.longitude
        elif scale is not None:
            self.target = target_by_scale(self.own, scale)
        else:
            self.target = target_by_spacing(self.own, grid)
        self.dataset = dataset = with_fields(dataset, self.own, var)
        self.method, self.note = pick_method(model, dataset, self.own, static)
        self.computed = settle(self.method.model, threads, precision, device)
        check_inside(self.own, *self.target)
        if coarsened not in (None, *WAYS):
            raise ValueError(f"coarsened must be {' or '.join(WAYS)} for gridded fields, got {coarsened!r}")
        self.agreement = None if coarsened is None else agreement_onto(self.method.grid, *self.target)
        method, names = self.method, self.method.names
        shape = *(dataset.sizes[d] for d in method.lead), *(axis.numel() for axis in self.target)
        self.variables = {names[c]: ((*method.lead, *self.own.names), shape) for c in method.predicted}
        self.dim = method.lead[0] if method.lead else ""
        method.find_totals()
        ends = self.own.longitude[[0, -1]].tolist()
        if abs(abs(ends[1] - ends[0]) - FULL_CIRCLE) < 1e-3 and not isinstance(self.own, Plane):
            twice = f"the meridian {ends[0]:g} is there twice, so the fields do not go round the globe without a seam"
            warnings.warn(f"{twice}; leave out the last column", UserWarning, stacklevel=4)
        if min(method.factor(*self.target)) < 1 - 1e-6:
            coarser = (
                "the new grid is coarser than the input: its values are those at its points, not means of its cells"
            )
            warnings.warn(coarser, UserWarning, stacklevel=4)

    def pieces(self, steps: int) -> list[Piece]:
        """See Job: every field is by itself."""
        return apart(self.dataset.sizes[self.dim], steps)

    def compute(self, piece: Piece) -> dict[str, np.ndarray]:
        """See Job; running totals are added up from where they began."""
        start, stop = piece.steps
        part, method = copy.copy(self.method), self.method
        part.begin()
        fields = [method.dataset[method.names[c]] for c, dim in method.running.items() if dim == self.dim]
        first = min((last_beginning(field, self.dim, method.grid.names, start) for field in fields), default=start)
        part.dataset = method.dataset.isel({self.dim: slice(first, stop)})
        return {name: values[start - first :] for name, values in self._values(part, False, None).items()}

    def at_once(self, progress: bool, folder: str | os.PathLike | None) -> xr.Dataset:
        """The whole result; folder: where large fields are kept in a file, None: in memory."""
        self.method.begin()
        values = self._values(self.method, progress, folder)
        return self.result(values).assign_attrs(self.method.changes.attributes())

    def _values(self, method: Fields, progress: bool, folder: str | os.PathLike | None) -> dict[str, np.ndarray]:
        """The values of the method's fields, which may be some of the dataset's."""
        with computing(method.model, self.computed):
            method.check(stacklevel=4)
            lead = tuple(method.dataset.sizes[d] for d in method.lead)
            size = tuple(axis.numel() for axis in self.target)
            fine = {name: store((*lead, *size), folder) for name in self.variables}
            with progress_bar(progress, math.prod(lead), "downscaling", "fields") as advance:
                totals = RunningTotals(method.running)
                for at, given in method.fields():
                    x = totals.increments(at, given)
                    made = [values[tuple(at.values())] for values in fine.values()]
                    with self.computed.autocast():
                        method.onto(x, *self.target, made)
                    if self.agreement is not None:
                        for channel, values in zip(method.predicted, made, strict=True):
                            field = x[0, channel]
                            bounds, slack = method.bounds(channel, field), method.slack(field)
                            cut = self.agreement.correct(field.numpy(), values, bounds, slack)
                            method.changes.add("cut_correction", cut, values.size)
                    for channel, values in zip(method.predicted, made, strict=True):
                        totals.add(at, channel, values)
                    if advance is not None:
                        advance()
        return fine

    def result(self, values: Mapping[str, Any]) -> xr.Dataset:
        """See Job."""
        method, given = self.method, self.dataset
        first = given[method.names[0]]
        mappings = {name: without_geotransform(given[name].variable) for name in grid_mappings(given, first)}
        result = xr.Dataset(mappings, attrs=global_attributes(given))
        for name, (dims, _) in self.variables.items():
            result[name] = (dims, values[name], field_attributes(given, given[name]))
        for name, axis in zip(self.own.names, self.target, strict=True):
            if name in given.coords:
                result = result.assign(self._axis(name, axis))
        along = [
            n for n, c in first.coords.items() if c.dims and set(c.dims) <= set(method.lead) and n not in method.lead
        ]
        if isinstance(self.own, Plane):
            where = self.own.positions(*self.target)
            result = result.assign_coords(
                places_between(first.transpose(..., *self.own.names), *(at.numpy() for at in where))
            )
        kept = [*(d for d in method.lead if d in given.coords), *along, *scalar_coordinates(first)]
        for name in kept:
            result = result.assign(with_bounds(given, first[name]))
        result = result.set_coords(kept).assign_attrs(self._settings())
        said = f"fastds: arbitrary-scale downscaling with {method.name or 'a model'}"
        return add_history(result, "; ".join(filter(None, (said, method.origin))))

    def _axis(self, name: str, axis: Tensor) -> dict[str, xr.Variable]:
        """A coordinate of the new grid, with the bounds of its cells where that of the dataset has some."""
        given, bounds = self.dataset[name], bounds_of(self.dataset, name)
        attrs = {key: value for key, value in kept_attributes(given).items() if key != "bounds"}
        written = (self.convention.written(axis) if name == self.own.names[1] else axis).numpy()
        if bounds is None or axis.numel() < 2:
            return {name: xr.Variable(name, written, attrs)}
        index = torch.arange(axis.numel(), dtype=torch.float64)
        edges = np.stack([written + (values_at(axis, index + side) - axis).numpy() for side in (-0.5, 0.5)], 1)
        edges = edges.clip(-90, 90) if name == self.own.names[0] and not isinstance(self.own, Plane) else edges
        pairs = self.dataset[bounds]
        return {
            name: xr.Variable(name, written, attrs | {"bounds": bounds}),
            bounds: xr.Variable((name, pairs.dims[-1]), edges, pairs.attrs),
        }

    def _settings(self) -> dict:
        """Attributes that say how the file was made; the factor is a number, or one for rows and one for columns."""
        rows, columns = (
            float(f"{finer:.12g}") for finer in self.method.factor(*self.target)
        )  # 3, not 2.999999999999999
        settings = {"fastds_task": "fields", "fastds_model": self.method.name} | self.computed.attributes()
        settings |= self.method.domain.attributes()
        if self._totals:
            settings["fastds_running_totals"] = self._totals
        settings |= {} if self.agreement is None else {"fastds_coarsened": "mean"}
        card = getattr(self.method.model, "card", None)
        if card is not None and card.licence:
            settings["fastds_model_licence"] = card.licence
        return settings | {"fastds_scale": rows if abs(rows - columns) < 1e-9 * rows else [rows, columns]}

    @property
    def _totals(self) -> str:
        """The names of the running totals."""
        return ", ".join(str(self.method.names[channel]) for channel in self.method.running)

    def report(self) -> Report:
        """See Job."""
        size = " x ".join(str(axis.numel()) for axis in self.target)
        names = ", ".join(map(str, self.variables))
        others = [name for name in on_grid(self.dataset, self.own) if name not in self.method.names]
        notes = [f"{self.note}: {names} on {size} points"]
        notes += [f"not in the result: {', '.join(others)}"] if others else []
        notes += [f"running totals, made finer as differences between times: {self._totals}"] if self._totals else []
        notes += self.method.changes.notes()
        return Report(self.method.name, {}, notes)


def _grid_of(like: xr.Dataset | str | os.PathLike, own: Geometry) -> Geometry:
    """The grid of a dataset or file, in the coordinates of the fields' own."""
    try:
        if isinstance(like, xr.Dataset):
            found = geometry(like)
        else:
            with open_dataset(like) as other:
                found = geometry(other)
    except ValueError as error:
        raise ValueError(f"like: {error}") from error
    if _units(found) != _units(own) or (isinstance(own, Plane) and own.indexed):
        raise ValueError(f"like: its grid is of {found.said}, and that of the fields is of {own.said}")
    return found


def _units(grid: Geometry) -> tuple[str, str] | None:
    return grid.units if isinstance(grid, Plane) else None


def prepare(model: str | os.PathLike | None, dataset: xr.Dataset, **options: Any) -> FieldsJob:
    """The job of a model by its name or file; options as in fastds.tasks.fields.run.downscale."""
    return FieldsJob(model, dataset, **options)
