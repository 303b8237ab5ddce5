# SPDX-License-Identifier: Apache-2.0
"""Arbitrary-scale networks as diagnostic models of NVIDIA's Earth2Studio."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
import xarray as xr
from earth2studio.models.batch import batch_coords, batch_func
from earth2studio.utils import handshake_coords, handshake_dim
from earth2studio.utils.type import CoordSystem
from torch import Tensor, nn

from fastds._options import OptionError
from fastds._suggestions import add_article
from fastds.inference.files import load_model
from fastds.models import INRDownscaler
from fastds.tasks.fields.methods import DEFAULT_MODEL
from fastds.tasks.fields.pipeline import FieldsPipeline
from fastds.tasks.fields.run import downscale

_DIMS = "batch", "lat", "lon"
_AXES = {
    "lat": {"standard_name": "latitude", "units": "degrees_north"},
    "lon": {"standard_name": "longitude", "units": "degrees_east"},
}


class Downscaling(nn.Module):
    """Diagnostic model for earth2studio.run that downscales fields of one pressure level with fastds.downscale.

    Input and output: (x (..., variable, lat, lon), coords) -> (y (..., variable, lat', lon'), coords of y), float32.

    Args:
        latitude: latitudes of the input in degrees, equally spaced, ascending or descending.
        longitude: longitudes of the input in degrees, equally spaced.
        level: pressure level in hPa (default: 500). Variables are named as in Earth2Studio: "t500".
        scale: scale factor, greater than 0.
        grid: spacing of the output grid in degrees. Exactly one of scale and grid must be given.
        model: arbitrary-scale network, shipped name or weights file (default: "inr-small").

    Raises:
        ValueError: another kind of model, coordinates that are not equally spaced, or arguments that
            fastds.downscale rejects.
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
        self.model = load_model(model)
        if not isinstance(self.model, INRDownscaler) or self.model.card.any_variable:
            what = f"{type(self.model).__name__} {self.model.card.name}".strip()
            raise OptionError(
                "model", f"is {add_article(what)}, expected an INRDownscaler of named variables such as inr-small"
            )
        self.inputs = self.model.card.input_variables
        self.where: dict[str, Any] = {"scale": scale, "grid": grid}
        self.variables = np.array([f"{variable['name']}{level}" for variable in self.inputs])
        self.axes = {"lat": np.asarray(latitude), "lon": np.asarray(longitude)}
        nothing = np.zeros((1, len(self.inputs), len(self.axes["lat"]), len(self.axes["lon"])), np.float32)
        pipeline = FieldsPipeline(self.model, self._dataset(nothing), **self.where)
        self.predicted = [int(channel) for channel in pipeline.method.predicted]
        self.fine = {name: axis.numpy() for name, axis in zip(self.axes, pipeline.target, strict=True)}

    def input_coords(self) -> CoordSystem:
        """Return the coordinates that x must have."""
        return OrderedDict({"batch": np.empty(0), "variable": self.variables} | self.axes)

    @batch_coords()
    def output_coords(self, input_coords: CoordSystem) -> CoordSystem:
        """Return the coordinates of y.

        Raises:
            KeyError: a coordinate of input_coords is missing.
            ValueError: the input coordinates differ from input_coords.
        """
        expected = self.input_coords()
        for index, name in enumerate(expected):
            handshake_dim(input_coords, name, index)
        for name in ("variable", *self.axes):
            handshake_coords(input_coords, expected, name)
        return OrderedDict(input_coords | {"variable": self.variables[self.predicted]} | self.fine)

    @torch.inference_mode()
    @batch_func()
    def __call__(self, x: Tensor, coords: CoordSystem) -> tuple[Tensor, CoordSystem]:
        """Return the fine fields, on the device of x, and their coordinates."""
        output_coords = self.output_coords(coords)
        fine = downscale(self.model, self._dataset(x.float().cpu().numpy()), **self.where)
        fields = [fine[self.inputs[channel]["name"]].values for channel in self.predicted]
        return torch.from_numpy(np.stack(fields, 1)).to(x.device), output_coords

    def _dataset(self, x: np.ndarray) -> xr.Dataset:
        """Make a dataset of fields (batch, variable, lat, lon) with the units that the network expects."""
        coords = {name: (name, values, _AXES[name]) for name, values in self.axes.items()}
        attributes = [{key: v[key] for key in ("standard_name", "units") if key in v} for v in self.inputs]
        named = zip(self.inputs, attributes, np.moveaxis(x, 1, 0), strict=True)
        return xr.Dataset({v["name"]: (_DIMS, field, attrs) for v, attrs, field in named}, coords)
