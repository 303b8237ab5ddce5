# SPDX-License-Identifier: Apache-2.0
"""Detection of complete input files in a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray as xr

from fastds.data import open_input
from fastds.data.formats.opening import IGNORED_SUFFIXES
from fastds.data.grid.axes import find_dataset_time
from fastds.data.grid.times import check_dates, format_time
from fastds.data.reading import ReadOptions
from fastds.watch.durable_files import Stamp, get_arrival_time, get_stamp


@dataclasses.dataclass
class Candidate:
    """File that is not yet known to be complete.

    Attributes:
        stamp: Size and modification time.
        since: Monotonic time at which this stamp was first seen.
        arrival: Time of arrival of these contents in seconds since 1970.
    """

    stamp: Stamp
    since: float
    arrival: float


class Arrivals:
    """Files in a folder whose size and modification time have not changed for some time.

    Args:
        folder: Input folder.
        pattern: Pattern of file names.
        settle: Seconds without a change after which a file may be complete.
    """

    def __init__(self, folder: Path, pattern: str, settle: float):
        self.folder, self.pattern, self.settle = folder, pattern, settle
        self.candidates: dict[str, Candidate] = {}

    def scan(self) -> dict[str, Stamp]:
        """Return the stamps of the files in the folder. Files that other commands ignore in a folder are left out.

        Raises:
            OSError: The folder cannot be listed.
        """
        found = {}
        with os.scandir(self.folder) as entries:
            names = sorted(entry.name for entry in entries if self._is_input(entry))
        for name in names:
            with contextlib.suppress(OSError):  # removed since
                found[name] = get_stamp(self.folder / name)
        return found

    def _is_input(self, entry: os.DirEntry) -> bool:
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith(".") or suffix in IGNORED_SUFFIXES or not fnmatch.fnmatch(entry.name, self.pattern):
            return False
        return entry.is_file() or (suffix == ".zarr" and entry.is_dir())

    def update(self, unknown: dict[str, Stamp]) -> list[str]:
        """Follow the changes of files, and return the names of those that have settled.

        Args:
            unknown: Stamps of the files that are neither known nor refused.
        """
        now, settled = time.monotonic(), []
        self.candidates = {name: one for name, one in self.candidates.items() if name in unknown}
        for name, stamp in unknown.items():
            candidate = self.candidates.get(name)
            if candidate is None or candidate.stamp != stamp:
                seen = time.time()
                with contextlib.suppress(OSError):
                    seen = min(seen, get_arrival_time(self.folder / name))
                candidate = self.candidates[name] = Candidate(stamp, now, seen)
            if now - candidate.since >= self.settle:
                settled.append(name)
        return settled

    def get_wait(self) -> float | None:
        """Return the seconds until the next file can have settled, or None if there is no such file."""
        if not self.candidates:
            return None
        return max(0.0, min(one.since for one in self.candidates.values()) + self.settle - time.monotonic())


def read_times(path: Path, var: str | None, reading: ReadOptions) -> tuple[list[float], str]:
    """Read all values of a file, so that a damaged or truncated file raises an error, and return its times.

    Args:
        path: Input file.
        var: Variable of the command; None: all variables.
        reading: Further options of open_input.

    Returns:
        Times in seconds since 1970, ascending, and the last time as text. Seconds of another
        calendar are counted in that calendar.

    Raises:
        ValueError: The file is damaged, truncated, of an unknown format, or has no times.
        OSError: The file cannot be opened.
    """
    with open_input(path, var, **reading) as dataset:
        for variable in dataset.variables.values():
            for values in _iterate_values(variable):
                del values
        name = find_dataset_time(dataset) or "time"
        if name not in dataset.variables:
            raise ValueError(f"{path} has no time, by which files are put in order")
        check_dates(dataset[name])
        times = np.unique(np.atleast_1d(dataset[name].values))
        if not times.size:
            raise ValueError(f"{path} has a time of length 0")
        return [_to_seconds(one) for one in times], format_time(times[-1])


def _iterate_values(variable: xr.Variable) -> Iterator[np.ndarray]:
    """Yield the values of a variable, field by field."""
    if variable.ndim < 3:
        yield variable.values
        return
    for index in range(variable.shape[0]):
        yield variable[index].values


def _to_seconds(date) -> float:
    if isinstance(date, np.datetime64):
        return float((date - np.datetime64(0, "s")) / np.timedelta64(1, "s"))
    import cftime

    return float(cftime.date2num(date, "seconds since 1970-01-01", calendar=date.calendar))
