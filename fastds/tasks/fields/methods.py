# SPDX-License-Identifier: Apache-2.0
"""Selection of the method that downscales gridded fields: interpolation, remapping or a network."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import scipy  # submodules are imported at first use
import torch
import xarray as xr
from torch import Tensor, nn

from fastds._options import spell_argument
from fastds.data.grid.variables import list_fields as list_numeric_fields
from fastds.data.grid.variables import split_names
from fastds.inference.files import check_reads_static, describe_model, load_model
from fastds.models import load_card
from fastds.models.baselines.interpolation import METHODS, compute_interpolation_weights
from fastds.models.card import Network
from fastds.models.inr import INRDownscaler
from fastds.tasks.fields.conservative import CONSERVATIVE, ConservativeRemapping
from fastds.tasks.fields.geometry import Geometry, Plane
from fastds.tasks.fields.networks import AnyVariableModel, FieldModel
from fastds.tasks.fields.variables import Fields, drop_other_fields, find_variable, group_fields, select_main_fields

_WRAP_COLUMNS = 4  # width in columns of the wrapped margin at the seam of a periodic grid; no kernel is wider
WEIGHTLESS_METHODS = (*METHODS, CONSERVATIVE)
DEFAULT_MODEL, FALLBACK = "inr-small", "inr-any"  # FALLBACK takes any variable


def check_inside(grid: Geometry, latitude: Tensor, longitude: Tensor) -> None:
    """Check that a target grid extends beyond the fields by at most half a cell.

    Args:
        grid: grid of the fields.
        latitude: (H',), latitudes (or y) of the target rows.
        longitude: (W',), longitudes (or x) of the target columns.

    Raises:
        ValueError: the target grid extends further.
    """
    ends = torch.cartesian_prod(latitude[[0, -1]], longitude[[0, -1]])
    try:
        grid.points(ends[:, 0], ends[:, 1], outside="error")
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
    """Interpolation of all variables of a dataset: bilinear, bicubic or Lanczos.

    Columns are periodic on global grids; the outer rows are repeated beyond the edge. Variables with other dimensions
    than those that select_main_fields selects are left out. Values are clipped to Fields.bounds. Missing values are
    replaced by the nearest values before the interpolation; results inside a missing cell are missing.

    Args:
        method: "bilinear", "bicubic" or "lanczos".
        dataset: fields.
        grid: grid of the fields.

    Raises:
        ValueError: the dataset has no field.
    """

    def __init__(self, method: str, dataset: xr.Dataset, grid: Geometry):
        super().__init__(dataset, grid, *select_main_fields(dataset, grid))
        self.name = method
        self._weights: tuple[tuple, tuple] | None = None  # of the last target grid

    def predict_grid(self, x: Tensor, latitude: Tensor, longitude: Tensor, out: list[np.ndarray]) -> None:
        """Interpolate fields (1, C, H, W) to a grid of coordinates.

        Points outside a regional domain have the values of its edge.

        Args:
            x: fields.
            latitude: latitudes (or y) of the target rows.
            longitude: longitudes (or x) of the target columns.
            out: one array (H', W') per variable, which is overwritten.
        """
        u, v, rows, columns = self._compute_weights(latitude, longitude, x.shape[2:])
        for channel, values in enumerate(out):
            field = x[0, channel]
            fine = rows @ (columns @ self._whole(field.numpy()).astype(np.float64).T).T
            self.clip(channel, field, fine)
            values[:] = fine
            self.propagate_missing(field, u[:, None], v, values)

    def _compute_weights(self, latitude: Tensor, longitude: Tensor, size: Sequence[int]) -> tuple:
        """Return row and column indices of a target grid and the weights of both, cached for the last grid."""
        target = latitude, longitude, *size
        if self._weights is None or any(a is not b for a, b in zip(self._weights[0], target, strict=True)):
            u, v = (at.numpy() for at in self.grid.positions(latitude, longitude))
            rows = compute_interpolation_weights(u, size[0], self.name)
            columns = compute_interpolation_weights(v, size[1], self.name, periodic=self.grid.periodic)
            self._weights = target, (u, v, rows, columns)
        return self._weights[1]

    def _whole(self, field: np.ndarray) -> np.ndarray:
        """Replace missing values of a field (H, W) by the nearest value.

        If two values are equally near, the northern or western one is used.
        """
        missing = np.isnan(field)
        if not missing.any() or missing.all():
            return field
        upright = tuple(slice(None, None, -1 if flipped else 1) for flipped in self.grid.flipped)
        beyond = min(_WRAP_COLUMNS, field.shape[1]) if self.grid.periodic else 0
        wide = np.pad(field[upright], ((0, 0), (beyond, beyond)), "wrap")
        nearest = scipy.ndimage.distance_transform_edt(np.isnan(wide), return_distances=False, return_indices=True)
        return wide[tuple(nearest)][:, beyond : wide.shape[1] - beyond][upright]


@dataclasses.dataclass(frozen=True)
class Part:
    """Fields with the same dimensions, which one method processes.

    Attributes:
        dataset: dataset without other fields.
        model: model for these fields, see pick_network.
        names: names of the fields; empty: those that the method selects.
        optional: whether the fields were requested by "all" and may not fit the model.
    """

    dataset: xr.Dataset
    model: nn.Module | str | os.PathLike | None
    names: list[str]
    optional: bool


def split_dataset(
    model: nn.Module | str | os.PathLike | None, dataset: xr.Dataset, grid: Geometry, var: str | None
) -> list[Part]:
    """Split the requested fields of a dataset into parts with the same dimensions.

    Without a model, a part is processed by inr-small if this network computes all its fields, else by inr-any.

    Args:
        model: model or method, or None.
        dataset: fields.
        grid: grid of the fields.
        var: names of fields, see split_names; None: the fields that the method selects.

    Raises:
        ValueError: there is no such field.
    """
    if var is None:
        return [Part(dataset, model, [], False)]
    requested = split_names(var, dataset.data_vars)
    parts = []
    for names in group_fields(dataset, grid, var):
        part = drop_other_fields(dataset, grid, names)
        chosen = FALLBACK if model is None and requested != names[:1] and not _is_default(part, names) else model
        parts.append(Part(part, chosen, names, requested is None))
    return parts


def _is_default(dataset: xr.Dataset, names: list[str]) -> bool:
    """Return whether the default network computes all fields of a dataset."""
    try:
        found = {find_variable(dataset, entry) for entry in load_card(DEFAULT_MODEL).input_variables}
    except ValueError:
        return False
    return found == set(names)


def warn_about_left_out(
    dataset: xr.Dataset, computed: Sequence[str], failed: Mapping[str, str], var: str | None, stacklevel: int
) -> None:
    """Warn about the variables that "all" requested and that are not in the result.

    Args:
        dataset: input.
        computed: variables in the result.
        failed: reasons why fields do not fit the model, by name.
        var: names of fields, see split_names.
        stacklevel: see warnings.warn.
    """
    if var is None or split_names(var, dataset.data_vars) is not None:
        return
    others = [str(name) for name in list_numeric_fields(dataset) if name not in computed and name not in failed]
    texts = [*others, *(f"{name} ({reason})" for name, reason in failed.items())]
    if texts:
        warnings.warn(f"not in the result: {', '.join(texts)}", UserWarning, stacklevel + 1)


def reads_static_maps(model: nn.Module | str | os.PathLike | None) -> bool:
    """Return whether a model reads static maps."""
    if model is None or (isinstance(model, str) and model in WEIGHTLESS_METHODS):
        return False
    card = getattr(model, "card", None) if isinstance(model, nn.Module) else load_card(model)
    return bool(card is not None and card.static_variables)


def pick_method(
    model: nn.Module | str | os.PathLike | None, dataset: xr.Dataset, grid: Geometry, static=None
) -> tuple[Fields, str]:
    """Select the method for a dataset.

    Args:
        model: one of WEIGHTLESS_METHODS, or see pick_network.
        dataset: fields.
        grid: grid of the fields.
        static: static maps, see pick_network.

    Returns:
        The method, and a note about it.

    Raises:
        ValueError: the dataset does not fit the method, or the weights cannot be read, see fastds.load.
        FileNotFoundError: there are no such weights.
    """
    if not isinstance(model, str) or model not in WEIGHTLESS_METHODS:
        return pick_network(model, dataset, grid, static)
    if static is not None:
        raise ValueError(f"method {model} reads no static maps; leave out {spell_argument('static')}")
    method = ConservativeRemapping(dataset, grid) if model == CONSERVATIVE else Interpolation(model, dataset, grid)
    return method, f"method {model}, which needs no weights"


def pick_network(
    model: nn.Module | str | os.PathLike | None, dataset: xr.Dataset, grid: Geometry, static=None
) -> tuple[FieldModel, str]:
    """Set up a network for the grid of a dataset.

    Args:
        model: network, shipped name or weights file; None: inr-small if it takes the dataset, else inr-any, which
            processes each variable independently.
        dataset: fields.
        grid: grid of the fields.
        static: static maps for a network that reads static maps; None: none.

    Returns:
        The network with its grid, and a note about it.

    Raises:
        ValueError: the dataset does not fit the network, or the weights cannot be read, see fastds.load.
        FileNotFoundError: there are no such weights.
    """
    if static is not None and model is None:
        raise ValueError(
            f"no shipped network reads static maps: give one that does with {spell_argument('model')}, or leave out "
            f"{spell_argument('static')}"
        )
    if model is not None:
        network = load_model(model)
        if static is not None:  # checked before other requirements of the network
            check_reads_static(network.card, getattr(network, "static_channels", 0))
        method = _set_up(network, dataset, grid, static)
        return method, describe_model(method.model, model)
    try:
        return _set_up(load_model(DEFAULT_MODEL), dataset, grid), f"model {DEFAULT_MODEL}"
    except ValueError:
        return _set_up(load_model(FALLBACK), dataset, grid), f"model {FALLBACK} (any variable)"


def _set_up(model: Network, dataset: xr.Dataset, grid: Geometry, static=None) -> FieldModel:
    takes_any = isinstance(model, INRDownscaler) and model.card.any_variable
    if isinstance(grid, Plane) and not takes_any:
        raise ValueError(
            f"model {model.card.name} is for latitude-longitude grids, and this one is of {grid.description}"
        )
    return (AnyVariableModel if takes_any else FieldModel)(model, dataset, grid, static)
