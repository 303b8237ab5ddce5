# SPDX-License-Identifier: Apache-2.0
"""Pipeline that downscales a field with a generator, in chunks of whole sequences."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Hashable, Mapping
from typing import Any, cast

import numpy as np
import torch
import xarray as xr

import fastds
from fastds._options import OptionError
from fastds._suggestions import add_article
from fastds.data import add_history, refine_grid
from fastds.data.grid.axes import find_dataset_time, get_north_up_index, is_latitude
from fastds.data.grid.grids import get_scalar_coordinates
from fastds.data.grid.metadata import get_coordinate_with_bounds, get_field_attributes, get_global_attributes
from fastds.data.grid.times import format_time
from fastds.data.grid.value_checks import load_plausible_values, mask_fill_values
from fastds.data.grid.variables import is_same_unit
from fastds.data.samples.fields import HUMIDITY_RANGE, check_values, choose_field, get_pressure_hpa
from fastds.inference.change_counts import ChangeCounts
from fastds.inference.chunking import Chunk, make_independent_chunks
from fastds.inference.execution import MAX_COUNT, check_whole, get_device, inference_context, resolve_execution
from fastds.inference.files import RunSummary, load_model
from fastds.inference.ood.score import OODReport, assess_inputs, select_evenly
from fastds.inference.ood.statistics import compute_texture
from fastds.inference.progress import progress_bar
from fastds.models import ModelCard
from fastds.models.baselines.interpolation import compute_interpolation_weights
from fastds.models.wgan_gp import HumidityGenerator
from fastds.tasks.fields.geometry import find_geometry

# Number of columns that are wrapped around at each side of a global field. The result still depends slightly on the
# position of the seam, because the means of the channel gates count these columns twice.
WRAP_COLUMNS = 16
_CHANGE_KINDS = {
    "clipped": "were cut at the range of the network",
    "cut_input": "of the input are beyond the range of the network; what is above it was added to the result",
}
SEQUENCE = 8  # number of steps that the recurrence processes together; the last sequence may be shorter


class HumidityPipeline:
    """Downscaling of a humidity field by a generator, in chunks.

    The class implements the protocol fastds.inference.chunking.Pipeline. The arguments are those of
    fastds.tasks.humidity.run.downscale.
    """

    step_multiple = SEQUENCE

    def __init__(
        self, model, dataset, *, members=None, seed=0, var=None, level=None, threads=None, precision=None, device=None,
        graph=None,
    ):  # fmt: skip
        self.model = model = load_model(model)
        _check_arguments(model, members, seed)
        self.execution = resolve_execution(model, threads, precision, device, graph)
        self.names = _map_time_names(dataset)
        self.dataset = dataset = dataset.rename(self.names)
        self.field = choose_field(dataset, var, level)
        self.members, self.seed, self.level = None if members is None else int(members), int(seed), level
        self.is_humidity = _is_humidity(model, self.field)
        self.wrap = WRAP_COLUMNS if _is_periodic(dataset, self.field) else 0
        self.dims = (("realization",) if members else ()) + self.field.dims
        # Decimated fields have the first value of each block in the order of the file, so the order must not change.
        self.order = (...,) if model.card.coarsening == "decimate" else get_north_up_index(self.field)
        self.rows = _find_valid_rows(self.field, model.config["scale"], model.card.coarsening)
        count, _, columns = self.field.shape
        fine = count, self.rows.stop - self.rows.start, columns * model.config["scale"]
        shape = *((members,) if members else ()), *fine
        names = {new: old for old, new in self.names.items()}
        self.dim: Any = names.get("time", "time")
        self.reset_changes()
        self.variables: dict[Any, Any] = {self.field.name: (tuple(names.get(dim, dim) for dim in self.dims), shape)}

    def make_chunks(self, steps: int) -> list[Chunk]:
        """Return chunks of whole sequences."""
        return make_independent_chunks(self.field.shape[0], steps)

    def reset_changes(self) -> None:
        """Reset the counts of changed values and the largest input value."""
        self.changes, self.max_input = ChangeCounts(_CHANGE_KINDS), -np.inf

    def compute(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """Compute the values of a chunk, by variable name."""
        return {cast(str, self.field.name): self._values(slice(*chunk.steps), False)}

    def compute_all(self, progress: bool) -> xr.Dataset:
        """Compute the whole result."""
        self.reset_changes()
        out = self.make_result({cast(str, self.field.name): self._values(slice(None), progress)})
        if self.is_humidity and self.max_input > HUMIDITY_RANGE[1] and "fastds_valid_range" in out.attrs:
            out.attrs["fastds_valid_range"] = [HUMIDITY_RANGE[0], float(self.max_input)]
        return out.assign_attrs(self.changes.attributes())

    def _values(self, steps: slice, progress: bool) -> np.ndarray:
        """Compute the fine values of a range of steps, which consists of whole sequences."""
        field = self.field[steps]
        seeds = _make_seeds(field, steps.start or 0, self.members, self.seed)
        values = load_plausible_values(field, stacklevel=5)
        check_values(values, f"variable {field.name}")
        self.max_input = max(self.max_input, float(values.max()))
        clipped = self._clip_input(values) if self.is_humidity else values
        with inference_context(self.model, self.execution), self.execution.autocast():
            fine = _run_generator(self.model, clipped[self.order].copy(), seeds, progress, self.wrap)[self.order]
        fine = (fine if self.members else fine[0])[..., self.rows, :]
        if not self.is_humidity:
            return fine
        low, high = HUMIDITY_RANGE
        self.changes.add("clipped", int(np.count_nonzero((fine < low) | (fine > high))), fine.size)
        fine = fine.clip(low, high)
        self._add_excess(fine, (values - high).clip(0, None))
        return fine

    def _clip_input(self, values: np.ndarray) -> np.ndarray:
        """Clip humidity to HUMIDITY_RANGE, for which the network was trained and to which its output is clipped."""
        clipped = _clip_humidity(values, self.field.name)
        self.changes.add("cut_input", int(np.count_nonzero(clipped != values)), values.size)
        return clipped

    def _add_excess(self, fine: np.ndarray, excess: np.ndarray) -> None:
        """Add the part of the input above HUMIDITY_RANGE to the fine fields, in place, by bilinear interpolation.

        The result thereby has about the same maximum as the input.

        Args:
            fine: ([members,] time, H, W).
            excess: (time, h, w), at least 0.
        """
        if not excess.any():
            return
        scale, (_, height, width) = self.model.config["scale"], excess.shape
        shift = 0.0 if self.model.card.coarsening == "decimate" else (1 / scale - 1) / 2
        rows, columns = (np.arange(n * scale) / scale + shift for n in (height, width))
        along = (
            compute_interpolation_weights(rows[self.rows], height, "bilinear"),
            compute_interpolation_weights(columns, width, "bilinear", self.wrap > 0),
        )
        for time, beyond in enumerate(excess):
            if beyond.any():
                fine[..., time, :, :] += (along[0] @ (along[1] @ beyond.T.astype(np.float64)).T).astype(np.float32)

    def make_result(self, values: Mapping[str, Any]) -> xr.Dataset:
        """Return the result with coordinates and attributes."""
        field, scale, card = self.field, self.model.config["scale"], self.model.card
        out = refine_grid(self.dataset, field, scale)
        if card.coarsening == "decimate":
            out = out.assign_coords(
                {d: _refine_coordinate(field, d, scale) for d in field.dims[1:] if d in field.coords}
            )
        out = out.isel({field.dims[1]: self.rows}, missing_dims="ignore")
        dims = self.dims
        out = out.assign({field.name: (dims, values[cast(str, field.name)], get_field_attributes(self.dataset, field))})
        out = out.assign_coords(
            {name: value for name, value in get_scalar_coordinates(field).items() if name not in dims}
        )
        if field.dims[0] in field.coords:
            out = out.assign(get_coordinate_with_bounds(self.dataset, field[field.dims[0]]))
        along = {n: c.variable for n, c in field.coords.items() if c.dims == field.dims[:1] and n not in out.variables}
        out = out.assign_coords(along)
        if self.members:
            numbers = np.arange(self.members, dtype="int32")
            out = out.assign_coords(realization=("realization", numbers, {"standard_name": "realization"}))
        out = out.rename({new: old for old, new in self.names.items() if new in out.variables or new in out.dims})
        out = out.assign_attrs(get_global_attributes(self.dataset) | self._settings())
        return add_history(out, f"fastds {fastds.__version__} downscale with {card.name}")

    @functools.cached_property
    def ood(self) -> OODReport:
        """Out-of-distribution report of the field for the network, with a UserWarning if the field is outside."""
        return assess_field(self.model.card, self.field)

    def _settings(self) -> dict:
        """Return the attributes that record the settings."""
        card = self.model.card
        settings = self.ood.attributes() | {
            "fastds_task": "humidity", "fastds_model": card.name, "fastds_scale": self.model.config["scale"],
            "fastds_coarsening": card.coarsening, **self.execution.attributes(),
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

    def make_summary(self) -> RunSummary:
        """Return the summary of the run."""
        notes = [f"model {self.model.card.name}", *self.changes.notes(), *self.execution.make_notes()]
        return RunSummary(self.model.card.name, self._settings(), notes)


def _check_arguments(model, members, seed):
    if not isinstance(model, HumidityGenerator):
        raise OptionError(
            "model", f"is {add_article(type(model).__name__)}, expected a HumidityGenerator for an ensemble"
        )
    card = model.card
    if card.offset is None or card.range is None or card.coarsening is None:
        raise ValueError(f"model {card.name} has no offset, range and coarsening in its card")
    check_whole("members", members, 1, MAX_COUNT)
    check_whole("seed", seed, 0)
    if model.config["in_channels"] != 1:
        raise ValueError(f"model {card.name} reads {model.config['in_channels']} variables, a file gives one")


def _is_humidity(model, field):
    names = {str(v.get("standard_name")) for v in model.card.input_variables}
    if "relative_humidity" not in names:
        return False
    units = str(field.attrs.get("units", "%")).strip()
    if not is_same_unit(units, "%"):
        raise ValueError(f"variable {field.name} has units {units!r}, expected relative humidity in %")
    return True


def _clip_humidity(values, name):
    """Clip relative humidity to HUMIDITY_RANGE, with a warning.

    Analyses contain values outside this range, because of supersaturation over ice and because of interpolation.

    Raises:
        ValueError: the values are a fraction, or far outside the range.
    """
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


def _map_time_names(dataset: xr.Dataset) -> dict[Hashable, Hashable]:
    """Return the renaming of variables that makes "time" the name of the time dimension."""
    time = find_dataset_time(dataset)
    if time is None or time == "time":
        return {}
    renamed: dict[Hashable, Hashable] = {time: "time"}
    return renamed | ({"time": "_time"} if "time" in dataset.variables else {})


def _is_periodic(dataset: xr.Dataset, field: xr.DataArray) -> bool:
    """Return whether the columns of a field are longitudes that cover the full circle."""
    try:
        grid = find_geometry(dataset)
    except ValueError:  # not a regular latitude-longitude grid
        return False
    return grid.names[1] == field.dims[-1] and grid.periodic


def _find_valid_rows(field: xr.DataArray, scale: int, coarsening: str) -> slice:
    """Return the fine rows whose centres are not beyond a pole.

    If a coarse cell is centred at a pole, some of its fine rows are beyond the pole.
    """
    rows, latitude = field.shape[1], field.coords.get(field.dims[1])
    if latitude is None or not is_latitude(latitude.attrs) or rows < 2:
        return slice(0, rows * scale)
    values, places = latitude.values.astype("float64"), np.arange(scale) / scale
    offsets = places if coarsening == "decimate" else places + (1 / scale - 1) / 2
    fine = values[:, None] + (values[-1] - values[0]) / (rows - 1) * offsets
    first, *_, last = np.flatnonzero(np.abs(fine.ravel()) <= 90 + 1e-6)
    return slice(int(first), int(last) + 1)


def assess_field(card: ModelCard, field: xr.DataArray) -> OODReport:
    """Compare a field (time, y, x) with the training data of a model; issue a UserWarning if it is outside."""
    indices = select_evenly(len(field)) if card.input_ranges else []
    fields = (torch.from_numpy(mask_fill_values(field[k].values, field.attrs)) for k in indices)
    found = assess_statistics(card, get_pressure_hpa(field), [compute_texture(values) for values in fields])
    found.warn(stacklevel=4)
    return found


def assess_statistics(card: ModelCard, pressure: float | None, inputs: list[dict[str, float]]) -> OODReport:
    """Compare statistics of fields with the ranges in a model card.

    A pressure outside the training levels is reported and does not count for the score, because the error at other
    levels is reflected by the texture (docs/out-of-distribution.md).

    Args:
        card: model card.
        pressure: pressure of the fields in hPa, or None.
        inputs: texture of each field, see compute_texture.
    """
    levels = [level for variable in card.input_variables for level in variable.get("levels_hPa", [])]
    limits = (min(levels), max(levels)) if levels else None
    return assess_inputs(card, inputs=inputs, warn_only=[("pressure", pressure, limits, "hPa")])


def _make_seeds(field: xr.DataArray, first: int, members: int | None, seed: int) -> list[list[int]]:
    """Return the seeds of the noise for each step and member.

    A seed depends on seed + member and the time only, or on the index of a step without a time.

    Args:
        field: field (time, y, x).
        first: index of the first step.
        members: number of members, or None.
        seed: random seed of the ensemble.
    """
    time = field.dims[0]
    names = [format_time(t) for t in field[time].values] if time in field.coords else range(first, first + len(field))
    return [[_make_seed(seed + m, str(name)) for m in range(members or 0)] for name in names]


def _make_seed(number: int, name: str) -> int:
    """Return a seed for torch that depends on all bits of a number and a name."""
    mixed = np.random.SeedSequence([number % 2**64, int.from_bytes(name.encode(), "big")])
    return int(mixed.generate_state(1, np.uint64)[0])


def _run_generator(model, values: np.ndarray, seeds: list[list[int]], progress: bool, wrap: int = 0) -> np.ndarray:
    """Compute fine fields with a generator.

    Args:
        model: generator.
        values: coarse fields (time, h, w).
        seeds: see _make_seeds; without members, one field without noise is computed.
        progress: show a progress bar.
        wrap: number of columns that are wrapped around at each side; 0 for fields that are not global.

    Returns:
        (members, time, H, W).
    """
    card, scale = model.card, model.config["scale"]
    x = torch.from_numpy((values - card.offset) / card.range)[None, :, None]
    members: list[list | None] = [list(numbers) for numbers in zip(*seeds, strict=True)] or [None]
    fine = np.empty((len(members), len(values), *(n * scale for n in values.shape[1:])), np.float32)
    starts = range(0, len(values), SEQUENCE)
    with progress_bar(progress, len(starts) * len(members), "downscaling", "sequences") as advance:
        for start in starts:
            part = x[:, start : start + SEQUENCE]
            for made, numbers in zip(fine, members, strict=True):
                noise = "zero" if numbers is None else _draw_noise(model, part, numbers[start : start + SEQUENCE])
                given = cast(torch.Tensor, wrap_columns(part, wrap)).to(get_device(model))
                y = model(given, noise=wrap_columns(noise, wrap))[0, :, 0].float().cpu()
                y = y[..., wrap * scale : y.shape[-1] - wrap * scale]
                made[start : start + part.shape[1]] = card.denormalise(y).numpy()
                if advance is not None:
                    advance()
    return fine


def _draw_noise(model, part: torch.Tensor, seeds: list[int]) -> torch.Tensor:
    """Return the noise of a sequence (1, T, C, h, w), drawn with one seed for each step."""
    steps = zip(part.split(1, dim=1), seeds, strict=True)
    return torch.cat([model.draw(step, "random", number) for step, number in steps], dim=1)


def wrap_columns(x: torch.Tensor | str, columns: int) -> torch.Tensor | str:
    """Wrap columns of a tensor (..., W) around at each side.

    Strings, which name a kind of noise, are returned unchanged.
    """
    if isinstance(x, str) or not columns:
        return x
    return x[..., torch.arange(-columns, x.shape[-1] + columns) % x.shape[-1]]


def _refine_coordinate(field, dim, scale):
    coordinate = field[dim]
    steps = np.diff(coordinate.values.astype("float64"))
    if len(steps) == 0 or np.ptp(steps) > 1e-6 * np.abs(steps).max():
        raise ValueError(f"coordinate {dim} must be equally spaced for a model of decimated fields")
    fine = coordinate.values[0] + steps.mean() / scale * np.arange(len(coordinate) * scale)
    return (dim, fine, dict(coordinate.attrs))


def prepare(model: str | os.PathLike, dataset: xr.Dataset, **options: Any) -> HumidityPipeline:
    """Make the pipeline of a model for a dataset.

    Args:
        model: name or file of the weights.
        dataset: fields.
        options: further arguments of fastds.tasks.humidity.run.downscale.
    """
    return HumidityPipeline(model, dataset, **options)
