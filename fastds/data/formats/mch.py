# SPDX-License-Identifier: Apache-2.0
"""Reader of radar composites of MeteoSwiss in palette GIF images of classes (AQC, CPC)."""

import datetime
import re

import numpy as np
import xarray as xr

from fastds.data.formats import cf_builder
from fastds.data.formats.file_format import Format
from fastds.data.formats.file_probe import FileProbe

_NAME = re.compile(r"(AQC|CPC)(\d{2})(\d{3})(\d{2})(\d{2}).*_(\d{5})\.")
_Z_R = (316.0, 1.5)
_DRY, _MISSING = 2, 255  # classes below _DRY and classes 251 to 254 mean no rain
_SWISS = (
    "+proj=somerc +lon_0=7.439583333333333 +lat_0=46.95240555555556 +k_0=1 +x_0=600000 +y_0=200000 +ellps=bessel "
    "+towgs84=674.374,15.056,405.346,0,0,0,0 +units=m"
)
_LEFT, _TOP, _CELL = 255e3, 480e3, 1e3  # metres, CH1903 / LV03


def matches(probe: FileProbe) -> bool:
    """Return True for a GIF written by MeteoSwiss."""
    return probe.header.startswith(b"GIF8") and b"Meteoswiss" in probe.header


def read(probe: FileProbe) -> xr.Dataset:
    """Read rain amounts over the interval that the file name contains.

    Class i is (10^((i - 71.5) / 20) / 316)^(1 / 1.5) mm, as in pysteps. Classes 0, 1 and 251 to 254 mean no rain, and
    class 255 is missing.

    Raises:
        ValueError: The file name does not contain product, time and interval, or the file is not a palette image of
            640 x 710 pixels.
    """
    match = _NAME.match(probe.path.name)
    if match is None:
        raise ValueError(f"{probe.path}: the name must contain product and time, such as AQC161932200V_00005.801.gif")
    from PIL import Image  # imported here, because all readers are imported to find that of a file

    with Image.open(probe.path) as image:
        classes = np.array(image) if image.mode == "P" else np.empty(0)
    if classes.shape != (640, 710):
        raise ValueError(f"{probe.path} must be a palette image of 640 x 710 pixels, got {classes.shape}")
    i = np.arange(256)
    amounts = (10.0 ** ((i - 71.5) / 20.0) / _Z_R[0]) ** (1.0 / _Z_R[1])
    amounts = np.where((i < _DRY) | (i > 250), 0.0, amounts)
    amounts[_MISSING] = np.nan
    _, year, day, hour, minute, minutes = match.groups()
    time = datetime.datetime.strptime(f"{year}{day}{hour}{minute}", "%y%j%H%M")
    fields = cf_builder.make_rain_amount_field(amounts[classes], float(minutes))
    fields["rainfall_amount"][1].update(zr_a=_Z_R[0], zr_b=_Z_R[1])
    axes = cf_builder.compute_cell_centres(_TOP, -_CELL, 640), cf_builder.compute_cell_centres(_LEFT, _CELL, 710)
    attributes = {"title": f"MeteoSwiss {match[1]}", "institution": "MeteoSwiss"}
    return cf_builder.make_projected_dataset(
        fields, [time], axes, cf_builder.make_grid_mapping(_SWISS, axes), **attributes
    )


FORMAT = Format(name="MeteoSwiss GIF", files="composites of MeteoSwiss", matches=matches, read=read, order=100)
