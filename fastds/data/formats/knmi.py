# SPDX-License-Identifier: Apache-2.0
"""Composites of the Dutch weather service (KNMI) in its own HDF5 format."""

import datetime
import re

import h5py
import numpy as np
import xarray as xr

from fastds.data.formats import maps
from fastds.data.formats.attributes import number_of, text_of
from fastds.data.formats.contents import Contents

_FORMULA = re.compile(r"GEO\s*=\s*([-+.\deE]+)\s*\*\s*PV\s*\+?\s*([-+.\deE]+)")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_KM = 1e3


def recognises(contents: Contents) -> bool:
    """True for HDF5 with the groups overview, geographic and image1."""
    return {"overview", "geographic", "image1"} <= contents.groups


def read(contents: Contents) -> xr.Dataset:
    """Read the first image of a file: reflectivity [dBZ], or precipitation over the interval of the product [mm].

    Values are the formula of the file times its codes; out of the image is missing. The code that the file calls
    missing is missing in amounts. In images of reflectivity it is code 0, all pixels in range without echo: no echo.

    Raises: ValueError for other images, an unreadable formula or time.
    Source: KNMI HDF5 data format specification 3.5.
    """
    with contents.hdf5() as file:
        image, overview = file["image1"], file["overview"].attrs
        calibration = image["calibration"].attrs
        codes = image["image_data"][...]
        gain, offset = _formula(text_of(calibration["calibration_formulas"]), contents)
        values = (codes * gain + offset).astype(np.float32)
        values[codes == number_of(calibration["calibration_out_of_image"])] = np.nan
        missing = codes == number_of(calibration["calibration_missing_data"])
        start, end = (_moment(text_of(overview[f"product_datetime_{name}"]), contents) for name in ("start", "end"))
        parameter = text_of(image.attrs["image_geo_parameter"])
        if parameter.startswith("REFLECTIVITY"):
            fields = maps.reflectivity(np.where(missing, np.float32(offset), values), offset)
        elif parameter.endswith("[MM]") and end > start:
            values[missing] = np.nan
            fields = maps.rainfall_amount(values, (end - start).total_seconds() / 60.0)
        else:
            raise ValueError(f"{contents.path} holds {parameter}; expected REFLECTIVITY_[DBZ] or amounts in [MM]")
        proj4, y, x = _grid(file["geographic"])
        named = {"title": f"KNMI {text_of(overview['product_group_name'])}", "institution": "KNMI"}
        return maps.projected_map(fields, [end], (y, x), maps.projection(proj4, (y, x)), **named)


def _formula(text: str, contents: Contents) -> tuple[float, float]:
    match = _FORMULA.match(text.strip())
    if match is None:
        raise ValueError(f"{contents.path} has the calibration {text!r}; expected GEO = a * PV + b")
    return float(match[1]), float(match[2])


def _moment(text: str, contents: Contents) -> datetime.datetime:
    """The time of 26-AUG-2010;00:30:00.000, whatever the language of the machine."""
    match = re.match(r"(\d+)-([A-Z]{3})-(\d{4});(\d+):(\d+):(\d+)", text.upper())
    if match is None or match[2] not in _MONTHS:
        raise ValueError(f"{contents.path} has the time {text!r}; expected one such as 26-AUG-2010;00:30:00")
    day, year, *clock = (int(match[k]) for k in (1, 3, 4, 5, 6))
    return datetime.datetime(year, _MONTHS.index(match[2]) + 1, day, *clock)


def _grid(geographic: h5py.Group) -> tuple[str, np.ndarray, np.ndarray]:
    """PROJ string in metres, and centres y (north to south) and x. Files give lengths in km, rounded to metres."""
    attrs = geographic.attrs
    proj4 = re.sub(r"(?<!\+)\by_0=", "+y_0=", text_of(geographic["map_projection"].attrs["projection_proj4_params"]))
    proj4 = re.sub(r"\+([ab])=([\d.]+)", lambda axis: f"+{axis[1]}={_axis(float(axis[2]))}", proj4)
    rows, columns = (int(number_of(attrs[f"geo_number_{name}"])) for name in ("rows", "columns"))
    top, left = (round(number_of(attrs[f"geo_{name}_offset"])) * _KM for name in ("row", "column"))
    dx, dy = (round(number_of(attrs[f"geo_pixel_size_{name}"]), 3) * _KM for name in ("x", "y"))
    return proj4, maps.centres(-top if dy < 0 else top, dy, rows), maps.centres(left, dx, columns)


def _axis(value: float) -> str:
    """An axis of the ellipsoid in metres; files of 2013 on round the kilometres of WGS 84 to 10 m."""
    metres = value * _KM if value < 1e5 else value
    exact = {6378140.0: 6378137.0, 6356750.0: 6356752.0}
    return f"{exact.get(round(metres), metres):.1f}"
