# SPDX-License-Identifier: Apache-2.0
"""What brings latitude-longitude fields onto other grids: arbitrary-scale networks, and interpolation."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from fastds.data.grid.plausible import (
    check_packing,
    check_plausible,
    plausible_range,
    stored_as_codes,
    within,
    without_missing,
)
from fastds.data.grid.times import check_dates
from fastds.data.grid.variables import same_units
from fastds.data.io.statics import static_maps
from fastds.data.samples.fields import HUMIDITY_RANGE
from fastds.models.baselines.interpolation import METHODS, weights_at
from fastds.models.inr import INRDownscaler
from fastds.models.inr.bands import Encoded
from fastds.ops import GridSpec, PointSpec
from fastds.ops.impl.inr_query.points import from_index, from_latlon
from fastds.tasks.common.inference import check_static, loaded
from fastds.tasks.common.settings import device_of
from fastds.tasks.domain.score import Domain, domain_of, evenly
from fastds.tasks.domain.statistics import of_fields
from fastds.tasks.fields.geometry import Geometry

DEFAULT_MODEL, FALLBACK = "inr-small", "bicubic"
WINDOW_QUERIES = 1 << 20  # fine pixels decoded at once; the result does not depend on it


class Fields:
    """Variables of a dataset on a grid, read one field after another.

    Args:
        dataset: fields (..., latitude, longitude). grid: its geometry.
        names: of the variables, of the same dimensions. limits: plausible ranges of them, or None.

    Attributes: lead, their leading dimensions; name, what the user calls the method; predicted, which of names the
    method makes; origin of static maps; most, how many times finer it makes fields; model, a network or None.

    Raises: ValueError: leading dimensions without a field or with missing dates.
    """

    model: nn.Module | None = None
    name, origin, most = "", "", 1.0

    def __init__(self, dataset: xr.Dataset, grid: Geometry, names: list[str], limits: list):
        self.dataset, self.grid, self.names, self.limits = dataset, grid, names, limits
        self.predicted: list[int] = list(range(len(names)))
        self.lead = [d for d in dataset[names[0]].dims if d not in grid.names]
        empty = [d for d in self.lead if dataset.sizes[d] == 0]
        if empty:
            raise ValueError(f"there is no field: dimension {empty[0]} of variable {names[0]} has length 0")
        for d in self.lead:
            if d in dataset.coords and dataset[d].dtype.kind == "M":
                check_dates(dataset[d])

    def fields(self) -> Iterator[tuple[dict, Tensor]]:
        """({leading dimension: index}, (1, C, H, W) float32), read one after another; what is implausible is NaN."""
        return ((at, self._field(at)) for at in self._places())

    def check(self, stacklevel: int) -> None:
        """Warn (UserWarning) where values of a variable are implausible or all missing. Raises: ValueError where more
        than half are implausible."""
        for n, limits in zip(self.names, self.limits, strict=True):
            variable, values = self.dataset[n], (self._values(n, at) for at in self._places())
            said = f"every value of variable {n} is missing, and so is the output"
            form = {"codes": stored_as_codes(variable), "all_missing": said, "stacklevel": stacklevel + 1}
            check_plausible(n, values, limits, variable.attrs.get("units", ""), **form)

    @functools.cached_property
    def domain(self) -> Domain:
        """How far the fields lie from what a network was trained on; warns (UserWarning) where they lie outside."""
        return Domain(self.name)

    def factor(self, latitude: Tensor, longitude: Tensor) -> tuple[float, float]:
        """How many times finer a grid of coordinates is, along rows and columns; of a single one `most`."""
        return tuple(
            abs(s) / max(1e-9, abs(float(t[1] - t[0]))) if t.numel() > 1 else self.most
            for s, t in zip(self.grid.steps, (latitude, longitude), strict=True)
        )

    def _places(self) -> Iterator[dict]:
        for index in np.ndindex(*(self.dataset.sizes[d] for d in self.lead)):
            yield dict(zip(self.lead, index, strict=True))

    def _field(self, at: dict) -> Tensor:
        """(1, C, H, W) float32 at an index of the leading dimensions; what is implausible is NaN."""
        fields = [within(self._values(n, at), limits) for n, limits in zip(self.names, self.limits, strict=True)]
        return torch.from_numpy(np.stack(fields))[None]

    def _values(self, name: str, at: dict) -> np.ndarray:
        """(H, W) float32 of a variable at an index of its leading dimensions."""
        field = self.dataset[name].isel(at).transpose(*self.grid.names)
        return without_missing(field.values, field.attrs)


def check_inside(grid: Geometry, latitude: Tensor, longitude: Tensor) -> None:
    """Raise ValueError where a grid of coordinates reaches beyond the domain by more than half a cell."""
    ends = torch.cartesian_prod(latitude[[0, -1]], longitude[[0, -1]])
    try:
        sides = grid.latitude, grid.longitude
        from_latlon(ends[:, 0], ends[:, 1], *sides, periodic_x=grid.periodic, outside="error")
    except ValueError as error:
        limits = [f"{float(axis.min()):g} to {float(axis.max()):g}" for axis in (latitude, longitude, *sides)]
        raise ValueError(
            f"the new grid, latitudes {limits[0]} and longitudes {limits[1]}, reaches beyond the fields, latitudes "
            f"{limits[2]} and longitudes {limits[3]}; half a cell is allowed"
        ) from error


class FieldModel(Fields):
    """A network set up for the grid of a dataset: variables by name, periodic longitude, registration, static maps.

    Args:
        model: INRDownscaler with a card that names its variables.
        dataset: fields (..., latitude, longitude). grid: its geometry.
        static: what fastds.data.static_maps takes, for a model that reads static maps.

    Raises:
        ValueError: another architecture, a card without variables, a variable or map that is missing or in other units.
    """

    def __init__(
        self, model: INRDownscaler, dataset: xr.Dataset, grid: Geometry, static: xr.Dataset | list[str] | None = None
    ):
        if not isinstance(model, INRDownscaler):
            raise ValueError(f"model is a {type(model).__name__}, expected an INRDownscaler for scale, grid and like")
        self.model, self.inputs, self.name = model, model.card.input_variables, model.card.name
        if len(self.inputs) != model.in_channels:
            raise ValueError("model: its card must name one variable per channel")
        limits = [plausible_range(wanted.get("standard_name"), wanted["units"]) for wanted in self.inputs]
        super().__init__(dataset, grid, [_find(dataset, wanted) for wanted in self.inputs], limits)
        self.predicted, self.most = list(model.predicted), model.max_scale
        self.static, self.origin = self._static(static)
        model.set_periodic(grid.periodic)

    @functools.cached_property
    def domain(self) -> Domain:
        """See Fields; by some fields evenly over all."""
        card, places = self.model.card, list(self._places())
        looked_at = [places[k] for k in evenly(len(places))] if card.input_ranges else []
        wanted = [variable["name"] for variable in card.input_variables]
        found = domain_of(card, inputs=[of_fields(self._field(at)[0], wanted) for at in looked_at])
        found.warn(stacklevel=4)
        return found

    def _static(self, static) -> tuple[Tensor | None, str]:
        """The maps (1, S, H, W) that the model reads and where they came from."""
        card, needed = self.model.card, self.model.static_channels
        if static is None and not needed:
            return None, ""
        check_static(card, needed, static)
        field = self.dataset[self.names[0]].transpose(..., *self.grid.names)
        maps = static_maps(static, field, self.dataset, card.static_variables)
        return torch.from_numpy(maps.values)[None], maps.origin

    def encode(self, x: Tensor, factor: tuple[float, float]) -> Encoded:
        """What decode takes, of fields (1, C, H, W) that become finer by a factor along rows and columns."""
        device = device_of(self.model)
        static = None if self.static is None else self.static.to(device)
        return self.model.encode(x.to(device), self._factor(factor), static)

    def decode(self, encoded: Encoded, where: PointSpec | GridSpec, factor: tuple[float, float]) -> Tensor:
        """Values (1, Q, channels) at the places `where`, on the CPU; relative humidity is cut to HUMIDITY_RANGE."""
        if isinstance(where, PointSpec):
            where = where.to(device_of(self.model))
        y = self.model.decode(encoded, where, 2 / self._factor(factor)).cpu()
        for channel, of in enumerate(self.predicted):
            if self.inputs[of].get("standard_name") == "relative_humidity" and same_units(
                self.inputs[of]["units"], "%"
            ):
                y[..., channel] = y[..., channel].clamp(*HUMIDITY_RANGE)
        return y

    def _factor(self, factor) -> Tensor:
        return torch.tensor([factor], dtype=torch.float32, device=device_of(self.model))

    def onto(self, x: Tensor, latitude: Tensor, longitude: Tensor, out: list[np.ndarray]) -> None:
        """(1, C, H, W) at a grid of coordinates, decoded in windows of rows into one (H', W') array per variable."""
        factor = self.factor(latitude, longitude)
        encoded = self.encode(x, factor)
        u, v = self.grid.positions(latitude, longitude)
        rows = max(1, WINDOW_QUERIES // v.numel())
        for first in range(0, u.numel(), rows):
            part = torch.cartesian_prod(u[first : first + rows], v).reshape(-1, 2)
            where = from_index(part, x.shape[2:], self.model.edge)
            y = self.decode(encoded, where, factor)[0].unflatten(0, (-1, v.numel()))
            for channel, values in enumerate(out):
                values[first : first + rows] = y[..., channel]


class Interpolation(Fields):
    """Every variable of a dataset on the grid by bilinear, bicubic or Lanczos interpolation, see
    fastds.models.baselines.interpolation; columns go round the globe, beyond the outer rows their values are repeated.

    Of variables of other dimensions than the first those are left out. Humidity in % is cut to HUMIDITY_RANGE. Missing
    values spread over the reach of the kernel.

    Raises: ValueError for a dataset without such a field.
    """

    def __init__(self, method: str, dataset: xr.Dataset, grid: Geometry):
        names = names_of_fields(dataset, grid)
        if not names:
            raise ValueError(f"there is no field over {' and '.join(grid.names)}")
        names = [n for n in names if set(dataset[n].dims) == set(dataset[names[0]].dims)]
        for n in names:
            check_packing(dataset[n])
        super().__init__(dataset, grid, names, [limits_of(dataset[n]) for n in names])
        self.name = method

    def onto(self, x: Tensor, latitude: Tensor, longitude: Tensor, out: list[np.ndarray]) -> None:
        """(1, C, H, W) at a grid of coordinates, into one (H', W') array per variable; places outside a regional domain
        have the values of its border."""
        u, v = self.grid.positions(latitude, longitude)
        rows = weights_at(u.numpy(), x.shape[2], self.name)
        columns = weights_at(v.numpy(), x.shape[3], self.name, periodic=self.grid.periodic)
        for channel, values in enumerate(out):
            fine = rows @ (columns @ x[0, channel].numpy().astype(np.float64).T).T
            if self._is_humidity(channel):
                fine = fine.clip(*HUMIDITY_RANGE)
            values[:] = fine

    def _is_humidity(self, channel: int) -> bool:
        attrs = self.dataset[self.names[channel]].attrs
        return attrs.get("standard_name") == "relative_humidity" and same_units(attrs.get("units"), "%")


def names_of_fields(dataset: xr.Dataset, grid: Geometry) -> list[str]:
    """Its variables of numbers on the grid."""
    return [n for n, v in dataset.data_vars.items() if set(grid.names) <= set(v.dims) and v.dtype.kind in "fiu"]


def limits_of(field: xr.DataArray) -> tuple[float, float] | None:
    """The plausible range of a variable by its attributes, None where they do not tell."""
    units = field.attrs.get("units")
    return None if units is None else plausible_range(field.attrs.get("standard_name"), units)


def pick_method(
    model: nn.Module | str | os.PathLike | None, dataset: xr.Dataset, grid: Geometry, static=None
) -> tuple[Fields, str]:
    """What brings a dataset onto other grids, and a sentence about it: a network, its name or file, a method of
    interpolation; None: the shipped network where it takes the dataset, else bicubic interpolation.

    Raises: ValueError where the dataset does not fit; what fastds.load raises."""
    if isinstance(model, str) and model in METHODS:
        if static is not None:
            raise ValueError(f"method {model} reads no static maps; leave out the argument static")
        return Interpolation(model, dataset, grid), f"method {model}, which needs no weights"
    if model is not None or static is not None:
        method = FieldModel(loaded(DEFAULT_MODEL if model is None else model), dataset, grid, static)
        return method, f"model {method.name or 'without a name'}"
    try:
        return FieldModel(loaded(DEFAULT_MODEL), dataset, grid), f"model {DEFAULT_MODEL} was chosen"
    except ValueError as error:
        method = Interpolation(FALLBACK, dataset, grid)
        return method, f"method {FALLBACK}: the shipped {DEFAULT_MODEL} does not take this file ({error})"


def _find(dataset: xr.Dataset, wanted: dict) -> str:
    """The variable of a dataset that a card wants."""
    for name, variable in dataset.data_vars.items():
        if name == wanted["name"] or variable.attrs.get("standard_name") == wanted.get("standard_name", "-"):
            units = variable.attrs.get("units", "")
            check_packing(variable)
            if not same_units(units, wanted["units"]):
                raise ValueError(f"variable {name} is in {str(units)!r}, the model was trained on {wanted['units']!r}")
            return str(name)
    raise ValueError(
        f"the model needs the variable {wanted['name']} ({wanted.get('standard_name', '')}), "
        f"the file has {', '.join(map(str, dataset.data_vars)) or 'none'}"
    )
