# SPDX-License-Identifier: Apache-2.0
"""Arbitrary-scale networks set up for the variables and the grid of a dataset."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fastds._options import OptionError
from fastds._suggestions import add_article
from fastds.data.io.statics import static_maps
from fastds.inference.execution import get_device
from fastds.inference.files import check_static
from fastds.inference.ood.score import OODReport, assess_inputs, select_evenly
from fastds.inference.ood.statistics import compute_field_statistics
from fastds.models.inr import INRDownscaler
from fastds.models.inr.decoders import Encoded
from fastds.ops import GridSpec, PointSpec
from fastds.ops.impl.inr_query.points import from_index
from fastds.tasks.fields.geometry import Geometry, orient_north_up
from fastds.tasks.fields.variables import Fields, Kind, find_variable, select_main_fields

# number of target points in a batch of small fields, and largest number of its fields
BATCH_QUERIES, MAX_BATCH = 1 << 18, 32
WINDOW_QUERIES = 1 << 20  # maximum number of target points that are decoded at a time; the result does not depend on it


class FieldModel(Fields):
    """Network that is set up for the variables, the grid and the static maps of a dataset.

    Args:
        model: INRDownscaler with a card that names its variables.
        dataset: fields (..., latitude, longitude).
        grid: grid of the fields.
        static: see fastds.data.static_maps, for a model that reads static maps.

    Raises:
        ValueError: another architecture, a card without variables, or a variable or map that is missing or has other
            units.
    """

    def __init__(
        self, model: INRDownscaler, dataset: xr.Dataset, grid: Geometry, static: xr.Dataset | list[str] | None = None
    ):
        if not isinstance(model, INRDownscaler):
            raise OptionError(
                "model", f"is {add_article(type(model).__name__)}, expected an INRDownscaler for scale, grid and like"
            )
        self.model, self.name, self.max_factor = model, model.card.name, model.max_scale
        dataset, grid = orient_north_up(dataset, grid)
        super().__init__(dataset, grid, *self._select_variables(dataset, grid))
        self.predicted = [channel for group in self.groups for channel in self._select_predicted(group)]
        self.static, self.origin = self._static(static)
        self._window: tuple[tuple, list[tuple[slice, PointSpec]]] | None = None  # of the last target grid
        model.set_periodic(grid.periodic)

    def _select_variables(self, dataset: xr.Dataset, grid: Geometry) -> tuple[list[str], list[Kind]]:
        """Return names and kinds of the variables that the network reads."""
        expected = self.model.card.input_variables
        if len(expected) != self.model.in_channels:
            raise OptionError("model", ": its card must name one variable per channel")
        return [find_variable(dataset, one) for one in expected], [
            (one.get("standard_name"), one["units"]) for one in expected
        ]

    @property
    def groups(self) -> list[list[int]]:
        """Channel numbers of the variables that the network reads together, by group."""
        return [list(range(len(self.names)))]

    def _select_predicted(self, group: list[int]) -> list[int]:
        return [group[channel] for channel in self.model.predicted]

    @functools.cached_property
    def ood(self) -> OODReport:
        """Out-of-distribution report of a sample of the fields, with a UserWarning if a field is outside."""
        card, places = self.model.card, list(self._iterate_indices())
        looked_at = [places[k] for k in select_evenly(len(places))] if card.input_ranges else []
        names = [variable["name"] for variable in card.input_variables]
        fields = [self._field(at)[0] for at in looked_at]
        found = assess_inputs(
            card, inputs=[compute_field_statistics(x[group], names) for x in fields for group in self.groups]
        )
        found.warn(stacklevel=4)
        return found

    def _static(self, static) -> tuple[Tensor | None, str]:
        """Return the static maps (1, S, H, W) of the model and their origin."""
        card, needed = self.model.card, self.model.static_channels
        if static is None and not needed:
            return None, ""
        check_static(card, needed, static)
        field = self.dataset[self.names[0]].transpose(..., *self.grid.names)
        maps = static_maps(static, field, self.dataset, card.static_variables)
        return torch.from_numpy(maps.values)[None], maps.origin

    def encode(self, x: Tensor, factor: tuple[float, float]) -> Encoded:
        """Encode a group of fields (B, C, H, W) for scale factors along rows and columns."""
        device = get_device(self.model)
        static = None if self.static is None else self.static.to(device)
        return self.model.encode(x.to(device), self._factor(factor), static)

    def decode(self, encoded: Encoded, where: PointSpec | GridSpec, factor: tuple[float, float]) -> Tensor:
        """Evaluate an encoded group of fields at points.

        Args:
            encoded: result of `encode`.
            where: Q points of the grid.
            factor: scale factors along rows and columns.

        Returns:
            (B, Q, channels), on the CPU.
        """
        if isinstance(where, PointSpec):
            where = where.to(get_device(self.model))
        cell = (2 / self._factor(factor)).expand(encoded.features.shape[0], -1)
        return self.model.decode(encoded, where, cell).cpu()

    def _factor(self, factor: tuple[float, float]) -> Tensor:
        return torch.tensor([factor], dtype=torch.float32, device=get_device(self.model))

    def predict_points(self, x: Tensor, where: PointSpec, factor: tuple[float, float]) -> Tensor:
        """Predict fields at points.

        Args:
            x: fields (1, C, H, W), NaN = missing.
            where: Q points of the grid.
            factor: scale factors along rows and columns.

        Returns:
            (Q, predicted channels).
        """
        made = (self.decode(self.encode(x[:, group], factor), where, factor) for group in self.groups)
        y = torch.cat(list(made), 2)[0]
        rows, columns = (where.base + where.frac.double())[0].numpy().T
        for k, channel in enumerate(self.predicted):
            self.clip(channel, x[0, channel], y[:, k].numpy())
            self.propagate_missing(x[0, channel], rows, columns, y[:, k].numpy())
        return y

    def get_batch_size(self, latitude: Tensor, longitude: Tensor) -> int:
        """Return how many fields `predict_grids` should compute together for a grid of coordinates.

        Larger batches save the overhead of each call.
        """
        return max(1, min(MAX_BATCH, BATCH_QUERIES // (latitude.numel() * longitude.numel())))

    def predict_grid(self, x: Tensor, latitude: Tensor, longitude: Tensor, out: list[np.ndarray]) -> None:
        """Downscale fields (1, C, H, W) to a grid of coordinates, see predict_grids."""
        self.predict_grids(x, latitude, longitude, [out])

    def predict_grids(self, x: Tensor, latitude: Tensor, longitude: Tensor, outs: Sequence[list[np.ndarray]]) -> None:
        """Downscale fields (B, C, H, W) to a grid of coordinates, decoded in blocks of rows.

        Args:
            x: fields; several fields must have no missing values.
            latitude: latitudes (or y) of the target rows.
            longitude: longitudes (or x) of the target columns.
            outs: for each field, one array (H', W') per predicted variable, which is overwritten.
        """
        factor = self.factor(latitude, longitude)
        u, v = self.grid.positions(latitude, longitude)
        waiting = iter(range(len(self.predicted)))
        for group in self.groups:
            encoded = self.encode(x[:, group], factor)
            targets = [next(waiting) for _ in self._select_predicted(group)]
            for rows, where in self._find_windows(latitude, longitude, x.shape[2:]):
                y = self.decode(encoded, where, factor).unflatten(1, (-1, v.numel()))
                for k, out in enumerate(outs):
                    for channel, target in enumerate(targets):
                        out[target][rows] = y[k, ..., channel]
            for field, out in zip(x, outs, strict=True):
                for channel, target in zip(self._select_predicted(group), targets, strict=True):
                    self.clip(channel, field[channel], out[target])
                    self.propagate_missing(field[channel], u.numpy()[:, None], v.numpy(), out[target])

    def _find_windows(
        self, latitude: Tensor, longitude: Tensor, size: Sequence[int]
    ) -> Iterable[tuple[slice, PointSpec]]:
        """Return windows of rows of a grid of coordinates with their points; a single window is cached."""
        target = latitude, longitude, *size
        if self._window is not None and all(a is b for a, b in zip(self._window[0], target, strict=True)):
            return self._window[1]
        u, v = self.grid.positions(latitude, longitude)
        rows = max(1, WINDOW_QUERIES // v.numel())
        windows = (
            (
                slice(first, first + rows),
                from_index(torch.cartesian_prod(u[first : first + rows], v).reshape(-1, 2), size, self.model.edge),
            )
            for first in range(0, u.numel(), rows)
        )
        if rows < u.numel():
            return windows
        self._window = target, list(windows)
        return self._window[1]


class AnyVariableModel(FieldModel):
    """Network with one channel that takes any variable and processes each variable independently.

    The arguments are those of FieldModel.
    """

    def _select_variables(self, dataset: xr.Dataset, grid: Geometry) -> tuple[list[str], list[Kind]]:
        return select_main_fields(dataset, grid)

    @property
    def groups(self) -> list[list[int]]:
        return [[channel] for channel in range(len(self.names))]
