# SPDX-License-Identifier: Apache-2.0
"""Radar input of a dataset as reflectivity: choice of the variable, no-echo codes, and Z-R conversion of rain."""

import dataclasses
import itertools
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from fastds._options import OptionError
from fastds.data.fill_values import UndeclaredFills
from fastds.data.grid.axes import check_spacing, expand_scalar_time, find_axes, promote_coordinates
from fastds.data.grid.times import find_interval_bounds, find_regular_segments, sort_times, to_seconds
from fastds.data.grid.value_checks import (
    ALL_MISSING,
    check_packing,
    check_plausible,
    compute_plausible_rain_range,
    find_plausible_range,
    is_stored_as_codes,
    mask_fill_values,
    mask_outside,
)
from fastds.data.grid.variables import choose_variable, parse_rain_units
from fastds.data.radar.preparation import coarsen, refine_mask

# Index of frames along the first axis.
Index: TypeAlias = int | slice | Sequence[int] | np.ndarray

# If a model's rain is below this fraction of a cell's amount, the amount is distributed evenly.
_MIN_SHARE = 0.01


def split_amount(amount: np.ndarray, rates: Sequence[np.ndarray], hours: float, factor: int = 2) -> np.ndarray:
    """Distribute rain amounts of one interval over finer cells and F shorter intervals by a model's rain rates.

    Each short interval first gets the trapezoidal integral of the rates at its ends, a_k = (R_k + R_(k+1)) / 2 * hours
    / F. Then the short amounts of a cell are scaled so that their sum, averaged over its finer cells, is the amount A
    of the cell: a_k <- a_k A / mean(sum_k a_k). If the model's rain is less than 1 % of A, A is distributed evenly.

    Args:
        amount: (h, w) mm, NaN where missing.
        rates: F + 1 arrays (factor h, factor w) in mm/h at the ends of the short intervals. NaN is replaced by the mean
            rate of the cell.
        hours: Length of the interval in hours.
        factor: Number of finer cells along each side of a cell.

    Returns:
        (F, factor h, factor w) float32 mm, NaN where `amount` is NaN. Deterministic.
    """
    mean_rate = refine_mask(amount / hours, factor)
    edges = [np.where(np.isnan(rate), mean_rate, rate) for rate in rates]
    step = hours / (len(edges) - 1)
    short = np.stack([(first + second) * (0.5 * step) for first, second in itertools.pairwise(edges)])
    total = coarsen(short.sum(axis=0), factor)
    enough = total > _MIN_SHARE * amount
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(enough, amount / total, 0.0)
    even = np.where(enough, 0.0, amount / len(short))
    return (short * refine_mask(scale, factor) + refine_mask(even, factor)).astype(np.float32)


def find_interval_ends(number: int, frames: int, time_factor: int) -> np.ndarray:
    """Return the indices of a segment's fine frames at the ends of the short intervals of a coarse interval.

    A model gives frames at the centres of the coarse intervals and time_factor - 1 frames between them. The ends of the
    short intervals of interval n are therefore frames time_factor n - time_factor / 2, ..., time_factor n + time_factor
    / 2. Beyond the ends of the segment, the first or last frame is used.

    Args:
        number: Index n of the coarse interval in its segment.
        frames: Number of fine frames of the segment.
        time_factor: Even integer.

    Returns:
        (time_factor + 1,) integers.
    """
    indices = np.arange(time_factor + 1) + time_factor * number - time_factor // 2
    return np.clip(indices, 0, frames - 1)


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
    """Convert rain rate to reflectivity z = 10 log10(a R^b).

    Args:
        rate: Rain rate R in mm/h, any shape.
        z_r: (a, b) of Z = a R^b.
        no_echo: dBZ that means no echo. R <= 0 and weaker reflectivity become `no_echo`.

    Returns:
        float32 dBZ, NaN where `rate` is NaN.
    """
    a, b = z_r
    with np.errstate(divide="ignore", invalid="ignore"):
        z = 10.0 * np.log10(a) + 10.0 * b * np.log10(np.maximum(rate, 0.0))
    return np.where(np.isnan(rate), np.nan, np.maximum(z, no_echo)).astype(np.float32)


def reflectivity_to_rate(
    z: np.ndarray | float, z_r: tuple[float, float] = MARSHALL_PALMER, no_echo: float = NO_ECHO_DBZ
) -> np.ndarray:
    """Convert reflectivity to rain rate R = (10^(z / 10) / a)^(1 / b).

    Args:
        z: dBZ, any shape.
        z_r: (a, b) of Z = a R^b.
        no_echo: dBZ that means no echo; z <= no_echo becomes 0.

    Returns:
        float32 mm/h.
    """
    a, b = z_r
    rate = (10.0 ** (np.asarray(z, dtype=np.float64) / 10.0) / a) ** (1.0 / b)
    return np.where(z <= no_echo, 0.0, rate).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class ReflectivityInput:
    """Reflectivity of a dataset, with the information that converts a result back to the original variable.

    Attributes:
        raw: The chosen variable (time, y, x) in its units and dimension names, sorted by time, not loaded.
        dataset: Dataset of the variable.
        kind: "reflectivity", "rate" (instantaneous rain rate) or "amount" (sum or mean of rain over an interval).
        source_name: Name of the variable in the file.
        z_r: (a, b) of Z = a R^b; None for reflectivity.
        z_r_origin: Source of `z_r`: "given", "from the file's attributes", "the default", or what `replace_z_r` was
            given; None for reflectivity.
        no_echo: dBZ that means no echo.
        times: (T,) datetime64 or cftime; for amounts the centre of the interval.
        bounds: (T, 2) bounds of the intervals for amounts, else None.
        segments: Slices of frames that follow one another at the cadence. No frame is interpolated across the gap
            between two segments.
        cadence: Seconds between frames; NaN for a single frame.
        notes: Notes for the user about choices and changes.
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
        """Shape (T, H, W) of the variable."""
        return self.raw.shape

    @property
    def units(self) -> str:
        """Units of the variable in the file."""
        return self.raw.attrs["units"]

    def part(self, steps: slice) -> "ReflectivityInput":
        """Load some consecutive frames of one segment.

        Cadence, Z-R relation and no-echo value remain those of the whole input.
        """
        raw, bounds = self.raw[steps].compute(), None if self.bounds is None else self.bounds[steps]
        return dataclasses.replace(
            self, raw=raw, times=self.times[steps], bounds=bounds, segments=(slice(0, raw.shape[0]),)
        )

    def replace_z_r(self, z_r: tuple[float, float], origin: str) -> "ReflectivityInput":
        """Return the same input, whose rain is converted by another Z-R relation; reflectivity remains as it is.

        Args:
            z_r: (a, b) of Z = a R^b.
            origin: Source of the relation, for the notes.
        """
        if self.z_r is None or self.z_r_origin is None:
            return self
        before = _describe_conversion(self.source_name, self.units, self.z_r, self.z_r_origin)
        after = _describe_conversion(self.source_name, self.units, z_r, origin)
        notes = tuple(after if note == before else note for note in self.notes)
        return dataclasses.replace(self, z_r=z_r, z_r_origin=origin, notes=notes)

    def frames(self, index: Index) -> np.ndarray:
        """Return the reflectivity of some frames.

        Args:
            index: Index, slice or list along the first axis.

        Returns:
            float32 dBZ without infinities, NaN where missing or outside the plausible range.
        """
        values = self.values(index)
        if self.kind == "reflectivity":
            return values
        assert self.z_r is not None  # only reflectivity is without a Z-R relation
        return rate_to_reflectivity(values * self._compute_mm_per_hour(index), self.z_r, self.no_echo)

    def values(self, index: Index) -> np.ndarray:
        """Return some frames in the units of the file, float32, codes decoded, NaN where missing or implausible."""
        return mask_outside(self._decode_frames(index), self._limits)

    def to_rate(self, z: np.ndarray | float) -> np.ndarray:
        """Convert reflectivity in dBZ to rain rate in mm/h by the Z-R relation of this input."""
        assert self.z_r is not None
        return reflectivity_to_rate(z, self.z_r, self.no_echo)

    def amounts(self, index: Index) -> np.ndarray:
        """Return the amounts of some frames of an "amount" input in mm, NaN where missing."""
        seconds = self.interval_seconds(index)
        return np.maximum(self.values(index), 0.0) * self._compute_mm_per_hour(index) * seconds / 3600.0

    def interval_seconds(self, index: Index) -> np.ndarray | np.float32:
        """Return the interval lengths of some frames of an "amount" input in seconds, with a shape that broadcasts."""
        assert self.bounds is not None  # an amount has bounds
        length = np.array([to_seconds(second - first) for first, second in self.bounds])[index]
        return length[..., None, None].astype(np.float32) if np.ndim(length) else np.float32(length)

    @property
    def field(self) -> xr.DataArray:
        """All frames as a DataArray (time, y, x), float32 dBZ, with the horizontal coordinates of the file."""
        time = self.dims[0]
        coords = {name: c for name, c in self.raw.coords.items() if time not in c.dims}
        attrs = {"standard_name": "equivalent_reflectivity_factor", "units": "dBZ", "no_echo_value": self.no_echo}
        return xr.DataArray(
            self.frames(slice(None)),
            dims=self.dims,
            coords={time: self.times, **coords},
            name="reflectivity",
            attrs=attrs,
        )

    def check(
        self,
        frames: Iterable[int] | None = None,
        all_missing: str = ALL_MISSING,
        remedy: str | None = None,
        stacklevel: int = 2,
    ) -> None:
        """Check that the values of some frames are plausible. Each of these frames is read once.

        Warns (UserWarning) about some implausible or infinite values, or if all values are missing.

        Args:
            frames: Indices of frames; None: all.
            all_missing: Message for the case that all values are missing.
            remedy: What the user can do, for messages.
            stacklevel: As in warnings.warn.

        Raises:
            ValueError: More than half of the values are implausible, or one value is implausible and the variable may
                hold packed codes.
        """
        infinite = UndeclaredFills()
        check_plausible(
            self.source_name,
            (self._decode_frames(i, infinite) for i in (range(self.shape[0]) if frames is None else frames)),
            self._limits,
            self.units,
            codes=is_stored_as_codes(self.raw),
            hint="; a value that means no echo is declared by the attribute no_echo_value",
            remedy=remedy,
            all_missing=all_missing,
            stacklevel=stacklevel + 1,
        )
        infinite.warn(self.source_name, stacklevel)

    def _decode_frames(self, index: Index, infinite: UndeclaredFills | None = None) -> np.ndarray:
        """Return frames as `values` does, but without masking implausible values.

        Args:
            index: Index, slice or list along the first axis.
            infinite: Counter of infinite values. -inf is not counted: as the logarithm of 0 it means no echo.
        """
        values = self.raw[index].values
        if infinite is not None:
            infinite.count += int(np.count_nonzero(np.isposinf(values)))
        return _decode_flags(values, self.raw, self._no_echo_in_file)

    @property
    def _limits(self) -> tuple[float, float]:
        """The plausible range in the units of the file."""
        if self.kind == "reflectivity":
            plausible = find_plausible_range("equivalent_reflectivity_factor", "dBZ")
            assert plausible is not None  # the table has it
            return plausible
        return compute_plausible_rain_range(self.units)

    @property
    def _no_echo_in_file(self) -> float:
        return self.no_echo if self.kind == "reflectivity" else 0.0

    def _compute_mm_per_hour(self, index: Index) -> Any:
        """Return the factor that converts values of the file to mm/h."""
        rain = parse_rain_units(self.units)
        assert rain is not None
        millimetres, seconds = rain
        return millimetres * 3600.0 / (self.interval_seconds(index) if seconds is None else seconds)


def to_reflectivity(
    dataset: xr.Dataset, var: str | None = None, *, z_r: tuple[float, float] | None = None, least: int = 2
) -> ReflectivityInput:
    """Find the reflectivity of a dataset, or the rain from which it is computed.

    A variable of reflectivity is chosen if it is the only one that declares reflectivity by standard_name and dBZ, else
    by name and dBZ, else by dBZ. Rain rates and amounts are converted by Z = a R^b if `var` names them, or if there is
    one variable of rain and either no other field with units or a given `z_r`.

    Args:
        dataset: xarray.Dataset with dimensions time, y, x of any names; other dimensions of length 1 are dropped.
        var: Name of the variable; None: choose.
        z_r: (a, b) for Z in mm6 m-3 and R in mm/h; None: the attributes zr_a and zr_b of the variable or file, else
            (200, 1.6).
        least: Smallest number of times. With 1, the time may be a scalar coordinate, and the cadence of one time is
            NaN.

    Returns:
        ReflectivityInput. Its `field` is reflectivity (time, y, x), float32 dBZ, sorted by time, NaN where missing.

    Raises:
        ValueError: There is no or no unique candidate (the message lists them), `var` does not exist, units are missing
            or wrong, there are fewer than `least` times, times are missing, undecoded, irregular or repeated with
            different fields, x or y is unsorted or unevenly spaced, the packing is invalid, or the intervals of amounts
            are unknown, unequal or overlapping, or amounts are running totals.
    """
    dataset = promote_coordinates(dataset)
    name, kind, notes = choose_variable(dataset, var, z_r is not None)
    if least < 2:
        dataset = expand_scalar_time(dataset, name)
    check_packing(dataset[name])
    raw, axes_notes = find_axes(dataset[name])
    check_spacing(raw)
    raw, time_notes = sort_times(raw, least)
    notes = [*notes, *axes_notes, *time_notes]
    times, bounds = raw[raw.dims[0]].values, None
    if kind == "amount":
        bounds = find_interval_bounds(dataset, raw)
        times = _compute_middle(bounds)
    segments, cadence, segment_notes = find_regular_segments(times)
    if kind == "reflectivity":
        z_r, origin = None, None
    else:
        z_r, origin = find_z_r(dataset, dataset[name], z_r)
        notes.append(_describe_conversion(name, raw.attrs["units"], z_r, origin))
    return ReflectivityInput(
        raw,
        dataset,
        kind,
        name,
        z_r,
        origin,
        _find_no_echo(raw, kind),
        times,
        bounds,
        segments,
        cadence,
        (*notes, *segment_notes),
    )


def _describe_conversion(name: str, units: str, z_r: tuple[float, float], origin: str) -> str:
    return f"{name} ({units}) is converted by Z = {z_r[0]:g} R^{z_r[1]:g} ({origin})"


def find_z_r(
    dataset: xr.Dataset, variable: xr.DataArray, given: tuple[float, float] | None = None
) -> tuple[tuple[float, float], str]:
    """Find the Z-R relation of a variable.

    Args:
        dataset: Dataset.
        variable: Variable of rain.
        given: (a, b) from the user, or None.

    Returns:
        (a, b) of Z = a R^b, and its origin: given, the attributes zr_a and zr_b of the variable or file, or the
            default.

    Raises:
        ValueError: a and b are not two positive numbers.
    """
    z_r: Any
    z_r, origin = MARSHALL_PALMER, "the default"
    attrs = {**dataset.attrs, **variable.attrs}
    if given is not None:
        z_r, origin = given, "given"
    elif "zr_a" in attrs and "zr_b" in attrs:
        z_r, origin = (attrs["zr_a"], attrs["zr_b"]), "from the file's attributes"
    try:
        z_r = tuple(float(value) for value in z_r)
        good = len(z_r) == 2 and all(np.isfinite(z_r)) and min(z_r) > 0
    except (TypeError, ValueError):
        good = False
    if not good:
        raise OptionError("z_r", f"must be two positive numbers (a, b) of Z = a R^b, got {z_r} ({origin})")
    return z_r, origin


def _find_no_echo(raw: xr.DataArray, kind: str) -> float:
    if kind == "reflectivity":
        for value in _find_no_echo_flags(raw):
            # A code far below any reflectivity, such as ODIM's -8888000, is replaced by the default.
            return value if -60.0 <= value <= 15.0 else NO_ECHO_DBZ
    return NO_ECHO_DBZ


def _decode_flags(values: np.ndarray, raw: xr.DataArray, no_echo: float) -> np.ndarray:
    """Replace codes of no echo and of missing values, which the variable's attributes declare, and -inf.

    Args:
        values: Values of the variable.
        raw: Variable with the attributes.
        no_echo: Value that replaces codes of no echo and -inf.

    Returns:
        float32 array; codes of missing values and +inf become NaN.
    """
    values = mask_fill_values(values, raw.attrs)
    for flag in _find_no_echo_flags(raw):
        if flag != no_echo:
            values[np.isclose(values, np.float32(flag), rtol=1e-6, atol=1e-4)] = no_echo
    meanings = str(raw.attrs.get("flag_meanings", "")).lower().split()
    for flag, meaning in zip(_unpack(raw, _parse_numbers(raw, "flag_values")), meanings, strict=False):
        if meaning in _NO_ECHO_MEANINGS or meaning in _MISSING_MEANINGS:
            found = np.isclose(values, np.float32(flag), rtol=1e-6, atol=1e-4)
            values[found] = no_echo if meaning in _NO_ECHO_MEANINGS else np.nan
    values[np.isneginf(values)] = no_echo
    values[np.isposinf(values)] = np.nan
    return values


def _find_no_echo_flags(raw: xr.DataArray) -> list[float]:
    """Return the values that mean no echo, decoded.

    _Undetect is a packed number (FM 301); the other attributes hold decoded values.
    """
    decoded = [value for name in _NO_ECHO_ATTRIBUTES for value in _parse_numbers(raw, name)[:1]]
    return decoded + _unpack(raw, _parse_numbers(raw, "_Undetect")[:1])


def _unpack(raw: xr.DataArray, numbers: Iterable[float]) -> list[float]:
    scale, offset = (
        float(raw.encoding.get(name) or default) for name, default in (("scale_factor", 1), ("add_offset", 0))
    )
    return [number * scale + offset for number in numbers]


def _parse_numbers(raw: xr.DataArray, name: str) -> list[float]:
    """Return the numbers of an attribute (a number, an array, or text such as "1, 2"); [] if it is absent."""
    value = raw.attrs.get(name, [])
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    try:
        return [float(item) for item in np.ravel(value)]
    except ValueError:
        raise ValueError(f"attribute {name} of {raw.name} must hold numbers, got {raw.attrs[name]!r}") from None


def _compute_middle(bounds: np.ndarray) -> np.ndarray:
    return bounds[:, 0] + (bounds[:, 1] - bounds[:, 0]) / 2
