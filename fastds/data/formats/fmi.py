# SPDX-License-Identifier: Apache-2.0
"""Reader of radar composites of the Finnish Meteorological Institute in 8-bit PGM, uncompressed or gzipped."""

import datetime
import re

import numpy as np
import xarray as xr

from fastds.data.formats import cf_builder
from fastds.data.formats.file_format import Format
from fastds.data.formats.file_probe import FileProbe

_EARTH_RADIUS_M = 6371288.0
NO_ECHO_DBZ = -32.0
_MISSING = 255
_HEADER_PATTERNS = {"projection": r"# type +(\w+)", "time": r"obstime +(\d{12})", "parameter": r"param +(\w+)"}
_NUMBERS = ("metersperpixel_x", "metersperpixel_y", "centrallongitude", "centrallatitude", "truelatitude")


def matches(probe: FileProbe) -> bool:
    """Return True for a binary PGM image whose comments contain an observation time."""
    return probe.header.startswith(b"P5") and b"# obstime" in probe.header


def read(probe: FileProbe) -> xr.Dataset:
    """Read reflectivity z = code / 2 - 32 dBZ on the polar stereographic grid that the comments describe.

    Code 0 means no echo, code 255 is missing.

    Raises:
        ValueError: The file is truncated, or holds another parameter or projection.
    """
    data = probe.read()
    header, width, height, body = _parse_header(data, probe)
    found = {name: re.search(pattern, header) for name, pattern in _HEADER_PATTERNS.items()}
    kind, time, parameter = (match[1] if match else "" for match in found.values())
    if kind != "stereographic" or not time or "Reflectivity" not in parameter:
        raise ValueError(f"{probe.path} must hold reflectivity in a stereographic projection, by its comments")
    dx, dy, lon, lat, true = (_parse_numbers(header, name, probe)[0] for name in _NUMBERS)
    codes = np.frombuffer(body, np.uint8).reshape(height, width)
    values = np.where(codes == _MISSING, np.nan, 0.5 * codes + NO_ECHO_DBZ)
    proj4 = f"+proj=stere +lat_0={lat:g} +lon_0={lon:g} +lat_ts={true:g} +R={_EARTH_RADIUS_M} +units=m"
    left, bottom = cf_builder.project(proj4, *_parse_numbers(header, "bottomleft", probe))
    axes = (
        cf_builder.compute_cell_centres(bottom + dy * height, -dy, height),
        cf_builder.compute_cell_centres(left, dx, width),
    )
    moment = datetime.datetime.strptime(time, "%Y%m%d%H%M")
    attributes = {"title": "FMI radar composite", "institution": "Finnish Meteorological Institute"}
    return cf_builder.make_projected_dataset(
        cf_builder.make_reflectivity_field(values, NO_ECHO_DBZ),
        [moment],
        axes,
        cf_builder.make_grid_mapping(proj4, axes),
        **attributes,
    )


def _parse_header(data: bytes, probe: FileProbe) -> tuple[str, int, int, bytes]:
    """Split a PGM image with one byte a pixel into comments, width, height and pixel bytes."""
    match = re.match(rb"P5\s+((?:#[^\n]*\n\s*)*)(\d+)\s+(\d+)\s+((?:#[^\n]*\n\s*)*)(\d+)\s", data)
    if match is None or int(match[5]) != 255:
        raise ValueError(f"{probe.path} is no PGM of one byte a pixel")
    width, height, body = int(match[2]), int(match[3]), data[match.end() :]
    if len(body) != width * height:
        raise ValueError(f"{probe.path} is truncated or damaged: {len(body)} bytes for {height} x {width} pixels")
    return (match[1] + match[4]).decode("latin-1"), width, height, body


def _parse_numbers(header: str, name: str, probe: FileProbe) -> list[float]:
    match = re.search(rf"{name} +([-\d.]+)(?: +([-\d.]+))?", header)
    if match is None:
        raise ValueError(f"{probe.path} has no {name} in its comments")
    return [float(text) for text in match.groups() if text]


FORMAT = Format(name="FMI PGM", files="composites of FMI", matches=matches, read=read, order=90)
