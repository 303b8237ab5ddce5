# SPDX-License-Identifier: Apache-2.0
"""A generator and the field that it makes an ensemble of finer fields of, in pieces of whole sequences."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr

import fastds
from fastds._nearest import with_article
from fastds.data import add_history, refine_grid
from fastds.data.grid.axes import is_latitude, time_of, upright
from fastds.data.grid.grids import scalar_coordinates
from fastds.data.grid.kept import field_attributes, global_attributes, with_bounds
from fastds.data.grid.plausible import plausible_values, without_missing
from fastds.data.grid.times import text_of
from fastds.data.grid.variables import same_units
from fastds.data.samples.fields import HUMIDITY_RANGE, check_values, choose_field, pressure_hpa
from fastds.models import ModelCard
from fastds.models.baselines.interpolation import weights_at
from fastds.models.wgan_gp import HumidityGenerator
from fastds.tasks.common.changes import Changes
from fastds.tasks.common.inference import Report, loaded
from fastds.tasks.common.pieces import Piece, apart
from fastds.tasks.common.progress import progress_bar
from fastds.tasks.common.settings import MOST, check_whole, computing, device_of, settle
from fastds.tasks.domain.score import Domain, domain_of, select_evenly
from fastds.tasks.domain.statistics import texture
from fastds.tasks.fields.geometry import geometry

# Columns beyond the seam. 8, 32 and half a turn leave the same difference to a rolled field, 0.02 to 0.07 % of humidity
# (0.2 to 0.7 without): that of the channel gates, whose means count these columns twice.
WRAPPED = 16
_CHANGED = {
    "clipped": "were cut at the range of the network",
    "cut_input": "of the input are beyond the range of the network; what is above it was added to the result",
}
SEQUENCE = 8  # steps that the recurrence sees together; a rest at the end is a shorter sequence


class HumidityJob:
    """A generator and a dataset's field, see fastds.tasks.common.pieces.Job; arguments as in `downscale`."""

    least = SEQUENCE

    def __init__(
        self, model, dataset, *, members=None, seed=0, var=None, level=None, threads=None, precision=None, device=None
    ):  # fmt: skip
        self.model = model = loaded(model)
        _check(model, members, seed)
        self.computed = settle(model, threads, precision, device)
        self.names = _time_names(dataset)
        self.dataset = dataset = dataset.rename(self.names)
        self.field = choose_field(dataset, var, level)
        self.members, self.seed, self.level = None if members is None else int(members), int(seed), level
        self.humid = _is_humidity(model, self.field)
        self.wrapped = WRAPPED if _goes_round(dataset, self.field) else 0
        self.dims = (("realization",) if members else ()) + self.field.dims
        # The first value of a block is that of a decimated one, in the order of the file.
        self.order = (...,) if model.card.coarsening == "decimate" else upright(self.field)
        self.rows = _rows_on_globe(self.field, model.config["scale"], model.card.coarsening)
        count, _, columns = self.field.shape
        fine = count, self.rows.stop - self.rows.start, columns * model.config["scale"]
        shape = *((members,) if members else ()), *fine
        own = {new: old for old, new in self.names.items()}
        self.dim = own.get("time", "time")
        self.begin()
        self.variables = {self.field.name: (tuple(own.get(dim, dim) for dim in self.dims), shape)}

    def pieces(self, steps: int) -> list[Piece]:
        """Pieces of whole sequences."""
        return apart(self.field.shape[0], steps)

    def begin(self) -> None:
        """Count what is changed from here on, and how far values reach."""
        self.changes, self.reached = Changes(_CHANGED), -np.inf

    def compute(self, piece: Piece) -> dict[str, np.ndarray]:
        """See Job."""
        return {self.field.name: self._values(slice(*piece.steps), False)}

    def at_once(self, progress: bool) -> xr.Dataset:
        """The whole result."""
        self.begin()
        out = self.result({self.field.name: self._values(slice(None), progress)})
        if self.humid and self.reached > HUMIDITY_RANGE[1] and "fastds_valid_range" in out.attrs:
            out.attrs["fastds_valid_range"] = [HUMIDITY_RANGE[0], float(self.reached)]
        return out.assign_attrs(self.changes.attributes())

    def _values(self, steps: slice, progress: bool) -> np.ndarray:
        """The fine values of some steps, whole sequences."""
        field = self.field[steps]
        seeds = _seeds(field, steps.start or 0, self.members, self.seed)
        values = plausible_values(field, stacklevel=5)
        check_values(values, f"variable {field.name}")
        self.reached = max(self.reached, float(values.max()))
        seen = self._seen(values) if self.humid else values
        with computing(self.model, self.computed), self.computed.autocast():
            fine = _draw(self.model, seen[self.order].copy(), seeds, progress, self.wrapped)[self.order]
        fine = (fine if self.members else fine[0])[..., self.rows, :]
        if not self.humid:
            return fine
        low, high = HUMIDITY_RANGE
        self.changes.add("clipped", np.count_nonzero((fine < low) | (fine > high)), fine.size)
        fine = fine.clip(low, high)
        self._add_excess(fine, (values - high).clip(0, None))
        return fine

    def _seen(self, values: np.ndarray) -> np.ndarray:
        """What the network is given of humidity: it knows HUMIDITY_RANGE alone, and cuts its result at that."""
        seen = _cut_humidity(values, self.field.name)
        self.changes.add("cut_input", np.count_nonzero(seen != values), values.size)
        return seen

    def _add_excess(self, fine: np.ndarray, excess: np.ndarray) -> None:
        """Add what the input (time, h, w) has above the range of the network to its fields ([members,] time, H, W), in
        place, by bilinear interpolation, so that the result reaches as far as the input."""
        if not excess.any():
            return
        scale, (_, height, width) = self.model.config["scale"], excess.shape
        shift = 0.0 if self.model.card.coarsening == "decimate" else (1 / scale - 1) / 2
        rows, columns = (np.arange(n * scale) / scale + shift for n in (height, width))
        along = (
            weights_at(rows[self.rows], height, "bilinear"),
            weights_at(columns, width, "bilinear", self.wrapped > 0),
        )
        for time, beyond in enumerate(excess):
            if beyond.any():
                fine[..., time, :, :] += (along[0] @ (along[1] @ beyond.T.astype(np.float64)).T).astype(np.float32)

    def result(self, values: Mapping[str, Any]) -> xr.Dataset:
        """See Job."""
        field, scale, card = self.field, self.model.config["scale"], self.model.card
        out = refine_grid(self.dataset, field, scale)
        if card.coarsening == "decimate":
            out = out.assign_coords({d: _behind(field, d, scale) for d in field.dims[1:] if d in field.coords})
        out = out.isel({field.dims[1]: self.rows}, missing_dims="ignore")
        dims = self.dims
        out = out.assign({field.name: (dims, values[field.name], field_attributes(self.dataset, field))})
        out = out.assign_coords({name: value for name, value in scalar_coordinates(field).items() if name not in dims})
        if field.dims[0] in field.coords:
            out = out.assign(with_bounds(self.dataset, field[field.dims[0]]))
        along = {n: c.variable for n, c in field.coords.items() if c.dims == field.dims[:1] and n not in out.variables}
        out = out.assign_coords(along)
        if self.members:
            numbers = np.arange(self.members, dtype="int32")
            out = out.assign_coords(realization=("realization", numbers, {"standard_name": "realization"}))
        out = out.rename({new: old for old, new in self.names.items() if new in out.variables or new in out.dims})
        out = out.assign_attrs(global_attributes(self.dataset) | self._settings())
        return add_history(out, f"fastds {fastds.__version__} downscale with {card.name}")

    @functools.cached_property
    def domain(self) -> Domain:
        """How far the field lies from what the model was trained on; warns where it lies outside."""
        return humidity_domain(self.model.card, self.field)

    def _settings(self) -> dict:
        """Attributes that say how the file was made."""
        card = self.model.card
        settings = self.domain.attributes() | {
            "fastds_task": "humidity", "fastds_model": card.name, "fastds_scale": self.model.config["scale"],
            "fastds_coarsening": card.coarsening, **self.computed.attributes(),
        }  # fmt: skip
        if card.licence:
            settings["fastds_model_licence"] = card.licence
        if card.valid_range is not None:
            settings["fastds_valid_range"] = list(card.valid_range)
        if self.level is not None:
            settings["fastds_level"] = self.level
        if self.members:
            settings |= {"fastds_members": self.members, "fastds_seed": self.seed}
        return settings

    def report(self) -> Report:
        """See Job."""
        notes = [f"model {self.model.card.name}", *self.changes.notes()]
        return Report(self.model.card.name, self._settings(), notes)


def _check(model, members, seed):
    if not isinstance(model, HumidityGenerator):
        raise ValueError(f"model is {with_article(type(model).__name__)}, expected a HumidityGenerator for an ensemble")
    card = model.card
    if card.offset is None or card.range is None or card.coarsening is None:
        raise ValueError(f"model {card.name} has no offset, range and coarsening in its card")
    check_whole("members", members, 1, MOST)
    check_whole("seed", seed, 0)
    if model.config["in_channels"] != 1:
        raise ValueError(f"model {card.name} reads {model.config['in_channels']} variables, a file gives one")


def _is_humidity(model, field):
    names = {str(v.get("standard_name")) for v in model.card.input_variables}
    if "relative_humidity" not in names:
        return False
    units = str(field.attrs.get("units", "%")).strip()
    if not same_units(units, "%"):
        raise ValueError(f"variable {field.name} has units {units!r}, expected relative humidity in %")
    return True


def _cut_humidity(values, name):
    """Cut to what a model of humidity takes; analyses reach beyond, over ice and by interpolation."""
    low, high = HUMIDITY_RANGE
    least, most = float(values.min()), float(values.max())
    if most <= 2.0:
        raise ValueError(f"variable {name} reaches {most:g} % at most: is it a fraction? multiply it by 100")
    outside = (values < low) | (values > high)
    if not outside.any():
        return values
    if least < low - 10 or most > high + 75:
        check_values(values, f"variable {name}", humidity=True)
    warnings.warn(
        f"{int(outside.sum())} of {values.size} values of {name}, {least:.4g} to {most:.4g} %, are beyond the "
        f"{low:g}..{high:g} % that the network takes: below it they are cut, above it the excess is interpolated",
        UserWarning,
        stacklevel=4,
    )
    return values.clip(low, high)


def _time_names(dataset: xr.Dataset) -> dict[Hashable, Hashable]:
    """What the variables of a dataset are called here: its dimension of time is "time"."""
    time = time_of(dataset)
    if time in (None, "time"):
        return {}
    return {time: "time"} | ({"time": "_time"} if "time" in dataset.variables else {})


def _goes_round(dataset: xr.Dataset, field: xr.DataArray) -> bool:
    """Whether the columns of a field are longitudes that go round the globe."""
    try:
        grid = geometry(dataset)
    except ValueError:  # no regular grid of latitudes and longitudes
        return False
    return grid.names[1] == field.dims[-1] and grid.periodic


def _rows_on_globe(field: xr.DataArray, scale: int, coarsening: str) -> slice:
    """The finer rows of a field whose centres do not lie beyond a pole, as those of cells at the poles do."""
    rows, latitude = field.shape[1], field.coords.get(field.dims[1])
    if latitude is None or not is_latitude(latitude.attrs) or rows < 2:
        return slice(0, rows * scale)
    values, places = latitude.values.astype("float64"), np.arange(scale) / scale
    offsets = places if coarsening == "decimate" else places + (1 / scale - 1) / 2
    fine = values[:, None] + (values[-1] - values[0]) / (rows - 1) * offsets
    first, *_, last = np.flatnonzero(np.abs(fine.ravel()) <= 90 + 1e-6)
    return slice(int(first), int(last) + 1)


def humidity_domain(card: ModelCard, field: xr.DataArray) -> Domain:
    """A field (time, y, x) against a model's card, by some times evenly over all; warns (UserWarning) where it lies
    outside."""
    looked_at = select_evenly(len(field)) if card.input_ranges else []
    fields = (torch.from_numpy(without_missing(field[k].values, field.attrs)) for k in looked_at)
    found = judge(card, pressure_hpa(field), [texture(values) for values in fields])
    found.warn(stacklevel=4)
    return found


def judge(card: ModelCard, pressure: float | None, inputs: list[dict[str, float]]) -> Domain:
    """Fields against a model's card; pressure: of all of them, hPa; inputs: texture of each. Another pressure is named
    and does not count: the error at other levels is told by their texture, see fastds/studies/README.md."""
    levels = [level for variable in card.input_variables for level in variable.get("levels_hPa", [])]
    limits = (min(levels), max(levels)) if levels else None
    return domain_of(card, inputs=inputs, named=[("pressure", pressure, limits, "hPa")])


def _seeds(field: xr.DataArray, first: int, members: int | None, seed: int) -> list[list[int]]:
    """Seeds of the noise of every step, one for each member: they depend on seed + member and the time alone, or on the
    number of a step that has no time; first: that of the first step."""
    time = field.dims[0]
    names = [text_of(t) for t in field[time].values] if time in field.coords else range(first, first + len(field))
    return [[_seed(seed + m, str(name)) for m in range(members or 0)] for name in names]


def _seed(number: int, name: str) -> int:
    """A seed of torch that depends on all bits of a number and a name."""
    mixed = np.random.SeedSequence([number % 2**64, int.from_bytes(name.encode(), "big")])
    return int(mixed.generate_state(1, np.uint64)[0])


def _draw(model, values: np.ndarray, seeds: list[list[int]], progress: bool, wrapped: int = 0) -> np.ndarray:
    """The fine fields (members, time, H, W) of coarse ones (time, h, w), one without noise where there are no members.

    seeds: see _seeds. wrapped: columns of the other side that the network sees beyond either side, 0 for fields that do
    not go round the globe."""
    card, scale = model.card, model.config["scale"]
    x = torch.from_numpy((values - card.offset) / card.range)[None, :, None]
    members = [list(numbers) for numbers in zip(*seeds, strict=True)] or [None]
    fine = np.empty((len(members), len(values), *(n * scale for n in values.shape[1:])), np.float32)
    starts = range(0, len(values), SEQUENCE)
    with progress_bar(progress, len(starts) * len(members), "downscaling", "sequences") as advance:
        for start in starts:
            part = x[:, start : start + SEQUENCE]
            for made, numbers in zip(fine, members, strict=True):
                noise = "zero" if numbers is None else _noise(model, part, numbers[start : start + SEQUENCE])
                given = round_the_globe(part, wrapped).to(device_of(model))
                y = model(given, noise=round_the_globe(noise, wrapped))[0, :, 0].float().cpu()
                y = y[..., wrapped * scale : y.shape[-1] - wrapped * scale]
                made[start : start + part.shape[1]] = card.physical(y).numpy()
                if advance is not None:
                    advance()
    return fine


def _noise(model, part: torch.Tensor, seeds: list[int]) -> torch.Tensor:
    """The noise of a sequence (1, T, C, h, w), of which every step has its own seed."""
    steps = zip(part.split(1, dim=1), seeds, strict=True)
    return torch.cat([model.draw(step, "random", number) for step, number in steps], dim=1)


def round_the_globe(x: torch.Tensor | str, columns: int) -> torch.Tensor | str:
    """A tensor (..., W) with so many columns of the other side beside either side; a word for a kind of noise stays."""
    if isinstance(x, str) or not columns:
        return x
    return x[..., torch.arange(-columns, x.shape[-1] + columns) % x.shape[-1]]


def _behind(field, dim, scale):
    coordinate = field[dim]
    steps = np.diff(coordinate.values.astype("float64"))
    if len(steps) == 0 or np.ptp(steps) > 1e-6 * np.abs(steps).max():
        raise ValueError(f"coordinate {dim} must be equally spaced for a model of decimated fields")
    fine = coordinate.values[0] + steps.mean() / scale * np.arange(len(coordinate) * scale)
    return (dim, fine, dict(coordinate.attrs))


def prepare(model: str | os.PathLike, dataset: xr.Dataset, **options: Any) -> HumidityJob:
    """The job of a model by its name or file; options as in fastds.tasks.humidity.run.downscale."""
    return HumidityJob(model, dataset, **options)
