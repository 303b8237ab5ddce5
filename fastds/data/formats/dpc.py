# SPDX-License-Identifier: Apache-2.0
"""Reader of the national radar composite of the Italian Department of Civil Protection (Radar-DPC) in HDF5."""

import re

import numpy as np
import xarray as xr

from fastds.data.formats import cf_builder
from fastds.data.formats.file_format import Format
from fastds.data.formats.file_probe import FileProbe
from fastds.data.radar.reflectivity import NO_ECHO_DBZ

_NAME = re.compile(r"VMI_(\d{13})\.h5$")
# The files have no georeference. Shape of the grid; (first value, step) of latitude and longitude in degrees.
_SHAPE = (1400, 1200)
_LATITUDE, _LONGITUDE = (47.84442353651941, -0.009131359599727246), (4.530038685589823, 0.013294347480250508)
_THRESHOLD = 10.0  # dBZ, detection threshold
_OUTSIDE_CODE, _BELOW_CODE = -9999.0, -9998.0


def matches(probe: FileProbe) -> bool:
    """Return True for an HDF5 file whose only object is `radar_data`."""
    return probe.groups == {"radar_data"}


def read(probe: FileProbe) -> xr.Dataset:
    """Read the vertical maximum of reflectivity. The time comes from the file name (milliseconds since 1970).

    Raises:
        ValueError: The file name has no time, or the grid is not the national one.
    """
    match = _NAME.search(probe.path.name)
    if match is None:
        raise ValueError(f"{probe.path} has no time in its name; expected VMI_MILLISECONDS.h5, since 1970")
    with probe.open_hdf5() as file:
        values = file["radar_data"][...]
    if values.shape != _SHAPE:
        raise ValueError(f"{probe.path} has {values.shape} pixels; only the national grid of {_SHAPE} is known")
    values = np.where(values == _BELOW_CODE, NO_ECHO_DBZ, np.where(values == _OUTSIDE_CODE, np.nan, values))
    y, x = (start + step * np.arange(n) for (start, step), n in zip((_LATITUDE, _LONGITUDE), _SHAPE, strict=True))
    fields = cf_builder.make_reflectivity_field(values, NO_ECHO_DBZ)
    fields["reflectivity"][1]["comment"] = f"vertical maximum; echoes from {_THRESHOLD:g} dBZ"
    attributes = {"title": "Radar-DPC VMI", "institution": "Dipartimento della Protezione Civile"}
    return cf_builder.make_geographic_dataset(fields, [np.datetime64(int(match[1]), "ms")], (y, x), **attributes)


FORMAT = Format(
    name="Radar-DPC HDF5",
    files="reflectivity of the Italian civil protection",
    matches=matches,
    read=read,
    order=30,
)
