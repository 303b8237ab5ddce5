# SPDX-License-Identifier: Apache-2.0
"""List of the supported file formats, in the order in which they are tried, and hints for unsupported ones."""

from collections.abc import Callable
from typing import NamedTuple

import xarray as xr

from fastds.data.formats import cf, dpc, dx, fmi, geotiff, grib, knmi, mch, meteonet, nimrod, odim, radolan
from fastds.data.formats.file_probe import FileProbe


class Format(NamedTuple):
    """A file format.

    Attributes:
        name: Name for messages.
        matches: Function that returns True if a file has this format.
        read: Function that reads a file of this format.
    """

    name: str
    matches: Callable[[FileProbe], bool]
    read: Callable[[FileProbe], xr.Dataset]


FORMATS = (
    Format("ODIM HDF5", odim.matches, odim.read),
    Format("KNMI HDF5", knmi.matches, knmi.read),
    Format("Radar-DPC HDF5", dpc.matches, dpc.read),
    Format("NetCDF-4", cf.is_netcdf4, cf.read_netcdf4),
    Format("NetCDF-3", cf.is_netcdf3, cf.read_netcdf3),
    Format("Zarr", cf.is_zarr, cf.read_zarr),
    Format("GRIB", grib.matches, grib.read),
    Format("MeteoNet npz", meteonet.matches, meteonet.read),
    Format("FMI PGM", fmi.matches, fmi.read),
    Format("MeteoSwiss GIF", mch.matches, mch.read),
    Format("GeoTIFF", geotiff.matches, geotiff.read),
    Format("Nimrod", nimrod.matches, nimrod.read),
    Format("DWD DX", dx.matches, dx.read),
    Format("RADOLAN", lambda probe: radolan.is_radolan(probe.path), lambda probe: radolan.open_radolan(probe.path)),
)

# Signature, name and hint of formats that fastds does not read.
_UNSUPPORTED_SIGNATURES = (
    (b"CDF\x05", "NetCDF of the format CDF-5", "nccopy -k nc4 converts it"),
    (b"AR2V", "a NEXRAD level II volume", "xradar reads it and wradlib grids it"),
    (b"ARCHIVE2", "a NEXRAD level II volume", "xradar reads it and wradlib grids it"),
    (b"<volume", "a Rainbow volume", "xradar reads it and wradlib grids it"),
    (b"BUFR", "BUFR", "ecCodes reads it (bufr_dump)"),
    (
        b"\x89PNG",
        "a PNG image",
        "fastds.data.open_hko7 reads those of HKO-7; others do not say what colours mean",
    ),
    (b"GIF8", "a GIF image", "only images of classes by MeteoSwiss are read"),
    (b"P5", "a PGM image", "only composites of FMI are read"),
    (b"PK", "a zip archive", "unpack it first"),
    (b"\x80\x04", "a Python pickle", "save fields with xarray: Dataset.to_netcdf"),
)


def detect_format(probe: FileProbe) -> Format | None:
    """Return the first format that matches a file, or None."""
    return next((form for form in FORMATS if form.matches(probe)), None)  # the order of FORMATS matters


def describe_unsupported(probe: FileProbe) -> str:
    """Return the error message for a file of unknown format, with the tool that reads it if one is known."""
    if not probe.header:
        return f"{probe.path} is {'damaged: it cannot be unpacked' if probe.raw_header else 'empty'}"
    if probe.members and all(name.endswith(".npy") for name in probe.members):
        return f"{probe.path} is an npz archive {meteonet.describe_other_archive(probe)}"
    for magic, what, remedy in _UNSUPPORTED_SIGNATURES:
        if probe.header.startswith(magic):
            return f"{probe.path} is {what}; {remedy}"
    known = ", ".join(form.name for form in FORMATS)
    return f"{probe.path} is in no format that is known: {known}"
