# SPDX-License-Identifier: Apache-2.0
"""Reading of exceedance probabilities by initialization time, with their thresholds and units."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from fastds.data.grid.times import add_seconds, to_seconds
from fastds.data.grid.variables import is_dbz, parse_rain_units
from fastds.data.radar.reflectivity import find_z_r, rate_to_reflectivity
from fastds.tasks.nowcast.forecasts import PERIOD, REFERENCE, THRESHOLD
from fastds.tasks.nowcast.starts import ForecastCells

_RELATION = "spp__relative_to_threshold"
# Values of the attribute _RELATION -> whether a value equal to the threshold is an event.
_RELATIONS = {
    "greater_than_or_equal_to": True, "ge": True, ">=": True, "above": True,
    "greater_than": False, "gt": False, ">": False,
}  # fmt: skip
_UNITS = {"1": 1.0, "%": 0.01, "percent": 0.01}  # units of probabilities -> factor to a fraction
# Relative tolerance of the limits 0 and 1, for packed values.
_ROUNDING = 1e-6
# Reflectivity this much below a threshold counts as the threshold. It covers the rounding of float32, so that a rain
# rate equal to the threshold is an event, whether the file has the rate or its reflectivity.
_ROUNDING_DB = 1e-4


def is_probability(dataset: xr.Dataset) -> bool:
    """Return whether a dataset has exceedance probabilities."""
    return bool(_list_probabilities(dataset))


def _list_probabilities(dataset: xr.Dataset) -> list[Hashable]:
    return [
        name
        for name, field in dataset.data_vars.items()
        if field.ndim >= 2 and (str(name).startswith("probability_of_") or _find_threshold(field) is not None)
    ]


def _find_threshold(field: xr.DataArray) -> Hashable | None:
    """Return the name of the coordinate with the thresholds of a field, or None."""
    names = [name for name, coordinate in field.coords.items() if name == THRESHOLD or _RELATION in coordinate.attrs]
    return names[0] if names else None


class ProbabilityForecasts:
    """Exceedance probabilities of a dataset.

    Args:
        dataset: dataset of one variable with a coordinate `threshold`, along a dimension or scalar, over
            (forecast_reference_time, forecast_period, y, x) or (time, y, x).
        z_r: a and b of Z = a R^b; None: that of the dataset, else (200, 1.6).

    Attributes:
        dataset: the dataset.
        variable: the probabilities (threshold, [forecast_reference_time,] lead time or time, y, x), not loaded.
        thresholds: (T,) in `unit`, ascending.
        unit: "mm/h" or "dBZ".
        includes_equal: whether a value equal to the threshold is an event.
        starts: (S,) initialization times; without initialization times, the valid times.
        leads: (n,) lead times in seconds; a single 0 without initialization times.
        has_leads: whether the lead times are known.
        z_r: a and b of Z = a R^b.
        name: name of the model.
        cells: cells of the forecast.
        notes: sentences about conversions.

    Raises:
        ValueError: the dataset has no or several probabilities, or they do not declare threshold, units or times.
    """

    def __init__(self, dataset: xr.Dataset, z_r: tuple[float, float] | None = None):
        names = _list_probabilities(dataset)
        if len(names) != 1:
            found = f"several: {', '.join(map(str, names))}" if names else "none"
            raise ValueError(
                f"a file of one variable of probabilities with a coordinate threshold is expected, got {found}"
            )
        self.dataset, field = dataset, dataset[names[0]]
        self.label = label = f"variable {field.name}"
        self.z_r, self.z_r_origin = find_z_r(dataset, field, z_r)
        self.notes: list[str] = []
        self.scale = self._find_scale(field)
        threshold = self._read_thresholds(field)
        field = field if threshold in field.dims else field.expand_dims(threshold)
        field = field.isel({threshold: np.argsort(field[threshold].values, kind="stable")})
        times = [dim for dim in field.dims if dim in (REFERENCE, PERIOD) or field.get_index(dim).dtype.kind in "MO"]
        places = [dim for dim in field.dims if dim != threshold and dim not in times]
        if len(places) != 2 or not 1 <= len(times) <= 2:
            raise ValueError(
                f"{label} must have the dimensions threshold, time (or {REFERENCE} and {PERIOD}), y and x, got "
                f"{', '.join(map(str, field.dims))}"
            )
        self._read_times(field, times)
        order = [dim for dim in (REFERENCE, PERIOD) if dim in times] if len(times) == 2 else times
        self.variable = field.transpose(threshold, *order, *places)
        settings = dataset.attrs
        self.name = str(settings.get("fastds_model", "prediction"))
        self.cells = ForecastCells.from_attributes(settings, self.z_r)

    def _find_scale(self, field: xr.DataArray) -> float:
        """Return the factor that converts the variable to fractions, from its units."""
        units = str(field.attrs.get("units", "")).strip().lower()
        if units not in _UNITS:
            given = f"units {field.attrs['units']!r}" if "units" in field.attrs else "no units"
            raise ValueError(f"{self.label} must have the units '1' (probabilities from 0 to 1) or '%', got {given}")
        if _UNITS[units] != 1:
            self.notes.append("Probabilities in % were divided by 100.")
        return _UNITS[units]

    def _read_thresholds(self, field: xr.DataArray) -> Hashable:
        """Set the attributes that describe the thresholds, and return the name of their coordinate."""
        name = _find_threshold(field)
        if name is None or field[name].ndim > 1 or field[name].dtype.kind not in "fiu":
            raise ValueError(
                f"{self.label} must have a coordinate `threshold` with its thresholds and their units (mm h-1 or dBZ)"
            )
        attrs = field[name].attrs
        units = attrs.get("units")
        rain = parse_rain_units(units) if units and not is_dbz(units) else None
        if not is_dbz(units) and (rain is None or rain[1] is None):
            given = f"units {units!r}" if units else "no units"
            raise ValueError(
                f"coordinate {name} must have the units of a rain rate, such as mm h-1, or dBZ, got {given}"
            )
        relation = str(attrs.get(_RELATION, "greater_than_or_equal_to")).strip()
        if relation not in _RELATIONS:
            raise ValueError(
                f"coordinate {name}: attribute {_RELATION} must be one of {', '.join(_RELATIONS)} (probabilities of "
                f"exceedance), got {relation!r}"
            )
        self.unit, self.includes_equal = "dBZ" if rain is None else "mm/h", _RELATIONS[relation]
        factor = 1.0 if rain is None else rain[0] / (rain[1] or 1.0) * 3600.0
        values = np.sort(np.atleast_1d(field[name].values).astype(np.float64) * factor)
        self.thresholds = np.round(values, 6)
        if not np.isfinite(values).all() or (self.unit == "mm/h" and values.min() <= 0) or (np.diff(values) <= 0).any():
            raise ValueError(f"coordinate {name} must have different thresholds above 0 mm h-1, got {values.tolist()}")
        return name

    def _read_times(self, field: xr.DataArray, times: list[Hashable]) -> None:
        """Set initialization times and lead times."""
        self.has_leads = PERIOD in field.coords and REFERENCE in field.coords
        if not self.has_leads and len(times) == 2:
            raise ValueError(
                f"{self.label} must have the coordinates {REFERENCE} and {PERIOD}, it has two time dimensions"
            )
        if not self.has_leads:
            self.starts, self.leads = field[times[0]].values, np.zeros(1)
            return
        self.starts = field[REFERENCE].values.reshape(-1)
        leads = np.atleast_1d(field[PERIOD].values)
        if leads.dtype.kind == "m":
            self.leads = np.array([to_seconds(lead) for lead in leads])
        else:
            self.leads = leads.astype(float) * self._find_seconds(field[PERIOD].attrs.get("units"))

    def _find_seconds(self, units: Any) -> float:
        text = str(units or "").strip().lower()
        known = {"s": 1, "sec": 1, "second": 1, "seconds": 1, "min": 60, "minute": 60, "minutes": 60}
        known |= {"h": 3600, "hr": 3600, "hour": 3600, "hours": 3600}
        if text not in known:
            raise ValueError(f"coordinate {PERIOD} must have the units s, min or h, got {units!r}")
        return float(known[text])

    @property
    def labels(self) -> list[str]:
        """Names of the events, such as "5 mm/h"."""
        return [f"{threshold:g} {self.unit}" for threshold in self.thresholds]

    def find_valid_time(self, number: int, lead: int) -> Any:
        """Return the valid time of a lead time of an initialization time."""
        return add_seconds(self.starts[number], float(self.leads[lead]))

    def read(self, number: int) -> np.ndarray:
        """Return the probabilities (T, n, h, w) of an initialization time as fractions, NaN = missing.

        Raises:
            ValueError: a probability is not from 0 to 1 (or 0 to 100 %).
        """
        dim = self.variable.dims[1]
        part = self.variable.isel({dim: number}) if dim == REFERENCE or not self.has_leads else self.variable
        values = part.values.astype(np.float32) * np.float32(self.scale)
        values = values if values.ndim == 4 else values[:, None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # all values are missing
            low, high = float(np.nanmin(values)), float(np.nanmax(values))
        if low < -_ROUNDING or high > 1 + _ROUNDING:
            unit, limit = ("%", 100) if self.scale != 1 else ("1", 1)
            raise ValueError(
                f"{self.label} has the units {unit!r}, so its probabilities must be from 0 to {limit}, got "
                f"{low / self.scale:g} to {high / self.scale:g}"
            )
        return values.clip(0, 1)

    def find_events(self, z: np.ndarray, z_r: tuple[float, float], no_echo: float) -> np.ndarray:
        """Return where observed reflectivity reaches the thresholds.

        Args:
            z: (...) in dBZ; NaN gives False.
            z_r: a and b of Z = a R^b of the observations, which converts thresholds in mm/h.
            no_echo: reflectivity up to this value (dBZ) is no rain, below every threshold.

        Returns:
            (T, ...) bool.
        """
        limits = self.thresholds if self.unit == "dBZ" else rate_to_reflectivity(self.thresholds, z_r)
        limits = np.asarray(limits, np.float32).reshape(-1, *[1] * z.ndim)
        reached = z >= limits - _ROUNDING_DB if self.includes_equal else z > limits + _ROUNDING_DB
        return reached & (z > no_echo)
