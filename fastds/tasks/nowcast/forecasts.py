# SPDX-License-Identifier: Apache-2.0
"""Forecasts as CF datasets: creation, and reading by initialization time."""

from __future__ import annotations

import datetime
from collections.abc import Hashable, Sequence
from typing import Any, cast

import numpy as np
import xarray as xr

from fastds._options import OptionError
from fastds.data import ReflectivityInput, coarsen_grid, rate_to_reflectivity, reflectivity_to_rate
from fastds.data.grid.grids import get_scalar_coordinates
from fastds.data.grid.metadata import get_global_attributes, get_grid_mapping_attribute
from fastds.data.grid.times import format_time, time_encoding, to_fine_resolution, to_seconds
from fastds.data.radar.reflectivity import find_z_r
from fastds.tasks.fields.alignment import MEMBER
from fastds.tasks.nowcast.starts import ForecastCells, Start

REFERENCE, PERIOD = "forecast_reference_time", "forecast_period"
QUANTITIES = {
    "rate": ("rainfall_rate", {"standard_name": "rainfall_rate", "units": "mm h-1"}),
    "reflectivity": ("reflectivity", {"standard_name": "equivalent_reflectivity_factor", "units": "dBZ"}),
}
THRESHOLD, PROBABILITY = "threshold", "probability_of_rainfall_rate_above_threshold"
# Mask: 1 where the air of a forecast was outside the observed area at the initialization time.
OUTSIDE = "from_outside"
_OUTSIDE_ATTRS = {
    "long_name": "the air comes from outside the observed area, by the motion of the last fields, and the forecast "
    "rests on no observation",
    "units": "1",
    "flag_values": np.array([0, 1], np.float32),
    "flag_meanings": "observed not_observed",
}
_PROBABILITY_ATTRS = {"units": "1", "long_name": "share of the members with at least this rain rate"}


def make_threshold_coordinate(rates: Sequence[float]) -> xr.Variable:
    """Return the coordinate of rain-rate thresholds."""
    attrs = {"standard_name": "rainfall_rate", "units": "mm h-1"}
    return xr.Variable(
        (THRESHOLD,), np.array(rates, float), {**attrs, "spp__relative_to_threshold": "greater_than_or_equal_to"}
    )


def convert_forecasts(
    source: ReflectivityInput, z: np.ndarray, *, quantity: str, z_r: tuple[float, float], floor: float
) -> np.ndarray:
    """Convert forecasts from dBZ to the units of the output quantity, in place.

    Args:
        source: input of the forecast.
        z: (..., h, w) in dBZ; values <= floor are no echo.
        quantity: key of QUANTITIES.
        z_r: a and b of Z = a R^b.
        floor: floor in dBZ.

    Returns:
        The array z.
    """
    for field in z.reshape(-1, *z.shape[-2:]):
        dry = field <= floor
        field[...] = np.where(dry, 0.0 if quantity == "rate" else source.no_echo, _convert_echo(field, quantity, z_r))
    return z


def make_forecast_dataset(
    source: ReflectivityInput,
    starts: list[Start],
    leads: list[float],
    values: Any,
    *,
    quantity: str,
    z_r: tuple[float, float],
    factor: int,
    first: xr.Variable | None = None,
    outside: Any = None,
) -> xr.Dataset:
    """Make the Dataset of forecasts.

    Dimensions for one initialization time: (time, y, x), with a scalar forecast_reference_time, and forecast_period
    along time. For several: (forecast_reference_time, forecast_period, y, x), with a two-dimensional time.

    Args:
        source: input of the forecast.
        starts: initialization times.
        leads: lead times in seconds.
        values: (starts, leads, h, w) in units of the quantity, NaN = missing; NumPy or dask.
        quantity: key of QUANTITIES.
        z_r: a and b of Z = a R^b.
        factor: number of source cells along the side of a forecast cell.
        first: coordinate of an additional first dimension of values, for members or thresholds; None: no such
            dimension.
        outside: mask (starts, leads, h, w), 1 where the air comes from outside the observed area; None: unknown.
    """
    raw, one = source.raw, len(starts) == 1
    attrs: dict[str, Any]
    name, attrs = QUANTITIES[quantity]
    attrs = {**attrs, "zr_a": z_r[0], "zr_b": z_r[1]}
    if first is not None and first.dims == (THRESHOLD,):
        name, attrs = PROBABILITY, {**_PROBABILITY_ATTRS, "zr_a": z_r[0], "zr_b": z_r[1]}
    elif quantity == "reflectivity":
        attrs["no_echo_value"] = source.no_echo
    if source.kind == "amount":
        attrs["cell_methods"] = f"{source.dims[0] if one else 'time'}: mean"
    attrs |= get_grid_mapping_attribute(source.dataset, raw)
    out = coarsen_grid(source.dataset, raw, factor).assign_coords(
        get_scalar_coordinates(raw) | _make_times(source, starts, leads)
    )
    dims = source.dims if one else (REFERENCE, PERIOD, *source.dims[1:])
    lead: tuple[Hashable, ...] = ()
    if first is not None:
        out, lead = out.assign_coords({first.dims[0]: first}), first.dims
    values = values[(slice(None),) * len(lead) + (0,)] if one else values
    out[name] = xr.Variable((*lead, *dims), values, attrs, {"_FillValue": np.float32("nan")})
    if outside is not None:
        out[name].attrs["ancillary_variables"] = OUTSIDE
        out[OUTSIDE] = xr.Variable(dims, outside[0] if one else outside, dict(_OUTSIDE_ATTRS))
    # the Z-R relation that was used is in the attributes of the variable
    attributes = get_global_attributes(source.dataset, "zr_a", "zr_b")
    return out.assign_attrs({"Conventions": "CF-1.8", **attributes})


def _convert_echo(field: np.ndarray, quantity: str, z_r: tuple[float, float]) -> np.ndarray:
    return reflectivity_to_rate(field, z_r) if quantity == "rate" else field


def _make_times(source: ReflectivityInput, starts: list[Start], leads: list[float]) -> dict[str, xr.Variable]:
    label = source.raw[source.dims[0]]
    references = to_fine_resolution(np.array([start.time for start in starts]))
    steps = np.array([datetime.timedelta(seconds=lead) for lead in leads])
    if references.dtype.kind == "M":
        steps = steps.astype("timedelta64[us]")
    times = references[:, None] + steps
    encoding = time_encoding(np.append(times, references), label.encoding)
    whole = np.asarray(leads, np.int64) if all(lead == int(lead) for lead in leads) else np.asarray(leads)
    period = {"standard_name": PERIOD, "units": "s"}
    if len(starts) == 1:
        return {
            cast(str, label.name): xr.Variable((label.name,), times[0], {"standard_name": "time"}, encoding),
            REFERENCE: xr.Variable((), references[0], {"standard_name": REFERENCE}, encoding),
            PERIOD: xr.Variable((label.name,), whole, period),
        }
    return {
        REFERENCE: xr.Variable((REFERENCE,), references, {"standard_name": REFERENCE}, encoding),
        PERIOD: xr.Variable((PERIOD,), whole, period),
        "time": xr.Variable((REFERENCE, PERIOD), times, {"standard_name": "time"}, encoding),
    }


def check_by_valid_time(starts: int, steps: int) -> None:
    """Raise ValueError unless the forecasts have one field at each valid time, and at least two fields."""
    if starts > 1 and steps > 1:
        raise OptionError("steps", f"must be 1 for hindcasts in MLCast's form, which has one field a time, got {steps}")
    if starts == steps == 1:
        raise OptionError("steps", "must be at least 2 for one forecast in MLCast's form, which has a time step, got 1")


def to_valid_time(dataset: xr.Dataset) -> xr.Dataset:
    """Convert forecasts of one initialization time or one lead time to (time, y, x).

    The attribute fastds_start or fastds_lead_s has the initialization time or the lead time.
    """
    dataset = dataset.drop_vars(OUTSIDE, errors="ignore")
    for variable in dataset.data_vars.values():
        variable.attrs.pop("ancillary_variables", None)
    if dataset[REFERENCE].ndim == 0:
        return dataset.assign_attrs(fastds_start=format_time(dataset[REFERENCE].values))
    lead = float(dataset[PERIOD].values[0])
    one = dataset.isel({PERIOD: 0}, drop=True).swap_dims({REFERENCE: "time"}).drop_vars(REFERENCE)
    return one.assign_attrs(fastds_lead_s=lead)


def is_forecast(dataset: xr.Dataset) -> bool:
    """Return whether a dataset has forecasts by initialization and lead time."""
    return REFERENCE in dataset.coords and PERIOD in dataset.coords


class Forecasts:
    """Forecasts of a dataset.

    Attributes:
        dataset: the dataset.
        variable: the forecast variable.
        count: number of ensemble members, 0 without an ensemble.
        starts: (S,) initialization times.
        leads: (n,) lead times in seconds.
        z_r: a and b of Z = a R^b.
        name: name of the model.
        cells: cells of the forecast.
        ceiling: upper limit of the model's range in dBZ.

    Raises:
        ValueError: the dataset was not written by nowcast, or has probabilities.
    """

    def __init__(self, dataset: xr.Dataset):
        names = [name for name, _ in QUANTITIES.values() if name in dataset.data_vars]
        if PROBABILITY in dataset.data_vars:
            raise ValueError("the file holds probabilities, which are not forecasts of one field: make members")
        if not is_forecast(dataset) or not names or "fastds_coarsening" not in dataset.attrs:
            raise ValueError("the file holds no forecasts that fastds nowcast wrote")
        self.dataset, self.variable = dataset, dataset[names[0]]
        self.count = self.variable.sizes.get(MEMBER, 0)
        self.starts = dataset[REFERENCE].values.reshape(-1)
        leads = dataset[PERIOD].values
        self.leads = np.array([to_seconds(lead) for lead in leads]) if leads.dtype.kind == "m" else leads.astype(float)
        self.z_r, _ = find_z_r(dataset, self.variable)
        settings = dataset.attrs
        self.name, self.cells = str(settings["fastds_model"]), ForecastCells.from_attributes(settings, self.z_r)
        self.ceiling = float(settings["fastds_ceiling_dBZ"])

    @property
    def has_rain(self) -> bool:
        """Whether the forecast variable is rain and not reflectivity."""
        return self.variable.name != "reflectivity"

    def read_frames(self, number: int) -> np.ndarray:
        """Return the forecast (n, h, w) of an initialization time in dBZ, NaN = missing.

        For ensembles, this is the reflectivity of the mean rain of the members.
        """
        if not self.count:
            return self._to_dbz(self._read_start(number))
        rain = self.read_members(number).mean(0, dtype=np.float64).astype(np.float32)
        return rate_to_reflectivity(rain, self.z_r)

    def read_members(self, number: int) -> np.ndarray:
        """Return the members (M, n, h, w) of an initialization time in mm/h, NaN = missing."""
        values = self._read_start(number)
        return values if self.has_rain else reflectivity_to_rate(values, self.z_r, self.cells.floor)

    def _read_start(self, number: int) -> np.ndarray:
        part = self.variable if REFERENCE not in self.variable.dims else self.variable.isel({REFERENCE: number})
        return part.values.astype(np.float32)

    def _to_dbz(self, values: np.ndarray) -> np.ndarray:
        return rate_to_reflectivity(values, self.z_r) if self.has_rain else values
