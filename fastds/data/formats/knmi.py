# SPDX-License-Identifier: Apache-2.0
"""Composites of the Dutch weather service (KNMI) in its own HDF5 format."""

import datetime
import re

import h5py
import numpy as np
import xarray as xr

from fastds.data.errors import listed, warn_left_out
from fastds.data.formats import maps
from fastds.data.formats.attributes import number_of, required, text_of
from fastds.data.formats.contents import Contents
from fastds.data.formats.hdf5 import check_filters, errors_of_hdf5

_FORMULA = re.compile(r"GEO\s*=\s*([-+.\deE]+)\s*\*\s*PV\s*\+?\s*([-+.\deE]+)")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_METRES = {"KM": 1e3, "M": 1.0}
_CORNERS = ("LL", "UL", "UR", "LR")
# Files of 2013 on say 3649.982 km of an edge whose corner lies at 3650: offsets are snapped to such a share of a cell
# where the corners are nearer to that.
_SNAP = 0.05


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
    with errors_of_hdf5(contents), contents.hdf5() as file:
        check_filters(file, contents)
        image, overview = file["image1"], file["overview"].attrs
        calibration, where = image["calibration"].attrs, "image1/calibration"
        codes = image["image_data"][...]
        gain, offset = _formula(text_of(required(calibration, "calibration_formulas", where)), contents)
        values = (codes * gain + offset).astype(np.float32)
        values[codes == number_of(required(calibration, "calibration_out_of_image", where))] = np.nan
        missing = codes == number_of(required(calibration, "calibration_missing_data", where))
        start, end = (
            _moment(text_of(required(overview, f"product_datetime_{name}", "overview")), contents)
            for name in ("start", "end")
        )
        parameter = text_of(required(image.attrs, "image_geo_parameter", "image1"))
        if parameter.startswith("REFLECTIVITY"):
            fields = maps.reflectivity(np.where(missing, np.float32(offset), values), offset)
        elif parameter.endswith("[MM]") and end > start:
            values[missing] = np.nan
            fields = maps.rainfall_amount(values, (end - start).total_seconds() / 60.0)
        else:
            raise ValueError(f"{contents.path} holds {parameter}; expected REFLECTIVITY_[DBZ] or amounts in [MM]")
        proj4, y, x = _grid(file["geographic"], codes.shape)
        named = {
            "title": f"KNMI {text_of(required(overview, 'product_group_name', 'overview'))}",
            "institution": "KNMI",
        }
        others = sorted(name for name in file if re.fullmatch(r"image\d+", name) and name != "image1")
        if others:
            warn_left_out(f"{listed(others)} of {contents.path}", len(others))
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


def _grid(geographic: h5py.Group, shape: tuple[int, ...]) -> tuple[str, np.ndarray, np.ndarray]:
    """PROJ string in metres, and centres y (north to south) and x. Lengths are in the unit that the file names.

    Raises: ValueError where its corners do not agree with offsets and projection, or its size with the image."""
    attrs = geographic.attrs
    proj4 = text_of(
        required(geographic["map_projection"].attrs, "projection_proj4_params", "geographic/map_projection")
    )
    proj4 = re.sub(r"(?<!\+)\by_0=", "+y_0=", proj4)
    proj4 = re.sub(r"\+([ab])=([\d.]+)", lambda axis: f"+{axis[1]}={_axis(float(axis[2]))}", proj4)
    rows, columns = (
        int(number_of(required(attrs, f"geo_number_{name}", "geographic"))) for name in ("rows", "columns")
    )
    if shape != (rows, columns):
        raise ValueError(
            f"the image has the shape {shape}, geographic/geo_number_rows and columns say {rows}, {columns}"
        )
    units = [unit.strip().upper() for unit in text_of(required(attrs, "geo_dim_pixel", "geographic")).split(",")]
    if len(units) != 2 or not set(units) <= set(_METRES):
        raise ValueError(f"geographic/geo_dim_pixel is {','.join(units)}; expected KM,KM or M,M")
    across, down = (_METRES[unit] for unit in units)
    dx, dy = (
        round(number_of(required(attrs, f"geo_pixel_size_{name}", "geographic")) * unit, 1)
        for name, unit in (("x", across), ("y", down))
    )
    top, left = (
        round(number_of(required(attrs, f"geo_{name}_offset", "geographic")) * unit, 1)
        for name, unit in (("row", down), ("column", across))
    )
    top = -top if dy < 0 else top
    corners = np.ravel(attrs.get("geo_product_corners", ()))
    if corners.size >= 8:
        places = dict(zip(_CORNERS, corners[:8].reshape(4, 2).tolist(), strict=True))
        x, y = maps.project(proj4, *places["UL"])
        top, left = _snapped(top, dy, y), _snapped(left, dx, x)
        right, bottom = left + dx * columns, top + dy * rows
        edges = {"LL": (left, bottom), "UL": (left, top), "UR": (right, top), "LR": (right, bottom)}
        maps.check_corners(places, proj4, edges, (dy, dx))
    return proj4, maps.centres(top, dy, rows), maps.centres(left, dx, columns)


def _snapped(edge: float, cell: float, corner: float) -> float:
    """An edge, or the nearest multiple of a share of the cell where the corner of the file lies nearer to that."""
    step = abs(cell) * _SNAP
    near = round(edge / step) * step
    return near if abs(corner - near) < abs(corner - edge) else edge


def _axis(value: float) -> str:
    """An axis of the ellipsoid in metres; files of 2013 on round the kilometres of WGS 84 to 10 m."""
    metres = value * 1e3 if value < 1e5 else value
    exact = {6378140.0: 6378137.0, 6356750.0: 6356752.0}
    return f"{exact.get(round(metres), metres):.1f}"
