# SPDX-License-Identifier: Apache-2.0
"""Reader of GeoTIFF images of one field at one time, such as those of FMI and Radar-DPC, with rasterio."""

import datetime
import re
from typing import Any

import numpy as np
import xarray as xr

from fastds.data.errors import summarize_error
from fastds.data.formats import cf_builder
from fastds.data.formats.file_format import Format
from fastds.data.formats.file_probe import FileProbe
from fastds.data.grid.variables import is_dbz, parse_rain_units
from fastds.data.packages import import_pyproj, require

_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_FALLBACK_NAME = "band_1"  # name of a field whose quantity the file does not declare
# Times in a file name: milliseconds since 1970, or the digits of date and time.
_MILLISECONDS, _DATE = re.compile(r"(?<!\d)(\d{13})(?!\d)"), re.compile(r"(?<!\d)(\d{8})T?(\d{4})(?:\d{2})?Z?(?!\d)")


def matches(probe: FileProbe) -> bool:
    """Return True for a TIFF image, uncompressed or gzipped."""
    return probe.header.startswith(_MAGIC)


def read(probe: FileProbe) -> xr.Dataset:
    """Read a field, value = scale * code + offset.

    The scale and the offset are the tags Gain and Offset (FMI) or, without these tags, those of the band. Pixels are
    missing if they have the code in the tag Nodata (without this tag: the nodata value of the band), or if a mask (in
    the file or in a .msk file) or an alpha band excludes them. The tag Undetect is the code of no echo.

    A field whose quantity is declared neither by its units nor by the tag Quantity is named band_1. The time is the tag
    "Observation time" (YYYYMMDDhhmm) or else a time in the file name.

    Raises:
        ImportError: rasterio or pyproj is not installed.
        ValueError: The image is damaged, has several bands, no projection, a grid that is rotated against its
            projection, or no time.
    """
    require("rasterio", "GeoTIFF images")
    require("pyproj", "projections of radar grids")
    import_pyproj()  # before rasterio, which loads another PROJ library
    import rasterio

    try:
        with probe.unpack() as path, rasterio.open(path) as image:
            tags = {key.lower(): text for key, text in image.tags().items()}
            _check_image(image, probe)
            fields = _read_fields(image, tags)
            axes, crs = _compute_axes(image), image.crs
    except rasterio.errors.RasterioError as error:
        raise ValueError(f"{probe.path} is a damaged TIFF image ({summarize_error(error)})") from error
    time = [_find_time(probe, tags)]
    if crs.is_geographic:
        return cf_builder.make_geographic_dataset(fields, time, axes)
    # Axes and grid mapping are in metres, whatever the unit of the image's projection.
    return cf_builder.make_projected_dataset(fields, time, axes, cf_builder.make_grid_mapping(crs.to_wkt(), axes))


def _check_image(image: Any, probe: FileProbe) -> None:
    bands = [band for band in image.indexes if band != _find_alpha_band(image)]
    if len(bands) != 1 or bands[0] != 1:
        raise ValueError(f"{probe.path} has {len(bands)} bands, expected one; gdal_translate -b takes one out")
    if image.crs is None:
        raise ValueError(f"{probe.path} has no projection; gdal_translate -a_srs writes one")
    if image.transform.b or image.transform.d:
        raise ValueError(
            f"{probe.path} has a grid that is rotated against its projection; gdalwarp removes the rotation"
        )


def _find_alpha_band(image: Any) -> int | None:
    """Return the number of the band that holds the opacity, or None."""
    from rasterio.enums import ColorInterp

    return next(
        (i for i, meaning in zip(image.indexes, image.colorinterp, strict=True) if meaning == ColorInterp.alpha), None
    )


def find_masked_pixels(image: Any) -> np.ndarray:
    """Return True where an alpha band, a mask (internal or .msk file) or the nodata value leaves out a pixel."""
    alpha = _find_alpha_band(image)
    return image.read_masks(1) == 0 if alpha is None else image.read(alpha) == 0


def _compute_axes(image: Any) -> cf_builder.Coordinates:
    """Return the centres of rows and columns in degrees or metres."""
    unit = 1.0 if image.crs.is_geographic else image.crs.linear_units_factor[1]
    t = image.transform
    return cf_builder.compute_cell_centres(unit * t.f, unit * t.e, image.height), cf_builder.compute_cell_centres(
        unit * t.c, unit * t.a, image.width
    )


def _read_fields(image: Any, tags: dict[str, str]) -> cf_builder.Fields:
    codes = image.read(1)
    scale = float(tags.get("gain", image.scales[0]))
    offset = float(tags.get("offset", image.offsets[0]))
    missing = float(tags["nodata"]) if "nodata" in tags else image.nodata
    values = scale * codes.astype(np.float64) + offset
    values[~np.isfinite(values) | cf_builder.match_code(codes, missing) | find_masked_pixels(image)] = np.nan
    units = image.units[0]
    if is_dbz(units) or "reflectivity" in tags.get("quantity", "").lower():
        return cf_builder.make_reflectivity_field(
            values, scale * float(tags["undetect"]) + offset if "undetect" in tags else None
        )
    if parse_rain_units(units) == (1.0, 3600.0):
        return cf_builder.make_rain_rate_field(values)
    return {
        _FALLBACK_NAME: (
            values,
            {"long_name": image.descriptions[0] or _FALLBACK_NAME} | ({"units": units} if units else {}),
        )
    }


def _find_time(probe: FileProbe, tags: dict[str, str]) -> datetime.datetime:
    for text in (tags.get("observation time", ""), probe.path.name):
        for pattern, moment in ((_MILLISECONDS, _parse_milliseconds), (_DATE, _parse_digits)):
            for match in pattern.finditer(text):
                if (time := moment(match)) is not None:
                    return time
    raise ValueError(
        f"{probe.path} has no time; its name must contain one, such as 202405011230.tif or radar_20240501T1230Z.tif"
    )


def _parse_milliseconds(match: re.Match) -> datetime.datetime:
    return datetime.datetime(1970, 1, 1) + datetime.timedelta(milliseconds=int(match[1]))


def _parse_digits(match: re.Match) -> datetime.datetime | None:
    try:
        return datetime.datetime.strptime(match[1] + match[2], "%Y%m%d%H%M")
    except ValueError:
        return None


FORMAT = Format(name="GeoTIFF", files="any source", matches=matches, read=read, order=110)
