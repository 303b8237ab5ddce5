# SPDX-License-Identifier: Apache-2.0
"""Reader of DX files of the German weather service (DWD): the polar scan of one radar, put onto a grid."""

import datetime
import re

import numpy as np
import xarray as xr

from fastds.data.formats import cf_builder
from fastds.data.formats.file_format import Format
from fastds.data.formats.file_probe import FileProbe

NO_ECHO_DBZ = -32.5
_HEADER = re.compile(r"DX(\d{2})(\d{2})(\d{2})(\d{5})(\d{2})(\d{2})BY")
_END = b"\x03"
# Bits of a 16-bit word: start of a beam, run of zeros, value, length of a run.
_BEAM, _RUN, _VALUE, _LENGTH = 0x2000, 0x1000, 0x00FF, 0x0FFF
_BINS, _BEAMS = 128, 360  # bins of 1 km, beams of 1 degree
# WMO number of a radar -> latitude and longitude in degrees.
_SITES = {
    "10132": (54.00438, 10.04687), "10169": (54.17566, 12.05808), "10204": (53.33872, 7.02377),
    "10339": (52.46008, 9.69452), "10356": (52.16009, 11.17609), "10392": (52.64867, 13.85821),
    "10410": (51.40563, 6.96712), "10440": (51.31120, 8.80206), "10488": (51.12465, 13.76865),
    "10557": (50.50012, 11.13504), "10605": (50.10965, 6.54853), "10629": (49.98470, 8.71293),
    "10780": (49.54066, 12.40278), "10832": (48.58528, 9.78278), "10873": (48.17470, 12.10177),
    "10908": (47.87361, 8.00361), "10950": (48.04214, 10.21924),
}  # fmt: skip


def matches(probe: FileProbe) -> bool:
    """Return True for the header of a DX file."""
    return _HEADER.match(probe.header[:40].decode("latin-1")) is not None


def read(probe: FileProbe) -> xr.Dataset:
    """Read the reflectivity of one radar, z = code / 2 - 32.5 dBZ, on a grid of 1 km.

    Each pixel takes the value of the polar bin that contains its centre. Code 0 means no echo. Clutter and pixels
    farther than 128 km from the radar are missing.

    Raises:
        ValueError: The file is truncated, or the position of the radar is unknown.

    Source: DWD, Raddoc DX format.
    """
    data = probe.read()
    match = _HEADER.match(data[:40].decode("latin-1"))
    assert match is not None  # the format was recognized by its header
    day, hour, minute, site, month, year = match.groups()
    if site not in _SITES:
        raise ValueError(f"{probe.path} is of the radar {site}, whose position is not known: {', '.join(_SITES)} are")
    polar = _decode_beams(data[data.index(_END) + 1 :], probe)
    latitude, longitude = _SITES[site]
    # Range and azimuth of the pixel centres; x points east, y points north.
    edge = 1e3 * _BINS
    y, x = (
        cf_builder.compute_cell_centres(edge, -1e3, 2 * _BINS),
        cf_builder.compute_cell_centres(-edge, 1e3, 2 * _BINS),
    )
    distance = np.hypot(y[:, None], x) / 1e3
    beam = (np.rad2deg(np.arctan2(x[None, :], y[:, None])) % 360.0).astype(int) % _BEAMS
    values = np.where(distance < _BINS, polar[beam, np.minimum(distance.astype(int), _BINS - 1)], np.nan)
    time = datetime.datetime(2000 + int(year), int(month), int(day), int(hour), int(minute))
    proj4 = f"+proj=aeqd +lat_0={latitude} +lon_0={longitude} +R=6370040 +units=m"
    attributes = {"title": f"DWD DX, radar {site}", "institution": "Deutscher Wetterdienst (DWD)"}
    return cf_builder.make_projected_dataset(
        cf_builder.make_reflectivity_field(values, NO_ECHO_DBZ),
        [time],
        (y, x),
        cf_builder.make_grid_mapping(proj4, (y, x)),
        **attributes,
    )


def _decode_beams(body: bytes, probe: FileProbe) -> np.ndarray:
    """Decode a DX body into dBZ (beam, bin).

    A beam consists of a marker, azimuth and elevation in tenths of a degree, values and run-length coded zeros.
    """
    words = np.frombuffer(body[: len(body) // 2 * 2], "<u2")
    starts = np.flatnonzero(words & _BEAM)
    found = np.full((_BEAMS, _BINS), np.nan, np.float32)
    for start, stop in zip(starts, [*starts[1:], len(words)], strict=True):
        part = words[start + 3 : stop]
        codes = np.repeat(np.where(part & _RUN, 0, part), np.where(part & _RUN, part & _LENGTH, 1))
        if len(codes) != _BINS:
            raise ValueError(f"{probe.path} is truncated or damaged: a beam has {len(codes)} bins and not {_BINS}")
        clutter = (codes & ~np.uint16(_VALUE)) != 0
        found[int(words[start + 1]) // 10 % _BEAMS] = np.where(clutter, np.nan, 0.5 * codes + NO_ECHO_DBZ)
    if len(starts) != _BEAMS:
        raise ValueError(f"{probe.path} is truncated or damaged: {len(starts)} beams and not {_BEAMS}")
    return found


FORMAT = Format(name="DWD DX", files="single radars of DWD", matches=matches, read=read, order=130)
