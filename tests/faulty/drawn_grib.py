# SPDX-License-Identifier: Apache-2.0
"""Random GRIB files written by ecCodes: regular, rotated and projected grids, levels and members."""

from pathlib import Path

import numpy as np

from .drawn import Drawn, random_field
from .writers import register_writer

_MISSING = 9999.0


def _message(sample: str, keys: dict, values: np.ndarray) -> bytes:
    """Make a message from a sample with these keys, and with values (NaN where missing) in scanning order."""
    import eccodes as ec

    handle = ec.codes_grib_new_from_samples(sample)
    for key, value in keys.items():
        ec.codes_set(handle, key, value)
    if np.isnan(values).any():
        ec.codes_set(handle, "bitmapPresent", 1)
        ec.codes_set(handle, "missingValue", _MISSING)
        values = np.where(np.isnan(values), _MISSING, values)
    ec.codes_set_values(handle, np.ascontiguousarray(values).ravel())
    content = ec.codes_get_message(handle)
    ec.codes_release(handle)
    return content


@register_writer("grib", share=0.17, added=7)
def write_grib(rng: np.random.Generator, folder: Path) -> Drawn:
    """Write messages of a regular grid, of a projected one, or of several levels or members."""
    way = rng.random()
    if way < 0.3:
        return write_projected(rng, folder)
    return write_levels(rng, folder) if way < 0.5 else write_regular(rng, folder)


def write_regular(rng: np.random.Generator, folder: Path) -> Drawn:
    """Write messages of a regular grid in any scanning order, with a bitmap for missing values."""
    rows, columns, count = int(rng.integers(8, 20)), int(rng.integers(8, 20)), int(rng.integers(1, 4))
    up, left, consecutive, alternate = (int(flag) for flag in rng.integers(0, 2, 4))
    edition = int(rng.choice([1, 2]))
    if edition == 1:
        alternate = 0
    step, north, west = float(rng.choice([0.25, 1.0])), float(rng.integers(20, 70)), float(rng.integers(0, 300))
    values = 250 + 60 * random_field(rng, (count, rows, columns))
    if rng.random() < 0.5:
        values[:, 2:5, 3:6] = np.nan
    south, east = north - step * (rows - 1), west + step * (columns - 1)
    header = b"****0000012345****\nYTPA01 KWNB 010000\r\r\n" if rng.random() < 0.15 else b""
    content = header
    for k, field in enumerate(values):
        keys = {
            "Ni": columns, "Nj": rows,
            "latitudeOfFirstGridPointInDegrees": south if up else north,
            "latitudeOfLastGridPointInDegrees": north if up else south,
            "longitudeOfFirstGridPointInDegrees": east if left else west,
            "longitudeOfLastGridPointInDegrees": west if left else east,
            "iDirectionIncrementInDegrees": step, "jDirectionIncrementInDegrees": step,
            "jScansPositively": up, "iScansNegatively": left, "jPointsAreConsecutive": consecutive,
            "shortName": "2t", "dataDate": 20240601, "dataTime": 0, "step": 6 * k, "bitsPerValue": 24,
        }  # fmt: skip
        if edition == 2:
            keys["alternativeRowScanning"] = alternate
        scanned = field[:: -1 if up else 1, :: -1 if left else 1]
        scanned = (scanned.T if consecutive else scanned).copy()
        if alternate:
            scanned[1::2] = scanned[1::2, ::-1]
        content += _message(f"regular_ll_sfc_grib{edition}", keys, scanned)
    path = folder / "file.grib"
    path.write_bytes(content)
    lon, lat = np.meshgrid(west + step * np.arange(columns), north - step * np.arange(rows))
    how = {
        "scan": f"up {up} left {left} columns {consecutive} alternate {alternate}",
        "edition": edition,
        "header": bool(header),
    }
    seconds = 21600.0 * np.arange(count)
    return Drawn(path, "t2m", values, lon, lat, seconds, 1e-3, step, how, "2024-06-01T00:00")


def write_levels(rng: np.random.Generator, folder: Path) -> Drawn:
    """Write messages of several levels or members at several times, in any order."""
    rows, columns, count = int(rng.integers(8, 20)), int(rng.integers(8, 20)), int(rng.integers(2, 4))
    edition, members = int(rng.choice([1, 2])), bool(rng.random() < 0.5)
    inner = [0, 1, 2] if members else [1000, 850, 500, 250]
    step, north, west = float(rng.choice([0.25, 1.0])), float(rng.integers(20, 70)), float(rng.integers(0, 300))
    values = 250 + 60 * random_field(rng, (count * len(inner), rows, columns))
    if rng.random() < 0.5:
        values[:, 2:5, 3:6] = np.nan
    place = {
        "Ni": columns, "Nj": rows,
        "latitudeOfFirstGridPointInDegrees": north, "longitudeOfFirstGridPointInDegrees": west,
        "latitudeOfLastGridPointInDegrees": north - step * (rows - 1),
        "longitudeOfLastGridPointInDegrees": west + step * (columns - 1),
        "iDirectionIncrementInDegrees": step, "jDirectionIncrementInDegrees": step,
        "dataDate": 20240601, "dataTime": 0,
    }  # fmt: skip
    messages = []
    for k, field in enumerate(values):
        time, other = divmod(k, len(inner))
        keys = dict(place)
        if members:
            if edition == 2:
                keys["productDefinitionTemplateNumber"] = 1
            else:
                keys |= {"setLocalDefinition": 1, "localDefinitionNumber": 1}
            keys |= {"number": inner[other], "shortName": "2t"}
            if edition == 2:
                keys["numberOfForecastsInEnsemble"] = len(inner)
        else:
            keys |= {"shortName": "t", "typeOfLevel": "isobaricInhPa", "level": inner[other]}
        keys |= {"step": 6 * time, "bitsPerValue": 24}
        sample = f"regular_ll_{'sfc' if members else 'pl'}_grib{edition}"
        messages.append(_message(sample, keys, field))
    path = folder / "file.grib"
    path.write_bytes(b"".join(messages[k] for k in rng.permutation(len(messages))))
    lon, lat = np.meshgrid(west + step * np.arange(columns), north - step * np.arange(rows))
    how = {"edition": edition, "inner": "members" if members else "levels"}
    first, var, seconds = "2024-06-01T00:00", "t2m" if members else "t", 21600.0 * np.arange(count)
    return Drawn(path, var, values, lon, lat, seconds, 1e-3, step, how, first, inner=np.array(inner, float))


_SPHERE = "+R=6371229"


def write_projected(rng: np.random.Generator, folder: Path) -> Drawn:
    """Write a message on a rotated, Lambert or polar stereographic grid."""
    import pyproj

    rows, columns, edition = int(rng.integers(8, 20)), int(rng.integers(8, 20)), int(rng.choice([1, 2]))
    kind = str(rng.choice(["rotated_ll", "lambert", "polar_stereographic"]))
    up = int(rng.integers(0, 2))
    left, consecutive = (1, 0) if rng.random() < 0.1 else (0, 0)
    sphere = _SPHERE if edition == 2 else "+R=6367470"
    keys: dict = {"gridType": kind, "jScansPositively": up, "iScansNegatively": left}
    first = {"lat": float(rng.integers(40, 60)), "lon": float(rng.integers(0, 20))}
    if kind == "rotated_ll":
        pole = {"lat": -float(rng.integers(30, 60)), "lon": float(rng.integers(0, 30))}
        step = float(rng.choice([0.1, 0.25]))
        first = {"lat": float(rng.integers(-10, 10)), "lon": float(rng.integers(1, 15))}
        south, west = first["lat"], first["lon"]
        north, east = south + step * (rows - 1), west + step * (columns - 1)
        keys |= {
            "Ni": columns, "Nj": rows, "iDirectionIncrementInDegrees": step, "jDirectionIncrementInDegrees": step,
            "latitudeOfFirstGridPointInDegrees": south if up else north,
            "latitudeOfLastGridPointInDegrees": north if up else south,
            "longitudeOfFirstGridPointInDegrees": east if left else west,
            "longitudeOfLastGridPointInDegrees": west if left else east,
            "latitudeOfSouthernPoleInDegrees": pole["lat"], "longitudeOfSouthernPoleInDegrees": pole["lon"],
        }  # fmt: skip
        text = f"+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p={-pole['lat']} +lon_0={pole['lon']} {sphere}"
        x, y = west + step * np.arange(columns), north - step * np.arange(rows)
        lon, lat = pyproj.Proj(text)(*np.deg2rad(np.meshgrid(x, y)), inverse=True)
        cell = step
    else:
        metres, middle = float(rng.choice([2500.0, 10000.0])), float(rng.integers(0, 20))
        parallels = float(rng.integers(30, 45)), float(rng.integers(46, 65))
        keys |= {
            "Nx": columns, "Ny": rows, "DxInMetres": metres, "DyInMetres": metres,
            "latitudeOfFirstGridPointInDegrees": first["lat"], "longitudeOfFirstGridPointInDegrees": first["lon"],
        }  # fmt: skip
        if kind == "lambert":
            keys |= {"LoVInDegrees": middle} | ({"LaDInDegrees": parallels[0]} if edition == 2 else {})
            keys |= {"Latin1InDegrees": parallels[0], "Latin2InDegrees": parallels[1]}
            text = (
                f"+proj=lcc +lat_1={parallels[0]} +lat_2={parallels[1]} +lat_0={parallels[0]} +lon_0={middle} {sphere}"
            )
        else:
            true = 60.0 if edition == 1 else float(rng.choice([60.0, 50.0]))  # the first edition knows 60 alone
            keys |= {"orientationOfTheGridInDegrees": middle} | ({"LaDInDegrees": true} if edition == 2 else {})
            text = f"+proj=stere +lat_0=90 +lat_ts={true} +lon_0={middle} {sphere}"
        projection = pyproj.Proj(text)
        x, y = projection(first["lon"], first["lat"])
        x, y = x + metres * np.arange(columns) * (-1 if left else 1), y + metres * np.arange(rows) * (1 if up else -1)
        lon, lat = projection(*np.meshgrid(np.sort(x), np.sort(y)[::-1]), inverse=True)
        cell = metres / 111e3
    values = 250 + 60 * random_field(rng, (1, rows, columns))
    if rng.random() < 0.5:
        values[:, 2:5, 3:6] = np.nan
    scanned = values[0][:: -1 if up else 1, :: -1 if left else 1]
    keys |= {"shortName": "2t", "dataDate": 20240601, "dataTime": 600, "step": 0, "bitsPerValue": 24}
    if edition == 2:
        keys["shapeOfTheEarth"] = 6
    path = folder / "file.grib"
    path.write_bytes(_message(f"regular_ll_sfc_grib{edition}", keys, scanned))
    how = {"grid": kind, "edition": edition, "scan": f"up {up} left {left}"}
    refused = "is scanned from east to west" if left else ""
    return Drawn(path, "t2m", values, lon, lat, np.zeros(1), 1e-3, cell, how, "2024-06-01T06:00", refused=refused)
