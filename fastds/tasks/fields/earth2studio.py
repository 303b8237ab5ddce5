# SPDX-License-Identifier: Apache-2.0
"""An arbitrary-scale network as a diagnostic model of NVIDIA's Earth2Studio."""

from __future__ import annotations

import os
from collections import OrderedDict

import numpy as np
import torch
import xarray as xr
from earth2studio.models.batch import batch_coords, batch_func
from earth2studio.utils import handshake_coords, handshake_dim
from earth2studio.utils.type import CoordSystem
from torch import Tensor, nn

from fastds._nearest import with_article
from fastds.models import INRDownscaler
from fastds.tasks.common.inference import loaded
from fastds.tasks.fields.job import FieldsJob
from fastds.tasks.fields.methods import DEFAULT_MODEL
from fastds.tasks.fields.run import downscale

_DIMS = "batch", "lat", "lon"
_AXES = {
    "lat": {"standard_name": "latitude", "units": "degrees_north"},
    "lon": {"standard_name": "longitude", "units": "degrees_east"},
}


class Downscaling(nn.Module):
    """Fields of one pressure level on a finer grid, what fastds.downscale makes of them, for earth2studio.run.

    Args:
        latitude, longitude: of the fields that come in, degrees, regular, ascending or descending.
        level: their pressure, hPa; variables are named as Earth2Studio names them, "t500".
        scale: factor > 0. grid: spacing of the new grid, degrees. Exactly one of both.
        model: an arbitrary-scale network, a shipped name or a weights file.

    Shapes: (x (..., variable, lat, lon), coords) -> (y (..., variable, lat', lon'), coords of y), float32.

    Raises: ValueError for a model of another kind, coordinates that are not regular, and what fastds.downscale raises.
    """

    def __init__(
        self,
        latitude: np.ndarray,
        longitude: np.ndarray,
        level: int = 500,
        *,
        scale: float | None = None,
        grid: float | None = None,
        model: nn.Module | str | os.PathLike = DEFAULT_MODEL,
    ):
        super().__init__()
        self.model = loaded(model)
        if not isinstance(self.model, INRDownscaler) or self.model.card.any_variable:
            what = f"{type(self.model).__name__} {self.model.card.name}".strip()
            raise ValueError(
                f"model is {with_article(what)}, expected an INRDownscaler of named variables such as inr-small"
            )
        self.wanted, self.where = self.model.card.input_variables, {"scale": scale, "grid": grid}
        self.variables = np.array([f"{variable['name']}{level}" for variable in self.wanted])
        self.axes = {"lat": np.asarray(latitude), "lon": np.asarray(longitude)}
        nothing = np.zeros((1, len(self.wanted), len(self.axes["lat"]), len(self.axes["lon"])), np.float32)
        job = FieldsJob(self.model, self._dataset(nothing), **self.where)
        self.predicted = [int(channel) for channel in job.method.predicted]
        self.fine = {name: axis.numpy() for name, axis in zip(self.axes, job.target, strict=True)}

    def input_coords(self) -> CoordSystem:
        """Coordinates that x must have."""
        return OrderedDict({"batch": np.empty(0), "variable": self.variables} | self.axes)

    @batch_coords()
    def output_coords(self, input_coords: CoordSystem) -> CoordSystem:
        """Coordinates of y. Raises: KeyError or ValueError for others than input_coords."""
        wanted = self.input_coords()
        for index, name in enumerate(wanted):
            handshake_dim(input_coords, name, index)
        for name in ("variable", *self.axes):
            handshake_coords(input_coords, wanted, name)
        return OrderedDict(input_coords | {"variable": self.variables[self.predicted]} | self.fine)

    @torch.inference_mode()
    @batch_func()
    def __call__(self, x: Tensor, coords: CoordSystem) -> tuple[Tensor, CoordSystem]:
        """The fine fields, on the device of x, and their coordinates."""
        told = self.output_coords(coords)
        fine = downscale(self.model, self._dataset(x.float().cpu().numpy()), **self.where)
        fields = [fine[self.wanted[channel]["name"]].values for channel in self.predicted]
        return torch.from_numpy(np.stack(fields, 1)).to(x.device), told

    def _dataset(self, x: np.ndarray) -> xr.Dataset:
        """Fields (batch, variable, lat, lon) by name, with the units that the network expects."""
        coords = {name: (name, values, _AXES[name]) for name, values in self.axes.items()}
        attributes = [{key: v[key] for key in ("standard_name", "units") if key in v} for v in self.wanted]
        named = zip(self.wanted, attributes, np.moveaxis(x, 1, 0), strict=True)
        return xr.Dataset({v["name"]: (_DIMS, field, attrs) for v, attrs, field in named}, coords)
