# SPDX-License-Identifier: Apache-2.0
"""Matching fields of a prediction, the truth and the coarse input, read one after another."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from fastds._options import spell_argument
from fastds.data.grid.grids import find_latitude_longitude
from fastds.data.grid.variables import is_same_unit, split_names
from fastds.models.baselines.interpolation import METHODS
from fastds.tasks.fields.alignment import MEMBER, align_dimensions, select_grid_points
from fastds.tasks.fields.back_projection import BackProjection, make_back_projection
from fastds.tasks.fields.geometry import Geometry, Plane, find_geometry
from fastds.tasks.fields.methods import Interpolation
from fastds.tasks.fields.sources import Source, make_coarser_grid
from fastds.tasks.fields.variables import list_fields

TRUTH, COARSE = "TRUTH", "COARSE"
BACK_PROJECTED = "bicubic, agreeing"  # baseline with the same back-projection as the prediction


@dataclasses.dataclass
class Pair:
    """A field of prediction, truth and coarse input, float32, NaN = missing.

    Attributes:
        name: name of the variable.
        at: index of each leading dimension.
        truth: (H, W).
        members: (M, H, W); M = 1 without an ensemble.
        baselines: method -> (H, W).
        coarse: input of the baselines (h, w), or None.
    """

    name: str
    at: dict[str, int]
    truth: np.ndarray
    members: np.ndarray
    baselines: dict[str, np.ndarray]
    coarse: np.ndarray | None

    @functools.cached_property
    def valid(self) -> np.ndarray:
        """Mask (H, W) of the cells that are not missing in any field."""
        made = (~np.isnan(z) for z in (self.truth, *self.members, *self.baselines.values()))
        return functools.reduce(np.logical_and, made)


class Pairs:
    """The fields that prediction and truth have in common, by variable.

    Args:
        prediction: dataset.
        truth: dataset.
        coarse: dataset; None: the truth is coarsened according to the attribute fastds_scale of the prediction; without
            this attribute there are no baselines.
        var: names of variables, see split_names; None: all that prediction and truth have.
        called: label of the prediction in error messages.

    Attributes:
        prediction: dataset.
        grid: Geometry of the prediction without rows and columns that are not part of a whole coarse cell.
        names: names of the variables.
        members: number of ensemble members, 1 without an ensemble.
        notes: notes for the user.
        sources: label -> variable -> Source; labels are those of prediction and truth and, if there are baselines,
            COARSE.

    Raises:
        ValueError: grids, units, variables or times that do not fit.
    """

    def __init__(
        self,
        prediction: xr.Dataset,
        truth: xr.Dataset,
        coarse: xr.Dataset | None,
        var: str | None,
        called: str = "PRED",
    ):
        self.prediction, self.called, self.notes = prediction, called, []
        self.grid = _find_geometry(prediction, called)
        given = {called: prediction, TRUTH: truth} | ({} if coarse is None else {COARSE: coarse})
        grids = {what: _find_geometry(dataset, what) for what, dataset in given.items()}
        if isinstance(self.grid, Plane) and self.grid.indexed:
            _check_same_points(given, grids)
        self.names, others = _find_common_names(given, grids, var)
        if others:
            self.notes.append(f"not compared, as not all files have them: {', '.join(others)}")
        made = {name: self._select_fields(name, given, grids) for name in self.names}
        if coarse is None:
            self._coarsen(made)
        else:
            self.coarse_grid = grids[COARSE]
            _check_covers(self.coarse_grid, self.grid, called)
        self.sources = {what: {name: made[name][what] for name in made} for what in next(iter(made.values()))}
        self.members, *more = {source.field.sizes.get(MEMBER, 1) for source in self.sources[called].values()}
        if more:
            raise ValueError(
                f"variables of {called} have different numbers of members; name one with {spell_argument('var')}"
            )
        if not len(self):
            raise ValueError(f"there is no field in {called}: a dimension of {self.names[0]} has length 0")
        here, there = ((g.latitude.numel(), g.longitude.numel()) for g in (self.grid, grids[TRUTH]))
        if here != there:
            self.notes.append("{} x {} of the {} x {} points of TRUTH are compared".format(*here, *there))

    def _select_fields(self, name: str, given: dict[str, xr.Dataset], grids: dict[str, Geometry]) -> dict[str, Source]:
        """Return one variable of all datasets, selected to common points and times."""
        fields = {what: dataset[name] for what, dataset in given.items()}
        for what in given:
            self._check_units(name, fields[self.called].attrs.get("units"), fields[what].attrs.get("units"), what)
        fields[TRUTH] = select_grid_points(fields[TRUTH], grids[TRUTH], self.grid, self.called, TRUTH)
        if COARSE in fields:
            swap = dict(zip(grids[COARSE].names, self.grid.names, strict=True))
            fields[COARSE] = fields[COARSE].rename({a: b for a, b in swap.items() if a != b})
        fields, left_out = align_dimensions(fields, self.grid.names)
        self.notes += [note for note in left_out if note not in self.notes]
        return {what: Source(field, what, self.grid.names) for what, field in fields.items()}

    def _check_units(self, name: str, units_here: str | None, units_there: str | None, what: str) -> None:
        """Raise ValueError if both units are declared and differ; add a note if one is not declared."""
        if units_here is not None and units_there is not None and not is_same_unit(units_here, units_there):
            message = f"variable {name} is in {units_here!r} in {self.called} and in {units_there!r} in {what}"
            raise ValueError(f"{message}: convert one of them first")
        if (units_here is None) != (units_there is None):
            silent, units = (self.called, units_there) if units_here is None else (what, units_here)
            self.notes.append(f"{silent} declares no units of {name}; {units} is assumed")

    def _coarsen(self, made: dict[str, dict[str, Source]]) -> None:
        """Add coarse fields made from the truth, and crop all fields to whole coarse cells."""
        scale, how = self.prediction.attrs.get("fastds_scale"), self.prediction.attrs.get("fastds_coarsening", "mean")
        if scale is None or np.min(scale) < 1 - 1e-6:
            self.notes.append(
                f"no rows of interpolation: {self.called} declares no scale factor >= 1, and no input was given"
            )
            return
        self.coarse_grid, size = make_coarser_grid(self.grid, np.broadcast_to(scale, 2).tolist(), how)
        cut = {n: slice(0, m) for n, m in zip(self.grid.names, size, strict=True)}
        latitude, longitude = (
            t[part] for t, part in zip((self.grid.latitude, self.grid.longitude), cut.values(), strict=True)
        )
        self.grid = dataclasses.replace(self.grid, latitude=latitude, longitude=longitude)
        for parts in made.values():
            for what, source in parts.items():
                parts[what] = Source(source.field.isel(cut), what, self.grid.names)
            parts[COARSE] = parts[TRUTH].coarsen(self.coarse_grid, how, COARSE)
        by = " x ".join(f"{s:.4g}" for s in np.atleast_1d(scale))
        kind = "points of TRUTH, one in" if how == "decimate" else "means of TRUTH over"
        self.notes.append(f"coarse input of the baselines: {kind} {by} cells each way")

    def check(self, quietly: bool = False, only: Sequence[str] = ()) -> None:
        """Check the values of the fields.

        All values are read. Implausible values and variables without values cause a warning.

        Args:
            quietly: suppress warnings.
            only: labels of the sources to check; empty: all.

        Raises:
            ValueError: too many values of a variable are implausible, see check_plausible.
        """
        with warnings.catch_warnings():
            if quietly:
                warnings.simplefilter("ignore")
            for what in only or self.sources:
                for source in self.sources[what].values():
                    source.check()

    def list_indices(self, name: str) -> list[dict[str, int]]:
        """Return the indices of the leading dimensions of all fields of a variable."""
        field = self.sources[TRUTH][name].field
        lead: list[Any] = [
            dim for dim in self.sources[self.called][name].field.dims if dim not in (MEMBER, *self.grid.names)
        ]
        return [dict(zip(lead, index, strict=True)) for index in np.ndindex(*(field.sizes[dim] for dim in lead))]

    def __len__(self) -> int:
        return sum(len(self.list_indices(name)) for name in self.names)

    def __getitem__(self, number: int) -> Pair:
        name, at = self._all_indices[number]
        made, truth = (self.sources[what][name].values(at) for what in (self.called, TRUTH))
        coarse: Any = self.sources[COARSE][name].values(at) if COARSE in self.sources else None
        baselines = {key: self._interpolate(method, coarse) for key, method in self._methods[name].items()}
        if self._back_projection is not None:
            bounds = self._methods[name]["bicubic"].bounds(0, torch.from_numpy(coarse))
            baselines[BACK_PROJECTED] = baselines["bicubic"].copy()
            self._back_projection.correct(coarse, baselines[BACK_PROJECTED], bounds)
        return Pair(name, at, truth, made.reshape(-1, *truth.shape), baselines, coarse)

    @functools.cached_property
    def _all_indices(self) -> list[tuple[str, dict[str, int]]]:
        return [(name, at) for name in self.names for at in self.list_indices(name)]

    @functools.cached_property
    def _methods(self) -> dict[str, dict[str, Interpolation]]:
        """Baselines by variable and method name."""
        if COARSE not in self.sources:
            return {name: {} for name in self.names}
        grid = dataclasses.replace(self.coarse_grid, names=self.grid.names)
        coarse = {name: source.field.to_dataset(name=name) for name, source in self.sources[COARSE].items()}
        return {name: {m: Interpolation(m, dataset, grid) for m in METHODS} for name, dataset in coarse.items()}

    @functools.cached_property
    def _back_projection(self) -> BackProjection | None:
        """Back-projection for a baseline, if the prediction was back-projected; else None."""
        if COARSE not in self.sources or self.prediction.attrs.get("fastds_coarsened") != "mean":
            return None
        return make_back_projection(self.coarse_grid, self.grid.latitude, self.grid.longitude)

    def _interpolate(self, method: Interpolation, coarse: np.ndarray) -> np.ndarray:
        out = np.empty((self.grid.latitude.numel(), self.grid.longitude.numel()), np.float32)
        method.predict_grid(torch.from_numpy(coarse)[None, None], self.grid.latitude, self.grid.longitude, [out])
        return out


def _find_geometry(dataset: xr.Dataset, what: str) -> Geometry:
    try:
        return find_geometry(dataset)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _find_common_names(
    given: dict[str, xr.Dataset], grids: dict[str, Geometry], var: str | None
) -> tuple[list[str], list[str]]:
    """Return the variables that all datasets have, in the order of the first dataset, and its other variables.

    With `var`, the result is the variables that it names, see split_names.
    """
    requested = split_names(var, [name for dataset in given.values() for name in dataset.data_vars])
    names = {what: list_fields(dataset, grids[what]) for what, dataset in given.items()}
    for what, found in names.items():
        lacking = [name for name in requested or () if name not in found]
        if lacking:
            raise ValueError(f"{what} has no field {lacking[0]!r} over its grid; it has {', '.join(found) or 'none'}")
    first = next(iter(names.values()))
    common = [name for name in first if all(name in found for found in names.values())]
    if not common:
        message = "; ".join(f"{what} has {', '.join(found) or 'none'}" for what, found in names.items())
        raise ValueError(f"there is no variable that all files have: {message}")
    if requested is None:
        return common, [name for name in first if name not in common]
    return requested, []


def _check_same_points(given: dict[str, xr.Dataset], grids: dict[str, Geometry]) -> None:
    """Raise ValueError unless the datasets have the same points. The first dataset is on a curvilinear grid."""
    if COARSE in given:
        message = f"{COARSE} is on a curvilinear grid, whose place among finer points is not known"
        raise ValueError(f"{message}; evaluate without {spell_argument('input')}")
    called, what = given
    first: Any
    second: Any
    first, second = (_find_points(dataset, grids[whose]) for whose, dataset in given.items())
    same = first[0] is not None and second[0] is not None and first[0].shape == second[0].shape
    if not same or not all(np.allclose(a, b, atol=1e-3) for a, b in zip(first, second, strict=True)):
        raise ValueError(f"the grids differ: {called} and {what} are on curvilinear grids with different points")


def _find_points(dataset: xr.Dataset, grid: Geometry) -> tuple[xr.DataArray | None, xr.DataArray | None]:
    """Return latitudes and longitudes of the fields on a grid."""
    places = (find_latitude_longitude(dataset[n].transpose(..., *grid.names)) for n in list_fields(dataset, grid))
    return next(places, (None, None))


def _check_covers(coarse: Geometry, fine: Geometry, called: str) -> None:
    """Raise ValueError unless the fine points are inside the coarse grid or at most one coarse cell outside."""
    sizes = coarse.latitude.numel(), None if coarse.periodic else coarse.longitude.numel()
    for at, n in zip(coarse.positions(fine.latitude, fine.longitude), sizes, strict=True):
        if n is not None and (float(at.min()) < -1 or float(at.max()) > n):
            raise ValueError(f"the grids differ: {called} reaches beyond {COARSE}")
