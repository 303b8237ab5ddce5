# SPDX-License-Identifier: Apache-2.0
"""Times of a file: sorting, gaps, the intervals of accumulations, finer times and their encoding."""

import datetime

import numpy as np
import pandas

from . import preparation
from .units import interval_seconds, rain_units
from .variables import time_method

_JITTER = 0.10
_GAP = 1.5
_UNITS_NS = {
    "days": 86_400_000_000_000,
    "hours": 3_600_000_000_000,
    "minutes": 60_000_000_000,
    "seconds": 1_000_000_000,
    "milliseconds": 1_000_000,
    "microseconds": 1_000,
}
_UNIT_WORDS = {
    "days": ("days", "day", "d"),
    "hours": ("hours", "hour", "hrs", "hr", "h"),
    "minutes": ("minutes", "minute", "mins", "min"),
    "seconds": ("seconds", "second", "secs", "sec", "s"),
    "milliseconds": ("milliseconds", "millisecond", "msecs", "msec", "ms"),
    "microseconds": ("microseconds", "microsecond", "us"),
}


def sort_times(field):
    """A field (time, ...) sorted by time without repeated frames, and notes about it.

    Raises: ValueError for fewer than two times, times that are no dates or missing, and different fields at one time.
    """
    time = field.dims[0]
    if time not in field.coords:
        raise ValueError(f"dimension {time} has no coordinate; expected times such as minutes since a date")
    values = field[time].values
    if values.dtype.kind not in "MO":
        raise ValueError(f"coordinate {time} holds no dates; expected units such as 'minutes since 2020-01-01'")
    if values.dtype.kind == "M" and np.isnat(values).any():
        raise ValueError(f"coordinate {time} has missing times (position {int(np.argmax(np.isnat(values)))})")
    order, notes = np.argsort(values, kind="stable"), []
    if np.any(order != np.arange(len(order))):
        notes.append("times were not in order and have been sorted")
        field = field.isel({time: order})
    keep = [0] if len(order) else []
    for index in range(1, len(order)):
        if field[time].values[index] != field[time].values[index - 1]:
            keep.append(index)
        elif not np.array_equal(field[keep[-1]].values, field[index].values, equal_nan=True):
            raise ValueError(f"time {text_of(field[time].values[index])} occurs twice with different fields")
    if len(keep) < len(order):
        notes.append(f"{len(order) - len(keep)} repeated frames were dropped")
        field = field.isel({time: keep})
    if len(keep) < 2:
        raise ValueError(f"at least 2 times are needed, the file has {len(keep)}")
    return field, notes


def regular_segments(times):
    """Slices of frames that follow one another at the cadence, the cadence in seconds, and notes about gaps.

    The cadence is the most frequent step. Steps within 10 % of it are regular, steps of 1.5 times and more are gaps.
    Raises: ValueError that names the two times for any other step.
    """
    seconds = preparation.seconds_since_first(times)
    cadence = preparation.most_frequent_step(seconds)
    steps = np.diff(seconds)
    gaps = steps >= _GAP * cadence
    odd = ~gaps & (np.abs(steps - cadence) > _JITTER * cadence)
    if odd.any():
        first = int(np.argmax(odd))
        raise ValueError(
            f"times are irregular: {steps[first]:g} s between {text_of(times[first])} and {text_of(times[first + 1])}, the most frequent step is "
            f"{cadence:g} s"
        )
    edges = [0, *(np.flatnonzero(gaps) + 1).tolist(), len(times)]
    segments = tuple(slice(a, b) for a, b in zip(edges, edges[1:], strict=False))
    notes = [
        f"no frame is interpolated across the gap from {text_of(times[i])} to {text_of(times[i + 1])}"
        for i in np.flatnonzero(gaps)
    ]
    return segments, cadence, notes


def interval_bounds(dataset, field):
    """(T, 2) start and end of the interval behind each value of a field of amounts or means over time.

    The bounds variable of the time coordinate is used if there is one; else the interval ends at the time and is as long as the cadence, which needs
    cell_methods "time: sum" or "time: mean".
    Raises: ValueError for amounts without either, running accumulations, and intervals that do not fit the cadence.
    """
    time, name = field.dims[0], field.name
    times = field[time].values
    bounds = _bounds_in_file(dataset, field)
    method = time_method(field)
    if bounds is None:
        if method not in ("sum", "mean"):
            raise ValueError(
                f"variable {name} ({field.attrs.get('units')}) is an amount without cell_methods or time bounds, so its interval is unknown: set "
                "cell_methods = 'time: sum' if each value is the sum since the time before, or take differences if it runs on from a start"
            )
        cadence = preparation.most_frequent_step(preparation.seconds_since_first(times))
        stated = _stated_interval(field)
        if stated is not None and abs(stated - cadence) > _JITTER * cadence:
            raise ValueError(
                f"variable {name} has intervals of {stated:g} s (cell_methods) at a cadence of {cadence:g} s; sum or select it so that they agree"
            )
        step = (
            np.timedelta64(round(cadence * 1e9), "ns")
            if times.dtype.kind == "M"
            else datetime.timedelta(seconds=cadence)
        )
        bounds = np.stack([times - step, times], axis=1)
    lengths = np.array([_in_seconds(second - first) for first, second in bounds])
    if np.any(lengths <= 0):
        raise ValueError(f"the time bounds of {name} must be increasing pairs")
    if len(bounds) > 1 and np.all(bounds[:, 0] == bounds[0, 0]):
        raise ValueError(
            f"variable {name} runs on from {text_of(bounds[0, 0])}; take differences to get the amount of each interval"
        )
    if np.any(np.abs(lengths - lengths[0]) > _JITTER * lengths[0]):
        raise ValueError(
            f"the time bounds of {name} have intervals of different length ({lengths.min():g} to {lengths.max():g} s)"
        )
    starts = preparation.seconds_since_first(bounds[:, 0])
    if np.any(np.diff(starts) < lengths[:-1] * (1.0 - _JITTER)):
        raise ValueError(f"the time bounds of {name} overlap")
    if preparation.most_frequent_step(starts) > lengths[0] * (1.0 + _JITTER):
        raise ValueError(
            f"variable {name} has intervals of {lengths[0]:g} s at a cadence of {preparation.most_frequent_step(starts):g} s; sum or select it so that "
            "they agree"
        )
    if rain_units(field.attrs.get("units"))[1] is None and _never_falls(field):
        raise ValueError(
            f"variable {name} never falls anywhere from the first time to the last: it runs on from a start; take differences to get the amount of each interval"
        )
    return bounds


def refine_time(times, factor=2):
    """Times at `factor` times the cadence: (T,) datetime64 or cftime -> (factor (T - 1) + 1,), linear between neighbours (factor 2: the middle)."""
    times = np.asarray(times)
    out = [times[:-1] + (times[1:] - times[:-1]) * part / factor if part else times[:-1] for part in range(factor)]
    inner = np.stack(out, axis=1).reshape(-1) if len(times) > 1 else times[:0]
    return np.concatenate([inner, times[-1:]])


def split_intervals(bounds, factor=2):
    """Each interval (T, 2) cut into `factor` equal ones: (factor T, 2)."""
    start, length = bounds[:, 0], bounds[:, 1] - bounds[:, 0]
    edges = [start + length * part / factor if part else start for part in range(factor)] + [bounds[:, 1]]
    return np.stack([np.stack(pair, axis=1) for pair in zip(edges, edges[1:], strict=False)], axis=1).reshape(-1, 2)


def time_encoding(times, encoding):
    """Encoding (units, calendar, dtype) that keeps every time exactly: the file's unit if whole numbers of it suffice, else a finer one.

    Args: times (n,) datetime64 or cftime (with the bounds that share the encoding); encoding: of the source's time coordinate.
    """
    times = np.asarray(times).reshape(-1)
    unit, _, reference = str(encoding.get("units", "seconds since 1970-01-01")).partition(" since ")
    reference = reference.strip() or "1970-01-01"
    unit = next((name for name, words in _UNIT_WORDS.items() if unit.strip().lower() in words), "seconds")
    calendar = encoding.get("calendar") or (times[0].calendar if times.dtype.kind == "O" else "proleptic_gregorian")
    since = _nanoseconds_since(times, reference, calendar)
    names = list(_UNITS_NS)
    for name in names[names.index(unit) :]:
        if np.all(since % _UNITS_NS[name] == 0):
            return {"units": f"{name} since {reference}", "calendar": calendar, "dtype": "int64"}
    return {"units": f"{unit} since {reference}", "calendar": calendar, "dtype": "float64"}


def _nanoseconds_since(times, reference, calendar):
    """int64 nanoseconds since the reference date (of a units string)."""
    if times.dtype.kind == "M":
        start = pandas.Timestamp(reference)
        start = start.tz_convert(None) if start.tzinfo else start
        return (times.astype("datetime64[ns]") - start.to_datetime64()).astype("timedelta64[ns]").astype(np.int64)
    import cftime  # present wherever times are cftime objects

    numbers = cftime.date2num(times, f"microseconds since {reference}", calendar=calendar)
    return np.rint(np.asarray(numbers)).astype(np.int64) * 1000


def text_of(time):
    """A time for a sentence, to the second."""
    return np.datetime_as_string(time, unit="s") if isinstance(time, np.datetime64) else str(time)


def _bounds_in_file(dataset, field):
    time = field.dims[0]
    name = field[time].attrs.get("bounds") or field[time].encoding.get("bounds")
    if name is None or name not in dataset.variables:
        return None
    lookup = {value: pair for value, pair in zip(dataset[time].values.tolist(), dataset[name].values, strict=True)}
    bounds = np.array([lookup[value] for value in field[time].values.tolist()])
    return bounds if bounds.dtype.kind in "MO" and bounds.shape == (len(field[time]), 2) else None


def _stated_interval(field):
    text = str(field.attrs.get("cell_methods", ""))
    return interval_seconds(text.partition("interval:")[2].partition(")")[0]) if "interval:" in text else None


def _never_falls(field):
    """True if no pixel ever falls and the field rises at each of at least three steps, as a running accumulation does."""
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


def _in_seconds(delta):
    return float(delta / np.timedelta64(1, "ns")) * 1e-9 if isinstance(delta, np.timedelta64) else delta.total_seconds()
