# SPDX-License-Identifier: Apache-2.0
"""GeoTIFF images of one field at one time, such as those of FMI and Radar-DPC, by rasterio."""

import datetime
import re
from typing import Any

import numpy as np
import xarray as xr

from fastds.data.errors import first_line_of
from fastds.data.formats import maps
from fastds.data.formats.contents import Contents
from fastds.data.grid.variables import is_dbz, rain_units
from fastds.data.packages import import_pyproj, require

_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_FIELD = "band_1"  # of a quantity that the file does not tell
# In a name: milliseconds since 1970, or digits of date and time.
_MILLISECONDS, _DATE = re.compile(r"(?<!\d)(\d{13})(?!\d)"), re.compile(r"(?<!\d)(\d{8})T?(\d{4})(?:\d{2})?Z?(?!\d)")


def recognises(contents: Contents) -> bool:
    """True for a TIFF image, plain or gzipped."""
    return contents.start.startswith(_MAGIC)


def read(contents: Contents) -> xr.Dataset:
    """Read value = scale code + offset, as the band or FMI's tags Gain and Offset have it; missing is the band's nodata
    or the tag Nodata and what a mask, inside the file or beside it (.msk), or an alpha band leaves out; no echo is the
    tag Undetect. What neither units nor the tag Quantity tell is named band_1. The time
    is the tag "Observation time" (YYYYMMDDhhmm), else that of the file's name.

    Raises: ImportError without rasterio; ValueError for a damaged image, several bands, a grid without projection or
    one that is turned, and where no time is told."""
    require("rasterio", "GeoTIFF images")
    require("pyproj", "projections of radar grids")
    import_pyproj()  # before rasterio, which brings a PROJ of its own
    import rasterio

    try:
        with contents.unpacked() as path, rasterio.open(path) as image:
            tags = {key.lower(): text for key, text in image.tags().items()}
            _check(image, contents)
            fields = _fields(image, tags)
            axes, crs = _axes(image), image.crs
    except rasterio.errors.RasterioError as error:
        raise ValueError(f"{contents.path} is a damaged TIFF image ({first_line_of(error)})") from error
    time = [_time(contents, tags)]
    if crs.is_geographic:
        return maps.geographic_map(fields, time, axes)
    # The axes are in metres, and so is the projection that maps.projection tells.
    return maps.projected_map(fields, time, axes, maps.projection(crs.to_wkt(), axes))


def _check(image: Any, contents: Contents) -> None:
    bands = [band for band in image.indexes if band != _alpha(image)]
    if len(bands) != 1 or bands[0] != 1:
        raise ValueError(f"{contents.path} has {len(bands)} bands, expected one; gdal_translate -b takes one out")
    if image.crs is None:
        raise ValueError(f"{contents.path} does not tell its projection; gdal_translate -a_srs writes one")
    if image.transform.b or image.transform.d:
        raise ValueError(f"{contents.path} has a grid that is turned against its projection; gdalwarp turns it back")


def _alpha(image: Any) -> int | None:
    """The number of the band that says how opaque pixels are; None where there is none."""
    from rasterio.enums import ColorInterp

    return next(
        (i for i, meaning in zip(image.indexes, image.colorinterp, strict=True) if meaning == ColorInterp.alpha), None
    )


def masked_pixels(image: Any) -> np.ndarray:
    """Where an alpha band, a mask inside the file or beside it, or the band's nodata leave pixels out."""
    alpha = _alpha(image)
    return image.read_masks(1) == 0 if alpha is None else image.read(alpha) == 0


def _axes(image: Any) -> maps.Coordinates:
    """Centres of rows and columns, degrees or metres."""
    unit = 1.0 if image.crs.is_geographic else image.crs.linear_units_factor[1]
    t = image.transform
    return maps.centres(unit * t.f, unit * t.e, image.height), maps.centres(unit * t.c, unit * t.a, image.width)


def _fields(image: Any, tags: dict[str, str]) -> maps.Fields:
    codes = image.read(1)
    scale, offset = (float(tags.get(name, of[0])) for name, of in (("gain", image.scales), ("offset", image.offsets)))
    missing = float(tags["nodata"]) if "nodata" in tags else image.nodata
    values = scale * codes.astype(np.float64) + offset
    values[~np.isfinite(values) | maps.equals_code(codes, missing) | masked_pixels(image)] = np.nan
    units = image.units[0]
    if is_dbz(units) or "reflectivity" in tags.get("quantity", "").lower():
        return maps.reflectivity(values, scale * float(tags["undetect"]) + offset if "undetect" in tags else None)
    if rain_units(units) == (1.0, 3600.0):
        return maps.rainfall_rate(values)
    return {_FIELD: (values, {"long_name": image.descriptions[0] or _FIELD} | ({"units": units} if units else {}))}


def _time(contents: Contents, tags: dict[str, str]) -> datetime.datetime:
    for text in (tags.get("observation time", ""), contents.path.name):
        for pattern, moment in ((_MILLISECONDS, _since_1970), (_DATE, _by_digits)):
            for match in pattern.finditer(text):
                if (time := moment(match)) is not None:
                    return time
    raise ValueError(
        f"{contents.path} does not tell its time; its name must, such as 202405011230.tif or radar_20240501T1230Z.tif"
    )


def _since_1970(match: re.Match) -> datetime.datetime:
    return datetime.datetime(1970, 1, 1) + datetime.timedelta(milliseconds=int(match[1]))


def _by_digits(match: re.Match) -> datetime.datetime | None:
    try:
        return datetime.datetime.strptime(match[1] + match[2], "%Y%m%d%H%M")
    except ValueError:
        return None
