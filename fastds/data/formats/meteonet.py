# SPDX-License-Identifier: Apache-2.0
"""Radar of Meteo-France as MeteoNet hands it out: npz archives of ten days."""

import pathlib
import pickletools
import re
import zipfile

import numpy as np
import xarray as xr

from fastds.data.formats import maps
from fastds.data.formats.contents import Contents

_NAME = re.compile(r"(rainfall|reflectivity)_(?:new_|old_)?([A-Z]{2})_")
_MINUTES = 5.0
# Codes of missing and of no detection: rain in 1/100 mm, old reflectivity in dBZ, new one in 1/10 dBZ.
_RAIN_MISSING, _OLD_MISSING, _NEW_MISSING, _NEW_NO_ECHO = -1, 255, -200, -100
# Of the new product: array in the archive -> name and attributes.
_BESIDE = {
    "prob": ("probability", {"long_name": "probability of rain", "units": "%"}),
    "height": ("measurement_height", {"long_name": "height of the measurement", "units": "m"}),
}
_STATE_BYTES = 10  # of a pickled datetime: year in two, month, day, hour, minute, second, microseconds in three


def recognises(contents: Contents) -> bool:
    """True for an npz archive of data and dates."""
    return {"data.npy", "dates.npy"} <= contents.members


def without_fields(contents: Contents) -> str:
    """What is said of another npz archive."""
    found = ", ".join(sorted(name.removesuffix(".npy") for name in contents.members))
    if {"lats.npy", "lons.npy"} <= contents.members:
        return "of coordinates alone; give the archives of rain or reflectivity beside it, which are read with it"
    return f"of {found}; those of MeteoNet are read, which hold data and dates"


def read(contents: Contents) -> xr.Dataset:
    """Read rain amounts of 5 minutes, or reflectivity of the old (0: below 8 dBZ) or new product; with the latter the
    probability of rain in % and the height of the measurement in m, `probability` and `measurement_height`.

    Latitudes and longitudes come from radar_coords_ZONE.npz in the same folder. The dates, which numpy pickled, are
    taken from the bytes of the pickle; nothing is unpickled.

    Raises: ValueError for another name or layout; FileNotFoundError where the coordinates are not there.
    Source: MeteoNet documentation, rain radar.
    """
    match = _NAME.match(contents.path.name)
    if match is None:
        raise ValueError(f"{contents.path}: the name must tell product and zone, such as rainfall_NW_2016_08.3.npz")
    with np.load(contents.path) as archive:
        codes = archive["data"]
        beside = {name: archive[key] for key, (name, _) in _BESIDE.items() if f"{key}.npy" in contents.members}
    times = _dates(contents.path)
    if codes.ndim != 3 or len(times) != len(codes):
        raise ValueError(f"{contents.path} has {len(times)} dates for data of the shape {codes.shape}")
    named = {"title": f"MeteoNet {match[1]} {match[2]}", "institution": "Meteo-France"}
    fields = {**_fields(match[1], codes, new="prob.npy" in contents.members), **_fields_beside(beside)}
    return maps.geographic_map(fields, times, _coordinates(contents.path, match[2], codes.shape[1:]), **named)


def _fields(product: str, codes: np.ndarray, new: bool) -> maps.Fields:
    if product == "rainfall":
        return maps.rainfall_amount(_values(codes, codes == _RAIN_MISSING, 100), _MINUTES)
    if new:
        return maps.reflectivity(_values(codes, codes == _NEW_MISSING, 10), _NEW_NO_ECHO / 10.0)
    return maps.reflectivity(_values(codes, codes == _OLD_MISSING), 0.0)


def _fields_beside(codes: dict[str, np.ndarray]) -> maps.Fields:
    """What the new product has beside the reflectivity; negative codes are missing or without echo."""
    attrs = dict(_BESIDE.values())
    return {name: (_values(found, found < 0), attrs[name]) for name, found in codes.items()}


def _values(codes: np.ndarray, missing: np.ndarray, parts: int = 1) -> np.ndarray:
    """Codes in so many parts of the unit as float32, NaN where missing: a part of a month has a billion of them."""
    values = codes.astype(np.float32)
    values /= parts
    values[missing] = np.nan
    return values


def _dates(path: pathlib.Path) -> np.ndarray:
    """The datetimes in dates.npy, found in the instructions of the pickle without carrying them out."""
    with zipfile.ZipFile(path) as archive, archive.open("dates.npy") as stream:
        np.lib.format.read_magic(stream)
        shape, _, _ = np.lib.format.read_array_header_1_0(stream)
        states = (_state(argument) for _, argument, _ in pickletools.genops(stream.read()))
        found = [_date(state) for state in states if state is not None]
    if shape != (len(found),):
        raise ValueError(f"{path}: dates.npy holds {len(found)} dates that can be read, of {shape}")
    return np.array(found, "datetime64[us]")


def _state(argument: object) -> bytes | None:
    if isinstance(argument, str):
        argument = argument.encode("latin-1", "replace")
    return argument if isinstance(argument, bytes) and len(argument) == _STATE_BYTES else None


def _date(state: bytes) -> np.datetime64:
    year, (month, day, hour, minute, second) = state[0] * 256 + state[1], state[2:7]
    return np.datetime64(f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}", "us")


def _coordinates(path: pathlib.Path, zone: str, shape: tuple[int, int]) -> maps.Coordinates:
    file = path.parent / f"radar_coords_{zone}.npz"
    if not file.is_file():
        raise FileNotFoundError(f"{path} tells no coordinates; MeteoNet has them in {file.name}, put it in that folder")
    with np.load(file) as archive:
        lats, lons = archive["lats"], archive["lons"]
    if lats.shape != shape:
        raise ValueError(f"{file} has the shape {lats.shape}, {path} {shape}")
    return lats[:, 0], lons[0]
