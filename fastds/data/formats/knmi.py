# SPDX-License-Identifier: Apache-2.0
"""Reader of radar composites of the Dutch weather service in KNMI HDF5."""

import datetime
import re
from typing import Any

import h5py
import numpy as np
import xarray as xr

from fastds.data.errors import format_names, warn_left_out
from fastds.data.formats import cf_builder
from fastds.data.formats.file_format import Format
from fastds.data.formats.file_probe import FileProbe
from fastds.data.formats.hdf5 import check_filters, get_required, parse_number, parse_text, translate_hdf5_errors

_FORMULA = re.compile(r"GEO\s*=\s*([-+.\deE]+)\s*\*\s*PV\s*\+?\s*([-+.\deE]+)")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_METRES = {"KM": 1e3, "M": 1.0}
_CORNERS = ("LL", "UL", "UR", "LR")
# Files from 2013 on have inexact offsets, such as 3649.982 km for an edge at 3650 km. An offset is rounded to a
# multiple of this fraction of a cell if that is closer to the corner of the image in the file.
_SNAP = 0.05


def matches(probe: FileProbe) -> bool:
    """Return True for HDF5 with the groups overview, geographic and image1."""
    return {"overview", "geographic", "image1"} <= probe.groups


def read(probe: FileProbe) -> xr.Dataset:
    """Read the first image: reflectivity in dBZ, or precipitation in mm over the interval of the product.

    Values are computed from the codes by the file's formula. The out-of-image code is missing. The code that the file
    calls missing is missing in precipitation amounts. In images of reflectivity this code is 0, which KNMI uses for all
    pixels in range without echo, so it means no echo there.

    Raises:
        ValueError: The image holds another quantity, or its formula or time cannot be read.

    Source: KNMI HDF5 data format specification 3.5.
    """
    with translate_hdf5_errors(probe), probe.open_hdf5() as file:
        check_filters(file, probe)
        image, overview = file["image1"], file["overview"].attrs
        calibration, where = image["calibration"].attrs, "image1/calibration"
        codes = image["image_data"][...]
        gain, offset = _parse_formula(parse_text(get_required(calibration, "calibration_formulas", where)), probe)
        values = (codes * gain + offset).astype(np.float32)
        values[codes == parse_number(get_required(calibration, "calibration_out_of_image", where))] = np.nan
        missing = codes == parse_number(get_required(calibration, "calibration_missing_data", where))
        start, end = (
            _parse_time(parse_text(get_required(overview, f"product_datetime_{name}", "overview")), probe)
            for name in ("start", "end")
        )
        parameter = parse_text(get_required(image.attrs, "image_geo_parameter", "image1"))
        if parameter.startswith("REFLECTIVITY"):
            fields = cf_builder.make_reflectivity_field(np.where(missing, np.float32(offset), values), offset)
        elif parameter.endswith("[MM]") and end > start:
            values[missing] = np.nan
            fields = cf_builder.make_rain_amount_field(values, (end - start).total_seconds() / 60.0)
        else:
            raise ValueError(f"{probe.path} holds {parameter}; expected REFLECTIVITY_[DBZ] or amounts in [MM]")
        proj4, y, x = _compute_grid(file["geographic"], codes.shape)
        attributes = {
            "title": f"KNMI {parse_text(get_required(overview, 'product_group_name', 'overview'))}",
            "institution": "KNMI",
        }
        others = sorted(name for name in file if re.fullmatch(r"image\d+", name) and name != "image1")
        if others:
            warn_left_out(f"{format_names(others)} of {probe.path}", len(others))
        return cf_builder.make_projected_dataset(
            fields, [end], (y, x), cf_builder.make_grid_mapping(proj4, (y, x)), **attributes
        )


def _parse_formula(text: str, probe: FileProbe) -> tuple[float, float]:
    match = _FORMULA.match(text.strip())
    if match is None:
        raise ValueError(f"{probe.path} has the calibration {text!r}; expected GEO = a * PV + b")
    return float(match[1]), float(match[2])


def _parse_time(text: str, probe: FileProbe) -> datetime.datetime:
    """Parse a time such as 26-AUG-2010;00:30:00.000, independently of the locale."""
    match = re.match(r"(\d+)-([A-Z]{3})-(\d{4});(\d+):(\d+):(\d+)", text.upper())
    if match is None or match[2] not in _MONTHS:
        raise ValueError(f"{probe.path} has the time {text!r}; expected one such as 26-AUG-2010;00:30:00")
    day, year, hour, minute, second = (int(match[k]) for k in (1, 3, 4, 5, 6))
    return datetime.datetime(year, _MONTHS.index(match[2]) + 1, day, hour, minute, second)


def _compute_grid(geographic: h5py.Group, shape: tuple[int, ...]) -> tuple[str, np.ndarray, np.ndarray]:
    """Return the PROJ string in metres and the centres y (north to south) and x in metres.

    Args:
        geographic: Group with projection, offsets, cell sizes and their units.
        shape: Shape of the image.

    Raises:
        ValueError: The corners in the file do not match offsets and projection, or the size does not match the image.
    """
    attrs = geographic.attrs
    proj4 = parse_text(
        get_required(geographic["map_projection"].attrs, "projection_proj4_params", "geographic/map_projection")
    )
    proj4 = re.sub(r"(?<!\+)\by_0=", "+y_0=", proj4)
    proj4 = re.sub(r"\+([ab])=([\d.]+)", lambda axis: f"+{axis[1]}={_format_semi_axis(float(axis[2]))}", proj4)
    rows, columns = (
        int(parse_number(get_required(attrs, f"geo_number_{name}", "geographic"))) for name in ("rows", "columns")
    )
    if shape != (rows, columns):
        raise ValueError(
            f"the image has the shape {shape}, geographic/geo_number_rows and columns say {rows}, {columns}"
        )
    units = [unit.strip().upper() for unit in parse_text(get_required(attrs, "geo_dim_pixel", "geographic")).split(",")]
    if len(units) != 2 or not set(units) <= set(_METRES):
        raise ValueError(f"geographic/geo_dim_pixel is {','.join(units)}; expected KM,KM or M,M")
    across, down = (_METRES[unit] for unit in units)
    dx, dy = (
        round(parse_number(get_required(attrs, f"geo_pixel_size_{name}", "geographic")) * unit, 1)
        for name, unit in (("x", across), ("y", down))
    )
    top, left = (
        round(parse_number(get_required(attrs, f"geo_{name}_offset", "geographic")) * unit, 1)
        for name, unit in (("row", down), ("column", across))
    )
    top = -top if dy < 0 else top
    corners = np.ravel(attrs.get("geo_product_corners", ()))
    if corners.size >= 8:
        positions: dict[str, Any] = dict(zip(_CORNERS, corners[:8].reshape(4, 2).tolist(), strict=True))
        x, y = cf_builder.project(proj4, *positions["UL"])
        top, left = _snap_edge(top, dy, y), _snap_edge(left, dx, x)
        right, bottom = left + dx * columns, top + dy * rows
        edges = {"LL": (left, bottom), "UL": (left, top), "UR": (right, top), "LR": (right, bottom)}
        cf_builder.check_corners(positions, proj4, edges, (dy, dx))
    return proj4, cf_builder.compute_cell_centres(top, dy, rows), cf_builder.compute_cell_centres(left, dx, columns)


def _snap_edge(edge: float, cell: float, corner: float) -> float:
    """Return an edge of the image, rounded to a multiple of _SNAP cells if that is closer to the corner in the file.

    Args:
        edge: Coordinate of the edge computed from the offset in the file, metres.
        cell: Width of a cell, metres.
        corner: Projected coordinate of the corner in the file, metres.
    """
    step = abs(cell) * _SNAP
    near = round(edge / step) * step
    return near if abs(corner - near) < abs(corner - edge) else edge


def _format_semi_axis(value: float) -> str:
    """Format an axis of the ellipsoid in metres.

    Files from 2013 on round the kilometres of WGS 84 to 10 m; the exact axes replace these.
    """
    metres = value * 1e3 if value < 1e5 else value
    exact = {6378140.0: 6378137.0, 6356750.0: 6356752.0}
    return f"{exact.get(round(metres), metres):.1f}"


FORMAT = Format(name="KNMI HDF5", files="rain amounts and reflectivity of KNMI", matches=matches, read=read, order=20)
