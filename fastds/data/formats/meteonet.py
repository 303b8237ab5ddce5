# SPDX-License-Identifier: Apache-2.0
"""Reader of Meteo-France radar data from MeteoNet: npz archives of ten days."""

import pathlib
import pickletools
import re
import zipfile

import numpy as np
import xarray as xr

from fastds.data.formats import cf_builder
from fastds.data.formats.file_format import Format
from fastds.data.formats.file_probe import FileProbe

_NAME = re.compile(r"(rainfall|reflectivity)_(?:new_|old_)?([A-Z]{2})_")
_MINUTES = 5.0
# Codes of missing and of no detection. Units: rain 1/100 mm, old reflectivity product dBZ, new product 1/10 dBZ.
_RAIN_MISSING, _OLD_MISSING, _NEW_MISSING, _NEW_NO_ECHO = -1, 255, -200, -100
# Additional arrays of the new reflectivity product -> name and attributes of the variable.
_EXTRA_FIELDS = {
    "prob": ("probability", {"long_name": "probability of rain", "units": "%"}),
    "height": ("measurement_height", {"long_name": "height of the measurement", "units": "m"}),
}
# Length of a pickled datetime: year (2 bytes), month, day, hour, minute, second, microseconds (3 bytes).
_STATE_BYTES = 10


def matches(probe: FileProbe) -> bool:
    """Return True for an npz archive with the arrays data and dates."""
    return {"data.npy", "dates.npy"} <= probe.members


def read(probe: FileProbe) -> xr.Dataset:
    """Read rain amounts of 5 minutes, or reflectivity of the old or new product.

    In the old product, 0 dBZ means below 8 dBZ. The new product also has `probability`, the probability of rain in %,
    and `measurement_height` in m. Latitudes and longitudes come from radar_coords_ZONE.npz in the same folder. The
    dates, which numpy pickled, are taken from the bytes of the pickle; nothing is unpickled.

    Raises:
        FileNotFoundError: The file of coordinates is missing.
        ValueError: The file has another name or layout.

    Source: MeteoNet documentation, rain radar.
    """
    match = _NAME.match(probe.path.name)
    if match is None:
        raise ValueError(f"{probe.path}: the name must contain product and zone, such as rainfall_NW_2016_08.3.npz")
    with np.load(probe.path) as archive:
        codes = archive["data"]
        extra = {name: archive[key] for key, (name, _) in _EXTRA_FIELDS.items() if f"{key}.npy" in probe.members}
    times = _read_dates(probe.path)
    if codes.ndim != 3 or len(times) != len(codes):
        raise ValueError(f"{probe.path} has {len(times)} dates for data of the shape {codes.shape}")
    attributes = {"title": f"MeteoNet {match[1]} {match[2]}", "institution": "Meteo-France"}
    fields = {**_make_fields(match[1], codes, new="prob.npy" in probe.members), **_make_extra_fields(extra)}
    return cf_builder.make_geographic_dataset(
        fields, times, _read_coordinates(probe.path, match[2], codes.shape[1:]), **attributes
    )


def _make_fields(product: str, codes: np.ndarray, new: bool) -> cf_builder.Fields:
    if product == "rainfall":
        return cf_builder.make_rain_amount_field(_decode_values(codes, codes == _RAIN_MISSING, 100), _MINUTES)
    if new:
        return cf_builder.make_reflectivity_field(_decode_values(codes, codes == _NEW_MISSING, 10), _NEW_NO_ECHO / 10.0)
    return cf_builder.make_reflectivity_field(_decode_values(codes, codes == _OLD_MISSING), 0.0)


def _make_extra_fields(codes: dict[str, np.ndarray]) -> cf_builder.Fields:
    """Make the additional fields of the new product; negative codes are missing."""
    attrs = dict(_EXTRA_FIELDS.values())
    return {name: (_decode_values(found, found < 0), attrs[name]) for name, found in codes.items()}


def _decode_values(codes: np.ndarray, missing: np.ndarray, parts: int = 1) -> np.ndarray:
    """Return codes / parts as float32, NaN where missing.

    The computation is in place, since an archive may hold 10^9 values.
    """
    values = codes.astype(np.float32)
    values /= parts
    values[missing] = np.nan
    return values


def _read_dates(path: pathlib.Path) -> np.ndarray:
    """Read the datetimes in dates.npy from the opcodes of the pickle, without executing them."""
    with zipfile.ZipFile(path) as archive, archive.open("dates.npy") as stream:
        np.lib.format.read_magic(stream)
        shape, _, _ = np.lib.format.read_array_header_1_0(stream)
        states = (_as_datetime_state(argument) for _, argument, _ in pickletools.genops(stream.read()))
        found = [_decode_date(state) for state in states if state is not None]
    if shape != (len(found),):
        raise ValueError(f"{path}: dates.npy holds {len(found)} dates that can be read, of {shape}")
    return np.array(found, "datetime64[us]")


def _as_datetime_state(argument: object) -> bytes | None:
    if isinstance(argument, str):
        argument = argument.encode("latin-1", "replace")
    return argument if isinstance(argument, bytes) and len(argument) == _STATE_BYTES else None


def _decode_date(state: bytes) -> np.datetime64:
    year, (month, day, hour, minute, second) = state[0] * 256 + state[1], state[2:7]
    return np.datetime64(f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}", "us")


def _read_coordinates(path: pathlib.Path, zone: str, shape: tuple[int, int]) -> cf_builder.Coordinates:
    file = path.parent / f"radar_coords_{zone}.npz"
    if not file.is_file():
        raise FileNotFoundError(f"{path} has no coordinates; MeteoNet has them in {file.name}, put it in that folder")
    with np.load(file) as archive:
        lats, lons = archive["lats"], archive["lons"]
    if lats.shape != shape:
        raise ValueError(f"{file} has the shape {lats.shape}, {path} {shape}")
    return lats[:, 0], lons[0]


FORMAT = Format(name="MeteoNet npz", files="MeteoNet, radar data of Meteo-France", matches=matches, read=read, order=80)
