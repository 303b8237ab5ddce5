# SPDX-License-Identifier: Apache-2.0
"""Kinds of malformed files: how each is made from a valid file, and the expected error message.

A kind is a function (good, path). `good` is a valid Dataset of reflectivity (time, y, x) or of fields (time, latitude,
longitude); the malformed file is written to `path`. CONTAINERS are faults of the file format, RADAR and FIELDS are
faults of the contents.
"""

import gzip
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import xarray as xr


class Kind(NamedTuple):
    """A kind of malformed file.

    Attributes:
        make: function that writes the file.
        says: pattern of the expected error message.
        taken: commands that may accept the file.
        warns: pattern of the warning if a command accepts the file; None if no warning is needed.
    """

    make: Callable[[xr.Dataset, Path], object]
    says: str
    taken: tuple[str, ...] = ()
    warns: str | None = None


def written(dataset: xr.Dataset, path: Path, **options) -> Path:
    dataset.to_netcdf(path, engine="h5netcdf", **options)
    return path


def content(good: xr.Dataset, path: Path) -> bytes:
    return written(good, path).read_bytes()


def bytes_changed(change: Callable[[bytes], bytes]):
    return lambda good, path: path.write_bytes(change(content(good, path)))


def changed(change: Callable[[xr.Dataset], xr.Dataset], **options):
    return lambda good, path: written(change(good.copy(deep=True)), path, **options)


def values(change: Callable[[np.ndarray], np.ndarray]):
    """Make a kind in which the values of every variable are changed."""
    return changed(lambda d: d.assign({n: v.copy(data=change(v.values)) for n, v in d.data_vars.items()}))


def attributes(**given):
    """Make a kind in which attributes of every variable are changed; None removes one."""

    def change(dataset):
        for variable in dataset.data_vars.values():
            variable.attrs |= given
            variable.attrs = {k: v for k, v in variable.attrs.items() if v is not None}
        return dataset

    return changed(change)


def in_file(change: Callable[[h5py.File], None]):
    """Make a kind in which the HDF5 file is changed by h5py, because xarray would not write such a file."""

    def make(good, path):
        with h5py.File(written(good, path), "a") as file:
            change(file)

    return make


def coordinate(axis: int, change: Callable[[np.ndarray], np.ndarray]):
    """Make a kind in which the coordinate along rows (-2) or columns (-1) is changed."""

    def new(dataset):
        name = next(iter(dataset.data_vars.values())).dims[axis]
        at = np.arange(dataset.sizes[name], dtype=float)
        old = dataset[name] if name in dataset.coords else xr.DataArray(at, dims=name)
        return dataset.assign_coords({name: old.copy(data=change(old.values.astype(float)))})

    return changed(new)


def times(change: Callable[[np.ndarray], np.ndarray]):
    return changed(lambda d: d.assign_coords(time=change(d.time.values)))


def stored_times(units: str, calendar: str | None = None):
    """Make a kind with numeric times in these units."""

    def change(file):
        file["time"].attrs["units"] = units
        if calendar:
            file["time"].attrs["calendar"] = calendar

    return in_file(change)


def at_places(value: float, share: float):
    """Replace a random fraction of the values."""

    def change(old):
        return np.where(np.random.default_rng(0).random(old.shape) < share, np.float32(value), old)

    return values(change)


def without(name: str):
    return changed(lambda d: d.drop_vars(name))


def flipped(data: bytes) -> bytes:
    damaged, rng = bytearray(data), np.random.default_rng(1)
    for place in rng.integers(0, min(len(data), 2000), 60):
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def linked(good, path):
    os.symlink(path.name, path)


def folder(good, path):
    path.mkdir()
    (path / "note.txt").write_text("nothing")


def zarr_without_chunk_metadata(good, path):
    good.to_zarr(path.with_suffix(".zarr"), mode="w")
    path.with_suffix(".zarr").rename(path)
    for file in path.rglob("zarr.json"):
        file.write_text("{")


def zipped(good, path):
    data = content(good, path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("field.nc", data)


def hdf5(good, path):
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros((3, 4))


UNREADABLE = "cannot be read|is a folder|no file|is no |is not |is in no format|no such file|not a |neither"
NO_FIELD = "no variable|no field|needs the variable|--data.variables|latitude coordinate|time steps"
CONTAINERS = {
    "empty": Kind(lambda good, path: path.write_bytes(b""), "is empty|cannot be read|is no"),
    "absent": Kind(lambda good, path: None, "no such file"),
    "a tenth": Kind(bytes_changed(lambda b: b[: len(b) // 10]), UNREADABLE),
    "half": Kind(bytes_changed(lambda b: b[: len(b) // 2]), UNREADABLE),
    "all but the end": Kind(bytes_changed(lambda b: b[:-100]), UNREADABLE),
    "signature alone": Kind(bytes_changed(lambda b: b[:8]), UNREADABLE),
    "signature lost": Kind(bytes_changed(lambda b: b"\0" * 8 + b[8:]), UNREADABLE),
    "zeros": Kind(bytes_changed(lambda b: bytes(len(b))), UNREADABLE),
    "bits flipped": Kind(bytes_changed(flipped), UNREADABLE + "|no variable|holds no"),
    "noise": Kind(lambda good, path: path.write_bytes(np.random.default_rng(0).bytes(5000)), UNREADABLE),
    "text": Kind(lambda good, path: path.write_text("time,y,x,dBZ\n1,2,3,4\n"), UNREADABLE),
    "html": Kind(lambda good, path: path.write_text("<!DOCTYPE html><html>404 Not Found</html>"), UNREADABLE),
    "json": Kind(lambda good, path: path.write_text('{"a": [1, 2'), UNREADABLE),
    "png": Kind(lambda good, path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)), "is a PNG image|no file"),
    "gzip cut": Kind(
        lambda good, path: path.write_bytes(gzip.compress(content(good, path))[:-99]), "is truncated|no file"
    ),
    "zip": Kind(zipped, "is a zip archive|no file"),
    "pickle": Kind(lambda good, path: path.write_bytes(pickle.dumps({"a": 1})), "is a Python pickle|no file"),
    "npy": Kind(lambda good, path: path.write_bytes(b"\x93NUMPY\x01\0v\0{'descr': '<f4'}"), UNREADABLE),
    "netcdf3 cut": Kind(lambda good, path: path.write_bytes(b"CDF\x01\0\0\0\x05\0\0\0\x0a"), UNREADABLE),
    "grib cut": Kind(lambda good, path: path.write_bytes(b"GRIB\0\0\x10\0\x02" + bytes(20)), UNREADABLE + "|GRIB"),
    "folder": Kind(folder, UNREADABLE),
    "link to itself": Kind(linked, "no such file|cannot be read|symbolic links"),
    "zarr damaged": Kind(zarr_without_chunk_metadata, UNREADABLE),
    "hdf5 without dimensions": Kind(hdf5, NO_FIELD),
}


def _units_of_a_number(file):
    for variable in file.values():
        if variable.ndim == 3:
            variable.attrs["units"] = 3


def _packing(**given):
    """Set packing attributes in the file, as a faulty writer does."""

    def change(file):
        for variable in file.values():
            if variable.ndim == 3:
                for name, value in given.items():
                    variable.attrs[name] = value

    return in_file(change)


def codes(good, path):
    """Write packed integers without scale_factor and add_offset."""
    fields = {n: v.copy(data=(50 * v.values % 60000).astype("u2")) for n, v in good.data_vars.items()}
    return written(good.assign(fields), path)


MAY = ("downscale", "nowcast", "query", "truth", "evaluate")  # commands that go on with a warning
FIELD = ("downscale", "query", "humidity", "train fields", "train humidity")  # whose fields are one by one
TRAINED = ("train fields", "train humidity")
ALL = (*MAY, "humidity", "train radar", "train nowcast", "train fields", "train humidity")
MISSING = "missing"
UNITS = "units|the model was trained on"
ORDER = "ascending"
ONE_AT_LEAST = "has the length|coordinate along a dimension"
HOLDS = {
    "no variables": Kind(changed(lambda d: d.drop_vars(list(d.data_vars))), NO_FIELD),
    "other units": Kind(attributes(units="furlong"), UNITS, (*TRAINED, "query")),
    "no units": Kind(attributes(units=None), UNITS, ("humidity", "query", "train humidity", "train fields")),
    "units of a number": Kind(in_file(_units_of_a_number), UNITS, (*TRAINED, "query")),
    "all missing": Kind(values(lambda v: v * np.nan), MISSING, MAY, MISSING),
    "infinite": Kind(values(lambda v: v * 0 + np.inf), MISSING + "|plausible|infinit", MAY, MISSING),
    "mostly 1e30": Kind(at_places(1e30, 0.7), "plausible|more than half", ALL, "far outside"),
    "some 1e30": Kind(at_places(1e30, 0.1), "plausible", ALL, "plausible|far outside"),
    "mostly -9999, undeclared": Kind(at_places(-9999.0, 0.7), "--missing|plausible", ALL, "far outside"),
    "numbers as text": Kind(values(lambda v: v.astype(str).astype(object)), "no field|no variable", FIELD),
    "truth values": Kind(values(lambda v: v > 3), NO_FIELD + "|fraction|plausible"),
    "lost packing": Kind(codes, "packed|codes|scale_factor|plausible"),
    "scale_factor 0": Kind(_packing(scale_factor=0.0), "scale_factor|plausible|packing"),
    "scale_factor 1e30": Kind(_packing(scale_factor=1e30), "scale_factor|plausible|packing"),
    "scale_factor NaN": Kind(_packing(scale_factor=np.nan), "scale_factor|plausible|packing|missing"),
    "scale_factor in words": Kind(_packing(scale_factor="half"), "scale_factor|packing|cannot be read"),
    "fill value in words": Kind(_packing(missing_value="none"), "missing_value", ALL),
    "no time": Kind(changed(lambda d: d.isel(time=slice(0, 0))), "length 0|no time|at least|two|shape"),
    "times without units": Kind(stored_times(""), "time", FIELD),
    "times in furlongs": Kind(stored_times("furlongs since 2000-01-01"), "time"),
    "times since nothing": Kind(stored_times("seconds since yesterday"), "time"),
    "a calendar of none": Kind(stored_times("seconds since 2000-01-01", "mayan"), "time|calendar"),
    "times missing": Kind(times(lambda t: np.full_like(t, np.datetime64("NaT"))), "time", ("train fields",)),
    "times all the same": Kind(times(lambda t: np.full_like(t, t[0])), "time", FIELD),
    "rows out of order": Kind(coordinate(-2, lambda y: y[np.r_[1, 0, 2 : len(y)]]), ORDER),
    "columns out of order": Kind(coordinate(-1, lambda x: x[np.r_[1, 0, 2 : len(x)]]), ORDER),
    "columns all the same": Kind(coordinate(-1, lambda x: x * 0 + 1), ORDER),
    "columns with a gap": Kind(coordinate(-1, lambda x: x + 5 * (x[1] - x[0]) * (np.arange(len(x)) > 5)), "spac"),
    "a column without place": Kind(
        coordinate(-1, lambda x: np.where(np.arange(len(x)) == 3, np.nan, x)), "finite|ascending|1 missing value"
    ),
    "one column": Kind(changed(lambda d: d.isel({next(iter(d.data_vars.values())).dims[-1]: [0]})), ONE_AT_LEAST),
    "no rows": Kind(
        changed(lambda d: d.isel({next(iter(d.data_vars.values())).dims[-2]: slice(0, 0)})),
        ONE_AT_LEAST,
    ),
    "one more dimension": Kind(changed(lambda d: d.expand_dims(ensemble=[0, 1])), "dimension|shape", FIELD),
    "no dimension but one": Kind(
        changed(lambda d: d.isel({n: 0 for n in list(d.dims)[1:]})), NO_FIELD + "|dimension|shape"
    ),
}
RADAR = HOLDS | {
    "one time": Kind(changed(lambda d: d.isel(time=[0])), "two|at least|times|needs", ("downscale", "evaluate")),
    "times uneven": Kind(
        times(lambda t: t + np.arange(len(t)) ** 2 * np.timedelta64(7, "s")), "irregular|steps|regular|spac|times"
    ),
    "two fields of reflectivity": Kind(changed(lambda d: d.assign(other=d["reflectivity"])), "--var|--data.var"),
    "no echo in words": Kind(attributes(no_echo_value="none"), "no_echo_value"),
    "flags in words": Kind(attributes(flag_values="a b", flag_meanings="missing no_echo"), "flag_values"),
    "kelvin": Kind(attributes(units="K"), "units"),
}
FIELDS = HOLDS | {
    "a variable is absent": Kind(without("t"), "variable", ("humidity", "query", "train humidity")),
    "no latitude": Kind(changed(lambda d: d.rename(latitude="a").drop_vars("a")), "latitude", ("humidity", *TRAINED)),
    "latitudes beyond a pole": Kind(coordinate(-2, lambda y: y + 80), "latitude"),
    "longitudes twice around": Kind(coordinate(-1, lambda x: x * 40), "longitude"),
    "celsius called kelvin": Kind(values(lambda v: v - 273.15), "plausible|kelvin"),
}


def make(kind: Kind, good: xr.Dataset, path: Path) -> Path:
    """Write the malformed file, replacing an existing one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    kind.make(good, path)
    return path
