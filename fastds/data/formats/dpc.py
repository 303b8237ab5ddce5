# SPDX-License-Identifier: Apache-2.0
"""The national composite of the Italian Department of Civil Protection (Radar-DPC) as handed on in HDF5."""

import re

import numpy as np
import xarray as xr

from fastds.data.formats import maps
from fastds.data.formats.contents import Contents
from fastds.data.radar.reflectivity import NO_ECHO_DBZ

_NAME = re.compile(r"VMI_(\d{13})\.h5$")
# Files have no georeference: 1400 x 1200 pixels, degrees of the first row and column and the steps from there.
_SHAPE = (1400, 1200)
_LATITUDE, _LONGITUDE = (47.84442353651941, -0.009131359599727246), (4.530038685589823, 0.013294347480250508)
_THRESHOLD = 10.0  # dBZ, the weakest echo
_OUTSIDE, _BELOW = -9999.0, -9998.0


def recognises(contents: Contents) -> bool:
    """True for HDF5 with nothing but `radar_data`."""
    return contents.groups == {"radar_data"}


def read(contents: Contents) -> xr.Dataset:
    """Read the vertical maximum of reflectivity; the time is that in the file's name, milliseconds since 1970.

    Raises: ValueError for another name or shape."""
    match = _NAME.search(contents.path.name)
    if match is None:
        raise ValueError(f"{contents.path} has no time in its name; expected VMI_MILLISECONDS.h5, since 1970")
    with contents.hdf5() as file:
        values = file["radar_data"][...]
    if values.shape != _SHAPE:
        raise ValueError(f"{contents.path} has {values.shape} pixels; only the national grid of {_SHAPE} is known")
    values = np.where(values == _BELOW, NO_ECHO_DBZ, np.where(values == _OUTSIDE, np.nan, values))
    axes = tuple(start + step * np.arange(n) for (start, step), n in zip((_LATITUDE, _LONGITUDE), _SHAPE, strict=True))
    fields = maps.reflectivity(values, NO_ECHO_DBZ)
    fields["reflectivity"][1]["comment"] = f"vertical maximum; echoes from {_THRESHOLD:g} dBZ"
    named = {"title": "Radar-DPC VMI", "institution": "Dipartimento della Protezione Civile"}
    return maps.geographic_map(fields, [np.datetime64(int(match[1]), "ms")], axes, **named)
