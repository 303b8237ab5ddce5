# SPDX-License-Identifier: Apache-2.0
"""Discovery of the supported file formats, detection of the format of a file, and hints for unsupported formats."""

import functools
import importlib
import pkgutil

import fastds.data.formats
from fastds._options import spell_argument
from fastds.data.formats.file_format import Format
from fastds.data.formats.file_probe import FileProbe
from fastds.data.formats.plain_array import is_plain_array

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


@functools.cache
def list_formats() -> tuple[Format, ...]:
    """List the supported file formats in the order in which they are tried.

    The first call imports the modules of `fastds.data.formats` and collects their module-level objects of `Format`.
    """
    modules = [
        importlib.import_module(f"fastds.data.formats.{listed.name}")
        for listed in pkgutil.iter_modules(fastds.data.formats.__path__)
    ]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, Format)]
    return tuple(sorted(found, key=lambda form: form.order))


def detect_format(probe: FileProbe) -> Format | None:
    """Return the first format that matches a file, or None."""
    return next((form for form in list_formats() if form.matches(probe)), None)


def describe_unsupported(probe: FileProbe) -> str:
    """Return the error message for a file of unknown format, with the tool that reads it if one is known."""
    if not probe.header:
        return f"{probe.path} is {'damaged: it cannot be unpacked' if probe.raw_header else 'empty'}"
    if probe.members and all(name.endswith(".npy") for name in probe.members):
        return f"{probe.path} is an npz archive {_describe_npz_archive(probe)}"
    for magic, what, remedy in _UNSUPPORTED_SIGNATURES:
        if probe.header.startswith(magic):
            return f"{probe.path} is {what}; {remedy}"
    if is_plain_array(probe.path):
        return f"{probe.path} is in no format that is known; if it holds plain numbers, give {spell_argument('array')}"
    known = ", ".join(form.name for form in list_formats())
    return f"{probe.path} is in no format that is known: {known}"


def _describe_npz_archive(probe: FileProbe) -> str:
    """Describe an npz archive that is not a MeteoNet archive of fields, as the end of an error message."""
    found = ", ".join(sorted(name.removesuffix(".npy") for name in probe.members))
    if {"lats.npy", "lons.npy"} <= probe.members:
        return "of coordinates alone; give the archives of rain or reflectivity in the same folder, which it belongs to"
    return f"of {found}; those of MeteoNet are read, which hold data and dates"
