# SPDX-License-Identifier: Apache-2.0
"""What brings gridded fields onto other grids: interpolation, or a network by its name or file."""

from __future__ import annotations

import os

import numpy as np
import scipy  # its parts are imported at first use
import torch
import xarray as xr
from torch import Tensor, nn

from fastds.models.baselines.interpolation import METHODS, weights_at
from fastds.models.inr import INRDownscaler
from fastds.tasks.common.inference import check_reads_static, loaded, named
from fastds.tasks.fields.geometry import Geometry, Plane
from fastds.tasks.fields.networks import AnyVariableModel, FieldModel
from fastds.tasks.fields.variables import Fields, alike

_REACH = 4  # columns beyond a seam; no kernel reaches farther
DEFAULT_MODEL, FALLBACK = "inr-small", "inr-any"  # the second takes any variable


def check_inside(grid: Geometry, latitude: Tensor, longitude: Tensor) -> None:
    """Raise ValueError where a grid of coordinates reaches beyond the domain by more than half a cell."""
    ends = torch.cartesian_prod(latitude[[0, -1]], longitude[[0, -1]])
    try:
        grid.points(*ends.T, outside="error")
    except ValueError as error:
        limits = [
            f"{float(axis.min()):g} to {float(axis.max()):g}"
            for axis in (latitude, longitude, grid.latitude, grid.longitude)
        ]
        rows, columns = grid.names if isinstance(grid, Plane) else ("latitudes", "longitudes")
        raise ValueError(
            f"the new grid, {rows} {limits[0]} and {columns} {limits[1]}, reaches beyond the fields, {rows} "
            f"{limits[2]} and {columns} {limits[3]}; half a cell is allowed"
        ) from error


class Interpolation(Fields):
    """Every variable of a dataset on the grid by bilinear, bicubic or Lanczos interpolation, see
    fastds.models.baselines.interpolation; columns go round the globe, beyond the outer rows their values are repeated.

    Variables of other dimensions than `alike` takes are left out. Values stay within Fields.bounds. Missing values take
    the nearest ones to be interpolated; what lies in a missing cell is missing.

    Raises: ValueError for a dataset without such a field.
    """

    def __init__(self, method: str, dataset: xr.Dataset, grid: Geometry):
        super().__init__(dataset, grid, *alike(dataset, grid))
        self.name = method

    def onto(self, x: Tensor, latitude: Tensor, longitude: Tensor, out: list[np.ndarray]) -> None:
        """(1, C, H, W) at a grid of coordinates, into one (H', W') array per variable; places outside a regional domain
        have the values of its border."""
        u, v = (at.numpy() for at in self.grid.positions(latitude, longitude))
        rows = weights_at(u, x.shape[2], self.name)
        columns = weights_at(v, x.shape[3], self.name, periodic=self.grid.periodic)
        for channel, values in enumerate(out):
            field = x[0, channel]
            fine = rows @ (columns @ self._whole(field.numpy()).astype(np.float64).T).T
            self.limit(channel, field, fine)
            values[:] = fine
            self.lose_missing(field, u[:, None], v, values)

    def _whole(self, field: np.ndarray) -> np.ndarray:
        """(H, W) with the nearest values in the place of missing ones, of two as near the northern and western."""
        missing = np.isnan(field)
        if not missing.any() or missing.all():
            return field
        upright = tuple(slice(None, None, -1 if turned else 1) for turned in self.grid.turned)
        beyond = min(_REACH, field.shape[1]) if self.grid.periodic else 0
        wide = np.pad(field[upright], ((0, 0), (beyond, beyond)), "wrap")
        nearest = scipy.ndimage.distance_transform_edt(np.isnan(wide), return_distances=False, return_indices=True)
        return wide[tuple(nearest)][:, beyond : wide.shape[1] - beyond][upright]


def pick_method(
    model: nn.Module | str | os.PathLike | None, dataset: xr.Dataset, grid: Geometry, static=None
) -> tuple[Fields, str]:
    """What brings a dataset onto other grids, and a sentence about it: a method of interpolation by its name, else what
    pick_network takes.

    Raises: ValueError where the dataset does not fit; what fastds.load raises."""
    if not isinstance(model, str) or model not in METHODS:
        return pick_network(model, dataset, grid, static)
    if static is not None:
        raise ValueError(f"method {model} reads no static maps; leave out the argument static")
    return Interpolation(model, dataset, grid), f"method {model}, which needs no weights"


def pick_network(
    model: nn.Module | str | os.PathLike | None, dataset: xr.Dataset, grid: Geometry, static=None
) -> tuple[FieldModel, str]:
    """A network, its name or file set up for the grid of a dataset, and a sentence about it; None: inr-small where it
    takes the dataset, else inr-any, which takes every variable by itself.

    Raises: as FieldModel and fastds.load."""
    if static is not None and model is None:
        raise ValueError(
            "no shipped network reads static maps: give one that does with the argument model, or leave out the "
            "argument static"
        )
    if model is not None:
        network = loaded(model)
        if static is not None:  # before what else the network may need of the dataset
            check_reads_static(network.card, getattr(network, "static_channels", 0))
        method = _set_up(network, dataset, grid, static)
        return method, named(method.model, model)
    try:
        return _set_up(loaded(DEFAULT_MODEL), dataset, grid), f"model {DEFAULT_MODEL}"
    except ValueError:
        return _set_up(loaded(FALLBACK), dataset, grid), f"model {FALLBACK} (any variable)"


def _set_up(model: nn.Module, dataset: xr.Dataset, grid: Geometry, static=None) -> FieldModel:
    takes_any = isinstance(model, INRDownscaler) and model.card.any_variable
    if isinstance(grid, Plane) and not takes_any:
        raise ValueError(f"model {model.card.name} is for latitude-longitude grids, and this one is of {grid.said}")
    return (AnyVariableModel if takes_any else FieldModel)(model, dataset, grid, static)
