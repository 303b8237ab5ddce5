# SPDX-License-Identifier: Apache-2.0
"""Composites of MeteoSwiss as palette GIF images of classes (AQC, CPC)."""

import datetime
import re

import numpy as np
import xarray as xr
from PIL import Image

from fastds.data.formats import maps
from fastds.data.formats.contents import Contents

_NAME = re.compile(r"(AQC|CPC)(\d{2})(\d{3})(\d{2})(\d{2}).*_(\d{5})\.")
_Z_R = (316.0, 1.5)
_DRY, _MISSING = 2, 255  # classes below are no rain, 251 to 254, too
_SWISS = (
    "+proj=somerc +lon_0=7.439583333333333 +lat_0=46.95240555555556 +k_0=1 +x_0=600000 +y_0=200000 +ellps=bessel "
    "+towgs84=674.374,15.056,405.346,0,0,0,0 +units=m"
)
_LEFT, _TOP, _CELL = 255e3, 480e3, 1e3  # CH1903 / LV03, metres


def recognises(contents: Contents) -> bool:
    """True for a GIF that MeteoSwiss wrote."""
    return contents.start.startswith(b"GIF8") and b"Meteoswiss" in contents.start


def read(contents: Contents) -> xr.Dataset:
    """Read rain amounts: class i is (10^((i - 71.5) / 20) / 316)^(1 / 1.5) mm, as pysteps has it, over the interval in
    the file's name.

    Raises: ValueError for another product or size of image."""
    match = _NAME.match(contents.path.name)
    if match is None:
        raise ValueError(f"{contents.path}: the name must tell product and time, such as AQC161932200V_00005.801.gif")
    with Image.open(contents.path) as image:
        classes = np.array(image) if image.mode == "P" else np.empty(0)
    if classes.shape != (640, 710):
        raise ValueError(f"{contents.path} must be a palette image of 640 x 710 pixels, got {classes.shape}")
    i = np.arange(256)
    amounts = (10.0 ** ((i - 71.5) / 20.0) / _Z_R[0]) ** (1.0 / _Z_R[1])
    amounts = np.where((i < _DRY) | (i > 250), 0.0, amounts)
    amounts[_MISSING] = np.nan
    _, year, day, hour, minute, minutes = match.groups()
    time = datetime.datetime.strptime(f"{year}{day}{hour}{minute}", "%y%j%H%M")
    fields = maps.rainfall_amount(amounts[classes], float(minutes))
    fields["rainfall_amount"][1].update(zr_a=_Z_R[0], zr_b=_Z_R[1])
    axes = maps.centres(_TOP, -_CELL, 640), maps.centres(_LEFT, _CELL, 710)
    named = {"title": f"MeteoSwiss {match[1]}", "institution": "MeteoSwiss"}
    return maps.projected_map(fields, [time], axes, maps.projection(_SWISS, axes), **named)
