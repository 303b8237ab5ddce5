# SPDX-License-Identifier: Apache-2.0
"""Times of a dataset: sequences of frames, gaps, refinement, accumulation intervals and encoding."""

import datetime
import itertools
import re
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas
import xarray as xr
from numpy.typing import ArrayLike

from fastds._options import OptionError
from fastds.data.grid.variables import get_time_method, parse_interval, parse_rain_units

_ISO = re.compile(r"(\d{4}(?:-\d\d?(?:-\d\d?(?:[T ]\d\d?(?::\d\d(?::\d\d(?:\.\d+)?)?)?)?)?)?)(Z|[+-]\d\d:?\d\d)?")
# Largest distance of a time from a regular series, as a fraction of the cadence.
JITTER = 0.10
_GAP = 1.5
_MICROSECONDS = {
    "days": 86_400_000_000,
    "hours": 3_600_000_000,
    "minutes": 60_000_000,
    "seconds": 1_000_000,
    "milliseconds": 1_000,
    "microseconds": 1,
}
_UNIT_WORDS = {
    "days": ("days", "day", "d"),
    "hours": ("hours", "hour", "hrs", "hr", "h"),
    "minutes": ("minutes", "minute", "mins", "min"),
    "seconds": ("seconds", "second", "secs", "sec", "s"),
    "milliseconds": ("milliseconds", "millisecond", "msecs", "msec", "ms"),
    "microseconds": ("microseconds", "microsecond", "us"),
}


def triples(
    times: ArrayLike, interval: np.timedelta64 | datetime.timedelta | float | None = None, every: int = 1
) -> np.ndarray:
    """Find triples of frames at t, t + D and t + 2 D.

    Args:
        times: See `sequences`.
        interval: See `sequences`.
        every: See `sequences`.

    Returns:
        (n, 3) int64 array of indices.
    """
    return sequences(times, 3, interval, every)


def sequences(
    times: ArrayLike, length: int, interval: np.timedelta64 | datetime.timedelta | float | None = None, every: int = 1
) -> np.ndarray:
    """Find sequences of frames at t, t + D, ..., t + (length - 1) D by their times, so that no sequence spans a gap.

    A time may differ from a regular series by 10 % of the time step. If several frames are close, the nearest is taken.

    Args:
        times: (T,) sorted times without duplicates: datetime64, cftime objects, or numbers.
        length: Number of frames of a sequence.
        interval: D as timedelta64, datetime.timedelta or number (in the unit of `times`); None: the time step.
        every: Keep only sequences that start a multiple of `every` intervals after the first time. With `length`,
            sequences share no frame; with length - 1, they share their end frames only.

    Returns:
        (n, length) int64 array of indices; n may be 0.

    Raises:
        ValueError: There are fewer than two times, times are not sorted, or the interval is not positive.
    """
    seconds = compute_seconds_since_first(times)
    step = estimate_time_step(seconds) if interval is None else to_seconds(interval)
    if not step > 0:
        raise OptionError("interval", f"must be positive, got {interval!r}")
    starts, jitter = np.arange(len(seconds)), JITTER * min(step, estimate_time_step(seconds))
    if every > 1:
        counts = np.rint(seconds / step)
        starts = starts[(counts % every == 0) & (np.abs(seconds - counts * step) <= 2 * jitter)]
    frames = find_times(seconds, seconds[starts][:, None] + step * np.arange(length), 2 * jitter)
    return frames[(frames >= 0).all(axis=1)]


def find_times(seconds: np.ndarray, requested: np.ndarray, tolerance: float) -> np.ndarray:
    """Find the index of the nearest time for each requested time.

    Args:
        seconds: (T,) sorted times in seconds.
        requested: Times in seconds, any shape.
        tolerance: Largest difference in seconds.

    Returns:
        int64 array of the shape of `requested`; -1 where no time is within the tolerance.
    """
    after = np.searchsorted(seconds, requested).clip(0, len(seconds) - 1)
    before = (after - 1).clip(0)
    nearest = np.where(np.abs(seconds[before] - requested) <= np.abs(seconds[after] - requested), before, after)
    found = np.abs(seconds[nearest] - requested) <= tolerance * (1 + 1e-9) + 1e-3
    return np.where(found, nearest, -1).astype(np.int64)


def match_times(times: np.ndarray, others: np.ndarray, tolerance: float) -> np.ndarray:
    """Find the index in `times` of the nearest time for each of `others`.

    Args:
        times: (T,) sorted datetime64 or cftime.
        others: (n,) datetime64 or cftime.
        tolerance: Largest difference in seconds.

    Returns:
        (n,) integers; -1 where no time is within the tolerance. Times of different calendars never match.
    """
    if len(times) == 0 or len(others) == 0:
        return np.full(len(others), -1)
    try:
        known, requested = (np.array([to_seconds(value - times[0]) for value in values]) for values in (times, others))
    except TypeError:
        return np.full(len(others), -1)
    return find_times(known, requested, tolerance)


def compute_seconds_since_first(times: ArrayLike) -> np.ndarray:
    """Return float64 seconds since the first of some sorted times.

    Args:
        times: (T,) datetime64, cftime objects, or numbers in seconds; at least 2.

    Raises:
        ValueError: `times` has another shape, is not sorted or has duplicates.
    """
    values = np.asarray(times)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f"times must hold at least 2 time steps in one dimension, got shape {values.shape}")
    if values.dtype.kind == "M":
        seconds = (values - values[0]) / np.timedelta64(1, "s")
    elif values.dtype.kind == "O":
        seconds = np.array([(value - values[0]).total_seconds() for value in values])
    else:
        seconds = values.astype(np.float64) - float(values[0])
    if not np.all(np.diff(seconds) > 0):
        raise ValueError("times must be sorted and without duplicates")
    return seconds


def estimate_time_step(seconds: np.ndarray) -> float:
    """Return the time step of sorted times in seconds, rounded to milliseconds.

    The step is the most frequent difference of neighbouring times (the smallest, if several are equally frequent), if
    all differences are multiples of this difference, as in series with gaps, or if the times are far from any regular
    series.

    Otherwise a regular series is fitted by least squares. If its step, rounded to whole minutes, changes the length of
    the whole series by at most 10 % of a step, the result is the rounded step. Otherwise the result is the difference
    that more than half of the steps have, or, if there is none, the step of the fit.

    Args:
        seconds: (T,) sorted times in seconds.
    """
    steps = np.round(np.diff(seconds), 3)
    values, counts = np.unique(steps, return_counts=True)
    frequent = float(values[np.argmax(counts)])
    if frequent > 0 and np.all(np.abs(steps - frequent * np.rint(steps / frequent)) <= 1e-3):
        return frequent
    median = float(np.sort(steps)[(len(steps) - 1) // 2])  # lower median
    numbers = np.concatenate([[0.0], np.cumsum(np.rint(steps / median))]) if median > 0 else np.zeros(len(seconds))
    if np.any(np.diff(numbers) < 1) or 2 * np.count_nonzero(np.diff(numbers) == 1) <= len(steps):
        return frequent
    step = float(np.polyfit(numbers, seconds, 1)[0])
    minutes = 60.0 * round(step / 60.0)
    if abs(step - minutes) * numbers[-1] <= JITTER * step:
        return minutes
    return frequent if 2 * counts.max() > len(steps) else round(step, 3)


def to_seconds(interval: np.timedelta64 | datetime.timedelta | float) -> float:
    """Convert a timedelta64, datetime.timedelta or number of seconds to seconds."""
    if isinstance(interval, np.timedelta64):
        return float(interval / np.timedelta64(1, "s"))
    return float(interval.total_seconds()) if hasattr(interval, "total_seconds") else float(interval)


def add_seconds(time: Any, seconds: float) -> Any:
    """Return the date `seconds` after a date (datetime64 or cftime)."""
    step = datetime.timedelta(seconds=float(seconds))
    return time + (np.timedelta64(step) if isinstance(time, np.datetime64) else step)


def check_dates(times: xr.DataArray) -> None:
    """Raise ValueError if a coordinate does not hold dates, or if one is missing."""
    values = np.atleast_1d(times.values)
    if values.dtype.kind not in "MO":
        raise ValueError(f"coordinate {times.name} holds no dates; expected units such as 'minutes since 2020-01-01'")
    missing = np.isnat(values) if values.dtype.kind == "M" else np.array([value is None for value in values], bool)
    if missing.any():
        raise ValueError(f"coordinate {times.name} has a missing time at position {int(np.argmax(missing))}")


def sort_times(field: xr.DataArray, least: int = 2) -> tuple[xr.DataArray, list[str]]:
    """Sort a field (time, ...) by time and drop repeated frames.

    Args:
        field: DataArray with a coordinate of dates.
        least: Smallest number of different times.

    Returns:
        The field, and notes about changes.

    Raises:
        ValueError: There are fewer than `least` times, times are missing or not dates, or fields at one time differ.
    """
    time, notes = field.dims[0], []
    if time not in field.coords:
        raise ValueError(f"dimension {time} has no coordinate; expected times such as minutes since a date")
    check_dates(field[time])
    values = field[time].values
    order = np.argsort(values, kind="stable")
    if np.any(order != np.arange(len(order))):
        notes.append("times were not in order and have been sorted")
        field, values = field.isel({time: order}), values[order]
    unique: list[int] = []
    for index, value in enumerate(values):
        if not unique or value != values[unique[-1]]:
            unique.append(index)
        elif not np.array_equal(field[unique[-1]].values, field[index].values, equal_nan=True):
            raise ValueError(f"time {format_time(value)} occurs twice with different fields")
    if len(unique) < len(order):
        notes.append(f"{len(order) - len(unique)} repeated frames were dropped")
        field = field.isel({time: unique})
    if len(unique) < least:
        needed = "1 time is" if least == 1 else f"{least} times are"
        raise ValueError(
            f"at least {needed} needed, variable {field.name} has {len(unique)}; a folder or pattern joins files"
        )
    return field, notes


def find_regular_segments(times: np.ndarray) -> tuple[tuple[slice, ...], float, list[str]]:
    """Divide times into segments of frames at the cadence, separated by gaps.

    The cadence is that of `estimate_time_step`; NaN for a single time. Steps within 10 % of the cadence are regular.
    All steps are regular if every time is within 10 % of a regular series. Steps of at least 1.5 cadences are gaps.

    Args:
        times: (T,) sorted datetime64 or cftime.

    Returns:
        Slices of the segments, the cadence in seconds, and notes about gaps.

    Raises:
        ValueError: A step is neither regular nor a gap, or most steps are shorter than 1 ms. The message about an
            irregular step names its two times.
    """
    if len(times) == 1:
        return (slice(0, 1),), float("nan"), []
    seconds = compute_seconds_since_first(times)
    cadence = estimate_time_step(seconds)
    if not cadence > 0:
        raise ValueError(f"time steps must be at least 1 ms, most are {float(np.median(np.diff(seconds))):g} s")
    steps = np.diff(seconds)
    gaps = steps >= _GAP * cadence
    odd = ~gaps & (np.abs(steps - cadence) > JITTER * cadence)
    if odd.any() and not _is_regular(seconds, cadence):
        first = int(np.argmax(odd))
        raise ValueError(
            f"times are irregular: {steps[first]:g} s between {format_time(times[first])} and "
            f"{format_time(times[first + 1])}, the most frequent step is {cadence:g} s"
        )
    edges = [0, *(np.flatnonzero(gaps) + 1).tolist(), len(times)]
    segments = tuple(slice(a, b) for a, b in itertools.pairwise(edges))
    notes = [
        f"no frame is interpolated across the gap from {format_time(times[i])} to {format_time(times[i + 1])}"
        for i in np.flatnonzero(gaps)
    ]
    return segments, cadence, notes


def _is_regular(seconds: np.ndarray, cadence: float) -> bool:
    """Return True if every time is within 10 % of the cadence from a time of one regular series."""
    numbers = np.concatenate([[0], np.cumsum(np.rint(np.diff(seconds) / cadence))])
    if np.any(np.diff(numbers) < 1):
        return False
    return bool(np.ptp(seconds - cadence * numbers) <= 2 * JITTER * cadence)


def refine_time(times: ArrayLike, factor: int = 2) -> np.ndarray:
    """Return times at `factor` times the cadence, by linear interpolation between neighbours.

    Args:
        times: (T,) datetime64 or cftime.
        factor: Number of new steps in one step.

    Returns:
        (factor (T - 1) + 1,) times.
    """
    times = to_fine_resolution(np.asarray(times))
    parts = [times[:-1] + (times[1:] - times[:-1]) * part // factor for part in range(factor)]
    return np.concatenate([np.stack(parts, axis=1).reshape(-1), times[-1:]])


def to_fine_resolution(times: np.ndarray) -> np.ndarray:
    """Convert datetime64 to microseconds or finer, so that fractions of intervals are not truncated.

    cftime objects are returned unchanged.
    """
    if times.dtype.kind == "M" and np.datetime_data(times.dtype)[0] != "ns":
        return times.astype("datetime64[us]")
    return times


def time_encoding(times: ArrayLike, encoding: Mapping[str, Any]) -> dict[str, str]:
    """Return an encoding (units, calendar, dtype) that stores every time as an integer, exactly to the microsecond.

    The unit is the unit of `encoding` if integers in this unit can represent all times, else the next finer unit that
    can.

    Args:
        times: (n,) datetime64 or cftime, together with the bounds that share the encoding.
        encoding: Encoding of the time coordinate in the source file.
    """
    times = np.asarray(times).reshape(-1)
    unit, _, reference = str(encoding.get("units", "")).partition(" since ")
    unit = next((name for name, words in _UNIT_WORDS.items() if unit.strip().lower() in words), "seconds")
    calendar = encoding.get("calendar") or (times[0].calendar if times.dtype.kind == "O" else "proleptic_gregorian")
    reference, since = _compute_microseconds_since(times, reference.strip() or "1970-01-01", calendar)
    names = list(_MICROSECONDS)
    unit = next(name for name in names[names.index(unit) :] if np.all(since % _MICROSECONDS[name] == 0))
    return {"units": f"{unit} since {reference}", "calendar": calendar, "dtype": "int64"}


def _compute_microseconds_since(times: np.ndarray, reference: str, calendar: str) -> tuple[str, np.ndarray]:
    """Return the reference date of a units string and int64 microseconds since this date.

    The reference date is 1970-01-01 if `reference` cannot be parsed.
    """
    if times.dtype.kind == "O":
        import cftime  # present wherever times are cftime objects

        numbers = cftime.date2num(times, f"microseconds since {reference}", calendar=calendar)
        return reference, np.asarray(numbers).astype(np.int64)
    try:
        start = pandas.Timestamp(reference)
    except ValueError:
        reference, start = "1970-01-01", pandas.Timestamp("1970-01-01")
    start = start.tz_convert(None) if start.tzinfo else start
    return reference, (times.astype("datetime64[us]") - start.to_datetime64().astype("datetime64[us]")).astype(np.int64)


def parse_utc_text(date: object) -> str | None:
    """Return a date and time in ISO 8601 format, such as 2020-06-01T12:00 or 2020-06, as UTC text without offset.

    Other formats give None, since a date such as 01.06.2020 is ambiguous. The date may be one of any calendar.
    """
    found = _ISO.fullmatch(str(date).strip())
    if found is None:
        return None
    if found[2] in (None, "Z"):
        return found[1]
    try:
        return pandas.Timestamp(found[0]).tz_convert(None).isoformat()
    except ValueError:
        return None


def format_time(time: Any) -> str:
    """Format a time for messages, to the second."""
    return np.datetime_as_string(time, unit="s") if isinstance(time, np.datetime64) else str(time)


_TOLERANCE = 0.10
_TAKE_DIFFERENCES = "take differences to get the amount of each interval"


def find_interval_bounds(dataset: xr.Dataset, field: xr.DataArray) -> np.ndarray:
    """Find start and end of the interval of each value of a field of amounts or means over time.

    The bounds of the time coordinate are used if they exist. Otherwise cell_methods must be "time: sum" or "time:
    mean"; the interval then ends at the time and has the length of the cadence, or, for a single time, the length in
    cell_methods.

    Args:
        dataset: Dataset of the field and the bounds.
        field: DataArray (time, ...).

    Returns:
        (T, 2) start and end.

    Raises:
        ValueError: The intervals are unknown, unequal, overlapping or not as long as the cadence, or the field is a
            running total.
    """
    name, bounds = field.name, _read_bounds(dataset, field)
    if bounds is None:
        bounds = _derive_bounds(field)
    lengths = np.array([to_seconds(second - first) for first, second in bounds])
    if np.any(lengths <= 0):
        raise ValueError(f"the time bounds of {name} must be pairs of start and end, end after start")
    if len(bounds) == 1:
        return bounds
    if np.all(bounds[:, 0] == bounds[0, 0]):
        raise ValueError(f"variable {name} runs on from {format_time(bounds[0, 0])}; {_TAKE_DIFFERENCES}")
    if np.any(np.abs(lengths - lengths[0]) > _TOLERANCE * lengths[0]):
        raise ValueError(f"the time bounds of {name} have unequal intervals, {lengths.min():g} to {lengths.max():g} s")
    starts = compute_seconds_since_first(bounds[:, 0])
    if np.any(np.diff(starts) < lengths[0] * (1.0 - _TOLERANCE)):
        raise ValueError(f"the time bounds of {name} overlap")
    _check_length(name, lengths[0], estimate_time_step(starts))
    rain = parse_rain_units(field.attrs.get("units"))
    assert rain is not None  # the field is an amount or a rate of rain
    if rain[1] is None and _is_running_total(field):
        raise ValueError(f"variable {name} never falls from one time to the next, so it runs on; {_TAKE_DIFFERENCES}")
    return bounds


def split_intervals(bounds: np.ndarray, factor: int = 2) -> np.ndarray:
    """Split each interval (T, 2) into `factor` equal ones, (factor T, 2)."""
    start, length = bounds[:, 0], bounds[:, 1] - bounds[:, 0]
    edges = [start + length * part // factor for part in range(factor + 1)]
    return np.stack([np.stack(pair, axis=1) for pair in itertools.pairwise(edges)], axis=1).reshape(-1, 2)


def _read_bounds(dataset: xr.Dataset, field: xr.DataArray) -> np.ndarray | None:
    time = field.dims[0]
    name = field[time].attrs.get("bounds") or field[time].encoding.get("bounds")
    if name is None or name not in dataset.variables:
        return None
    pairs = dict(zip(dataset[time].values.tolist(), dataset[name].values, strict=True))
    bounds = np.array([pairs[value] for value in field[time].values.tolist()])
    if bounds.dtype.kind not in "MO" or bounds.shape != (field.sizes[time], 2):
        raise ValueError(f"the time bounds {name} must be dates of the shape ({field.sizes[time]}, 2)")
    return to_fine_resolution(bounds)


def _derive_bounds(field: xr.DataArray) -> np.ndarray:
    name, times = field.name, to_fine_resolution(field[field.dims[0]].values)
    if get_time_method(field) not in ("sum", "mean"):
        raise ValueError(
            f"variable {name} [{field.attrs.get('units')}] is an amount without cell_methods or time bounds, so its "
            "interval is unknown; set cell_methods to 'time: sum' if it is the sum since the time before, or "
            f"{_TAKE_DIFFERENCES} if it runs on"
        )
    stated = _parse_stated_interval(field)
    if len(times) == 1 and stated is None:
        raise ValueError(
            f"variable {name} is an amount at one time, whose interval nothing tells: join files of more times"
        )
    cadence: Any = stated if len(times) == 1 else estimate_time_step(compute_seconds_since_first(times))
    if stated is not None:
        _check_length(name, stated, cadence)
    step: Any = datetime.timedelta(seconds=cadence)
    if times.dtype.kind == "M":
        step = np.timedelta64(round(cadence * 1e6), "us")
    return np.stack([times - step, times], axis=1)


def _check_length(name: Hashable, length: float, cadence: float) -> None:
    if abs(length - cadence) > _TOLERANCE * cadence:
        raise ValueError(
            f"variable {name} has intervals of {length:g} s at a cadence of {cadence:g} s; sum it so that they agree"
        )


def _parse_stated_interval(field: xr.DataArray) -> float | None:
    text = str(field.attrs.get("cell_methods", ""))
    return parse_interval(text.partition("interval:")[2].partition(")")[0]) if "interval:" in text else None


def _is_running_total(field: xr.DataArray) -> bool:
    """Return True if no pixel decreases and some pixels increase at each of at least three steps."""
    if field.shape[0] < 4:
        return False
    before = field[0].values
    for index in range(1, field.shape[0]):
        after = field[index].values
        change = (after - before)[np.isfinite(after) & np.isfinite(before)]
        if np.any(change < 0) or not np.any(change > 0):
            return False
        before = after
    return True
