# SPDX-License-Identifier: Apache-2.0
"""The formats that are read, in the order in which they are tried, and what others are to be read with."""

from collections.abc import Callable
from typing import NamedTuple

import xarray as xr

from fastds.data.formats import cf, dpc, dx, fmi, geotiff, grib, knmi, mch, meteonet, nimrod, odim, radolan
from fastds.data.formats.contents import Contents


class Format(NamedTuple):
    """How a format is called, told from others and read."""

    name: str
    recognises: Callable[[Contents], bool]
    read: Callable[[Contents], xr.Dataset]


FORMATS = (
    Format("ODIM HDF5", odim.recognises, odim.read),
    Format("KNMI HDF5", knmi.recognises, knmi.read),
    Format("Radar-DPC HDF5", dpc.recognises, dpc.read),
    Format("NetCDF-4", cf.is_netcdf4, cf.read_netcdf4),
    Format("NetCDF-3", cf.is_netcdf3, cf.read_netcdf3),
    Format("Zarr", cf.is_zarr, cf.read_zarr),
    Format("GRIB", grib.recognises, grib.read),
    Format("MeteoNet npz", meteonet.recognises, meteonet.read),
    Format("FMI PGM", fmi.recognises, fmi.read),
    Format("MeteoSwiss GIF", mch.recognises, mch.read),
    Format("GeoTIFF", geotiff.recognises, geotiff.read),
    Format("Nimrod", nimrod.recognises, nimrod.read),
    Format("DWD DX", dx.recognises, dx.read),
    Format("RADOLAN", lambda contents: radolan.is_radolan(contents.path), lambda c: radolan.open_radolan(c.path)),
)

# First bytes of formats that others read, what they are, and with what.
_ELSEWHERE = (
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


def format_of(contents: Contents) -> Format | None:
    """The format that recognises the contents; None for an unknown one."""
    return next((form for form in FORMATS if form.recognises(contents)), None)


def refusal(contents: Contents) -> str:
    """What is said of contents in no known format, with the tool that reads them where one is known."""
    if not contents.start:
        return f"{contents.path} is {'damaged: it cannot be unpacked' if contents.raw_start else 'empty'}"
    if contents.members and all(name.endswith(".npy") for name in contents.members):
        return f"{contents.path} is an npz archive {meteonet.without_fields(contents)}"
    for magic, what, remedy in _ELSEWHERE:
        if contents.start.startswith(magic):
            return f"{contents.path} is {what}; {remedy}"
    known = ", ".join(form.name for form in FORMATS)
    return f"{contents.path} is in no format that is known: {known}"
