# SPDX-License-Identifier: Apache-2.0
"""Reader of composites in ODIM HDF5: OPERA, DWD, FMI, DMI and other European services."""

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np
import xarray as xr

from fastds.data.errors import format_names, warn_left_out
from fastds.data.formats import cf_builder
from fastds.data.formats.file_format import Format
from fastds.data.formats.file_probe import FileProbe
from fastds.data.formats.hdf5 import check_filters, get_required, parse_number, parse_text, translate_hdf5_errors
from fastds.data.radar.reflectivity import NO_ECHO_DBZ

_REFLECTIVITY = ("DBZH", "DBZV", "TH", "TV")
_MAP_OBJECTS = ("COMP", "IMAGE")
_MAX_FIELDS = 1000


def matches(probe: FileProbe) -> bool:
    """Return True for HDF5 with the groups what, where and dataset1."""
    return {"what", "where", "dataset1"} <= probe.groups


def read(probe: FileProbe) -> xr.Dataset:
    """Read a composite: reflectivity (DBZH, DBZV, TH, TV), rain rate (RATE), rain amount (ACRR) and quality (QIND).

    `undetect` means no echo (-32 dBZ, 0 mm), `nodata` is missing. The time is the nominal time; for forecasts it is the
    end of the interval, and the scalar coordinate `lead` is the lead time. If a quantity occurs several times, for
    several times or heights, the first dataset is taken and a warning names the others.

    Raises:
        ValueError: The file holds polar data, none of these quantities or no georeference, or its corners do not match
            projection and size.

    Source: EUMETNET OPERA, ODIM_H5 2.0 to 2.4.
    """
    with translate_hdf5_errors(probe), probe.open_hdf5() as file:
        check_filters(file, probe)
        kind = parse_text(file["what"].attrs.get("object", ""))
        if kind not in _MAP_OBJECTS:
            raise ValueError(f"{probe.path} holds polar data (ODIM {kind}); grid them first, with xradar and wradlib")
        fields: dict[str, Any] = {}
        interval: Any = None
        others: list[Any] = []
        for quantity, dataset, data in _iterate_quantities(file):
            field = _make_field(quantity, data, dataset)
            if field and not set(field) & set(fields):
                fields |= field
                interval = interval or _read_interval(dataset)
            elif field:
                others.append((quantity, dataset, data))
        if not set(fields) - {"quality"}:
            found = ", ".join(sorted({quantity for quantity, _, _ in _iterate_quantities(file)})) or "none"
            raise ValueError(f"{probe.path} holds the quantities {found}; expected DBZH, DBZV, TH, TV, RATE or ACRR")
        nominal = _parse_time(file["what"].attrs, "", "what")
        lead = _compute_lead(nominal, interval)
        attributes = {"title": f"ODIM composite {', '.join(sorted(set(fields) - {'quality'}))}"}
        attributes["institution"] = parse_text(file["what"].attrs.get("source", ""))
        composite = _make_dataset(file, fields, nominal + lead, attributes)
        _warn_of_others(probe, nominal, others)
    return composite.assign_coords(lead=((), np.timedelta64(int(lead.total_seconds()), "s")))


def _warn_of_others(probe: FileProbe, nominal: datetime.datetime, others: list[tuple]) -> None:
    """Warn about fields that are left out because an earlier field has the same quantity."""
    if not others:
        return
    leads = [_compute_lead(nominal, _read_interval(dataset)).total_seconds() / 60 for _, dataset, _ in others]
    ahead = f", forecasts up to {max(leads):g} min ahead among them" if max(leads) > 0 else ""
    names = [data.name.lstrip("/") for _, _, data in others]
    subject = f"{len(others)} further field{'s' * (len(others) > 1)} of {probe.path} ({format_names(names, 4)}{ahead})"
    warn_left_out(subject, len(others), "the first of a quantity is taken")


def _iterate_quantities(file: h5py.File) -> Iterator[tuple[str, h5py.Group, h5py.Group]]:
    """Yield quantity, dataset group and data group of every field, in order."""
    for number in range(1, _MAX_FIELDS):
        dataset = file.get(f"dataset{number}")
        if dataset is None:
            return
        for part in range(1, _MAX_FIELDS):
            data = dataset.get(f"data{part}")
            if data is None:
                break
            yield parse_text(_find_what_attribute(data, dataset, "quantity") or ""), dataset, data


def _make_field(quantity: str, data: h5py.Group, dataset: h5py.Group) -> cf_builder.Fields:
    """Make the field of a data group; {} for quantities other than rain, reflectivity and quality.

    Raises:
        ValueError: The interval of an amount (ACRR) is missing or does not end after it starts.
    """
    if quantity in _REFLECTIVITY:
        return cf_builder.make_reflectivity_field(_decode_values(data, dataset, NO_ECHO_DBZ), NO_ECHO_DBZ)
    if quantity == "RATE":
        return cf_builder.make_rain_rate_field(_decode_values(data, dataset, 0.0))
    if quantity == "ACRR":
        interval = _read_interval(dataset)
        if interval is None:
            group = dataset.name.lstrip("/")
            raise ValueError(f"amounts (ACRR) need startdate, starttime, enddate and endtime in {group}/what")
        start, end = interval
        if end <= start:
            raise ValueError(
                f"the interval of {dataset.name.lstrip('/')}/what ends at {end}, before it starts, {start}"
            )
        return cf_builder.make_rain_amount_field(
            _decode_values(data, dataset, 0.0), (end - start).total_seconds() / 60.0
        )
    if quantity == "QIND":
        return {"quality": (_decode_values(data, dataset, np.nan), {"long_name": "quality index", "units": "1"})}
    return {}


def _decode_values(data: h5py.Group, dataset: h5py.Group, undetected: float) -> np.ndarray:
    """Decode the codes of a field.

    Args:
        data: Group of the field.
        dataset: Group of the dataset, for attributes that the field lacks.
        undetected: Value of pixels without detection.

    Returns:
        (H, W) float32, NaN where missing.
    """
    codes = data["data"][...]
    gain, offset, nodata, undetect = (
        parse_number(default if value is None else value)
        for value, default in (
            (_find_what_attribute(data, dataset, name), default)
            for name, default in (("gain", 1.0), ("offset", 0.0), ("nodata", np.nan), ("undetect", np.nan))
        )
    )
    if not np.isfinite([gain, offset]).all() or gain == 0:
        raise ValueError(
            f"{data.name.lstrip('/')}/what has gain {gain:g} and offset {offset:g}, so the values are lost"
        )
    values = np.where(cf_builder.match_code(codes, undetect), undetected, codes * gain + offset)
    return np.where(cf_builder.match_code(codes, nodata), np.nan, values).astype(np.float32)


def _find_what_attribute(data: h5py.Group, dataset: h5py.Group, name: str) -> Any:
    """Return an attribute of the group `what` of a field or else of its dataset; None if both lack the attribute."""
    for group in (data, dataset):
        if "what" in group and name in group["what"].attrs:
            return group["what"].attrs[name]
    return None


def _read_interval(dataset: h5py.Group) -> tuple[datetime.datetime, datetime.datetime] | None:
    """Return start and end of the interval of a dataset, or None if the file does not declare them."""
    attrs = dataset["what"].attrs if "what" in dataset else {}
    names = ("startdate", "starttime", "enddate", "endtime")
    if not all(name in attrs and parse_text(attrs[name]).strip() for name in names):
        return None
    where = f"{dataset.name.lstrip('/')}/what"
    return _parse_time(attrs, "start", where), _parse_time(attrs, "end", where)


def _compute_lead(nominal: datetime.datetime, interval: tuple[datetime.datetime, ...] | None) -> datetime.timedelta:
    """Return the lead time: from the nominal time to the end of a forecast's interval.

    The lead time is zero if the interval is unknown, began before the nominal time or ends by then.
    """
    if interval is None or interval[0] < nominal or interval[1] <= nominal:
        return datetime.timedelta(0)
    return interval[1] - nominal


def _parse_time(attrs: Mapping[str, Any], prefix: str, where: str) -> datetime.datetime:
    """Parse a pair of attributes for date and time; 240000 is the start of the next day."""
    date, clock = (parse_text(get_required(attrs, f"{prefix}{part}", where)).strip() for part in ("date", "time"))
    digits = clock[:6].ljust(6, "0")
    hours, minutes, seconds = (digits[k : k + 2] for k in (0, 2, 4))
    try:
        day = datetime.datetime.strptime(date, "%Y%m%d")
        if len(date) != 8 or not digits.isdecimal() or int(hours) > 24 or int(minutes) > 59 or int(seconds) > 60:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{where}/{prefix}date and {prefix}time are {date!r} and {clock!r}; expected YYYYMMDD and HHmmss"
        ) from None
    return day + datetime.timedelta(hours=int(hours), minutes=int(minutes), seconds=int(seconds))


def _make_dataset(
    file: h5py.File, fields: cf_builder.Fields, time: datetime.datetime, attributes: dict[str, str]
) -> xr.Dataset:
    """Make the dataset of fields on their projected (metres) or geographic (degrees) grid, rows from north to south."""
    where = dict(file["where"].attrs) | (dict(file["dataset1/where"].attrs) if "where" in file["dataset1"] else {})
    needed = ("projdef", "xsize", "ysize", "xscale", "yscale", "LL_lon", "LL_lat")
    missing = [name for name in needed if name not in where]
    if missing:
        raise ValueError(f"{file.filename} has no georeference: {', '.join(missing)} missing in `where`")
    text = parse_text(where["projdef"])
    height, width = int(parse_number(where["ysize"])), int(parse_number(where["xsize"]))
    dy, dx = parse_number(where["yscale"]), parse_number(where["xscale"])
    for name, (values, _) in fields.items():
        if values.shape != (height, width):
            raise ValueError(
                f"the field {name} has the shape {values.shape}, where/ysize and xsize say {height}, {width}"
            )
    if not (dy > 0 and dx > 0):
        raise ValueError(f"where/xscale and yscale are {dx:g} and {dy:g}; expected positive numbers")
    geographic = cf_builder.parse_crs(text).is_geographic
    left, bottom = cf_builder.project(text, parse_number(where["LL_lon"]), parse_number(where["LL_lat"]))
    if not geographic:  # corners are stored in degrees, to a millimetre or so
        left, bottom = round(left, 2), round(bottom, 2)
    top, right = bottom + dy * height, left + dx * width
    edges = {"LL": (left, bottom), "UL": (left, top), "UR": (right, top), "LR": (right, bottom)}
    corners = {
        name: (parse_number(where[f"{name}_lon"]), parse_number(where[f"{name}_lat"]))
        for name in edges
        if f"{name}_lon" in where and f"{name}_lat" in where
    }
    cf_builder.check_corners(corners, text, edges, (dy, dx))
    axes = cf_builder.compute_cell_centres(top, -dy, height), cf_builder.compute_cell_centres(left, dx, width)
    if geographic:
        return cf_builder.make_geographic_dataset(fields, [time], axes, **attributes)
    return cf_builder.make_projected_dataset(
        fields, [time], axes, cf_builder.make_grid_mapping(text, axes), **attributes
    )


FORMAT = Format(name="ODIM HDF5", files="composites of OPERA, DWD, FMI, DMI", matches=matches, read=read, order=10)
