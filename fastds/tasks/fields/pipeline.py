# SPDX-License-Identifier: Apache-2.0
"""Pipeline that interpolates or downscales gridded fields independently of each other."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fastds._options import OptionError, spell_argument
from fastds.data import add_history, open_dataset
from fastds.data.formats.opening import check_projection
from fastds.data.grid.axes import FULL_CIRCLE
from fastds.data.grid.grids import (
    drop_geotransform,
    find_grid_mappings,
    get_scalar_coordinates,
    interpolate_latitude_longitude,
)
from fastds.data.grid.metadata import (
    find_bounds,
    get_coordinate_with_bounds,
    get_field_attributes,
    get_global_attributes,
    get_preserved_attributes,
)
from fastds.data.radar.preparation import AUTO_COARSENING, UNKNOWN_COARSENING
from fastds.inference.chunking import Chunk, make_independent_chunks
from fastds.inference.execution import check_execution, inference_context, resolve_execution
from fastds.inference.files import RunSummary, allocate_output
from fastds.inference.progress import progress_bar
from fastds.tasks.fields.back_projection import COARSENING_OPERATORS, make_back_projection
from fastds.tasks.fields.conservative import (
    CONSERVATIVE,
    MINIMUM_VALID_FRACTION,
    ConservativeRemapping,
    add_cell_method,
    find_cells,
)
from fastds.tasks.fields.geometry import (
    Geometry,
    Plane,
    find_geometry,
    interpolate_axis,
    make_target_by_scale,
    make_target_by_spacing,
)
from fastds.tasks.fields.methods import check_inside, pick_method
from fastds.tasks.fields.totals import RunningTotals, find_last_reset
from fastds.tasks.fields.variables import Fields, list_grid_variables, select_field


class FieldsPipeline:
    """Interpolation or downscaling of the fields of a dataset, in chunks.

    The class implements the protocol fastds.inference.chunking.Pipeline. The arguments are those of
    fastds.tasks.fields.run.downscale.
    """

    def __init__(
        self, model, dataset, *, scale=None, grid=None, like=None, var=None, static=None, threads=None,
        precision=None, device=None, graph=None, coarsened=None,
    ):  # fmt: skip
        if sum(v is not None for v in (scale, grid, like)) != 1:
            raise ValueError(f"give exactly one of {spell_argument('scale', 'grid', 'like')}")
        check_execution(threads, precision, device, graph)
        self.grid = self.convention = find_geometry(dataset, var)
        if like is not None:
            self.convention = _find_target_grid(like, dataset, self.grid)
            self.target = self.convention.latitude, self.convention.longitude
        elif scale is not None:
            self.target = make_target_by_scale(self.grid, scale)
        else:
            self.target = make_target_by_spacing(self.grid, grid)
        self.dataset = dataset = select_field(dataset, self.grid, var)
        self.method, self.note = pick_method(model, dataset, self.grid, static)
        self.execution = resolve_execution(self.method.model, threads, precision, device, graph)
        self.remapping = self.method if isinstance(self.method, ConservativeRemapping) else None
        if self.remapping is None:
            check_inside(self.grid, *self.target)
        else:
            if like is not None:
                with _open_like(like) as other:
                    self.remapping.target = find_cells(other, self.convention)
            self.remapping.check_overlap(*self.target)
        coarsened = None if coarsened in (AUTO_COARSENING, UNKNOWN_COARSENING) else coarsened
        if coarsened not in (None, *COARSENING_OPERATORS):
            raise OptionError(
                "coarsened", f"must be {' or '.join(COARSENING_OPERATORS)} for gridded fields, got {coarsened!r}"
            )
        if coarsened is not None and self.remapping is not None:
            raise OptionError("coarsened", f"is for other methods: the means of {CONSERVATIVE} agree with the input")
        self.back_projection = None if coarsened is None else make_back_projection(self.method.grid, *self.target)
        method, names = self.method, self.method.names
        shape = *(dataset.sizes[d] for d in method.lead), *(axis.numel() for axis in self.target)
        self.variables: dict[str, Any] = {names[c]: ((*method.lead, *self.grid.names), shape) for c in method.predicted}
        self.dim: Any = method.lead[0] if method.lead else ""
        method.find_totals()
        self.batch_size = method.get_batch_size(*self.target)
        fields = math.prod(dataset.sizes[d] for d in method.lead[1:])  # of one step
        self.step_multiple = 1 if method.running else max(1, self.batch_size // fields)
        ends = self.grid.longitude[[0, -1]].tolist()
        if abs(abs(ends[1] - ends[0]) - FULL_CIRCLE) < 1e-3 and not isinstance(self.grid, Plane):
            twice = f"the meridian {ends[0]:g} is there twice, so the fields do not go round the globe without a seam"
            warnings.warn(f"{twice}; leave out the last column", UserWarning, stacklevel=4)
        if self.remapping is None and min(method.factor(*self.target)) < 1 - 1e-6:
            coarser = (
                "the new grid is coarser than the input: its values are those at its points, not means of its cells, "
                f"which the method {CONSERVATIVE} computes"
            )
            warnings.warn(coarser, UserWarning, stacklevel=4)

    def make_chunks(self, steps: int) -> list[Chunk]:
        """Return independent chunks of at most `steps` steps."""
        return make_independent_chunks(self.dataset.sizes[self.dim], steps)

    def compute(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """Compute the values of a chunk; running totals are read from their last reset before the chunk."""
        start, stop = chunk.steps
        part, method = copy.copy(self.method), self.method
        part.reset_changes()
        fields = [method.dataset[method.names[c]] for c, dim in method.running.items() if dim == self.dim]
        first = min((find_last_reset(field, self.dim, method.grid.names, start) for field in fields), default=start)
        part.dataset = method.dataset.isel({self.dim: slice(first, stop)})
        return {name: values[start - first :] for name, values in self._values(part, False, None).items()}

    def compute_all(self, progress: bool, folder: str | os.PathLike | None) -> xr.Dataset:
        """Compute the whole result.

        Args:
            progress: show a progress bar.
            folder: folder for memory-mapped files of large fields; None: in memory.
        """
        self.method.reset_changes()
        values = self._values(self.method, progress, folder)
        return self.make_result(values).assign_attrs(self.method.changes.attributes())

    def _values(self, method: Fields, progress: bool, folder: str | os.PathLike | None) -> dict[str, np.ndarray]:
        """Compute the values of the method's fields, which may be a part of the dataset."""
        with inference_context(method.model, self.execution):
            method.check(stacklevel=4)
            lead = tuple(method.dataset.sizes[d] for d in method.lead)
            size = tuple(axis.numel() for axis in self.target)
            fine = {name: allocate_output((*lead, *size), folder) for name in self.variables}
            with progress_bar(progress, math.prod(lead), "downscaling", "fields") as advance:
                totals = RunningTotals(method.running)
                for batch in self._iterate_batches(method):
                    xs = [totals.to_increments(at, given) for at, given in batch]
                    outs = [[values[tuple(at.values())] for values in fine.values()] for at, _ in batch]
                    with self.execution.autocast():
                        method.predict_grids(torch.cat(xs), *self.target, outs)
                    for (at, _), x, made in zip(batch, xs, outs, strict=True):
                        self._correct(method, x, made)
                        for channel, values in zip(method.predicted, made, strict=True):
                            totals.add(at, channel, values)
                        if advance is not None:
                            advance()
        return fine

    def _iterate_batches(self, method: Fields) -> Iterator[list[tuple[dict, Tensor]]]:
        """Yield the fields of a method in batches that begin at the same fields in any division into chunks.

        A kernel may depend on the size of a batch, and with it the last bits of a result. Fields with missing values
        and fields of running totals are alone.
        """
        most = 1 if method.running else self.batch_size
        step = math.prod(method.dataset.sizes[d] for d in method.lead[1:])
        batch: list[tuple[dict, Tensor]] = []
        for number, (at, given) in enumerate(method.iterate_fields()):
            place = number % step if step >= most else number % (self.step_multiple * step)
            if batch and place % most == 0:
                yield batch
                batch = []
            if most == 1 or bool(torch.isnan(given).any()):
                yield [(at, given)]
            else:
                batch.append((at, given))
        if batch:
            yield batch

    def _correct(self, method: Fields, x: Tensor, made: list[np.ndarray]) -> None:
        """Correct the fine values of fields (1, C, H, W) to the means of the coarse cells, in place, if requested."""
        if self.back_projection is None:
            return
        for channel, values in zip(method.predicted, made, strict=True):
            field = x[0, channel]
            bounds, slack = method.bounds(channel, field), method.slack(field)
            cut = self.back_projection.correct(field.numpy(), values, bounds, slack)
            method.changes.add("cut_correction", cut, values.size)

    def make_result(self, values: Mapping[str, Any]) -> xr.Dataset:
        """Compute the values of a chunk, by variable name."""
        method, given = self.method, self.dataset
        first = given[method.names[0]]
        mappings = {name: drop_geotransform(given[name].variable) for name in find_grid_mappings(given, first)}
        result = xr.Dataset(mappings, attrs=get_global_attributes(given))
        for name, (dims, _) in self.variables.items():
            attrs = get_field_attributes(given, given[name])
            result[name] = (dims, values[name], attrs if self.remapping is None else add_cell_method(attrs))
        for name, axis in zip(self.grid.names, self.target, strict=True):
            if name in given.coords:
                result = result.assign(self._axis(name, axis))
        along = [
            n for n, c in first.coords.items() if c.dims and set(c.dims) <= set(method.lead) and n not in method.lead
        ]
        if isinstance(self.grid, Plane):
            where = self.grid.positions(*self.target)
            result = result.assign_coords(
                interpolate_latitude_longitude(first.transpose(..., *self.grid.names), *(at.numpy() for at in where))
            )
        names = [*(d for d in method.lead if d in given.coords), *along, *get_scalar_coordinates(first)]
        for coordinate in names:
            result = result.assign(get_coordinate_with_bounds(given, first[coordinate]))
        result = result.set_coords(names).assign_attrs(self._settings())
        entry = f"fastds: arbitrary-scale downscaling with {method.name or 'a model'}"
        return add_history(result, "; ".join(filter(None, (entry, method.origin))))

    def _axis(self, name: str, axis: Tensor) -> dict[str, xr.Variable]:
        """Return a coordinate of the target grid, with cell bounds if the dataset has bounds."""
        given, bounds = self.dataset[name], find_bounds(self.dataset, name)
        if self.remapping is not None:
            return self._axis_of_cells(name, axis, bounds or f"{name}_bnds")
        attrs = {key: value for key, value in get_preserved_attributes(given).items() if key != "bounds"}
        written = (self.convention.to_file_convention(axis) if name == self.grid.names[1] else axis).numpy()
        if bounds is None or axis.numel() < 2:
            return {name: xr.Variable(name, written, attrs)}
        index = torch.arange(axis.numel(), dtype=torch.float64)
        edges = np.stack([written + (interpolate_axis(axis, index + side) - axis).numpy() for side in (-0.5, 0.5)], 1)
        edges = edges.clip(-90, 90) if name == self.grid.names[0] and not isinstance(self.grid, Plane) else edges
        pairs = self.dataset[bounds]
        return {
            name: xr.Variable(name, written, attrs | {"bounds": bounds}),
            bounds: xr.Variable((name, pairs.dims[-1]), edges, pairs.attrs),
        }

    def _axis_of_cells(self, name: str, axis: Tensor, bounds: str) -> dict[str, xr.Variable]:
        """Return a coordinate of the target grid with the bounds of the cells over which was averaged."""
        assert self.remapping is not None
        cells = self.remapping.find_target_cells(*self.target)
        is_column = name == self.grid.names[1]
        written = (self.convention.to_file_convention(axis) if is_column else axis).numpy()
        pairs = (cells.columns if is_column else cells.rows) + (written - axis.numpy())[:, None]
        if axis.numel() > 1 and axis[0] > axis[-1]:
            pairs = pairs[:, ::-1]
        attrs = {key: value for key, value in get_preserved_attributes(self.dataset[name]).items() if key != "bounds"}
        dim = self.dataset[bounds].dims[-1] if bounds in self.dataset.variables else "bnds"
        return {
            name: xr.Variable(name, written, attrs | {"bounds": bounds}),
            bounds: xr.Variable((name, dim), pairs),
        }

    def _settings(self) -> dict:
        """Return the attributes that record the settings.

        The scale factor is one number, or two numbers if the factors of rows and columns differ.
        """
        rows, columns = (
            float(f"{finer:.12g}") for finer in self.method.factor(*self.target)
        )  # rounded, because the factor may be 2.999999999999999
        settings: dict[str, Any] = {
            "fastds_task": "fields",
            "fastds_model": self.method.name,
        } | self.execution.attributes()
        settings |= self.method.ood.attributes()
        if self._totals:
            settings["fastds_running_totals"] = self._totals
        settings |= {} if self.back_projection is None else {"fastds_coarsened": "mean"}
        if self.remapping is not None:
            settings["fastds_minimum_valid_fraction"] = MINIMUM_VALID_FRACTION
        card = getattr(self.method.model, "card", None)
        if card is not None and card.licence:
            settings["fastds_model_licence"] = card.licence
        return settings | {"fastds_scale": rows if abs(rows - columns) < 1e-9 * rows else [rows, columns]}

    @property
    def _totals(self) -> str:
        """Names of the running totals."""
        return ", ".join(str(self.method.names[channel]) for channel in self.method.running)

    def make_summary(self, with_others: bool = True) -> RunSummary:
        """Return a summary of the run.

        Args:
            with_others: whether it names the variables that are not in the result.
        """
        size = " x ".join(str(axis.numel()) for axis in self.target)
        names = ", ".join(map(str, self.variables))
        others = [name for name in list_grid_variables(self.dataset, self.grid) if name not in self.method.names]
        notes = [f"{self.note}: {names} on {size} points"]
        notes += [f"not in the result: {', '.join(others)}"] if others and with_others else []
        notes += [f"running totals, made finer as differences between times: {self._totals}"] if self._totals else []
        notes += self.method.changes.notes() + self.execution.make_notes()
        return RunSummary(self.method.name, {}, notes)


def _find_target_grid(like: xr.Dataset | str | os.PathLike, dataset: xr.Dataset, grid: Geometry) -> Geometry:
    """Return the grid of a dataset or file, checked to have the coordinates and projection of the fields' grid."""
    try:
        with _open_like(like) as other:
            found = find_geometry(other)
            ours, theirs = _find_projection_attributes(dataset, grid), _find_projection_attributes(other, found)
            check_projection("the input", ours, "the new grid", theirs)
    except ValueError as error:
        raise OptionError("like", f": {error}") from error
    if _get_units(found) != _get_units(grid) or (isinstance(grid, Plane) and grid.indexed):
        raise OptionError(
            "like", f": its grid is of {found.description}, and that of the fields is of {grid.description}"
        )
    return found


def _find_projection_attributes(dataset: xr.Dataset, grid: Geometry) -> dict:
    """Return the attributes of the grid mapping of fields on a Plane, or {} if there are none."""
    names = list_grid_variables(dataset, grid) if isinstance(grid, Plane) else []
    mappings = [mapping for name in names for mapping in find_grid_mappings(dataset, dataset[name])]
    return dataset[mappings[0]].attrs if mappings else {}


def _open_like(like: xr.Dataset | str | os.PathLike) -> contextlib.AbstractContextManager[xr.Dataset]:
    """Return a context manager of the dataset with the target grid; it closes files only."""
    return contextlib.nullcontext(like) if isinstance(like, xr.Dataset) else open_dataset(like)


def _get_units(grid: Geometry) -> tuple[str, str] | None:
    return grid.units if isinstance(grid, Plane) else None


def prepare(model: str | os.PathLike | None, dataset: xr.Dataset, **options: Any) -> FieldsPipeline:
    """Make the pipeline of a model for a dataset.

    Args:
        model: name or file of the weights, or None.
        dataset: fields.
        options: further arguments of fastds.tasks.fields.run.downscale.
    """
    return FieldsPipeline(model, dataset, **options)
