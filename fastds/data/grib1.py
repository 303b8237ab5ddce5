# SPDX-License-Identifier: Apache-2.0
"""Read GRIB of edition 1, regular latitude-longitude grids in simple packing, without ecCodes.

value = (R + X 2^E) / 10^D (WMO Manual on Codes, FM 92 GRIB edition 1)
"""

import pathlib

import numpy as np
import xarray as xr

# ECMWF table 128: number -> name, units, standard name.
_PARAMETERS = {
    129: ("z", "m2 s-2", "geopotential"),
    130: ("t", "K", "air_temperature"),
    131: ("u", "m s-1", "eastward_wind"),
    132: ("v", "m s-1", "northward_wind"),
    157: ("r", "%", "relative_humidity"),
    167: ("t2m", "K", "air_temperature"),
}
_RANGES = (0, 123)  # of time: an analysis or forecast, valid P1 hours later; a mean of analyses from its time on


def open_grib1(path) -> xr.Dataset:
    """The fields of one file as variables (time, latitude, longitude), float32.

    Times are those of validity, of means their first.

    Raises: ValueError: another edition, grid or packing, missing values, several levels, or a damaged message.
    """
    data, position, found = pathlib.Path(path).read_bytes(), 0, {}
    while (position := data.find(b"GRIB", position)) >= 0:
        length = _int(data[position + 4 : position + 7])
        if data[position + 7 : position + 8] != b"\x01" or data[position : position + length][-4:] != b"7777":
            raise ValueError(f"{path}: byte {position} does not begin a whole message of GRIB edition 1")
        name, level, time, axes, values = _message(data[position + 8 : position + length - 4], path)
        found.setdefault(name, []).append((level, time, axes, values))
        position += length
    if not found:
        raise ValueError(f"{path} holds no GRIB message")
    return xr.Dataset({name[0]: _variable(name, messages, path) for name, messages in found.items()})


def _variable(name: tuple, messages: list, path) -> xr.DataArray:
    messages.sort(key=lambda m: m[1])
    levels, times, axes, values = zip(*messages, strict=True)
    if len(set(levels)) > 1 or len(set(times)) < len(times) or len({tuple(map(tuple, pair)) for pair in axes}) > 1:
        raise ValueError(f"{path}: {name[0]} has several levels or grids, or a time twice; expected one field a time")
    latitude, longitude = axes[0]
    coords = {
        "time": np.array(times, "datetime64[ns]"),
        "latitude": ("latitude", latitude, {"units": "degrees_north", "standard_name": "latitude"}),
        "longitude": ("longitude", longitude, {"units": "degrees_east", "standard_name": "longitude"}),
    }
    attrs = {"units": name[1], "standard_name": name[2]} if name[1] else {}
    return xr.DataArray(np.stack(values), coords, ("time", "latitude", "longitude"), name[0], attrs)


def _int(octets: bytes) -> int:
    return int.from_bytes(octets, "big")


def _signed(octets: bytes) -> int:
    """The first bit is the sign, the others the magnitude."""
    value, sign = _int(octets), 1 << (8 * len(octets) - 1)
    return value if value < sign else sign - value


def _message(body: bytes, path):
    """((name, units, standard name), level, time, (latitudes, longitudes), values (rows, columns)) of one message."""
    product, rest = body[: _int(body[:3])], body[_int(body[:3]) :]
    grid, packed = rest[: _int(rest[:3])], rest[_int(rest[:3]) :]
    if product[7] != 128 or grid[5] != 0 or packed[3] >> 4 or not packed[10]:
        raise ValueError(f"{path}: expected a regular latitude-longitude grid, simply packed, without missing values")
    name = _PARAMETERS.get(product[8]) if product[3] == 128 else None
    year = (product[24] - 1) * 100 + product[12]
    time = np.datetime64(f"{year:04d}-{product[13]:02d}-{product[14]:02d}T{product[15]:02d}:{product[16]:02d}", "ns")
    if product[17] != 1 or product[20] not in _RANGES:
        raise ValueError(f"{path}: expected times in hours and a range of {_RANGES}, got {product[17]}, {product[20]}")
    if product[20] == 0:
        time = time + np.timedelta64(product[18], "h")
    columns, rows, scan = _int(grid[6:8]), _int(grid[8:10]), grid[27]
    if scan & 0b10111111:
        raise ValueError(f"{path}: expected rows from west to east, one after another, got scanning mode {scan}")
    (north, west, south, east) = (_signed(grid[i : i + 3]) / 1000 for i in (10, 13, 17, 20))
    axes = np.linspace(north, south, rows), np.linspace(west, east + 360 * (east < west), columns)
    values = (_unpack(packed, rows * columns) / 10.0 ** _signed(product[26:28])).reshape(rows, columns)
    return name or (f"p{product[8]}_{product[3]}", "", ""), product[9:12], time, axes, values.astype(np.float32)


def _unpack(packed: bytes, count: int) -> np.ndarray:
    """R + X 2^E in float64, R in the floating point of IBM: (-1)^s 16^(c - 64) f / 2^24."""
    reference = _int(packed[6:10])
    sign, power, fraction = reference >> 31, (reference >> 24) & 0x7F, reference & 0xFFFFFF
    bits = np.unpackbits(np.frombuffer(packed, np.uint8, offset=11))[: count * packed[10]].reshape(count, packed[10])
    x = bits.astype(np.float64) @ (2.0 ** np.arange(packed[10])[::-1])
    return (-1) ** sign * 16.0 ** (power - 64) * fraction / 2**24 + x * 2.0 ** _signed(packed[4:6])
