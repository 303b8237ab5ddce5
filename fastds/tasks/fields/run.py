# SPDX-License-Identifier: Apache-2.0
"""Downscale latitude-longitude fields to any grid, or read them at stations, with an arbitrary-scale model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from fastds.data import add_history, open_dataset, opened
from fastds.data.grid.grids import scalar_coordinates
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
from fastds.data.reading import Reading
from fastds.data.samples.fields import HUMIDITY_RANGE
from fastds.models.baselines.interpolation import bilinear_at
from fastds.models.inr import INRDownscaler
from fastds.models.inr.bands import Encoded
from fastds.ops import GridSpec, PointSpec
from fastds.ops.impl.inr_query.points import from_index, from_latlon
from fastds.tasks.common.inference import (
    Report,
    check_static,
    check_target,
    computing,
    file_to_file,
    loaded,
    store,
)
from fastds.tasks.common.progress import progress_bar
from fastds.tasks.common.tables import write_csv
from fastds.tasks.fields.geometry import FULL_CIRCLE, Geometry, geometry, target_by_scale, target_by_spacing
from fastds.tasks.fields.points import Points, read_points

DEFAULT_MODEL = "inr-small"
WINDOW_QUERIES = 1 << 20  # fine pixels decoded at once; the result does not depend on it


class FieldModel:
    """A model set up for the grid of a dataset: variables by name, periodic longitude, registration, static maps.

    Args:
        model: INRDownscaler with a card that names its variables.
        dataset: fields (..., latitude, longitude). grid: its geometry.
        static: what fastds.data.static_maps takes, for a model that reads static maps.

    Attributes: names of the model's variables in the file, lead, their leading dimensions; origin of the static maps.

    Raises:
        ValueError: another architecture, a card without variables, a variable or map that is missing or in other units.
    """

    def __init__(
        self, model: INRDownscaler, dataset: xr.Dataset, grid: Geometry, static: xr.Dataset | list[str] | None = None
    ):
        self.model = model
        if not isinstance(self.model, INRDownscaler):
            raise ValueError(
                f"model is a {type(self.model).__name__}, expected an INRDownscaler for scale, grid and like"
            )
        self.inputs = self.model.card.input_variables
        if len(self.inputs) != self.model.in_channels:
            raise ValueError("model: its card must name one variable per channel")
        self.grid, self.dataset = grid, dataset
        self.names = [self._find(dataset, wanted) for wanted in self.inputs]
        self.limits = [plausible_range(wanted.get("standard_name"), wanted["units"]) for wanted in self.inputs]
        self.lead = [d for d in dataset[self.names[0]].dims if d not in grid.names]
        empty = [d for d in self.lead if dataset.sizes[d] == 0]
        if empty:
            raise ValueError(f"there is no field: dimension {empty[0]} of variable {self.names[0]} has length 0")
        for d in self.lead:
            if d in dataset.coords and dataset[d].dtype.kind == "M":
                check_dates(dataset[d])
        self.static, self.origin = self._static(static)
        self.model.set_periodic(grid.periodic)

    def _static(self, static) -> tuple[Tensor | None, str]:
        """The maps (1, S, H, W) that the model reads and where they came from."""
        card, needed = self.model.card, self.model.static_channels
        if static is None and not needed:
            return None, ""
        check_static(card, needed, static)
        field = self.dataset[self.names[0]].transpose(..., *self.grid.names)
        maps = static_maps(static, field, self.dataset, card.static_variables)
        return torch.from_numpy(maps.values)[None], maps.origin

    def fields(self) -> Iterator[tuple[dict, Tensor]]:
        """({leading dimension: index}, (1, C, H, W) float32), read one after another; what is implausible is NaN."""
        for at in self._places():
            fields = [within(self._values(n, at), limits) for n, limits in zip(self.names, self.limits, strict=True)]
            yield at, torch.from_numpy(np.stack(fields))[None]

    def check(self, stacklevel: int) -> None:
        """Warn (UserWarning) where values of a variable are implausible or all missing. Raises: ValueError where more
        than half are implausible."""
        for n, limits in zip(self.names, self.limits, strict=True):
            variable, values = self.dataset[n], (self._values(n, at) for at in self._places())
            said = f"every value of variable {n} is missing, and so is the output"
            form = {"codes": stored_as_codes(variable), "all_missing": said, "stacklevel": stacklevel + 1}
            check_plausible(n, values, limits, variable.attrs.get("units", ""), **form)

    def _places(self) -> Iterator[dict]:
        for index in np.ndindex(*(self.dataset.sizes[d] for d in self.lead)):
            yield dict(zip(self.lead, index, strict=True))

    def _values(self, name: str, at: dict) -> np.ndarray:
        """(H, W) float32 of a variable at an index of its leading dimensions."""
        field = self.dataset[name].isel(at).transpose(*self.grid.names)
        return without_missing(field.values, field.attrs)

    @staticmethod
    def _find(dataset: xr.Dataset, wanted: dict) -> str:
        for name, variable in dataset.data_vars.items():
            if name == wanted["name"] or variable.attrs.get("standard_name") == wanted.get("standard_name", "-"):
                units = variable.attrs.get("units", "")
                check_packing(variable)
                if not same_units(units, wanted["units"]):
                    raise ValueError(
                        f"variable {name} is in {str(units)!r}, the model was trained on {wanted['units']!r}"
                    )
                return str(name)
        raise ValueError(
            f"the model needs the variable {wanted['name']} ({wanted.get('standard_name', '')}), "
            f"the file has {', '.join(map(str, dataset.data_vars)) or 'none'}"
        )

    def encode(self, x: Tensor, factor: tuple[float, float]) -> Encoded:
        """What decode takes, of fields (1, C, H, W) that become finer by a factor along rows and columns."""
        return self.model.encode(x, self._factor(factor), self.static)

    def decode(self, encoded: Encoded, where: PointSpec | GridSpec, factor: tuple[float, float]) -> Tensor:
        """Values (1, Q, channels) at the places `where`; relative humidity is cut to HUMIDITY_RANGE."""
        y = self.model.decode(encoded, where, 2 / self._factor(factor))
        for channel, of in enumerate(self.model.predicted):
            if self.inputs[of].get("standard_name") == "relative_humidity" and same_units(
                self.inputs[of]["units"], "%"
            ):
                y[..., channel] = y[..., channel].clamp(*HUMIDITY_RANGE)
        return y

    @staticmethod
    def _factor(factor) -> Tensor:
        return torch.tensor([factor], dtype=torch.float32)

    def factor(self, latitude: Tensor, longitude: Tensor) -> tuple[float, float]:
        """How many times finer a grid of coordinates is, along rows and columns."""
        return tuple(
            abs(s) / max(1e-9, abs(float(t[1] - t[0]))) if t.numel() > 1 else self.model.max_scale
            for s, t in zip(self.grid.steps, (latitude, longitude), strict=True)
        )

    def onto(self, x: Tensor, latitude: Tensor, longitude: Tensor, out: list[np.ndarray]) -> None:
        """(1, C, H, W) at a grid of coordinates, decoded in windows of rows into one (H', W') array per variable."""
        steps, factor = self.grid.steps, self.factor(latitude, longitude)
        encoded = self.encode(x, factor)
        middle = (self.grid.longitude[0] + self.grid.longitude[-1]) / 2
        near = middle + torch.remainder(longitude - middle + 180, FULL_CIRCLE) - 180
        u, v = (latitude - self.grid.latitude[0]) / steps[0], (near - self.grid.longitude[0]) / steps[1]
        rows = max(1, WINDOW_QUERIES // v.numel())
        for first in range(0, u.numel(), rows):
            part = torch.cartesian_prod(u[first : first + rows], v).reshape(-1, 2)
            where = from_index(part, x.shape[2:], self.model.edge)
            y = self.decode(encoded, where, factor)[0].unflatten(0, (-1, v.numel()))
            for channel, values in enumerate(out):
                values[first : first + rows] = y[..., channel]


def downscale(
    model: nn.Module | str | os.PathLike | None,
    dataset: xr.Dataset,
    *,
    scale: float | None = None,
    grid: float | None = None,
    like: xr.Dataset | str | os.PathLike | None = None,
    static: xr.Dataset | list[str] | None = None,
    threads: int | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """The model's variables of a dataset on a finer grid: exactly one of a factor, a spacing and another grid.

    Args:
        model: INRDownscaler, or the name or path of its weights; None: inr-small.
        dataset: fields (..., latitude, longitude).
        scale: factor > 0. grid: spacing of the new grid, degrees. like: dataset, or file, whose coordinates are taken.
        static: maps for a model that reads some: a Dataset, or files, FILE.nc or FILE.nc:VARIABLE, on any grid.
        threads: CPU threads; None: torch's. progress: show a progress bar.

    Returns: a new Dataset; memory beyond it is that of one field.

    Raises: ValueError: data, model or target that do not fit, target points outside a regional domain.
    """
    model = loaded(DEFAULT_MODEL if model is None else model)
    where = {"scale": scale, "grid": grid, "like": like}
    return _run(model, dataset, static=static, threads=threads, progress=progress, folder=None, **where)[0]


def downscale_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    model: nn.Module | str | os.PathLike | None = None,
    scale: float | None = None,
    grid: float | None = None,
    like: xr.Dataset | str | os.PathLike | None = None,
    static: xr.Dataset | list[str] | None = None,
    threads: int | None = None,
    progress: bool = False,
    dtype: str = "input",
    **reading: Unpack[Reading],
) -> Report:
    """Downscale the file source into another, arguments as in `downscale`; `target` appears only when it is complete.

    Fine variables above 256 MB wait in unnamed files beside the target. reading: see fastds.data.reading.
    dtype: of the fields in target, "input" (integers where the input has packed ones) or
    "float32"."""
    chosen = {"scale": scale, "grid": grid, "like": like, "static": static, "threads": threads, "progress": progress}

    def make(dataset: xr.Dataset, folder: Path) -> tuple[xr.Dataset, Report]:
        return _run(loaded(DEFAULT_MODEL if model is None else model), dataset, folder=folder, **chosen)

    return file_to_file(source, target, make, dtype=dtype, **reading)


def plan(name: str, dataset: xr.Dataset, var: str | None = None) -> str:
    """What `downscale` would make of a dataset by the weights of this name, for the user. Raises: ValueError where it
    does not fit. The model says which variables it takes; var does not matter."""
    fields = FieldModel(loaded(name), dataset, geometry(dataset))
    return f"{', '.join(fields.names)} at any scale"


def _run(model, dataset, *, scale=None, grid=None, like=None, static=None, threads=None, progress=False, folder=None):
    """The fine dataset and the report; folder: where large fields are kept in a file, None: in memory."""
    if sum(v is not None for v in (scale, grid, like)) != 1:
        raise ValueError("give exactly one of the arguments scale, grid and like")
    with computing(model, threads):
        own = convention = geometry(dataset)
        if like is not None:
            convention = _grid_of(like)
            latitude, longitude = convention.latitude, convention.longitude
        elif scale is not None:
            latitude, longitude = target_by_scale(own, scale)
        else:
            latitude, longitude = target_by_spacing(own, grid)
        fields = FieldModel(model, dataset, own, static)
        fields.check(stacklevel=4)
        if min(fields.factor(latitude, longitude)) < 1 - 1e-6:
            coarser = (
                "the new grid is coarser than the input: its values are those at its points, not means of its cells"
            )
            warnings.warn(coarser, UserWarning, stacklevel=3)
        shape = *(dataset.sizes[d] for d in fields.lead), latitude.numel(), longitude.numel()
        fine = [store(shape, folder) for _ in fields.model.predicted]
        count = int(np.prod(shape[:-2], dtype=int))
        with progress_bar(progress, count, "downscaling", "fields") as advance:
            for at, x in fields.fields():
                fields.onto(x, latitude, longitude, [values[tuple(at.values())] for values in fine])
                if advance is not None:
                    advance()
    out = _dataset(dataset, fields, fine, (latitude, convention.written(longitude)))
    size = " x ".join(str(out.sizes[n]) for n in own.names)
    name = model.card.name or "without a name"
    return out, Report(name, {}, [f"model {name}: {', '.join(map(str, out.data_vars))} on {size} points"])


def _grid_of(like: xr.Dataset | str | os.PathLike) -> Geometry:
    if isinstance(like, xr.Dataset):
        return geometry(like)
    with open_dataset(like) as other:
        return geometry(other)


def _dataset(dataset, field_model, fine, target) -> xr.Dataset:
    result, names, lead = xr.Dataset(attrs=dict(dataset.attrs)), field_model.names, field_model.lead
    for k, c in enumerate(field_model.model.predicted):
        source = dataset[names[c]]
        attrs = {key: value for key, value in source.attrs.items() if key != "missing_value"}
        result[names[c]] = ([*lead, *field_model.grid.names], fine[k], attrs)
    for name, values in zip(field_model.grid.names, target, strict=True):
        result[name] = (name, values.numpy(), dict(dataset[name].attrs))
    for d in lead:
        if d in dataset.coords:
            result[d] = dataset[d]
    result = result.assign_coords(scalar_coordinates(dataset[names[0]]))
    said = f"fastds: arbitrary-scale downscaling with {field_model.model.card.name or 'a model'}"
    return add_history(result, "; ".join(filter(None, (said, field_model.origin))))


def query(
    model: nn.Module | str | os.PathLike | None,
    dataset: xr.Dataset,
    points: Points,
    *,
    outside: str = "error",
    static: xr.Dataset | list[str] | None = None,
    threads: int | None = None,
) -> list[dict]:
    """Values of every variable at points, by the model and by bilinear interpolation, one row per field and point.

    Args:
        model, dataset, static, threads: as in downscale.
        points: pairs (latitude, longitude) in degrees, longitudes in either convention; or columns of equal length with
            the names lat and lon (others are kept); or a CSV file of such columns.
        outside: of a regional domain, "error", "nan" or "clamp".

    Returns: rows {columns of the point, leading coordinates, name: model value, name_bilinear: interpolated value}.

    Raises: ValueError: data, model or points that do not fit.
    """
    model, (stations, latitude, longitude) = loaded(DEFAULT_MODEL if model is None else model), read_points(points)
    with computing(model, threads):
        grid = geometry(dataset)
        fields = FieldModel(model, dataset, grid, static)
        fields.check(stacklevel=3)
        where = from_latlon(
            latitude, longitude, grid.latitude, grid.longitude, periodic_x=grid.periodic, outside=outside
        )
        factor = (fields.model.max_scale,) * 2
        rows = []
        for label, x in fields.fields():
            y = fields.decode(fields.encode(x, factor), where, factor)[0]
            plain = bilinear_at(x, where, fields.model.edge)[0]
            at = {d: str(dataset[d].values[i]) if d in dataset.coords else i for d, i in label.items()}
            for q, station in enumerate(stations):
                row = station | at
                for k, c in enumerate(fields.model.predicted):
                    row |= {fields.names[c]: float(y[q, k]), f"{fields.names[c]}_bilinear": float(plain[q, c])}
                rows.append(row)
    return rows


def query_file(
    source: str | os.PathLike,
    points: str | os.PathLike,
    target: str | os.PathLike,
    *,
    model: nn.Module | str | os.PathLike | None = None,
    outside: str = "error",
    static: xr.Dataset | list[str] | None = None,
    threads: int | None = None,
    **reading: Unpack[Reading],
) -> Report:
    """Query the file source at the points of a CSV file, arguments as in `query`, and write the rows to another CSV.

    reading: see fastds.data.reading."""
    check_target(source, target)
    check_target(points, target)
    model = loaded(DEFAULT_MODEL if model is None else model)
    with opened(source, **reading) as dataset:
        rows = query(model, dataset, points, outside=outside, static=static, threads=threads)
    write_csv(target, list(rows[0]), (list(row.values()) for row in rows))
    return Report(model.card.name, {}, [f"wrote {target}: {len(rows)} rows"])
