# SPDX-License-Identifier: Apache-2.0
"""Reflectivity, rain rates and rain amounts, and the laws between them."""

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from fastds.data.grid.axes import check_spacing, find_axes, promote_coordinates, with_time
from fastds.data.grid.plausible import (
    ALL_MISSING,
    REMEDY,
    check_packing,
    check_plausible,
    plausible_rain,
    plausible_range,
    stored_as_codes,
    within,
    without_missing,
)
from fastds.data.grid.times import interval_bounds, regular_segments, sort_times, to_seconds
from fastds.data.grid.variables import choose_variable, rain_units
from fastds.data.radar.preparation import coarsen, refine_mask
from fastds.data.undeclared import UndeclaredMissing

# What picks frames of the first axis.
Index: TypeAlias = int | slice | Sequence[int] | np.ndarray

# Below this share of a cell's amount the model's rain is too little to say how the amount is distributed.
_LEAST_SHARE = 0.01


def split_amount(amount: np.ndarray, rates: Sequence[np.ndarray], hours: float, factor: int = 2) -> np.ndarray:
    """Distribute the amounts of one interval over finer cells and the F shorter intervals that a model's rates cut it
    into.

    Each short interval first gets the trapezoid of the rates at its ends, a_k = (R_k + R_(k+1)) / 2 * hours / F; then
    the short amounts of a cell are scaled so that their sum, averaged over its finer cells, is the amount A of the
    cell: a <- a A / mean(sum_k a_k). Where the model's rain is less than 1 % of A, A is spread evenly.

    Args:
        amount: (h, w) mm, NaN where missing. hours: length of the whole interval.
        rates: F + 1 arrays (factor h, factor w) in mm/h at the ends of the short intervals; NaN: the cell's mean rate
            is used.
        factor: finer cells along each side of a cell.
    Returns: (F, factor h, factor w) float32 mm; NaN where amount is. Deterministic.
    """
    mean_rate = refine_mask(amount / hours, factor)
    edges = [np.where(np.isnan(rate), mean_rate, rate) for rate in rates]
    step = hours / (len(edges) - 1)
    short = np.stack([(first + second) * (0.5 * step) for first, second in zip(edges, edges[1:], strict=False)])
    total = coarsen(short.sum(axis=0), factor)
    enough = total > _LEAST_SHARE * amount
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(enough, amount / total, 0.0)
    even = np.where(enough, 0.0, amount / len(short))
    return (short * refine_mask(scale, factor) + refine_mask(even, factor)).astype(np.float32)


def interval_ends(number: int, frames: int, time_factor: int) -> np.ndarray:
    """Which of a segment's fine frames lie at the ends of the short intervals of coarse interval `number`.

    A model gives frames at the middles of the coarse intervals and time_factor - 1 between them, so the ends of
    interval n are frames time_factor n - time_factor / 2, ..., time_factor n + time_factor / 2; beyond the ends of
    the segment the first and last frame stand in.
    """
    places = np.arange(time_factor + 1) + time_factor * number - time_factor // 2
    return np.clip(places, 0, frames - 1)


NO_ECHO_DBZ = -32.0
MARSHALL_PALMER = (200.0, 1.6)
_NO_ECHO_ATTRIBUTES = ("no_echo_value", "undetect", "no_rain_value")
_NO_ECHO_MEANINGS = (
    "no_echo",
    "undetect",
    "undetected",
    "no_detection",
    "not_detected",
    "no_rain",
    "below_threshold",
    "no_precipitation",
)
_MISSING_MEANINGS = (
    "missing",
    "no_data",
    "nodata",
    "missing_data",
    "outside_coverage",
    "out_of_range",
    "not_observed",
    "no_coverage",
)


def rate_to_reflectivity(
    rate: np.ndarray | float, z_r: tuple[float, float] = MARSHALL_PALMER, no_echo: float = NO_ECHO_DBZ
) -> np.ndarray:
    """Reflectivity z = 10 log10(a R^b) in dBZ of a rain rate R in mm/h (numpy, any shape), z_r = (a, b); R <= 0 and
    anything weaker than no_echo -> no_echo."""
    a, b = z_r
    with np.errstate(divide="ignore", invalid="ignore"):
        z = 10.0 * np.log10(a) + 10.0 * b * np.log10(np.maximum(rate, 0.0))
    return np.where(np.isnan(rate), np.nan, np.maximum(z, no_echo)).astype(np.float32)


def reflectivity_to_rate(
    z: np.ndarray | float, z_r: tuple[float, float] = MARSHALL_PALMER, no_echo: float = NO_ECHO_DBZ
) -> np.ndarray:
    """Rain rate R = (10^(z / 10) / a)^(1 / b) in mm/h of reflectivity z in dBZ (numpy, any shape), z_r = (a, b);
    z <= no_echo -> 0."""
    a, b = z_r
    rate = (10.0 ** (np.asarray(z, dtype=np.float64) / 10.0) / a) ** (1.0 / b)
    return np.where(z <= no_echo, 0.0, rate).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class ReflectivityInput:
    """The reflectivity of a dataset and everything needed to go back to the variable it came from.

    Attributes:
        raw: the chosen variable (time, y, x) in its own units and dimension names, sorted by time, not loaded.
        kind: "reflectivity", "rate" (mm/h and the like at the time itself) or "amount" (a sum or mean over an
            interval).
        source_name: name of the variable in the file.
        z_r: (a, b) of Z = a R^b, and z_r_origin, where it came from; None for reflectivity.
        no_echo: dBZ that stands for no echo.
        times: (T,) datetime64 or cftime; for amounts the middle of the interval.
        bounds: (T, 2) of the intervals for amounts, else None.
        segments: slices of frames that follow one another at the cadence; no frame is interpolated across a gap
            between two segments.
        cadence: seconds between frames, NaN of a single one.
        notes: sentences about what was found and done, for the user.
    """

    raw: xr.DataArray
    dataset: xr.Dataset
    kind: str
    source_name: str
    z_r: tuple[float, float] | None
    z_r_origin: str | None
    no_echo: float
    times: np.ndarray
    bounds: np.ndarray | None
    segments: tuple[slice, ...]
    cadence: float
    notes: tuple[str, ...]

    @property
    def dims(self) -> tuple[Hashable, ...]:
        """Names of the dimensions (time, y, x)."""
        return self.raw.dims

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, H, W)."""
        return self.raw.shape

    @property
    def units(self) -> str:
        """Units of the variable in the file."""
        return self.raw.attrs["units"]

    def part(self, steps: slice) -> "ReflectivityInput":
        """Some consecutive frames of one segment, read at once; what was found out about all of them stays as it is."""
        raw, bounds = self.raw[steps].compute(), None if self.bounds is None else self.bounds[steps]
        return dataclasses.replace(
            self, raw=raw, times=self.times[steps], bounds=bounds, segments=(slice(0, raw.shape[0]),)
        )

    def frames(self, index: Index) -> np.ndarray:
        """Reflectivity of some frames (an index, slice or list of the first axis) as float32 dBZ, NaN = missing,
        without infinities; what lies outside the plausible range is missing."""
        values = self.values(index)
        if self.kind == "reflectivity":
            return values
        return rate_to_reflectivity(values * self._mm_per_hour(index), self.z_r, self.no_echo)

    def values(self, index: Index) -> np.ndarray:
        """Some frames in the units of the file, float32, codes decoded; implausible values and missing ones are NaN."""
        return within(self._decoded(index), self._limits)

    def to_rate(self, z: np.ndarray | float) -> np.ndarray:
        """Rain rate in mm/h of reflectivity z in dBZ by this input's Z-R law."""
        return reflectivity_to_rate(z, self.z_r, self.no_echo)

    def amounts(self, index: Index) -> np.ndarray:
        """Amounts in mm of some frames of an "amount" input, NaN = missing."""
        seconds = self.interval_seconds(index)
        return np.maximum(self.values(index), 0.0) * self._mm_per_hour(index) * seconds / 3600.0

    def interval_seconds(self, index: Index) -> np.ndarray | np.float32:
        """Length of the intervals of some frames of an "amount" input in seconds, shaped to multiply frames."""
        length = np.array([to_seconds(second - first) for first, second in self.bounds])[index]
        return length[..., None, None].astype(np.float32) if np.ndim(length) else np.float32(length)

    @property
    def field(self) -> xr.DataArray:
        """All frames as a DataArray (time, y, x) in dBZ, float32, with the horizontal coordinates of the file."""
        time = self.dims[0]
        kept = {name: c for name, c in self.raw.coords.items() if time not in c.dims}
        attrs = {"standard_name": "equivalent_reflectivity_factor", "units": "dBZ", "no_echo_value": self.no_echo}
        return xr.DataArray(
            self.frames(slice(None)),
            dims=self.dims,
            coords={time: self.times, **kept},
            name="reflectivity",
            attrs=attrs,
        )

    def check(
        self,
        frames: Iterable[int] | None = None,
        all_missing: str = ALL_MISSING,
        remedy: str = REMEDY,
        stacklevel: int = 2,
    ) -> None:
        """Warn (UserWarning) where some values of the frames (None: of all), which are read once, are implausible or
        infinite, or all are missing. Raises: ValueError where more than half are implausible, with the remedy."""
        infinite = UndeclaredMissing()
        check_plausible(
            self.source_name,
            (self._decoded(i, infinite) for i in (range(self.shape[0]) if frames is None else frames)),
            self._limits,
            self.units,
            codes=stored_as_codes(self.raw),
            hint="; a value that means no echo is told by the attribute no_echo_value",
            remedy=remedy,
            all_missing=all_missing,
            stacklevel=stacklevel + 1,
        )
        infinite.warn(self.source_name, stacklevel)

    def _decoded(self, index: Index, infinite: UndeclaredMissing | None = None) -> np.ndarray:
        """As values, implausible ones as they are; infinite: counts those that are infinite. -inf dBZ is no echo, the
        logarithm of 0, and so is counted nowhere."""
        values = self.raw[index].values
        if infinite is not None:
            infinite.count += int(np.count_nonzero(np.isposinf(values)))
        return _decode_flags(values, self.raw, self._no_echo_in_file)

    @property
    def _limits(self) -> tuple[float, float]:
        """The plausible range, in units of the file."""
        if self.kind == "reflectivity":
            return plausible_range("equivalent_reflectivity_factor", "dBZ")
        return plausible_rain(self.units)

    @property
    def _no_echo_in_file(self) -> float:
        return self.no_echo if self.kind == "reflectivity" else 0.0

    def _mm_per_hour(self, index: Index) -> Any:
        """Factor from values of the file to mm/h."""
        millimetres, seconds = rain_units(self.units)
        seconds = self.interval_seconds(index) if seconds is None else seconds
        return millimetres * 3600.0 / seconds


def to_reflectivity(
    dataset: xr.Dataset, var: str | None = None, *, z_r: tuple[float, float] | None = None, least: int = 2
) -> ReflectivityInput:
    """Find the reflectivity of a dataset, or make it from rain rates or amounts on request.

    A variable of reflectivity is taken if it is the only one whose standard_name and units (dBZ) say so, or else the
    only one whose name does. Rain rates and amounts are converted by Z = a R^b if they are named by `var`, or if there
    is one such variable and no other field, or z_r is given.

    Args:
        dataset: xarray.Dataset with dimensions time, y, x (any names; dimensions of length 1 are dropped).
        var: name of the variable to use.
        z_r: (a, b) for Z in mm6 m-3 and R in mm/h; None: attributes zr_a and zr_b of the variable or file, else (200,
            1.6).
        least: times that are needed; of a single one, which may be a scalar coordinate, the cadence is NaN.
    Returns: ReflectivityInput; its `field` is reflectivity (time, y, x) in dBZ, float32, sorted by time, NaN = missing.
    Raises: ValueError in one sentence for: no or several candidates (they are listed), an unknown name, wrong or
        absent units, fewer times than least, missing, undecoded or irregular times, different fields at one time, x or
        y out of order or unevenly spaced, lost packing, amounts without an interval, amounts that run on from a fixed
        start, intervals that leave gaps.
    """
    dataset = promote_coordinates(dataset)
    name, kind, notes = choose_variable(dataset, var, z_r is not None)
    if least < 2:
        dataset = with_time(dataset, name)
    check_packing(dataset[name])
    raw, axes_notes = find_axes(dataset[name])
    check_spacing(raw)
    raw, time_notes = sort_times(raw, least)
    notes = [*notes, *axes_notes, *time_notes]
    times, bounds = raw[raw.dims[0]].values, None
    if kind == "amount":
        bounds = interval_bounds(dataset, raw)
        times = _middle(bounds)
    segments, cadence, segment_notes = regular_segments(times)
    if kind == "reflectivity":
        law, origin = None, None
    else:
        law, origin = z_r_law(dataset, dataset[name], z_r)
        notes.append(f"{name} ({raw.attrs['units']}) is converted by Z = {law[0]:g} R^{law[1]:g} ({origin})")
    return ReflectivityInput(
        raw,
        dataset,
        kind,
        name,
        law,
        origin,
        _no_echo(raw, kind),
        times,
        bounds,
        segments,
        cadence,
        (*notes, *segment_notes),
    )


def z_r_law(
    dataset: xr.Dataset, variable: xr.DataArray, given: tuple[float, float] | None = None
) -> tuple[tuple[float, float], str]:
    """(a, b) of Z = a R^b and where it came from: given, the attributes zr_a and zr_b of the variable or file, or the
    default.

    Raises: ValueError unless they are two positive numbers.
    """
    law, origin = MARSHALL_PALMER, "the default"
    attrs = {**dataset.attrs, **variable.attrs}
    if given is not None:
        law, origin = given, "given"
    elif "zr_a" in attrs and "zr_b" in attrs:
        law, origin = (attrs["zr_a"], attrs["zr_b"]), "from the file's attributes"
    try:
        law = tuple(float(value) for value in law)
        good = len(law) == 2 and all(np.isfinite(law)) and min(law) > 0
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f"z_r must be two positive numbers (a, b) of Z = a R^b, got {law} ({origin})")
    return law, origin


def _no_echo(raw: xr.DataArray, kind: str) -> float:
    if kind == "reflectivity":
        for value in _no_echo_flags(raw):
            # A flag far below any reflectivity (ODIM's -8888000) is replaced, a value on the scale is kept.
            return value if -60.0 <= value <= 15.0 else NO_ECHO_DBZ
    return NO_ECHO_DBZ


def _decode_flags(values: np.ndarray, raw: xr.DataArray, no_echo: float) -> np.ndarray:
    """float32 values with the codes for no echo, missing and -inf of the variable's attributes replaced."""
    values = without_missing(values, raw.attrs)
    for flag in _no_echo_flags(raw):
        if flag != no_echo:
            values[np.isclose(values, np.float32(flag), rtol=1e-6, atol=1e-4)] = no_echo
    meanings = str(raw.attrs.get("flag_meanings", "")).lower().split()
    for flag, meaning in zip(_unpacked(raw, _numbers(raw, "flag_values")), meanings, strict=False):
        if meaning in _NO_ECHO_MEANINGS or meaning in _MISSING_MEANINGS:
            found = np.isclose(values, np.float32(flag), rtol=1e-6, atol=1e-4)
            values[found] = no_echo if meaning in _NO_ECHO_MEANINGS else np.nan
    values[np.isneginf(values)] = no_echo
    values[np.isposinf(values)] = np.nan
    return values


def _no_echo_flags(raw: xr.DataArray) -> list[float]:
    """Values that stand for no echo; _Undetect is in the packed numbers of the file (FM 301), the others are not."""
    plain = [value for name in _NO_ECHO_ATTRIBUTES for value in _numbers(raw, name)[:1]]
    return plain + _unpacked(raw, _numbers(raw, "_Undetect")[:1])


def _unpacked(raw: xr.DataArray, numbers: Iterable[float]) -> list[float]:
    scale, offset = (
        float(raw.encoding.get(name) or default) for name, default in (("scale_factor", 1), ("add_offset", 0))
    )
    return [number * scale + offset for number in numbers]


def _numbers(raw: xr.DataArray, name: str) -> list[float]:
    """The numbers of an attribute (a number, an array, or text such as "1, 2"); [] where it is absent."""
    value = raw.attrs.get(name, [])
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    try:
        return [float(item) for item in np.ravel(value)]
    except ValueError:
        raise ValueError(f"attribute {name} of {raw.name} must hold numbers, got {raw.attrs[name]!r}") from None


def _middle(bounds: np.ndarray) -> np.ndarray:
    return bounds[:, 0] + (bounds[:, 1] - bounds[:, 0]) / 2
