# SPDX-License-Identifier: Apache-2.0
"""Scores of gridded fields and ensembles: what is added up for every variable and method, and the table of them."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from fastds.data.grid.times import most_frequent_step, seconds_since_first
from fastds.data.grid.variables import rain_kind, rain_units
from fastds.metrics import EnsembleScores, FieldScores
from fastds.tasks.common.scoring import Sums
from fastds.tasks.common.tables import ScoreTables, counted, score_table, write_csv
from fastds.tasks.fields.pairs import Pair

if TYPE_CHECKING:
    from rich.table import Table

WET_RATE = 0.1  # mm/h
REFERENCE = "bicubic"
# Score: its head in the table.
_ERRORS = {"mae": "MAE", "rmse": "RMSE", "bias": "bias"}
_SHAPE = {"correlation": "corr.", "power": "detail"}
_RAIN = {"wet": "wet area", "rain": "mean rain"}
_ENSEMBLE = {"crps": "CRPS", "spread": "spread", "spread_skill": "spread/skill", "outliers": "outliers"}
_IN_UNITS = {*_ERRORS, "crps", "spread"}  # written with the decimals of the variable; correlations have four


class Scores:
    """The scores of one variable.

    Args: field: of the truth, for units and times; weights: (H, 1) of the rows; members: of the
    prediction, 1 where it is no ensemble; name: of the prediction among the methods.
    """

    def __init__(self, field: xr.DataArray, weights: torch.Tensor, members: int, name: str):
        self.wet, self.weights, self.members, self.name = (
            wet_threshold(field),
            weights,
            members,
            name,
        )
        self.sums = Sums()  # by method
        self.ensemble = EnsembleScores()
        self.seen = 0

    def add(self, pair: Pair) -> None:
        """Add a field, scored where it is missing in none."""
        truth = torch.from_numpy(np.where(pair.valid, pair.truth, np.nan))
        members = torch.from_numpy(pair.members)
        made = {key: torch.from_numpy(z) for key, z in pair.baselines.items()} | {self.name: members.mean(0)}
        if self.members > 1:
            made[one_of(self.name)] = members[0]
            self.ensemble.add(members, truth, self.weights)
        for key, z in made.items():
            self.sums.setdefault(key, FieldScores(self.wet)).add(z, truth, self.weights)
        self.seen += truth.numel()

    def __iadd__(self, other: Scores) -> Scores:
        """Add the fields of another of the same variable."""
        self.sums += other.sums
        self.ensemble += other.ensemble
        self.seen += other.seen
        return self

    def rows(self) -> dict[str, dict[str, float]]:
        """method -> score -> number, the ensemble's beside those of its mean."""
        rows = {key: sums.means() for key, sums in self.sums.items()}
        if self.members > 1:
            rows[self.name] |= self.ensemble.means()
        return rows


def one_of(name: str) -> str:
    """The row of a single member beside that of the mean of an ensemble."""
    return f"{name.removesuffix(', mean')}, one member"


def wet_threshold(field: xr.DataArray) -> float | None:
    """WET_RATE in the unit of a variable of rain, of amounts over the most frequent step of time, an hour where there
    is none; None for other variables."""
    kind = rain_kind(field)
    if kind is None:
        return None
    millimetres, seconds = rain_units(field.attrs["units"])
    if seconds is None:
        times = next((field[d].values for d in field.dims if d in field.coords and field[d].dtype.kind in "MO"), [])
        seconds = most_frequent_step(seconds_since_first(times)) if len(times) > 1 else 3600.0
    return WET_RATE / 3600.0 * seconds / millimetres


@dataclasses.dataclass(frozen=True)
class FieldTable(ScoreTables):
    """Scores by variable and method.

    Attributes:
        rows: variable -> method -> score -> number. mae, rmse, bias in the unit of the variable, weighted means
            over all cells of all fields; correlation over the cells of a field, mean over fields;
            power: at wavelengths of 2 to 4 cells over the truth's; of rain wet and rain: area of at least WET_RATE, and
            mean rain, over the truth's. In the row of an ensemble's mean also crps (fair), spread, spread_skill and
            outliers, see fastds.metrics.EnsembleScores. NaN where a score is not defined.
        units: variable -> its unit. fields, cells: numbers of fields, and of their cells; left_out: of these, missing
        somewhere. shape: (H, W) of a field. members: of the ensemble, 1 where there is none. by_latitude: whether means
        are weighted by the cosine of the latitude; else all cells count alike. notes: sentences below.
        ranks: variable -> rank histogram of the ensemble.
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
        """Write one line per variable and method, by a temporary name; scores that a row has not are empty."""
        rows = [(name, method, row) for name, methods in self.rows.items() for method, row in methods.items()]
        known = [score for part in (_ERRORS, _SHAPE, _RAIN, _ENSEMBLE) for score in part]
        columns = [score for score in known if any(score in row for *_, row in rows)]
        lines = ([name, method, *(f"{row[c]:.6g}" if c in row else "" for c in columns)] for name, method, row in rows)
        write_csv(path, ["variable", "method", *columns], lines)

    @property
    def title(self) -> str:
        """The heading of a page of the tables."""
        return "Errors of downscaled fields"

    def tables(self) -> list[Table]:
        """The tables as they are printed."""
        rain = [name for name, rows in self.rows.items() if any("wet" in row for row in rows.values())]
        ensembles = [self._ensembles()] if self.members > 1 else []
        return [*map(self._errors, self.rows), *map(self._rain, rain), *ensembles]

    def sentences(self) -> list[str]:
        """What stands below the tables."""
        height, width = self.shape
        weighted = "means are weighted by the cosine of the latitude" if self.by_latitude else "all cells count alike"
        said = [
            f"{counted(self.fields, 'field')} of {height} x {width} cells; {weighted}. Correlation: over the "
            "cells of a field, mean over fields; detail: power at wavelengths of 2 to 4 cells over the truth's."
        ]
        if self.left_out:
            said.append(
                f"{self.left_out} of {self.cells} cells are left out of all rows: missing in the prediction or the "
                "truth, or interpolated from missing ones."
            )
        if any("wet" in row for methods in self.rows.values() for row in methods.values()):
            said.append(f"Wet area: at least {WET_RATE:g} mm/h.")
        if self.members > 1:
            said.append(
                "CRPS: fair, to be compared with the MAE of a single field; spread/skill: 1 is right, below 1 the "
                "members differ too little; outliers: share of the truth outside all members, "
                f"{2 / (self.members + 1):.3f} is right."
            )
        return [*said, *self.notes]

    def _errors(self, name: str) -> Table:
        rows, units, decimals = self.rows[name], self.units[name], self._decimals(name)
        columns = _ERRORS | _SHAPE
        heads, against = list(columns.values()), REFERENCE in rows
        heads[2:2] = [f"vs {REFERENCE}"] * against
        table = score_table(f"{name}, errors in {units}" if units else name, ("method", *heads))
        for method, row in rows.items():
            cells = [_text(score, row[score], decimals) for score in columns]
            if against:
                cells.insert(2, _change(row["rmse"], rows[REFERENCE]["rmse"]) if method != REFERENCE else "")
            table.add_row(method, *cells)
        return table

    def _rain(self, name: str) -> Table:
        table = score_table(f"{name} over the truth's", ("method", *_RAIN.values()))
        for method, row in self.rows[name].items():
            table.add_row(method, *(_text(score, row[score], 3) for score in _RAIN))
        return table

    def _ensembles(self) -> Table:
        table = score_table(f"Ensemble of {self.members} members", ("variable", *_ENSEMBLE.values()))
        for name, rows in self.rows.items():
            row = next(row for row in rows.values() if "crps" in row)
            table.add_row(name, *(_text(score, row[score], self._decimals(name)) for score in _ENSEMBLE))
        return table

    def _decimals(self, name: str) -> int:
        """Those that write four digits of the smallest RMSE of a variable."""
        errors = [row["rmse"] for row in self.rows[name].values() if row["rmse"] > 0]
        return max(0, 3 - math.floor(math.log10(min(errors)))) if errors else 3


def _text(score: str, value: float, decimals: int) -> str:
    if math.isnan(value):
        return "-"
    if score not in _IN_UNITS:
        return f"{value:.{4 if score == 'correlation' else 3}f}"
    # Rounded first, and 0 added: no "-0.000".
    return f"{round(value, decimals) + 0.0:.{decimals}f}" if decimals < 8 else f"{value:.3e}"


def _change(value: float, reference: float) -> str:
    return f"{100 * (value / reference - 1):+.1f} %" if reference > 0 else "-"
