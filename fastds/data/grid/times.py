# SPDX-License-Identifier: Apache-2.0
"""Times of a file: intervals, sequences, gaps, encoding."""

import datetime
import re
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas
import xarray as xr
from numpy.typing import ArrayLike

from fastds.data.grid.variables import interval_seconds, rain_units, time_method

_ISO = re.compile(r"(\d{4}(?:-\d\d?(?:-\d\d?(?:[T ]\d\d?(?::\d\d(?::\d\d(?:\.\d+)?)?)?)?)?)?)(Z|[+-]\d\d:?\d\d)?")
# Times may lie this share of the cadence from those of a regular series.
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
    """Indices (n, 3) of frames at t, t + D and t + 2 D: sequences of three; times, interval and every as
    there."""
    return sequences(times, 3, interval, every)


def sequences(
    times: ArrayLike, length: int, interval: np.timedelta64 | datetime.timedelta | float | None = None, every: int = 1
) -> np.ndarray:
    """Indices of frames at t, t + D, ..., t + (length - 1) D, found by time stamp, so that no sequence has a gap.

    Every time may lie 10 % of the step of times from that of a regular series; of several frames the nearest is taken.

    Args:
        times: (T,) sorted times without duplicates: datetime64, cftime objects, or numbers.
        length: frames of a sequence.
        interval: D as timedelta64, datetime.timedelta or number (the unit of times); None: the step of times.
        every: keep only starts that are a multiple of `every` intervals after the first time (length: sequences share
            no frame; length - 1: they share end frames only).
    Returns: (n, length) int64 array of indices, n may be 0.
    Raises: ValueError for fewer than two times, unsorted times or an interval <= 0.
    """
    seconds = seconds_since_first(times)
    step = most_frequent_step(seconds) if interval is None else to_seconds(interval)
    if not step > 0:
        raise ValueError(f"interval must be positive, got {interval!r}")
    starts, jitter = np.arange(len(seconds)), JITTER * min(step, most_frequent_step(seconds))
    if every > 1:
        counts = np.rint(seconds / step)
        starts = starts[(counts % every == 0) & (np.abs(seconds - counts * step) <= 2 * jitter)]
    frames = find_times(seconds, seconds[starts][:, None] + step * np.arange(length), 2 * jitter)
    return frames[(frames >= 0).all(axis=1)]


def find_times(seconds: np.ndarray, requested: np.ndarray, tolerance: float) -> np.ndarray:
    """Index of the nearest of the sorted seconds for each requested time, -1 where none is within the tolerance.

    Args: seconds (T,), requested (...), tolerance: all in seconds. Returns: int64 array (...)."""
    after = np.searchsorted(seconds, requested).clip(0, len(seconds) - 1)
    before = (after - 1).clip(0)
    nearest = np.where(np.abs(seconds[before] - requested) <= np.abs(seconds[after] - requested), before, after)
    found = np.abs(seconds[nearest] - requested) <= tolerance * (1 + 1e-9) + 1e-3
    return np.where(found, nearest, -1).astype(np.int64)


def same_times(times: np.ndarray, others: np.ndarray, tolerance: float) -> np.ndarray:
    """Index in `times` of each of the others, the nearest within the tolerance in seconds; -1 where there is none.

    Args: times (T,) sorted, others (n,): datetime64 or cftime; of two calendars none is the same."""
    if len(times) == 0 or len(others) == 0:
        return np.full(len(others), -1)
    try:
        own, other = (np.array([to_seconds(value - times[0]) for value in values]) for values in (times, others))
    except TypeError:
        return np.full(len(others), -1)
    return find_times(own, other, tolerance)


def seconds_since_first(times: ArrayLike) -> np.ndarray:
    """Float64 seconds since the first of the sorted times (datetime64, cftime objects, or numbers taken as seconds)."""
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


def most_frequent_step(seconds: np.ndarray) -> float:
    """The step of sorted seconds, to the millisecond.

    It is the most frequent difference (of several the smallest) where all are multiples of it, as in series with gaps;
    else whole minutes where all times stay within 10 % of those, so that jitter does not change it; else the difference
    that most have, or the step of the nearest regular series.
    """
    steps = np.round(np.diff(seconds), 3)
    values, counts = np.unique(steps, return_counts=True)
    frequent = float(values[np.argmax(counts)])
    if frequent > 0 and np.all(np.abs(steps - frequent * np.rint(steps / frequent)) <= 1e-3):
        return frequent
    median = float(np.sort(steps)[(len(steps) - 1) // 2])  # the smaller of two
    numbers = np.concatenate([[0.0], np.cumsum(np.rint(steps / median))]) if median > 0 else np.zeros(len(seconds))
    if np.any(np.diff(numbers) < 1) or 2 * np.count_nonzero(np.diff(numbers) == 1) <= len(steps):
        return frequent
    step = float(np.polyfit(numbers, seconds, 1)[0])
    minutes = 60.0 * round(step / 60.0)
    if abs(step - minutes) * numbers[-1] <= JITTER * step:
        return minutes
    return frequent if 2 * counts.max() > len(steps) else round(step, 3)


def to_seconds(interval: np.timedelta64 | datetime.timedelta | float) -> float:
    """Seconds of a timedelta64, datetime.timedelta or number."""
    if isinstance(interval, np.timedelta64):
        return float(interval / np.timedelta64(1, "s"))
    return float(interval.total_seconds()) if hasattr(interval, "total_seconds") else float(interval)


def check_dates(times: xr.DataArray) -> None:
    """ValueError unless a coordinate holds dates, none missing."""
    values = np.atleast_1d(times.values)
    if values.dtype.kind not in "MO":
        raise ValueError(f"coordinate {times.name} holds no dates; expected units such as 'minutes since 2020-01-01'")
    missing = np.isnat(values) if values.dtype.kind == "M" else np.array([value is None for value in values], bool)
    if missing.any():
        raise ValueError(f"coordinate {times.name} has a missing time at position {int(np.argmax(missing))}")


def sort_times(field: xr.DataArray, least: int = 2) -> tuple[xr.DataArray, list[str]]:
    """A field (time, ...) sorted by time without repeated frames, and notes about it.

    Raises: ValueError for fewer than `least` times, times that are no dates or missing, and different fields at one
        time.
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
    keep = []
    for index, value in enumerate(values):
        if not keep or value != values[keep[-1]]:
            keep.append(index)
        elif not np.array_equal(field[keep[-1]].values, field[index].values, equal_nan=True):
            raise ValueError(f"time {text_of(value)} occurs twice with different fields")
    if len(keep) < len(order):
        notes.append(f"{len(order) - len(keep)} repeated frames were dropped")
        field = field.isel({time: keep})
    if len(keep) < least:
        needed = "1 time is" if least == 1 else f"{least} times are"
        raise ValueError(
            f"at least {needed} needed, variable {field.name} has {len(keep)}; a folder or pattern joins files"
        )
    return field, notes


def regular_segments(times: np.ndarray) -> tuple[tuple[slice, ...], float, list[str]]:
    """Slices of frames that follow one another at the cadence, the cadence in seconds, and notes about gaps.

    The cadence is that of most_frequent_step, NaN of a single time. Steps within 10 % of it are regular, and so are all
    where every time lies within 10 % of a regular series; steps of 1.5 times and more are gaps.
    Raises: ValueError that names the two times for any other step.
    """
    if len(times) == 1:
        return (slice(0, 1),), float("nan"), []
    seconds = seconds_since_first(times)
    cadence = most_frequent_step(seconds)
    if not cadence > 0:
        raise ValueError(f"times must be at least 1 ms apart, most steps are {float(np.median(np.diff(seconds))):g} s")
    steps = np.diff(seconds)
    gaps = steps >= _GAP * cadence
    odd = ~gaps & (np.abs(steps - cadence) > JITTER * cadence)
    if odd.any() and not _lie_on_grid(seconds, cadence):
        first = int(np.argmax(odd))
        raise ValueError(
            f"times are irregular: {steps[first]:g} s between {text_of(times[first])} and "
            f"{text_of(times[first + 1])}, the most frequent step is {cadence:g} s"
        )
    edges = [0, *(np.flatnonzero(gaps) + 1).tolist(), len(times)]
    segments = tuple(slice(a, b) for a, b in zip(edges, edges[1:], strict=False))
    notes = [
        f"no frame is interpolated across the gap from {text_of(times[i])} to {text_of(times[i + 1])}"
        for i in np.flatnonzero(gaps)
    ]
    return segments, cadence, notes


def _lie_on_grid(seconds: np.ndarray, cadence: float) -> bool:
    """Return True if every time lies within 10 % of the cadence from a time of one regular series."""
    numbers = np.concatenate([[0], np.cumsum(np.rint(np.diff(seconds) / cadence))])
    if np.any(np.diff(numbers) < 1):
        return False
    return bool(np.ptp(seconds - cadence * numbers) <= 2 * JITTER * cadence)


def refine_time(times: ArrayLike, factor: int = 2) -> np.ndarray:
    """Times at `factor` times the cadence: (T,) datetime64 or cftime -> (factor (T - 1) + 1,).

    Linear between neighbours; for factor 2 the middle of each pair.
    """
    times = fine_resolution(np.asarray(times))
    parts = [times[:-1] + (times[1:] - times[:-1]) * part // factor for part in range(factor)]
    return np.concatenate([np.stack(parts, axis=1).reshape(-1), times[-1:]])


def fine_resolution(times: np.ndarray) -> np.ndarray:
    """datetime64 in microseconds or finer, so that halves of intervals are not cut; cftime objects as they are."""
    if times.dtype.kind == "M" and np.datetime_data(times.dtype)[0] != "ns":
        return times.astype("datetime64[us]")
    return times


def time_encoding(times: ArrayLike, encoding: Mapping[str, Any]) -> dict[str, str]:
    """Encoding (units, calendar, dtype) that keeps every time exactly: the file's unit if whole numbers of it
    suffice, else a finer one.

    Args: times (n,) datetime64 or cftime (with the bounds that share the encoding); encoding: of the source's time
        coordinate.
    """
    times = np.asarray(times).reshape(-1)
    unit, _, reference = str(encoding.get("units", "")).partition(" since ")
    unit = next((name for name, words in _UNIT_WORDS.items() if unit.strip().lower() in words), "seconds")
    calendar = encoding.get("calendar") or (times[0].calendar if times.dtype.kind == "O" else "proleptic_gregorian")
    reference, since = _microseconds_since(times, reference.strip() or "1970-01-01", calendar)
    names = list(_MICROSECONDS)
    unit = next(name for name in names[names.index(unit) :] if np.all(since % _MICROSECONDS[name] == 0))
    return {"units": f"{unit} since {reference}", "calendar": calendar, "dtype": "int64"}


def _microseconds_since(times: np.ndarray, reference: str, calendar: str) -> tuple[str, np.ndarray]:
    """The reference date of a units string (1970 where it cannot be read), and int64 microseconds since it."""
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


def utc_text(date: object) -> str | None:
    """The text of a date and time of ISO 8601, such as 2020-06-01T12:00 or 2020-06, in UTC, without its offset; None
    for any other: 01.06.2020 may be January. The date may be one of another calendar."""
    found = _ISO.fullmatch(str(date).strip())
    if found is None:
        return None
    if found[2] in (None, "Z"):
        return found[1]
    try:
        return pandas.Timestamp(found[0]).tz_convert(None).isoformat()
    except ValueError:
        return None


def text_of(time: Any) -> str:
    """A time for a sentence, to the second."""
    return np.datetime_as_string(time, unit="s") if isinstance(time, np.datetime64) else str(time)


_TOLERANCE = 0.10
_TAKE_DIFFERENCES = "take differences to get the amount of each interval"


def interval_bounds(dataset: xr.Dataset, field: xr.DataArray) -> np.ndarray:
    """(T, 2) start and end of the interval that each value stands for, of a field of amounts or means over time.

    The bounds variable of the time coordinate is used if there is one; else the interval ends at the time and is as
    long as the cadence, of a single time as cell_methods state, which needs cell_methods "time: sum" or "time: mean".
    Raises: ValueError for amounts without either, running accumulations, and intervals that do not fit the cadence.
    """
    name, bounds = field.name, _bounds_in_file(dataset, field)
    if bounds is None:
        bounds = _bounds_from_cadence(field)
    lengths = np.array([to_seconds(second - first) for first, second in bounds])
    if np.any(lengths <= 0):
        raise ValueError(f"the time bounds of {name} must be pairs of start and end, end after start")
    if len(bounds) == 1:
        return bounds
    if np.all(bounds[:, 0] == bounds[0, 0]):
        raise ValueError(f"variable {name} runs on from {text_of(bounds[0, 0])}; {_TAKE_DIFFERENCES}")
    if np.any(np.abs(lengths - lengths[0]) > _TOLERANCE * lengths[0]):
        raise ValueError(f"the time bounds of {name} have unequal intervals, {lengths.min():g} to {lengths.max():g} s")
    starts = seconds_since_first(bounds[:, 0])
    if np.any(np.diff(starts) < lengths[0] * (1.0 - _TOLERANCE)):
        raise ValueError(f"the time bounds of {name} overlap")
    _check_length(name, lengths[0], most_frequent_step(starts))
    if rain_units(field.attrs.get("units"))[1] is None and _never_falls(field):
        raise ValueError(f"variable {name} never falls from one time to the next, so it runs on; {_TAKE_DIFFERENCES}")
    return bounds


def split_intervals(bounds: np.ndarray, factor: int = 2) -> np.ndarray:
    """Each interval (T, 2) cut into `factor` equal ones: (factor T, 2)."""
    start, length = bounds[:, 0], bounds[:, 1] - bounds[:, 0]
    edges = [start + length * part // factor for part in range(factor + 1)]
    return np.stack([np.stack(pair, axis=1) for pair in zip(edges, edges[1:], strict=False)], axis=1).reshape(-1, 2)


def _bounds_in_file(dataset: xr.Dataset, field: xr.DataArray) -> np.ndarray | None:
    time = field.dims[0]
    name = field[time].attrs.get("bounds") or field[time].encoding.get("bounds")
    if name is None or name not in dataset.variables:
        return None
    pairs = dict(zip(dataset[time].values.tolist(), dataset[name].values, strict=True))
    bounds = np.array([pairs[value] for value in field[time].values.tolist()])
    if bounds.dtype.kind not in "MO" or bounds.shape != (field.sizes[time], 2):
        raise ValueError(f"the time bounds {name} must be dates of the shape ({field.sizes[time]}, 2)")
    return fine_resolution(bounds)


def _bounds_from_cadence(field: xr.DataArray) -> np.ndarray:
    name, times = field.name, fine_resolution(field[field.dims[0]].values)
    if time_method(field) not in ("sum", "mean"):
        raise ValueError(
            f"variable {name} [{field.attrs.get('units')}] is an amount without cell_methods or time bounds, so its "
            "interval is unknown; set cell_methods to 'time: sum' if it is the sum since the time before, or "
            f"{_TAKE_DIFFERENCES} if it runs on"
        )
    stated = _stated_interval(field)
    if len(times) == 1 and stated is None:
        raise ValueError(
            f"variable {name} is an amount at one time, whose interval nothing tells: join files of more times"
        )
    cadence = stated if len(times) == 1 else most_frequent_step(seconds_since_first(times))
    if stated is not None:
        _check_length(name, stated, cadence)
    step = datetime.timedelta(seconds=cadence)
    if times.dtype.kind == "M":
        step = np.timedelta64(round(cadence * 1e6), "us")
    return np.stack([times - step, times], axis=1)


def _check_length(name: Hashable, length: float, cadence: float) -> None:
    if abs(length - cadence) > _TOLERANCE * cadence:
        raise ValueError(
            f"variable {name} has intervals of {length:g} s at a cadence of {cadence:g} s; sum it so that they agree"
        )


def _stated_interval(field: xr.DataArray) -> float | None:
    text = str(field.attrs.get("cell_methods", ""))
    return interval_seconds(text.partition("interval:")[2].partition(")")[0]) if "interval:" in text else None


def _never_falls(field: xr.DataArray) -> bool:
    """True if no pixel ever falls and some rise at each of at least three steps: a running accumulation."""
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
