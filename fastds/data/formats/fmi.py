# SPDX-License-Identifier: Apache-2.0
"""Composites of the Finnish Meteorological Institute as 8-bit PGM, plain or gzipped."""

import datetime
import re

import numpy as np
import xarray as xr

from fastds.data.formats import maps
from fastds.data.formats.contents import Contents

_EARTH_RADIUS_M = 6371288.0
NO_ECHO_DBZ = -32.0
_MISSING = 255
_WANTED = {"projection": r"# type +(\w+)", "time": r"obstime +(\d{12})", "parameter": r"param +(\w+)"}
_NUMBERS = ("metersperpixel_x", "metersperpixel_y", "centrallongitude", "centrallatitude", "truelatitude")


def recognises(contents: Contents) -> bool:
    """True for a binary PGM whose comments tell an observation time."""
    return contents.start.startswith(b"P5") and b"# obstime" in contents.start


def read(contents: Contents) -> xr.Dataset:
    """Read z = code / 2 - 32 dBZ, code 0 no echo, 255 missing, on the polar stereographic grid of the comments.

    Raises: ValueError for a truncated file, another parameter or projection."""
    data = contents.read()
    header, width, height, body = _split(data, contents)
    found = {name: re.search(pattern, header) for name, pattern in _WANTED.items()}
    kind, time, parameter = (match[1] if match else "" for match in found.values())
    if kind != "stereographic" or not time or "Reflectivity" not in parameter:
        raise ValueError(f"{contents.path} must hold reflectivity in a stereographic projection, by its comments")
    dx, dy, lon, lat, true = (_numbers(header, name, contents)[0] for name in _NUMBERS)
    codes = np.frombuffer(body, np.uint8).reshape(height, width)
    values = np.where(codes == _MISSING, np.nan, 0.5 * codes + NO_ECHO_DBZ)
    proj4 = f"+proj=stere +lat_0={lat:g} +lon_0={lon:g} +lat_ts={true:g} +R={_EARTH_RADIUS_M} +units=m"
    left, bottom = maps.project(proj4, *_numbers(header, "bottomleft", contents))
    axes = maps.centres(bottom + dy * height, -dy, height), maps.centres(left, dx, width)
    moment = datetime.datetime.strptime(time, "%Y%m%d%H%M")
    named = {"title": "FMI radar composite", "institution": "Finnish Meteorological Institute"}
    return maps.projected_map(
        maps.reflectivity(values, NO_ECHO_DBZ), [moment], axes, maps.projection(proj4, axes), **named
    )


def _split(data: bytes, contents: Contents) -> tuple[str, int, int, bytes]:
    """Comments, width, height and pixels of a PGM of one byte a pixel."""
    match = re.match(rb"P5\s+((?:#[^\n]*\n\s*)*)(\d+)\s+(\d+)\s+((?:#[^\n]*\n\s*)*)(\d+)\s", data)
    if match is None or int(match[5]) != 255:
        raise ValueError(f"{contents.path} is no PGM of one byte a pixel")
    width, height, body = int(match[2]), int(match[3]), data[match.end() :]
    if len(body) != width * height:
        raise ValueError(f"{contents.path} is truncated or damaged: {len(body)} bytes for {height} x {width} pixels")
    return (match[1] + match[4]).decode("latin-1"), width, height, body


def _numbers(header: str, name: str, contents: Contents) -> list[float]:
    match = re.search(rf"{name} +([-\d.]+)(?: +([-\d.]+))?", header)
    if match is None:
        raise ValueError(f"{contents.path} has no {name} in its comments")
    return [float(text) for text in match.groups() if text]
