# SPDX-License-Identifier: Apache-2.0
"""Downscale latitude-longitude fields to any grid, or read them at stations, with an arbitrary-scale model."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fastds.data import add_history, open_dataset, save_dataset
from fastds.data.grid.axes import is_latitude, is_longitude
from fastds.data.grid.variables import same_units
from fastds.data.io.statics import static_maps
from fastds.models import load
from fastds.models.baselines.interpolation import bilinear_at
from fastds.models.inr import INRDownscaler
from fastds.ops.impl.inr_query.points import from_index, from_latlon, spacing
from fastds.tasks.common.inference import check_field_target, check_static, check_target, store
from fastds.tasks.radar.table import write_csv

WINDOW_QUERIES = 1 << 20  # fine pixels decoded at once; the result does not depend on it
_FULL_CIRCLE = 360.0


@dataclass(frozen=True)
class Geometry:
    """Coordinates of a regular latitude-longitude grid, degrees float64; rows in the order of the file.

    longitude: without a jump of 360 degrees. west: lowest longitude of the file's convention where it has that jump
    (350, ..., 359, 0, ..., 10), else None.
    """

    latitude: Tensor
    longitude: Tensor
    names: tuple[str, str]
    west: float | None = None

    def written(self, longitude: Tensor) -> Tensor:
        """Longitudes in the convention of the file."""
        return longitude if self.west is None else self.west + torch.remainder(longitude - self.west, _FULL_CIRCLE)

    @property
    def steps(self) -> tuple[float, float]:
        return spacing(self.names[0], self.latitude), spacing(self.names[1], self.longitude)

    @property
    def periodic(self) -> bool:
        return abs(abs(self.steps[1]) * self.longitude.numel() - _FULL_CIRCLE) < 1e-3

    @property
    def nodes(self) -> bool:
        """Outer rows are the poles: a grid of points, not of cells."""
        return bool((self.latitude[[0, -1]].abs() > 90 - 1e-6).all())


def geometry(dataset: xr.Dataset) -> Geometry:
    """The grid of a dataset with one latitude and one longitude coordinate.

    Raises:
        ValueError: none or several of either, or coordinates that are unsorted, repeated or unequally spaced.
    """
    found = []
    for kind, test in (("latitude", is_latitude), ("longitude", is_longitude)):
        names = [
            str(n)
            for n, c in dataset.coords.items()
            if c.ndim == 1 and c.size > 1 and (test(c.attrs) or n in (kind, kind[:3]))
        ]
        if len(names) != 1:
            raise ValueError(f"expected one {kind} coordinate along a dimension, found {names or 'none'}")
        found.append(names[0])
    latitude, longitude = (torch.from_numpy(dataset[n].values.astype("float64")) for n in found)
    if latitude.abs().max() > 90 + 1e-6:
        raise ValueError(
            f"{found[0]} reaches {latitude.abs().max():g}, expected degrees within 90; swapped with longitude?"
        )
    turned, west = torch.from_numpy(np.unwrap(longitude.numpy(), period=_FULL_CIRCLE)), None
    if not torch.equal(turned, longitude):
        west = -_FULL_CIRCLE / 2 if longitude.min() < 0 else 0.0
    grid = Geometry(latitude, turned, tuple(found), west)
    _ = grid.steps
    return grid


def target_by_scale(grid: Geometry, scale: float) -> tuple[Tensor, Tensor]:
    """Coordinates `scale` times as fine. Grids with both poles keep their outer rows, others their outer cell edges."""
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale must be a positive number, got {scale!r}")
    result = []
    for values, step, keep_ends in (
        (grid.latitude, grid.steps[0], grid.nodes), (grid.longitude, grid.steps[1], grid.periodic and grid.nodes),
    ):  # fmt: skip
        n = values.numel()
        if keep_ends and values is grid.latitude:
            m = max(2, round((n - 1) * scale) + 1)
            u = torch.arange(m, dtype=torch.float64) * (n - 1) / (m - 1)
        elif keep_ends:
            m = max(1, round(n * scale))
            u = torch.arange(m, dtype=torch.float64) * n / m
        else:
            m = max(1, round(n * scale))
            u = ((2 * torch.arange(m, dtype=torch.float64) + 1) * n - m) / (2 * m)
        result.append(values[0] + step * u)
    return result[0], result[1]


def target_by_spacing(grid: Geometry, degrees: float) -> tuple[Tensor, Tensor]:
    """Coordinates `degrees` apart from the first row and column on, up to the last ones.

    Raises: ValueError: degrees that are not positive, or a periodic grid they do not divide.
    """
    if not 0 < degrees < 90:
        raise ValueError(f"grid must be a spacing in degrees, got {degrees!r}")
    result = []
    for values, step, periodic in (
        (grid.latitude, grid.steps[0], False), (grid.longitude, grid.steps[1], grid.periodic),
    ):  # fmt: skip
        if periodic:
            m = round(_FULL_CIRCLE / degrees)
            if abs(m * degrees - _FULL_CIRCLE) > 1e-6:
                raise ValueError(f"grid: {degrees:g} degrees do not divide the full circle of this global field")
        else:
            m = int(float(abs(values[-1] - values[0])) / degrees + 1e-6) + 1
        sign = 1.0 if step > 0 else -1.0
        result.append(values[0] + sign * degrees * torch.arange(m, dtype=torch.float64))
    return result[0], result[1]


class FieldModel:
    """A model set up for the grid of a dataset: variables by name, periodic longitude, registration, static maps.

    Args:
        model: INRDownscaler with a card that names its variables, or the name or path of its weights.
        dataset: fields (..., latitude, longitude). grid: its geometry.
        static: what fastds.data.static_maps takes, for a model that reads static maps.

    Attributes: names of the model's variables in the file, lead, their leading dimensions; origin of the static maps.

    Raises:
        ValueError: another architecture, a card without variables, a variable or map that is missing or in other units.
    """

    def __init__(self, model: INRDownscaler | str, dataset: xr.Dataset, grid: Geometry, static=None):
        self.model = load(model) if isinstance(model, str | Path) else model
        if not isinstance(self.model, INRDownscaler):
            raise ValueError(
                f"model is a {type(self.model).__name__}, expected an INRDownscaler for --scale, --grid, --like"
            )
        self.inputs = self.model.card.input_variables
        if len(self.inputs) != self.model.in_channels:
            raise ValueError("model: its card must name one variable per channel")
        self.grid, self.dataset = grid, dataset
        self.names = [self._find(dataset, wanted) for wanted in self.inputs]
        self.lead = [d for d in dataset[self.names[0]].dims if d not in grid.names]
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
        """({leading dimension: index}, (1, C, H, W) float32), read one after another."""
        for index in np.ndindex(*(self.dataset.sizes[d] for d in self.lead)):
            at = dict(zip(self.lead, index, strict=True))
            fields = (self.dataset[n].isel(at).transpose(*self.grid.names) for n in self.names)
            yield at, torch.from_numpy(np.stack([field.values.astype("float32") for field in fields]))[None]

    @staticmethod
    def _find(dataset: xr.Dataset, wanted: dict) -> str:
        for name, variable in dataset.data_vars.items():
            if name == wanted["name"] or variable.attrs.get("standard_name") == wanted.get("standard_name", "-"):
                units = variable.attrs.get("units", "")
                if not same_units(units, wanted["units"]):
                    raise ValueError(f"variable {name} is in {units!r}, the model was trained on {wanted['units']!r}")
                return str(name)
        raise ValueError(
            f"the model needs the variable {wanted['name']} ({wanted.get('standard_name', '')}), "
            f"the file has {', '.join(map(str, dataset.data_vars))}"
        )

    def encode(self, x: Tensor, factor: tuple[float, float]):
        with torch.no_grad():
            return self.model.encode(x, self._factor(factor), self.static)

    def decode(self, encoded, where, factor: tuple[float, float]) -> Tensor:
        with torch.no_grad():
            return self.model.decode(encoded, where, 2 / self._factor(factor))

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
        near = middle + torch.remainder(longitude - middle + 180, _FULL_CIRCLE) - 180
        u, v = (latitude - self.grid.latitude[0]) / steps[0], (near - self.grid.longitude[0]) / steps[1]
        rows = max(1, WINDOW_QUERIES // v.numel())
        for first in range(0, u.numel(), rows):
            part = torch.cartesian_prod(u[first : first + rows], v).reshape(-1, 2)
            where = from_index(part, x.shape[2:], self.model.edge)
            y = self.decode(encoded, where, factor)[0].unflatten(0, (-1, v.numel()))
            for channel, values in enumerate(out):
                values[first : first + rows] = y[..., channel]


def downscale_grid(
    model, dataset: xr.Dataset, *, scale=None, spacing_degrees=None, like: xr.Dataset | None = None, static=None,
    folder=None,
) -> xr.Dataset:  # fmt: skip
    """The model's variables of a dataset on a finer grid: exactly one of a factor, a spacing and another grid.

    Args:
        model: INRDownscaler, or the name or path of its weights. dataset: fields (..., latitude, longitude).
        scale: factor > 0. spacing_degrees: of the new grid. like: dataset whose coordinates are taken.
        static: maps for a model that reads some: a Dataset, or files, FILE.nc or FILE.nc:VARIABLE, on any grid.
        folder: where fine variables above 256 MB wait in unnamed files instead of in memory.

    Returns: a new Dataset; memory beyond it is that of one field.

    Raises: ValueError: data, model or target that do not fit, target points outside a regional domain.
    """
    if sum(v is not None for v in (scale, spacing_degrees, like)) != 1:
        raise ValueError("give exactly one of scale, grid and like")
    grid = convention = geometry(dataset)
    if like is not None:
        convention = geometry(like)
        latitude, longitude = convention.latitude, convention.longitude
    elif scale is not None:
        latitude, longitude = target_by_scale(grid, scale)
    else:
        latitude, longitude = target_by_spacing(grid, spacing_degrees)
    field_model = FieldModel(model, dataset, grid, static)
    if min(field_model.factor(latitude, longitude)) < 1 - 1e-6:
        coarser = "the new grid is coarser than the input: its values are those at its points, not means of its cells"
        warnings.warn(coarser, UserWarning, stacklevel=2)
    shape = *(dataset.sizes[d] for d in field_model.lead), latitude.numel(), longitude.numel()
    fine = [store(shape, folder) for _ in field_model.model.predicted]
    for at, x in field_model.fields():
        field_model.onto(x, latitude, longitude, [values[tuple(at.values())] for values in fine])
    return _dataset(dataset, field_model, fine, (latitude, convention.written(longitude)))


def _dataset(dataset, field_model, fine, target) -> xr.Dataset:
    result, names, lead = xr.Dataset(attrs=dict(dataset.attrs)), field_model.names, field_model.lead
    for k, c in enumerate(field_model.model.predicted):
        source = dataset[names[c]]
        result[names[c]] = ([*lead, *field_model.grid.names], fine[k], dict(source.attrs))
    for name, values in zip(field_model.grid.names, target, strict=True):
        result[name] = (name, values.numpy(), dict(dataset[name].attrs))
    for d in lead:
        if d in dataset.coords:
            result[d] = dataset[d]
    said = f"fastds: arbitrary-scale downscaling with {field_model.model.card.name or 'a model'}"
    return add_history(result, "; ".join(filter(None, (said, field_model.origin))))


def query_table(model, dataset: xr.Dataset, latitude, longitude, outside: str = "error", static=None) -> list[dict]:
    """Values of every variable at points, by the model and by bilinear interpolation, one row per field and point.

    Args:
        latitude, longitude: degrees, longitudes in either convention. outside: "error", "nan" or "clamp".
        static: as in downscale_grid.

    Returns: rows {"point": index, leading coordinates, name: model value, name_bilinear: interpolated value}.
    """
    grid = geometry(dataset)
    field_model = FieldModel(model, dataset, grid, static)
    names = field_model.names
    where = from_latlon(latitude, longitude, grid.latitude, grid.longitude, periodic_x=grid.periodic, outside=outside)
    factor = (field_model.model.max_scale,) * 2
    rows = []
    for label, x in field_model.fields():
        encoded = field_model.encode(x, factor)
        y = field_model.decode(encoded, where, factor)[0]
        plain = bilinear_at(x, where, field_model.model.edge)[0]
        at = {d: str(dataset[d].values[i]) if d in dataset.coords else i for d, i in label.items()}
        for q in range(y.shape[0]):
            row = {"point": q} | at
            for k, c in enumerate(field_model.model.predicted):
                row |= {names[c]: float(y[q, k]), f"{names[c]}_bilinear": float(plain[q, c])}
            rows.append(row)
    return rows


def downscale_grid_file(source, target, *, model, scale=None, grid=None, like=None, static=None) -> str:
    """`fastds downscale IN OUT --scale | --grid | --like`; returns one sentence about what was written."""
    check_field_target(source, target)
    with open_dataset(source) as dataset, nullcontext() if like is None else open_dataset(like) as other:
        folder = Path(target).absolute().parent
        where = {"scale": scale, "spacing_degrees": grid, "like": other}
        fine = downscale_grid(model, dataset, **where, static=static, folder=folder)
        save_dataset(fine, target)
    size = " x ".join(str(fine.sizes[n]) for n in geometry(fine).names)
    return f"{target}: {', '.join(map(str, fine.data_vars))} on {size} points"


def query_file(source, points, target, *, model, outside="error", static=None) -> str:
    """`fastds query`: points a CSV with columns lat and lon; its columns are repeated in front of the values."""
    check_target(source, target)
    check_target(points, target)
    if not Path(points).is_file():
        raise FileNotFoundError(f"no such file: {points}")
    with open(points, newline="") as file:
        stations = list(csv.DictReader(file))
    columns = {name.strip().lower(): name for name in (stations[0] if stations else {})}
    pair = [
        next((columns[n] for n in names if n in columns), None) for names in (("lat", "latitude"), ("lon", "longitude"))
    ]
    if None in pair:
        raise ValueError(
            f"{points}: expected a CSV with the columns lat and lon, found {', '.join(columns) or 'nothing'}"
        )
    try:
        latitude, longitude = ([float(s[name]) for s in stations] for name in pair)
    except ValueError as error:
        raise ValueError(f"{points}: a coordinate is no number: {error}") from None
    with open_dataset(source) as dataset:
        rows = query_table(model, dataset, latitude, longitude, outside, static)
    header = [*stations[0], *(k for k in rows[0] if k != "point")]
    lines = (stations[row["point"]] | row for row in rows)
    write_csv(target, header, ([line[key] for key in header] for line in lines))
    return f"{target}: {len(rows)} rows for {len(stations)} points"
