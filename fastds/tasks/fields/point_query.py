# SPDX-License-Identifier: Apache-2.0
"""Values of gridded fields at points, with a correction of temperatures for the heights of the points."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from fastds._options import OptionError
from fastds.inference.execution import inference_context, resolve_execution
from fastds.models.baselines.interpolation import interpolate_at
from fastds.ops import PointSpec
from fastds.tasks.fields.geometry import Geometry, find_geometry
from fastds.tasks.fields.heights import (
    HeightCorrection,
    classify_temperature,
    find_orography,
    parse_lapse_rate,
    read_heights,
)
from fastds.tasks.fields.levels import LevelColumns
from fastds.tasks.fields.methods import pick_network, reads_static_maps, split_dataset, warn_about_left_out
from fastds.tasks.fields.networks import AnyVariableModel, FieldModel
from fastds.tasks.fields.points import Points, read_points
from fastds.tasks.fields.stations import find_projection, project_points
from fastds.tasks.fields.totals import RunningTotals

SURFACE_COLUMNS = "fastds_model_height", "fastds_model_height_bilinear"
_OOD_COLUMNS = ("fastds_out_of_domain", "fastds_out_of_domain_by")


@dataclasses.dataclass(frozen=True)
class HeightOptions:
    """Arguments height, lapse_rate and static of query, checked.

    Attributes:
        column: column of the heights of the points.
        rate: lapse rate in K/km, or one of FITTED_RATES.
        static: orography, see find_orography.
    """

    column: str
    rate: float | str
    static: Any


@dataclasses.dataclass
class QueryResult:
    """Result of query_points.

    Attributes:
        rows: see fastds.tasks.fields.run.query.
        model: name of the model, or names.
        notes: notes for the user.
    """

    rows: list[dict]
    model: str
    notes: list[str]

    @property
    def columns(self) -> list[str]:
        """Names of the columns of all rows."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


def query_points(
    model: Any,
    dataset: xr.Dataset,
    points: Points,
    *,
    outside: str,
    var: str | None,
    static: Any,
    height: str | None,
    lapse_rate: float | str | None,
    **execution: Any,
) -> QueryResult:
    """Compute the values of fields at points, see fastds.tasks.fields.run.query.

    Args:
        model: see query.
        dataset: see query.
        points: see query.
        outside: see query.
        var: see query.
        static: see query.
        height: see query.
        lapse_rate: see query.
        execution: arguments of resolve_execution.
    """
    stations, latitude, longitude = read_points(points)
    rate = parse_lapse_rate(lapse_rate, height)
    correction = None
    if height is not None:
        heights = read_heights(stations, height)
        correction = HeightOptions(height, rate, static)
        static = static if reads_static_maps(model) else None
    grid = find_geometry(dataset, var)
    parts = split_dataset(model, dataset, grid, var)
    result, queries = QueryResult([], "", []), []
    failed: dict[str, str] = {}
    for part in parts:
        try:
            network, note = pick_network(part.model, part.dataset, grid, static)
        except ValueError as error:
            if len(parts) == 1 or not part.optional:
                raise
            failed |= dict.fromkeys(part.names, str(error))
            continue
        is_corrected = correction is not None and any(map(classify_temperature, _list_fields(network)))
        _check_columns(stations, network, is_corrected)
        network.check(stacklevel=4)
        where = _find_points(network, latitude, longitude, outside)
        heights_at = None
        if correction is not None and is_corrected:
            heights_at = _PointHeights(correction, heights, dataset, grid, network, where)
        queries.append((_Query(network, stations, where, heights_at, execution), note))
    if not queries:
        raise ValueError(next(iter(failed.values())))
    if correction is not None and not any(query.heights and query.heights.names for query, _ in queries):
        found = ", ".join(_describe(field) for query, _ in queries for field in _list_fields(query.network))
        raise OptionError(
            "height", f"is for air temperature and dew point near the surface in K or degC, not for {found}"
        )
    for query, note in queries:
        network = query.network
        result.rows += query.compute()
        names = ", ".join(network.names[c] for c in network.predicted)
        result.notes += [f"{note}: {names}" if len(queries) > 1 else note, *query.notes]
        result.model = ", ".join(dict.fromkeys(filter(None, (result.model, network.name))))
    warn_about_left_out(dataset, [name for name in result.columns if name in dataset], failed, var, stacklevel=4)
    return result


def _describe(field: xr.DataArray) -> str:
    return f"{field.name} [{field.attrs.get('units', 'no units')}] over {', '.join(map(str, field.dims))}"


def _list_fields(network: FieldModel) -> list[xr.DataArray]:
    return [network.dataset[network.names[c]] for c in network.predicted]


def _find_points(network: FieldModel, latitude: Sequence[float], longitude: Sequence[float], outside: str) -> PointSpec:
    """Return points in degrees as points of the grid of a network."""
    grid = network.grid
    rows, columns = project_points(find_projection(network.dataset, grid), grid, latitude, longitude)
    return grid.points(rows, columns, outside=outside)


class _PointHeights:
    """Height correction of the temperatures of a network.

    Args:
        options: checked arguments of query.
        heights: (Q,) heights of the points in m.
        dataset: all variables of the input.
        grid: grid of the dataset.
        network: network with its fields.
        where: the points.

    Attributes:
        names: variables that are corrected.
    """

    def __init__(
        self,
        options: HeightOptions,
        heights: np.ndarray,
        dataset: xr.Dataset,
        grid: Geometry,
        network: FieldModel,
        where: PointSpec,
    ):
        kinds = {str(field.name): classify_temperature(field) for field in _list_fields(network)}
        # rates of levels are those of air temperature
        usable = ("air",) if options.rate == "levels" else ("air", "dew")
        self.names = [name for name, kind in kinds.items() if kind in usable]
        self._rejected = [name for name, kind in kinds.items() if kind is not None and kind not in usable]
        field = network.dataset[network.names[0]].transpose(..., *network.grid.names)
        surface, self._origin = find_orography(dataset, grid, field, network.dataset, options.static)
        self._correction = HeightCorrection(heights, surface, where, network.model.edge, options.rate)
        self._network, self._where = network, where
        self._levels = None
        if options.rate == "levels" and self.names:
            self._levels = LevelColumns(dataset, grid, self._correction.interpolate)
        self._rate = options.rate

    def find_surface(self) -> list[dict]:
        """Return the columns of the height of the model surface for each point.

        A network for any variable also interpolates the orography, so that temperature and height have the same detail.
        """
        correction, network = self._correction, self._network
        if isinstance(network, AnyVariableModel):
            axes = {name: network.dataset[name] for name in network.grid.names if name in network.dataset.coords}
            surface = xr.Dataset({"orography": (network.grid.names, correction.surface.astype(np.float32))}, axes)
            fields = AnyVariableModel(network.model, surface, network.grid)
            (_, x), *_ = fields.iterate_fields()
            y = fields.predict_points(x, self._where, (network.model.max_scale,) * 2)
            correction.model_heights = y[:, 0].double().numpy()
        heights = zip(correction.model_heights.tolist(), correction.bilinear_heights.tolist(), strict=True)
        return [dict(zip(SURFACE_COLUMNS, pair, strict=True)) for pair in heights]

    def compute(self, field: xr.DataArray, at: dict, values: torch.Tensor) -> list[dict]:
        """Return the columns of the correction of a field for each point.

        Args:
            field: variable.
            at: indices of its leading dimensions.
            values: its values (H, W) there.
        """
        column = None if self._levels is None else self._levels.read(at, field)
        found = self._correction.compute(values, column)
        names = [f"{field.name}{suffix}" for suffix in _SUFFIXES]
        columns_of = found.values, found.bilinear, found.rates, found.sources
        rows = zip(*(values.tolist() for values in columns_of), strict=True)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def make_notes(self) -> list[str]:
        how = f"{self._rate:g} K/km" if isinstance(self._rate, float) else f"a rate fitted to the {self._rate}"
        if self._levels is not None:
            how += f" ({self._levels.description})"
        note = f"corrected to the heights of the points with {how} and {self._origin}: {', '.join(self.names)}"
        left = f"not corrected, as levels have no dew points: {', '.join(self._rejected)}"
        return [note, *([left] if self._rejected else []), *self._correction.make_notes()]


_SUFFIXES = ("_correction", "_bilinear_correction", "_lapse_rate", "_lapse_rate_source")


class _Query:
    """Values of the fields of a network at points.

    Args:
        network: network with its fields.
        stations: columns of each point.
        where: the points.
        heights: height correction, or None.
        execution: arguments of resolve_execution.
    """

    def __init__(
        self,
        network: FieldModel,
        stations: list[dict],
        where: PointSpec,
        heights: _PointHeights | None,
        execution: dict[str, Any],
    ):
        self.network, self.stations, self.where, self.heights = network, stations, where, heights
        self.settings = resolve_execution(network.model, **execution)
        self.notes: list[str] = []
        self._surface: list[dict] = []

    def compute(self) -> list[dict]:
        """Return the rows of all fields and points."""
        network, rows = self.network, []
        with inference_context(network.model, self.settings):
            ood = network.ood.attributes()
            factor = (network.model.max_scale,) * 2
            network.find_totals()
            totals = RunningTotals(network.running)
            self._surface = [] if self.heights is None else self.heights.find_surface()
            for label, given in network.iterate_fields():
                x = totals.to_increments(label, given)
                with self.settings.autocast():
                    y = network.predict_points(x, self.where, factor)
                for k, c in enumerate(network.predicted):
                    totals.add(label, c, y[:, k].numpy())
                bilinear = interpolate_at(given, self.where, network.model.edge)[0]
                rows += self._make_rows(label, given, y, bilinear, ood)
        if self.heights is not None:
            self.notes += self.heights.make_notes()
        return rows

    def _make_rows(
        self, label: dict, given: torch.Tensor, y: torch.Tensor, bilinear: torch.Tensor, ood: dict
    ) -> list[dict]:
        """Return the rows of the fields at indices `label` of the leading dimensions."""
        network, dataset = self.network, self.network.dataset
        at = {d: str(dataset[d].values[i]) if d in dataset.coords else i for d, i in label.items()}
        rows = [station | at for station in self.stations]
        for row, surface in zip(rows, self._surface, strict=False):
            row |= surface
        for k, c in enumerate(network.predicted):
            name = network.names[c]
            columns: list[dict] = [{} for _ in rows]
            if self.heights is not None and name in self.heights.names:
                columns = self.heights.compute(dataset[name], label, given[0, c])
            for q, (row, more) in enumerate(zip(rows, columns, strict=True)):
                values = {name: float(y[q, k]), f"{name}_bilinear": float(bilinear[q, c])}
                row |= {key: value + more.get(f"{key}_correction", 0.0) for key, value in values.items()} | more
        for row in rows:
            row |= ood
        return rows


def _check_columns(stations: list[dict], network: FieldModel, is_corrected: bool) -> None:
    """Raise ValueError if a column of the points has the name of a column of the result."""
    names = [network.names[c] for c in network.predicted]
    made = [*network.lead, *names, *(f"{name}_bilinear" for name in names), *_OOD_COLUMNS]
    if is_corrected:
        made += [*SURFACE_COLUMNS, *(f"{name}{suffix}" for name in names for suffix in _SUFFIXES)]
    taken = [name for name in made if stations and name in stations[0]]
    if taken:
        one = len(taken) == 1
        raise ValueError(
            f"the points have {'a column' if one else 'columns'} {', '.join(map(str, taken))}, as the result has, "
            f"whose values would be lost: rename {'it' if one else 'them'} in the points, such as {taken[0]}_observed"
        )
