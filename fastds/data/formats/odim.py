# SPDX-License-Identifier: Apache-2.0
"""Composites in ODIM HDF5: OPERA, DWD, FMI, DMI and other European services."""

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np
import xarray as xr

from fastds.data.errors import listed, warn_left_out
from fastds.data.formats import maps
from fastds.data.formats.attributes import number_of, required, text_of
from fastds.data.formats.contents import Contents
from fastds.data.formats.hdf5 import check_filters, errors_of_hdf5
from fastds.data.radar.reflectivity import NO_ECHO_DBZ

_REFLECTIVITY = ("DBZH", "DBZV", "TH", "TV")
_MAPS = ("COMP", "IMAGE")
_MOST_FIELDS = 1000


def recognises(contents: Contents) -> bool:
    """True for HDF5 with the groups what, where and dataset1."""
    return {"what", "where", "dataset1"} <= contents.groups


def read(contents: Contents) -> xr.Dataset:
    """Read a composite: reflectivity (DBZH, DBZV, TH, TV), rain rates (RATE) or amounts (ACRR), and quality (QIND).

    `undetect` is no echo (-32 dBZ, 0 mm), `nodata` is missing. The time is the nominal one, that of a forecast the end
    of its interval; the scalar coordinate `lead` tells them apart. A quantity that is there several times, of other
    times or heights, is taken from the first dataset, and a warning counts the others.

    Raises: ValueError for polar volumes and scans, for files without one of these quantities or without georeference,
        and where the corners of the file do not agree with its projection and size.
    Source: EUMETNET OPERA, ODIM_H5 2.0 to 2.4.
    """
    with errors_of_hdf5(contents), contents.hdf5() as file:
        check_filters(file, contents)
        kind = text_of(file["what"].attrs.get("object", ""))
        if kind not in _MAPS:
            raise ValueError(
                f"{contents.path} holds polar data (ODIM {kind}); grid them first, with xradar and wradlib"
            )
        fields, interval, others = {}, None, []
        for quantity, dataset, data in _quantities(file):
            field = _field(quantity, data, dataset)
            if field and not set(field) & set(fields):
                fields |= field
                interval = interval or _interval(dataset)
            elif field:
                others.append((quantity, dataset, data))
        if not set(fields) - {"quality"}:
            found = ", ".join(sorted({quantity for quantity, _, _ in _quantities(file)})) or "none"
            raise ValueError(f"{contents.path} holds the quantities {found}; expected DBZH, DBZV, TH, TV, RATE or ACRR")
        nominal = _moment(file["what"].attrs, "", "what")
        lead = _lead(nominal, interval)
        named = {"title": f"ODIM composite {', '.join(sorted(set(fields) - {'quality'}))}"}
        named["institution"] = text_of(file["what"].attrs.get("source", ""))
        found = _map(file, fields, nominal + lead, named)
        _warn_of_others(contents, nominal, others)
    return found.assign_coords(lead=((), np.timedelta64(int(lead.total_seconds()), "s")))


def _warn_of_others(contents: Contents, nominal: datetime.datetime, others: list[tuple]) -> None:
    """Name the fields that are left out, since one of their quantity came before."""
    if not others:
        return
    leads = [_lead(nominal, _interval(dataset)).total_seconds() / 60 for _, dataset, _ in others]
    ahead = f", forecasts up to {max(leads):g} min ahead among them" if max(leads) > 0 else ""
    places = [data.name.lstrip("/") for _, _, data in others]
    what = f"{len(others)} further field{'s' * (len(others) > 1)} of {contents.path} ({listed(places, 4)}{ahead})"
    warn_left_out(what, len(others), "the first of a quantity is taken")


def _quantities(file: h5py.File) -> Iterator[tuple[str, h5py.Group, h5py.Group]]:
    """Quantity, dataset group and data group of every field, in order."""
    for number in range(1, _MOST_FIELDS):
        dataset = file.get(f"dataset{number}")
        if dataset is None:
            return
        for part in range(1, _MOST_FIELDS):
            data = dataset.get(f"data{part}")
            if data is None:
                break
            yield text_of(_attribute(data, dataset, "quantity") or ""), dataset, data


def _field(quantity: str, data: h5py.Group, dataset: h5py.Group) -> maps.Fields:
    """The field of a data group; {} for quantities that are no radar map."""
    if quantity in _REFLECTIVITY:
        return maps.reflectivity(_values(data, dataset, NO_ECHO_DBZ), NO_ECHO_DBZ)
    if quantity == "RATE":
        return maps.rainfall_rate(_values(data, dataset, 0.0))
    if quantity == "ACRR":
        interval = _interval(dataset)
        if interval is None:
            named = dataset.name.lstrip("/")
            raise ValueError(f"amounts (ACRR) need startdate, starttime, enddate and endtime in {named}/what")
        start, end = interval
        if end <= start:
            raise ValueError(
                f"the interval of {dataset.name.lstrip('/')}/what ends at {end}, before it starts, {start}"
            )
        return maps.rainfall_amount(_values(data, dataset, 0.0), (end - start).total_seconds() / 60.0)
    if quantity == "QIND":
        return {"quality": (_values(data, dataset, np.nan), {"long_name": "quality index", "units": "1"})}
    return {}


def _values(data: h5py.Group, dataset: h5py.Group, undetected: float) -> np.ndarray:
    codes = data["data"][...]
    gain, offset, nodata, undetect = (
        number_of(default if value is None else value)
        for value, default in (
            (_attribute(data, dataset, name), default)
            for name, default in (("gain", 1.0), ("offset", 0.0), ("nodata", np.nan), ("undetect", np.nan))
        )
    )
    if not np.isfinite([gain, offset]).all() or gain == 0:
        raise ValueError(
            f"{data.name.lstrip('/')}/what has gain {gain:g} and offset {offset:g}, so the values are lost"
        )
    values = np.where(maps.equals_code(codes, undetect), undetected, codes * gain + offset)
    return np.where(maps.equals_code(codes, nodata), np.nan, values).astype(np.float32)


def _attribute(data: h5py.Group, dataset: h5py.Group, name: str) -> Any:
    """An attribute of `what`, which may be given for the field or for all of a dataset; None where it is absent."""
    for group in (data, dataset):
        if "what" in group and name in group["what"].attrs:
            return group["what"].attrs[name]
    return None


def _interval(dataset: h5py.Group) -> tuple[datetime.datetime, datetime.datetime] | None:
    """Start and end of what a dataset stands for; None where it does not say."""
    attrs = dataset["what"].attrs if "what" in dataset else {}
    names = ("startdate", "starttime", "enddate", "endtime")
    if not all(name in attrs and text_of(attrs[name]).strip() for name in names):
        return None
    where = f"{dataset.name.lstrip('/')}/what"
    return _moment(attrs, "start", where), _moment(attrs, "end", where)


def _lead(nominal: datetime.datetime, interval: tuple[datetime.datetime, ...] | None) -> datetime.timedelta:
    """How far ahead of the nominal time a forecast's interval ends; zero for what began before that time."""
    if interval is None or interval[0] < nominal or interval[1] <= nominal:
        return datetime.timedelta(0)
    return interval[1] - nominal


def _moment(attrs: Mapping[str, Any], prefix: str, where: str) -> datetime.datetime:
    """The time of a pair of attributes; 240000 is the start of the next day."""
    date, clock = (text_of(required(attrs, f"{prefix}{part}", where)).strip() for part in ("date", "time"))
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


def _map(file: h5py.File, fields: maps.Fields, time: datetime.datetime, named: dict[str, str]) -> xr.Dataset:
    """The fields on their grid, projected in metres or geographic in degrees, rows from north to south."""
    where = dict(file["where"].attrs) | (dict(file["dataset1/where"].attrs) if "where" in file["dataset1"] else {})
    needed = ("projdef", "xsize", "ysize", "xscale", "yscale", "LL_lon", "LL_lat")
    missing = [name for name in needed if name not in where]
    if missing:
        raise ValueError(f"{file.filename} has no georeference: {', '.join(missing)} missing in `where`")
    text = text_of(where["projdef"])
    height, width = int(number_of(where["ysize"])), int(number_of(where["xsize"]))
    dy, dx = number_of(where["yscale"]), number_of(where["xscale"])
    for name, (values, _) in fields.items():
        if values.shape != (height, width):
            raise ValueError(
                f"the field {name} has the shape {values.shape}, where/ysize and xsize say {height}, {width}"
            )
    if not (dy > 0 and dx > 0):
        raise ValueError(f"where/xscale and yscale are {dx:g} and {dy:g}; expected positive numbers")
    geographic = maps.read_crs(text).is_geographic
    left, bottom = maps.project(text, number_of(where["LL_lon"]), number_of(where["LL_lat"]))
    if not geographic:  # corners are stored in degrees, to a millimetre or so
        left, bottom = round(left, 2), round(bottom, 2)
    top, right = bottom + dy * height, left + dx * width
    edges = {"LL": (left, bottom), "UL": (left, top), "UR": (right, top), "LR": (right, bottom)}
    corners = {
        name: (number_of(where[f"{name}_lon"]), number_of(where[f"{name}_lat"]))
        for name in edges
        if f"{name}_lon" in where and f"{name}_lat" in where
    }
    maps.check_corners(corners, text, edges, (dy, dx))
    axes = maps.centres(top, -dy, height), maps.centres(left, dx, width)
    if geographic:
        return maps.geographic_map(fields, [time], axes, **named)
    return maps.projected_map(fields, [time], axes, maps.projection(text, axes), **named)
