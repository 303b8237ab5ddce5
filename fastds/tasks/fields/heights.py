# SPDX-License-Identifier: Apache-2.0
"""Correction of temperatures at stations for the difference between model orography and station height."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fastds._options import OptionError, spell_argument
from fastds.data.grid.units import get_metres_per_unit
from fastds.data.grid.variables import is_same_unit
from fastds.data.io.statics import static_maps
from fastds.models.baselines.interpolation import interpolate_at
from fastds.ops import PointSpec
from fastds.tasks.fields.geometry import Geometry, orient_north_up
from fastds.tasks.fields.variables import list_grid_variables

STANDARD_RATE = 6.5  # K/km, of the ICAO standard atmosphere
FITTED_RATES = ("levels", "neighbourhood")
RATE_LIMITS = (-5.0, 10.0)  # K/km; fitted rates are clipped to this range
MINIMUM_RELIEF = 50.0  # m; standard deviation of heights around a plane below which no rate is fitted
WINDOW = 7  # rows and columns of the window around a station
LAYER_DEPTH = 2500.0  # m above station and model surface, in which pressure levels are used
_GRAVITY = 9.80665
_HEIGHTS = (-500.0, 9000.0)  # m, plausible heights of stations and orography
_MAX_RATE = 20.0  # K/km
_LIKELY_PER_METRE = 0.1  # smaller rates are likely in K/m
_TEMPERATURES = {"air_temperature": "air", "dew_point_temperature": "dew"}
_NAMES = dict.fromkeys(("t2m", "2t", "t_2m", "tas", "t", "ta", "temp", "temperature", "air_temperature"), "air")
_NAMES |= dict.fromkeys(("d2m", "2d", "td_2m", "td2m", "td", "dew_point"), "dew")
_OROGRAPHY_NAMES = ("orography", "orog", "hsurf", "topography", "topo", "elevation", "surface_altitude", "hgt_surface")
_LEVEL_NAMES = ("level", "plev", "pressure_level", "isobaricinhpa", "isobaric", "lev")


@dataclasses.dataclass(frozen=True)
class Correction:
    """Correction of one field at all points.

    Attributes:
        values: (Q,) K, to be added to the temperatures of the model.
        bilinear: (Q,) K, to be added to bilinearly interpolated temperatures.
        rates: (Q,) K/km, decrease of temperature with height.
        sources: (Q,) origin of each rate: "given", "levels", "neighbourhood" or "standard".
    """

    values: np.ndarray
    bilinear: np.ndarray
    rates: np.ndarray
    sources: np.ndarray


def parse_lapse_rate(rate: float | str | None, height: str | None) -> float | str:
    """Check the arguments height and lapse_rate.

    Args:
        rate: lapse rate in K/km, as number or text, or one of FITTED_RATES; None: STANDARD_RATE.
        height: name of the column of heights, or None.

    Returns:
        The lapse rate in K/km, or one of FITTED_RATES.

    Raises:
        OptionError: a value that is neither, or lapse_rate without height.
    """
    if rate is None:
        return STANDARD_RATE
    if height is None:
        raise OptionError("lapse_rate", f"needs the heights of the points: give {spell_argument('height')}")
    if rate in FITTED_RATES:
        return str(rate)
    expected = f"must be a number in K/km such as 6.5, or {' or '.join(FITTED_RATES)}"
    try:
        number = float(rate)
    except (TypeError, ValueError):
        raise OptionError("lapse_rate", f"{expected}, got {rate!r}") from None
    if not abs(number) <= _MAX_RATE:
        raise OptionError("lapse_rate", f"must be within {_MAX_RATE:g} K/km of 0, got {number:g}")
    if 0 < abs(number) < _LIKELY_PER_METRE:
        raise OptionError("lapse_rate", f"must be in K/km, got {number:g}, which is likely in K/m: 6.5 is usual")
    return number


def read_heights(points: Sequence[dict], column: str) -> np.ndarray:
    """Return the heights (Q,) of points in metres.

    Raises:
        OptionError: there is no such column, or a height is missing, no number or implausible.
    """
    columns = {str(name).strip().lower(): name for name in (points[0] if points else {})}
    name = column if points and column in points[0] else columns.get(column.strip().lower())
    if name is None:
        found = ", ".join(map(str, columns.values())) or "none"
        raise OptionError("height", f"must be a column of the points with heights in metres, got {column!r} of {found}")
    heights = np.empty(len(points))
    for number, point in enumerate(points):
        try:
            heights[number] = float(point[name])
        except (TypeError, ValueError):
            heights[number] = math.nan
        if not _HEIGHTS[0] <= heights[number] <= _HEIGHTS[1]:
            limits = f"{_HEIGHTS[0]:g} to {_HEIGHTS[1]:g} m"
            raise OptionError("height", f": {name} of point {number + 1} is {point[name]!r}, expected {limits}")
    return heights


def classify_temperature(field: xr.DataArray) -> str | None:
    """Return "air" or "dew" for a near-surface temperature in K or degC that a lapse rate corrects, else None."""
    if not any(is_same_unit(field.attrs.get("units"), unit) for unit in ("K", "degC")) or find_level(field):
        return None
    standard_name = str(field.attrs.get("standard_name", "unknown"))
    if standard_name != "unknown":
        return _TEMPERATURES.get(standard_name)
    return _NAMES.get(str(field.name).lower())


def find_level(field: xr.DataArray) -> str | None:
    """Return the name of the coordinate of pressure levels of a field, also if it is a scalar, else None."""
    for name, coordinate in field.coords.items():
        if coordinate.ndim > 1:
            continue
        units = coordinate.attrs.get("units", "")
        pressure = coordinate.attrs.get("standard_name") == "air_pressure"
        pressure = pressure or any(is_same_unit(units, unit) for unit in ("hPa", "Pa", "millibars", "mbar"))
        if pressure or str(name).lower() in _LEVEL_NAMES:
            return str(name)
    return next((str(dim) for dim in field.dims if str(dim).lower() in _LEVEL_NAMES), None)


def convert_to_metres(values: np.ndarray, units: object, what: str) -> np.ndarray:
    """Return heights in metres.

    Args:
        values: heights, or geopotential.
        units: units of the values, a length or m2 s-2.
        what: label for messages.

    Raises:
        ValueError: other units, or implausible heights.
    """
    if units is not None and is_same_unit(units, "m2 s-2"):
        factor: float | None = 1 / _GRAVITY
    else:
        factor = None if units in (None, "") else get_metres_per_unit(units)
    if factor is None:
        raise ValueError(f"{what} must be in m or m2 s-2, got {'no units' if units in (None, '') else repr(units)}")
    return np.asarray(values, np.float64) * factor


def find_orography(
    dataset: xr.Dataset, grid: Geometry, field: xr.DataArray, oriented: xr.Dataset, static: Any
) -> tuple[np.ndarray, str]:
    """Return the heights (H, W) of the model surface in metres on the grid of a field, and their origin.

    Args:
        dataset: all variables of the input.
        grid: grid of the dataset.
        field: field of a method, oriented as orient_north_up does.
        oriented: dataset of `field`.
        static: files or a dataset with the orography; None: the orography is searched in `dataset`.

    Raises:
        ValueError: no orography was found, it has other units, or it is implausible.
    """
    if static is None:
        values, what = _find_in_input(dataset, grid)
    else:
        values, what = _find_in_maps(field, oriented, static)
    low, high = float(np.min(values)), float(np.max(values))
    if not (_HEIGHTS[0] <= low and high <= _HEIGHTS[1]):
        raise ValueError(f"{what} has heights from {low:g} to {high:g} m, which are no heights of a surface")
    return values, what


def _find_in_input(dataset: xr.Dataset, grid: Geometry) -> tuple[np.ndarray, str]:
    names = [name for name in list_grid_variables(dataset, grid) if _is_orography(dataset[name], grid)]
    if len(names) != 1:
        found = f"has several: {', '.join(names)}" if names else "has none"
        raise OptionError(
            "height", f"needs the orography of the model, and the input {found}; give it as FILE.nc:VARIABLE with "
            f"{spell_argument('static')}"
        )  # fmt: skip
    surface = dataset[names[0]]
    first = surface.isel({dim: 0 for dim in surface.dims if dim not in grid.names})
    values = orient_north_up(first.to_dataset(name=names[0]), grid)[0][names[0]].transpose(*grid.names).values
    if not np.isfinite(values).all():
        raise ValueError(f"orography {names[0]} has missing values")
    what = f"orography {names[0]}"
    return convert_to_metres(values, surface.attrs.get("units"), what), what


def _is_orography(field: xr.DataArray, grid: Geometry) -> bool:
    """Return whether a variable of the input is the height or the geopotential of the surface.

    Geopotential without a level may be that of a pressure level. It counts only without times, with a name that
    mentions the surface, or if it is the same at all of several times.
    """
    standard_name, name = str(field.attrs.get("standard_name", "")), str(field.name).lower()
    named = standard_name == "surface_altitude" or name in _OROGRAPHY_NAMES
    if not (named or standard_name in ("geopotential", "geopotential_height", "surface_geopotential") or name == "z"):
        return False
    if find_level(field) is not None:
        return False
    lead = [dim for dim in field.dims if dim not in grid.names]
    if not lead or all(field.sizes[dim] == 1 for dim in lead):
        text = f"{name} {field.attrs.get('long_name', '')} {standard_name}".lower()
        return named or not (lead or "time" in field.coords) or "surface" in text or "orograph" in text
    first = field.isel(dict.fromkeys(lead, 0))
    last = field.isel(dict.fromkeys(lead, -1))
    return bool(np.allclose(first.values, last.values, rtol=0, atol=1.0, equal_nan=True))


def _find_in_maps(field: xr.DataArray, oriented: xr.Dataset, static: Any) -> tuple[np.ndarray, str]:
    found = []
    for source in [static] if isinstance(static, xr.Dataset | str) else static:
        maps = static_maps(source, field, oriented)
        texts = maps.origin.removeprefix("static maps: ").split(", ")
        found += list(zip(maps.values, maps.variables, texts, strict=True))
    heights = [one for one in found if len(found) == 1 or _has_height_units(one[1])]
    if len(heights) != 1:
        names = ", ".join(text for _, _, text in found)
        raise OptionError("static", f"must have one orography in m or m2 s-2, got {names}; name it as FILE.nc:VARIABLE")
    values, variable, text = heights[0]
    return convert_to_metres(values, variable.get("units"), f"static map {text}"), f"orography {text}"


def _has_height_units(variable: dict) -> bool:
    units = variable.get("units")
    return units not in (None, "") and (is_same_unit(units, "m2 s-2") or get_metres_per_unit(units) is not None)


class HeightCorrection:
    """Corrects temperatures at points for the height difference between points and model surface.

    The correction is rate * (model height - height of the point), with a positive rate for temperatures that decrease
    with height.

    Args:
        heights: (Q,) heights of the points in m.
        surface: (H, W) heights of the model surface in m.
        where: Q points of the grid.
        edge: boundary handling of rows and columns, see interpolate_at.
        rate: lapse rate in K/km, or one of FITTED_RATES.

    Attributes:
        surface: (H, W) heights of the model surface in m.
        bilinear_heights: (Q,) bilinearly interpolated heights of the model surface in m.
        model_heights: (Q,) heights of the model surface in m as the model interpolates them, which is bilinearly
            until they are set.
        counts: numbers of fitted rates, and of those that were clipped or replaced.
    """

    def __init__(
        self, heights: np.ndarray, surface: np.ndarray, where: PointSpec, edge: tuple[str, str], rate: float | str
    ):
        self.heights, self.rate, self._where, self._edge = heights, rate, where, edge
        self.model_heights = self.bilinear_heights = self.interpolate(surface)
        self.counts = {"clipped": 0, "standard": 0, "all": 0}
        self.surface, self._cells = surface, _find_window(where, surface.shape, edge)

    def interpolate(self, field: np.ndarray) -> np.ndarray:
        """Interpolate a field (H, W) bilinearly to the points."""
        x = torch.from_numpy(np.asarray(field, np.float32))[None, None]
        return interpolate_at(x, self._where, self._edge)[0, :, 0].double().numpy()

    def compute(self, field: Tensor, column: tuple[np.ndarray, np.ndarray] | None = None) -> Correction:
        """Compute the correction of a field.

        Args:
            field: temperatures (H, W), NaN = missing.
            column: temperatures and heights (L, Q) at pressure levels above the points, for the rate "levels".
        """
        if self.rate == "neighbourhood":
            fitted = self._fit_neighbourhood(field.numpy())
        elif self.rate == "levels":
            assert column is not None
            fitted = self._fit_levels(*column)
        else:
            rates = np.full(len(self.heights), float(self.rate))
            return self._make(rates, np.full(len(rates), "given", object))
        usable = np.isfinite(fitted)
        clipped = fitted.clip(*RATE_LIMITS)
        self.counts["clipped"] += int(np.count_nonzero(clipped[usable] != fitted[usable]))
        self.counts["standard"] += int(np.count_nonzero(~usable))
        self.counts["all"] += usable.size
        sources = np.where(usable, self.rate, "standard").astype(object)
        return self._make(np.where(usable, clipped, STANDARD_RATE), sources)

    def make_notes(self) -> list[str]:
        """Return messages about fitted rates that were replaced or clipped."""
        notes, of = [], f"of {self.counts['all']} fitted lapse rates"
        if self.counts["standard"]:
            why = (
                f"heights around the point vary by less than {MINIMUM_RELIEF:g} m around a plane, or temperatures are "
                "missing" if self.rate == "neighbourhood" else "fewer than two levels are above the surface"
            )  # fmt: skip
            notes.append(f"{self.counts['standard']} {of} are the standard {STANDARD_RATE:g} K/km: {why}")
        if self.counts["clipped"]:
            low, high = RATE_LIMITS
            notes.append(f"{self.counts['clipped']} {of} were clipped to {low:g} to {high:g} K/km")
        return notes

    def _make(self, rates: np.ndarray, sources: np.ndarray) -> Correction:
        values, bilinear = (
            rates * (heights - self.heights) / 1000 for heights in (self.model_heights, self.bilinear_heights)
        )
        return Correction(values, bilinear, rates, sources)

    def _fit_neighbourhood(self, field: np.ndarray) -> np.ndarray:
        """Fit the rate of each point in K/km to the cells of its window; NaN where the relief is too small.

        Temperatures are regressed on height and on a plane, which removes horizontal gradients.
        """
        rows, columns, offsets = self._cells
        temperature, height = (z[rows, columns].astype(np.float64) for z in (field, self.surface))
        known = np.isfinite(temperature)
        plane = np.stack([np.ones_like(offsets[0]), *offsets], -1) * known[..., None]
        temperature, height = (np.where(known, z, 0.0) for z in (temperature, height))
        inverse = np.linalg.pinv(plane)
        residual = height - (plane @ (inverse @ height[..., None]))[..., 0]
        squares, count = (residual**2).sum(1), known.sum(1)
        enough = (count >= 2 * plane.shape[-1]) & (squares >= MINIMUM_RELIEF**2 * np.maximum(count, 1))
        slopes = (residual * temperature).sum(1) / np.where(enough, squares, 1.0)
        return np.where(enough, -1000 * slopes, np.nan)

    def _fit_levels(self, temperature: np.ndarray, height: np.ndarray) -> np.ndarray:
        """Fit the rate of each point in K/km to levels (L, Q) above the model surface; NaN if fewer than two are."""
        surface = self.bilinear_heights
        top = np.maximum(self.heights, surface) + LAYER_DEPTH
        used = np.isfinite(temperature) & np.isfinite(height) & (height >= surface) & (height <= top)
        count = used.sum(0)
        mean_height, mean_temperature = (
            np.where(used, z, 0.0).sum(0) / np.maximum(count, 1) for z in (height, temperature)
        )
        away = np.where(used, height - mean_height, 0.0)
        squares = (away**2).sum(0)
        enough = (count >= 2) & (squares > 0)
        slopes = (away * np.where(used, temperature - mean_temperature, 0.0)).sum(0) / np.where(enough, squares, 1.0)
        return np.where(enough, -1000 * slopes, np.nan)


def _find_window(
    where: PointSpec, shape: tuple[int, ...], edge: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the cells of the window around each point.

    Windows are shifted at the border of a regional grid.

    Returns:
        Row and column indices (Q, K), and their offsets (2, Q, K) from the middle of the window in cells.
    """
    at = (where.base + where.frac.double())[0].numpy()
    nearest = np.nan_to_num(np.floor(at + 0.5)).astype(np.int64)
    axes = []
    for axis, n in enumerate(shape):
        size = min(WINDOW, n)
        first = nearest[:, axis] - size // 2
        if edge[axis] == "clamp":
            first = first.clip(0, n - size)
        axes.append((first[:, None] + np.arange(size)) % n)
    rows, columns = (index.shape[1] for index in axes)
    offsets = np.stack(np.meshgrid(np.arange(rows) - rows // 2, np.arange(columns) - columns // 2, indexing="ij"))
    count = len(nearest)
    spread = np.broadcast_to(offsets.reshape(2, 1, -1).astype(np.float64), (2, count, rows * columns))
    return (
        np.repeat(axes[0], columns, axis=1),
        np.tile(axes[1], (1, rows)),
        spread,
    )
