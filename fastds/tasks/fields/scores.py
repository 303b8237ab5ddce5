# SPDX-License-Identifier: Apache-2.0
"""Scores of gridded fields and ensembles: accumulated sums by variable and method, and tables."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from fastds.data.grid.times import compute_seconds_since_first, estimate_time_step
from fastds.data.grid.variables import classify_rain, parse_rain_units
from fastds.inference.scoring import ScoreSums
from fastds.inference.tables import ScoreTables, format_count, make_score_table, write_csv
from fastds.metrics import EnsembleScores, FieldScores
from fastds.tasks.fields.pairs import Pair

if TYPE_CHECKING:
    from rich.table import Table

WET_RATE = 0.1  # mm/h
REFERENCE = "bicubic"
# Score -> heading in the table.
_ERRORS = {"mae": "MAE", "rmse": "RMSE", "bias": "bias"}
_SHAPE = {"correlation": "corr.", "power": "detail"}
_RAIN = {"wet": "wet area", "rain": "mean rain"}
_ENSEMBLE = {
    "crps": "CRPS", "crps_reliability": "reliability", "crps_potential": "potential", "spread": "spread",
    "spread_skill": "spread/skill", "outliers": "outliers",
}  # fmt: skip
# printed with the decimals of the variable; correlations have four decimals, other scores three
_IN_UNITS = {*_ERRORS, "crps", "crps_reliability", "crps_potential", "spread"}


class VariableScores:
    """Accumulated scores of one variable.

    Args:
        field: the variable in the truth, for its units and times.
        weights: (H, 1) weights of the rows.
        members: number of ensemble members of the prediction, 1 without an ensemble.
        name: label of the prediction among the methods.
    """

    def __init__(self, field: xr.DataArray, weights: torch.Tensor, members: int, name: str):
        self.wet, self.weights, self.members, self.name = (
            find_wet_threshold(field),
            weights,
            members,
            name,
        )
        self.sums = ScoreSums()  # by method
        self.ensemble = EnsembleScores()
        self.n_cells = 0

    def add(self, pair: Pair) -> None:
        """Add a field. Cells that are missing in any of the fields are ignored."""
        truth = torch.from_numpy(np.where(pair.valid, pair.truth, np.nan))
        members = torch.from_numpy(pair.members)
        made = {key: torch.from_numpy(z) for key, z in pair.baselines.items()} | {self.name: members.mean(0)}
        if self.members > 1:
            made[label_single_member(self.name)] = members[0]
            self.ensemble.add(members, truth, self.weights)
        for key, z in made.items():
            self.sums.setdefault(key, FieldScores(self.wet)).add(z, truth, self.weights)
        self.n_cells += truth.numel()

    def __iadd__(self, other: VariableScores) -> VariableScores:
        """Add the scores of other fields of the same variable."""
        self.sums += other.sums
        self.ensemble += other.ensemble
        self.n_cells += other.n_cells
        return self

    def rows(self) -> dict[str, dict[str, float]]:
        """Return method -> score -> value. The row of the ensemble mean also has the scores of the ensemble."""
        rows = {key: sums.means() for key, sums in self.sums.items()}
        if self.members > 1:
            rows[self.name] |= self.ensemble.means()
        return rows


def label_single_member(name: str) -> str:
    """Return the label of the row for a single member of an ensemble."""
    return f"{name.removesuffix(', mean')}, one member"


def find_wet_threshold(field: xr.DataArray) -> float | None:
    """Return WET_RATE in the units of a precipitation variable; None for other variables.

    For amounts, WET_RATE is multiplied by the most frequent time step, or by an hour if there is only one time.
    """
    kind = classify_rain(field)
    if kind is None:
        return None
    rain = parse_rain_units(field.attrs["units"])
    assert rain is not None  # the field is rain
    millimetres, seconds = rain
    if seconds is None:
        times: Any = next(
            (field[d].values for d in field.dims if d in field.coords and field[d].dtype.kind in "MO"), []
        )
        seconds = estimate_time_step(compute_seconds_since_first(times)) if len(times) > 1 else 3600.0
    return WET_RATE / 3600.0 * seconds / millimetres


@dataclasses.dataclass(frozen=True, repr=False)
class FieldTable(ScoreTables):
    """Scores by variable and method.

    Attributes:
        rows: variable -> method -> score -> value, NaN for a score that is not defined. mae, rmse and bias: in the
            units of the variable, weighted means over all cells of all fields. correlation: over the cells of a field,
            mean over fields. power: power at wavelengths of 2 to 4 cells relative to the truth. wet and rain
            (precipitation only): area of at least WET_RATE and mean, relative to the truth. crps (fair),
            crps_reliability, crps_potential, spread, spread_skill and outliers (ensemble mean only): see
            fastds.metrics.EnsembleScores.
        units: variable -> units.
        fields: number of fields.
        cells: number of cells of all fields.
        left_out: number of cells that are missing in one of the fields.
        shape: (H, W) of a field.
        members: number of ensemble members, 1 without an ensemble.
        by_latitude: whether means are weighted by the cosine of the latitude.
        ranks: variable -> rank histogram of the ensemble.
        notes: further notes below the tables.
    """

    rows: dict[str, dict[str, dict[str, float]]]
    units: dict[str, str]
    fields: int
    cells: int
    left_out: int
    shape: tuple[int, int]
    members: int = 1
    by_latitude: bool = True
    ranks: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write one line per variable and method, atomically. Scores that a row does not have are empty."""
        rows = [(name, method, row) for name, methods in self.rows.items() for method, row in methods.items()]
        known = [score for part in (_ERRORS, _SHAPE, _RAIN, _ENSEMBLE) for score in part]
        columns = [score for score in known if any(score in row for *_, row in rows)]
        lines = ([name, method, *(f"{row[c]:.6g}" if c in row else "" for c in columns)] for name, method, row in rows)
        write_csv(path, ["variable", "method", *columns], lines)

    @property
    def title(self) -> str:
        """Heading of the HTML page."""
        return "Errors of downscaled fields"

    def tables(self) -> list[Table]:
        """Return the tables as they are printed."""
        rain = [name for name, rows in self.rows.items() if any("wet" in row for row in rows.values())]
        ensembles = [self._make_ensemble_table()] if self.members > 1 else []
        return [*map(self._make_error_table, self.rows), *map(self._make_rain_table, rain), *ensembles]

    def list_notes(self) -> list[str]:
        """Return the notes below the tables."""
        height, width = self.shape
        weighted = "means are weighted by the cosine of the latitude" if self.by_latitude else "all cells count alike"
        notes = [
            f"{format_count(self.fields, 'field')} of {height} x {width} cells; {weighted}. Correlation: over the "
            "cells of a field, mean over fields; detail: power at wavelengths of 2 to 4 cells over the truth's."
        ]
        if self.left_out:
            notes.append(
                f"{self.left_out} of {self.cells} cells are left out of all rows: missing in the prediction or the "
                "truth, or interpolated from missing ones."
            )
        if any("wet" in row for methods in self.rows.values() for row in methods.values()):
            notes.append(f"Wet area: at least {WET_RATE:g} mm/h.")
        if self.members > 1:
            notes.append(
                "CRPS: fair, to be compared with the MAE of a single field; reliability and potential: the parts of "
                "the CRPS of the members as they are, the first of which a calibration would remove; spread/skill: 1 "
                "is right, below 1 the members differ too little; outliers: share of the truth outside all members, "
                f"{2 / (self.members + 1):.3f} is right."
            )
        return [*notes, *self.notes]

    def _make_error_table(self, name: str) -> Table:
        rows, units, decimals = self.rows[name], self.units[name], self._count_decimals(name)
        columns = _ERRORS | _SHAPE
        heads, has_reference = list(columns.values()), REFERENCE in rows
        heads[2:2] = [f"vs {REFERENCE}"] * has_reference
        table = make_score_table(f"{name}, errors in {units}" if units else name, ("method", *heads))
        for method, row in rows.items():
            cells = [_format_score(score, row[score], decimals) for score in columns]
            if has_reference:
                cells.insert(2, _format_change(row["rmse"], rows[REFERENCE]["rmse"]) if method != REFERENCE else "")
            table.add_row(method, *cells)
        return table

    def _make_rain_table(self, name: str) -> Table:
        table = make_score_table(f"{name} over the truth's", ("method", *_RAIN.values()))
        for method, row in self.rows[name].items():
            table.add_row(method, *(_format_score(score, row[score], 3) for score in _RAIN))
        return table

    def _make_ensemble_table(self) -> Table:
        table = make_score_table(f"Ensemble of {self.members} members", ("variable", *_ENSEMBLE.values()))
        for name, rows in self.rows.items():
            row = next(row for row in rows.values() if "crps" in row)
            table.add_row(name, *(_format_score(score, row[score], self._count_decimals(name)) for score in _ENSEMBLE))
        return table

    def _count_decimals(self, name: str) -> int:
        """Return the number of decimals that shows four digits of the smallest RMSE of a variable."""
        errors = [row["rmse"] for row in self.rows[name].values() if row["rmse"] > 0]
        return max(0, 3 - math.floor(math.log10(min(errors)))) if errors else 3


def _format_score(score: str, value: float, decimals: int) -> str:
    if math.isnan(value):
        return "-"
    if score not in _IN_UNITS:
        return f"{value:.{4 if score == 'correlation' else 3}f}"
    # Adding 0 after rounding avoids "-0.000".
    return f"{round(value, decimals) + 0.0:.{decimals}f}" if decimals < 8 else f"{value:.3e}"


def _format_change(value: float, reference: float) -> str:
    return f"{100 * (value / reference - 1):+.1f} %" if reference > 0 else "-"
