# SPDX-License-Identifier: Apache-2.0
"""The intervals behind rain amounts and mean rates."""

import datetime

import numpy as np

from fastds.data.grid.times import fine_resolution, most_frequent_step, seconds_since_first, text_of, to_seconds
from fastds.data.grid.units import interval_seconds, rain_units
from fastds.data.grid.variables import time_method

_TOLERANCE = 0.10
_TAKE_DIFFERENCES = "take differences to get the amount of each interval"


def interval_bounds(dataset, field):
    """(T, 2) start and end of the interval behind each value of a field of amounts or means over time.

    The bounds variable of the time coordinate is used if there is one; else the interval ends at the time and is as
    long as the cadence, which needs cell_methods "time: sum" or "time: mean".
    Raises: ValueError for amounts without either, running accumulations, and intervals that do not fit the cadence.
    """
    name, bounds = field.name, _bounds_in_file(dataset, field)
    if bounds is None:
        bounds = _bounds_from_cadence(field)
    lengths = np.array([to_seconds(second - first) for first, second in bounds])
    if np.any(lengths <= 0):
        raise ValueError(f"the time bounds of {name} must be pairs of start and end, end after start")
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


def split_intervals(bounds, factor=2):
    """Each interval (T, 2) cut into `factor` equal ones: (factor T, 2)."""
    start, length = bounds[:, 0], bounds[:, 1] - bounds[:, 0]
    edges = [start + length * part // factor for part in range(factor + 1)]
    return np.stack([np.stack(pair, axis=1) for pair in zip(edges, edges[1:], strict=False)], axis=1).reshape(-1, 2)


def _bounds_in_file(dataset, field):
    time = field.dims[0]
    name = field[time].attrs.get("bounds") or field[time].encoding.get("bounds")
    if name is None or name not in dataset.variables:
        return None
    pairs = dict(zip(dataset[time].values.tolist(), dataset[name].values, strict=True))
    bounds = np.array([pairs[value] for value in field[time].values.tolist()])
    if bounds.dtype.kind not in "MO" or bounds.shape != (field.sizes[time], 2):
        raise ValueError(f"the time bounds {name} must be dates of the shape ({field.sizes[time]}, 2)")
    return fine_resolution(bounds)


def _bounds_from_cadence(field):
    name, times = field.name, fine_resolution(field[field.dims[0]].values)
    if time_method(field) not in ("sum", "mean"):
        raise ValueError(
            f"variable {name} [{field.attrs.get('units')}] is an amount without cell_methods or time bounds, so its "
            "interval is unknown; set cell_methods to 'time: sum' if it is the sum since the time before, or "
            f"{_TAKE_DIFFERENCES} if it runs on"
        )
    cadence = most_frequent_step(seconds_since_first(times))
    stated = _stated_interval(field)
    if stated is not None:
        _check_length(name, stated, cadence)
    step = datetime.timedelta(seconds=cadence)
    if times.dtype.kind == "M":
        step = np.timedelta64(round(cadence * 1e6), "us")
    return np.stack([times - step, times], axis=1)


def _check_length(name, length, cadence):
    if abs(length - cadence) > _TOLERANCE * cadence:
        raise ValueError(
            f"variable {name} has intervals of {length:g} s at a cadence of {cadence:g} s; sum it so that they agree"
        )


def _stated_interval(field):
    text = str(field.attrs.get("cell_methods", ""))
    return interval_seconds(text.partition("interval:")[2].partition(")")[0]) if "interval:" in text else None


def _never_falls(field):
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
