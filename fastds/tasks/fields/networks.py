# SPDX-License-Identifier: Apache-2.0
"""Arbitrary-scale networks set up for the variables and the grid of a dataset."""

from __future__ import annotations

import functools

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fastds._nearest import with_article
from fastds.data.io.statics import static_maps
from fastds.models.inr import INRDownscaler
from fastds.models.inr.bands import Encoded
from fastds.ops import GridSpec, PointSpec
from fastds.ops.impl.inr_query.points import from_index
from fastds.tasks.common.inference import check_static
from fastds.tasks.common.settings import device_of
from fastds.tasks.domain.score import Domain, domain_of, select_evenly
from fastds.tasks.domain.statistics import of_fields
from fastds.tasks.fields.geometry import Geometry, upright
from fastds.tasks.fields.variables import Fields, Kind, alike, find

WINDOW_QUERIES = 1 << 20  # fine pixels decoded at once; the result does not depend on it


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
            raise ValueError(
                f"model is {with_article(type(model).__name__)}, expected an INRDownscaler for scale, grid and like"
            )
        self.model, self.name, self.most = model, model.card.name, model.max_scale
        dataset, grid = upright(dataset, grid)
        super().__init__(dataset, grid, *self._chosen(dataset, grid))
        self.predicted = [channel for group in self.groups for channel in self._made_of(group)]
        self.static, self.origin = self._static(static)
        model.set_periodic(grid.periodic)

    def _chosen(self, dataset: xr.Dataset, grid: Geometry) -> tuple[list[str], list[Kind]]:
        """Names and kinds of the variables that the network reads."""
        wanted = self.model.card.input_variables
        if len(wanted) != self.model.in_channels:
            raise ValueError("model: its card must name one variable per channel")
        return [find(dataset, one) for one in wanted], [(one.get("standard_name"), one["units"]) for one in wanted]

    @property
    def groups(self) -> list[list[int]]:
        """The variables that the network reads together, group by group."""
        return [list(range(len(self.names)))]

    def _made_of(self, group: list[int]) -> list[int]:
        return [group[channel] for channel in self.model.predicted]

    @functools.cached_property
    def domain(self) -> Domain:
        """See Fields; by some fields evenly over all."""
        card, places = self.model.card, list(self._places())
        looked_at = [places[k] for k in select_evenly(len(places))] if card.input_ranges else []
        names = [variable["name"] for variable in card.input_variables]
        fields = [self._field(at)[0] for at in looked_at]
        found = domain_of(card, inputs=[of_fields(x[group], names) for x in fields for group in self.groups])
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
        """What decode takes, of a group of fields (1, C, H, W) that become finer by a factor along rows and columns."""
        device = device_of(self.model)
        static = None if self.static is None else self.static.to(device)
        return self.model.encode(x.to(device), self._factor(factor), static)

    def decode(self, encoded: Encoded, where: PointSpec | GridSpec, factor: tuple[float, float]) -> Tensor:
        """Values (1, Q, channels) at the places `where`, on the CPU, of a group of fields."""
        if isinstance(where, PointSpec):
            where = where.to(device_of(self.model))
        return self.model.decode(encoded, where, 2 / self._factor(factor)).cpu()

    def _factor(self, factor: tuple[float, float]) -> Tensor:
        return torch.tensor([factor], dtype=torch.float32, device=device_of(self.model))

    def at(self, x: Tensor, where: PointSpec, factor: tuple[float, float]) -> Tensor:
        """Values (Q, predicted) of fields (1, C, H, W) at points."""
        made = (self.decode(self.encode(x[:, group], factor), where, factor) for group in self.groups)
        y = torch.cat(list(made), 2)[0]
        rows, columns = (where.base + where.frac.double())[0].numpy().T
        for k, channel in enumerate(self.predicted):
            self.limit(channel, x[0, channel], y[:, k].numpy())
            self.lose_missing(x[0, channel], rows, columns, y[:, k].numpy())
        return y

    def onto(self, x: Tensor, latitude: Tensor, longitude: Tensor, out: list[np.ndarray]) -> None:
        """(1, C, H, W) at a grid of coordinates, decoded in windows of rows into one (H', W') array per variable."""
        factor = self.factor(latitude, longitude)
        u, v = self.grid.positions(latitude, longitude)
        rows = max(1, WINDOW_QUERIES // v.numel())
        waiting = iter(out)
        for group in self.groups:
            encoded = self.encode(x[:, group], factor)
            targets = [next(waiting) for _ in self._made_of(group)]
            for first in range(0, u.numel(), rows):
                part = torch.cartesian_prod(u[first : first + rows], v).reshape(-1, 2)
                where = from_index(part, x.shape[2:], self.model.edge)
                y = self.decode(encoded, where, factor)[0].unflatten(0, (-1, v.numel()))
                for channel, values in enumerate(targets):
                    values[first : first + rows] = y[..., channel]
            for channel, values in zip(self._made_of(group), targets, strict=True):
                self.limit(channel, x[0, channel], values)
                self.lose_missing(x[0, channel], u.numpy()[:, None], v.numpy(), values)


class AnyVariableModel(FieldModel):
    """A network of one channel that takes any variable: every variable that alike takes, each by itself.

    Arguments and errors: as FieldModel.
    """

    def _chosen(self, dataset: xr.Dataset, grid: Geometry) -> tuple[list[str], list[Kind]]:
        return alike(dataset, grid)

    @property
    def groups(self) -> list[list[int]]:
        return [[channel] for channel in range(len(self.names))]
