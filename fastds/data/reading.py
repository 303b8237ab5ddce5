# SPDX-License-Identifier: Apache-2.0
"""Data as users hand them over: datasets, arrays or files, with what these do not tell."""

import contextlib
import os
from collections.abc import Iterator
from typing import TypedDict, Unpack

import xarray as xr

from fastds.data.formats.opening import between, open_dataset
from fastds.data.grid.plausible import declared

Data = xr.Dataset | xr.DataArray | str | os.PathLike | list[str | os.PathLike]


class Reading(TypedDict, total=False):
    """How data are read: missing and units, see declared, start and stop, see open_dataset."""

    missing: float | None
    units: str | None
    start: str | None
    stop: str | None


def are_paths(data: object) -> bool:
    """Whether data are files, by name."""
    paths = data if isinstance(data, list | tuple) else [data]
    return all(isinstance(path, str | os.PathLike) for path in paths)


@contextlib.contextmanager
def opened(data: Data | None, var: str | None = None, **reading: Unpack[Reading]) -> Iterator[xr.Dataset | None]:
    """A Dataset of what was given: a DataArray by its name, files opened for the block; None stays None.

    var: the variable that missing and units are of; reading: see Reading. Raises: TypeError for other data, and what
    open_dataset and declared raise."""
    told = reading.get("missing"), reading.get("units"), var
    times = reading.get("start"), reading.get("stop")
    if data is None:
        yield None
    elif isinstance(data, xr.DataArray):
        yield declared(between(data.to_dataset(name=data.name or "field"), *times), *told)
    elif isinstance(data, xr.Dataset):
        yield declared(between(data, *times), *told)
    elif are_paths(data):
        with open_dataset(data, start=times[0], stop=times[1]) as dataset:
            yield declared(dataset, *told)
    else:
        raise TypeError(f"data must be an xarray Dataset or DataArray or files, got a {type(data).__name__}")
