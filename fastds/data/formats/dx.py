# SPDX-License-Identifier: Apache-2.0
"""DX files of the German weather service: the polar precipitation scan of one radar, brought onto a map."""

import datetime
import re

import numpy as np
import xarray as xr

from fastds.data.formats import maps
from fastds.data.formats.contents import Contents

NO_ECHO_DBZ = -32.5
_HEADER = re.compile(r"DX(\d{2})(\d{2})(\d{2})(\d{5})(\d{2})(\d{2})BY")
_END = b"\x03"
_BEAM, _RUN, _VALUE, _LENGTH = 0x2000, 0x1000, 0x00FF, 0x0FFF  # bits of a word
_BINS, _BEAMS = 128, 360  # 1 km and 1 degree each
# Latitude and longitude of the radars by WMO number.
_SITES = {
    "10132": (54.00438, 10.04687), "10169": (54.17566, 12.05808), "10204": (53.33872, 7.02377),
    "10339": (52.46008, 9.69452), "10356": (52.16009, 11.17609), "10392": (52.64867, 13.85821),
    "10410": (51.40563, 6.96712), "10440": (51.31120, 8.80206), "10488": (51.12465, 13.76865),
    "10557": (50.50012, 11.13504), "10605": (50.10965, 6.54853), "10629": (49.98470, 8.71293),
    "10780": (49.54066, 12.40278), "10832": (48.58528, 9.78278), "10873": (48.17470, 12.10177),
    "10908": (47.87361, 8.00361), "10950": (48.04214, 10.21924),
}  # fmt: skip


def recognises(contents: Contents) -> bool:
    """True for the header of a DX file."""
    return _HEADER.match(contents.start[:40].decode("latin-1")) is not None


def read(contents: Contents) -> xr.Dataset:
    """Read z = code / 2 - 32.5 dBZ of one radar onto pixels of 1 km around it, each that of the nearest bin; code 0 is
    no echo, clutter and what lies beyond 128 km is missing.

    Raises: ValueError for a truncated file and a radar whose place is not known.
    Source: DWD, Raddoc DX format.
    """
    data = contents.read()
    day, hour, minute, site, month, year = _HEADER.match(data[:40].decode("latin-1")).groups()
    if site not in _SITES:
        raise ValueError(f"{contents.path} is of the radar {site}, whose place is not known: {', '.join(_SITES)} are")
    polar = _beams(data[data.index(_END) + 1 :], contents)
    latitude, longitude = _SITES[site]
    # Distance and direction of the pixels' centres, x to the east, y to the north.
    edge = 1e3 * _BINS
    y, x = maps.centres(edge, -1e3, 2 * _BINS), maps.centres(-edge, 1e3, 2 * _BINS)
    distance = np.hypot(y[:, None], x) / 1e3
    beam = (np.rad2deg(np.arctan2(x[None, :], y[:, None])) % 360.0).astype(int) % _BEAMS
    values = np.where(distance < _BINS, polar[beam, np.minimum(distance.astype(int), _BINS - 1)], np.nan)
    time = datetime.datetime(2000 + int(year), int(month), int(day), int(hour), int(minute))
    proj4 = f"+proj=aeqd +lat_0={latitude} +lon_0={longitude} +R=6370040 +units=m"
    named = {"title": f"DWD DX, radar {site}", "institution": "Deutscher Wetterdienst (DWD)"}
    return maps.projected_map(
        maps.reflectivity(values, NO_ECHO_DBZ), [time], (y, x), maps.projection(proj4, (y, x)), **named
    )


def _beams(body: bytes, contents: Contents) -> np.ndarray:
    """dBZ of (beam, bin); a beam is a mark, azimuth and elevation in tenths of degrees, values and runs of zeros."""
    words = np.frombuffer(body[: len(body) // 2 * 2], "<u2")
    starts = np.flatnonzero(words & _BEAM)
    found = np.full((_BEAMS, _BINS), np.nan, np.float32)
    for start, stop in zip(starts, [*starts[1:], len(words)], strict=True):
        part = words[start + 3 : stop]
        codes = np.repeat(np.where(part & _RUN, 0, part), np.where(part & _RUN, part & _LENGTH, 1))
        if len(codes) != _BINS:
            raise ValueError(f"{contents.path} is truncated or damaged: a beam has {len(codes)} bins and not {_BINS}")
        clutter = (codes & ~np.uint16(_VALUE)) != 0
        found[int(words[start + 1]) // 10 % _BEAMS] = np.where(clutter, np.nan, 0.5 * codes + NO_ECHO_DBZ)
    if len(starts) != _BEAMS:
        raise ValueError(f"{contents.path} is truncated or damaged: {len(starts)} beams and not {_BEAMS}")
    return found
