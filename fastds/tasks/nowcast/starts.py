# SPDX-License-Identifier: Apache-2.0
"""Selection of initialization times and input frames by time stamp, with detection of gaps; reading of the frames."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas

from fastds._options import OptionError
from fastds.data import ReflectivityInput, coarsen, cut_to_multiple, rate_to_reflectivity, reflectivity_to_rate
from fastds.data.grid.times import (
    JITTER,
    compute_seconds_since_first,
    find_times,
    format_time,
    parse_utc_text,
    to_seconds,
)
from fastds.data.grid.variables import parse_duration

AVERAGED_RAIN = "rain rate"


@dataclasses.dataclass(frozen=True)
class Start:
    """Initialization time of a forecast.

    Attributes:
        time: time of the last input frame.
        frames: indices of the input frames in the file.
    """

    time: object
    frames: tuple[int, ...]


class Timeline:
    """Sorted times of a file, accessed by seconds after the first time."""

    def __init__(self, times: np.ndarray, cadence: float):
        self.times, self.seconds, self.cadence = times, compute_seconds_since_first(times), cadence

    @classmethod
    def of(cls, source: ReflectivityInput) -> Timeline:
        """Return the times of radar fields."""
        return cls(source.raw[source.dims[0]].values, source.cadence)

    def find(self, seconds: float) -> int | None:
        """Return the index of the time at `seconds`, or None."""
        found = int(find_times(self.seconds, np.asarray(seconds, np.float64), JITTER * self.cadence))
        return None if found < 0 else found

    def has(self, time, shifts: np.ndarray) -> bool:
        """Return whether the file has a time at each of the offsets `shifts` (seconds) from a time."""
        return all(self.find(self.seconds_at(time) + shift) is not None for shift in shifts)

    def time_at(self, seconds: float):
        """Return the time `seconds` after the first."""
        if self.times.dtype.kind == "M":
            return self.times[0] + np.timedelta64(round(seconds * 1e6), "us")
        return self.times[0] + pandas.Timedelta(seconds=seconds).to_pytimedelta()

    def seconds_of(self, text: str) -> float:
        """Return the seconds after the first time of a UTC date such as 2010-08-26T03:00, in the calendar of the file.

        Raises:
            ValueError: the text is not a date.
        """
        first, date = self.times[0], parse_utc_text(text)
        try:
            if date is None:
                raise ValueError
            if self.times.dtype.kind == "O":
                return self.seconds_at(type(first)(*(int(part) for part in re.split("[-T: ]", date))))
            return self.seconds_at(pandas.Timestamp(date).to_datetime64())
        except (TypeError, ValueError):
            raise OptionError("start", f"must be a date such as {format_time(first)}, got {text!r}") from None

    def seconds_at(self, time) -> float:
        """Return the seconds of a time after the first time."""
        return to_seconds(time - self.times[0])


def count_units(text: str, name: str, unit: float, whose: str) -> int:
    """Convert a duration such as "60min" to a number of units.

    Args:
        text: duration.
        name: name of the argument for the message.
        unit: length of the unit in seconds.
        whose: description of the unit for the message.

    Raises:
        ValueError: the duration is not a positive multiple of the unit.
    """
    ratio = parse_duration(text, name) / unit
    if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-6:
        raise OptionError(name, f"must be a multiple of {whose} {unit:g} s, got {text!r}")
    return round(ratio)


def find_starts(
    line: Timeline, known: int, fewest: int, interval: float, start: str | None, every: str | None
) -> tuple[list[Start], list[str]]:
    """Find the initialization times of forecasts.

    Args:
        line: times of the file.
        known: number of input frames of a start with enough frames before it.
        fewest: least number of input frames.
        interval: time between input frames in seconds.
        start: a date; None: the last time, or with `every` the first time with enough frames before it.
        every: interval of hindcasts, such as "30min"; initialization times with gaps before them are left out. None: a
            single forecast.

    Returns:
        Initialization times, and notes.

    Raises:
        ValueError: too few frames, a gap, a time that is not in the file, or an invalid duration.
    """
    needed = (fewest - 1) * interval
    if line.seconds[-1] < needed:
        raise ValueError(
            f"{fewest} fields every {interval:g} s are needed before a forecast, the file has {len(line.times)} from "
            f"{format_time(line.times[0])} to {format_time(line.times[-1])}"
        )
    if every is None:
        seconds = line.seconds[-1] if start is None else _find_start(line, start)
        return [_make_start(line, seconds, known, fewest, interval)], []
    step = line.cadence * count_units(every, "every", line.cadence, "the file's")
    first = needed if start is None else _find_start(line, start)
    requested = np.arange(first, line.seconds[-1] + 0.5 * line.cadence, step)
    found = []
    for seconds in requested:
        try:
            found.append(_make_start(line, seconds, known, fewest, interval))
        except ValueError as error:
            missing = error
    if not found:
        raise missing
    left_out = len(requested) - len(found)
    return found, [f"{left_out} of {len(requested)} starts were left out, fields before them are missing"] * bool(
        left_out
    )


def _find_start(line: Timeline, text: str) -> float:
    place = line.find(line.seconds_of(text))
    if place is None:
        raise ValueError(
            f"start {text} is not one of the file's times, {format_time(line.times[0])} to "
            f"{format_time(line.times[-1])} every {line.cadence:g} s"
        )
    return float(line.seconds[place])


def find_frames_before(line: Timeline, seconds: float, known: int, interval: float) -> list[int]:
    """Find the frames at the end of which a forecast starts.

    Args:
        line: times of the file.
        seconds: initialization time in seconds after the first time.
        known: greatest number of frames.
        interval: time between frames in seconds.

    Returns:
        Ascending indices of at most `known` frames, of which the last is at the initialization time. There are fewer if
        one of the frames is missing, namely those after it.
    """
    frames: list[int] = []
    for back in range(known):
        place = line.find(seconds - back * interval)
        if place is None:
            break
        frames.insert(0, place)
    return frames


def _make_start(line: Timeline, seconds: float, known: int, fewest: int, interval: float) -> Start:
    frames = find_frames_before(line, seconds, known, interval)
    if len(frames) < fewest:
        missing, start = (format_time(line.time_at(at)) for at in (seconds - len(frames) * interval, seconds))
        raise ValueError(
            f"the forecast from {start} needs {fewest} fields every {interval:g} s; that of {missing} is missing"
        )
    return Start(line.times[frames[-1]], tuple(frames))


@dataclasses.dataclass(frozen=True)
class ForecastCells:
    """Cells of a forecast, which are averages of factor x factor pixels.

    Attributes:
        factor: side of a cell in pixels.
        floor: lower end of the range of the forecast in dBZ.
        rain_z_r: a and b of Z = a R^b if the rain rate is averaged, which preserves the mean rain; None if reflectivity
            is averaged.
    """

    factor: int
    floor: float
    rain_z_r: tuple[float, float] | None = None

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], z_r: tuple[float, float]) -> ForecastCells:
        """Return the cells of a forecast from the attributes of its file.

        Args:
            attributes: global attributes; without those of fastds, the cells are pixels.
            z_r: a and b of Z = a R^b of the forecast.
        """
        averages_rain = attributes.get("fastds_averaged") == AVERAGED_RAIN
        factor, floor = int(attributes.get("fastds_coarsening", 1)), float(attributes.get("fastds_floor_dBZ", 0.0))
        return cls(factor, floor, z_r if averages_rain else None)

    def describe_average(self) -> str:
        """Return the value of the attribute fastds_averaged."""
        return AVERAGED_RAIN if self.rain_z_r else "reflectivity"

    def average(self, z: np.ndarray) -> np.ndarray:
        """Average frames.

        Args:
            z: (n, H, W) in dBZ, NaN = missing.

        Returns:
            (n, H // factor, W // factor) in dBZ; cells with missing pixels are missing. With factor 1, z itself.
        """
        if self.factor == 1:
            return z
        z = cut_to_multiple(z, self.factor)
        if self.rain_z_r is None:
            return coarsen(z, self.factor, floor=self.floor)
        rain = coarsen(reflectivity_to_rate(z, self.rain_z_r, self.floor), self.factor)
        return rate_to_reflectivity(rain, self.rain_z_r, self.floor)


def read_coarse_frames(source: ReflectivityInput, index: list[int], cells: ForecastCells) -> np.ndarray:
    """Read frames of a source in dBZ on the cells of a forecast.

    Args:
        source: radar fields.
        index: indices of the frames.
        cells: cells of the forecast.

    Returns:
        (n, H // factor, W // factor), NaN = missing.
    """
    return cells.average(source.frames(index))


def read_frames_at(
    source: ReflectivityInput, line: Timeline, start: object, shifts: Sequence[float] | np.ndarray, cells: ForecastCells
) -> list[np.ndarray | None]:
    """Read the observed frames at given times before or after an initialization time.

    Args:
        source: observed fields.
        line: times of the source.
        start: initialization time.
        shifts: seconds after the initialization time.
        cells: cells of the forecast.

    Returns:
        The frame (h, w) in dBZ on the cells at each time, or None where the source has none.
    """
    seconds = line.seconds_at(start)
    places = [line.find(seconds + shift) for shift in shifts]
    return [None if place is None else read_coarse_frames(source, [place], cells)[0] for place in places]


def compute_wet_shares(source: ReflectivityInput, index: int, cells: ForecastCells) -> np.ndarray:
    """Return the fraction of wet pixels (above the floor) in each cell; NaN for cells with missing pixels.

    The sum of these fractions is the wet area. The number of cells whose mean reflectivity is above the floor would
    overestimate it, because a few wet pixels raise the mean of a cell above the floor.

    Args:
        source: radar fields.
        index: index of the frame.
        cells: cells of the forecast.

    Returns:
        (H // factor, W // factor) float32.
    """
    z = cut_to_multiple(source.frames(index), cells.factor)
    wet = np.where(np.isnan(z), np.nan, z > cells.floor).astype(np.float32)
    return coarsen(wet, cells.factor)
