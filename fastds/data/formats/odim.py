# SPDX-License-Identifier: Apache-2.0
"""Composites in ODIM HDF5: OPERA, DWD, FMI, DMI and other European services."""

import datetime
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
import xarray as xr

from fastds.data.formats import maps
from fastds.data.formats.attributes import number_of, text_of
from fastds.data.formats.contents import Contents
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
    of its interval; the scalar coordinate `lead` tells them apart. A quantity that is there several times, at heights
    say, is taken from the first dataset.

    Raises: ValueError for polar volumes and scans, for files without one of these quantities or without georeference.
    Source: EUMETNET OPERA, ODIM_H5 2.0 to 2.4.
    """
    with contents.hdf5() as file:
        kind = text_of(file["what"].attrs.get("object", ""))
        if kind not in _MAPS:
            raise ValueError(
                f"{contents.path} holds polar data (ODIM {kind}); grid them first, with xradar and wradlib"
            )
        fields, interval = {}, None
        for quantity, dataset, data in _quantities(file):
            field = _field(quantity, data, dataset)
            if field and not set(field) & set(fields):
                fields |= field
                interval = interval or _interval(dataset)
        if not set(fields) - {"quality"}:
            found = ", ".join(sorted({quantity for quantity, _, _ in _quantities(file)})) or "none"
            raise ValueError(f"{contents.path} holds the quantities {found}; expected DBZH, DBZV, TH, TV, RATE or ACRR")
        nominal = _moment(file["what"].attrs, "")
        lead = _lead(nominal, interval)
        proj4, y, x = _grid(file)
        named = {"title": f"ODIM composite {', '.join(sorted(set(fields) - {'quality'}))}"}
        named["institution"] = text_of(file["what"].attrs.get("source", ""))
        found = maps.projected_map(fields, [nominal + lead], (y, x), maps.projection(proj4, (y, x)), **named)
    return found.assign_coords(lead=((), np.timedelta64(int(lead.total_seconds()), "s")))


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
        start, end = _interval(dataset)
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
    values = np.where(codes == undetect, undetected, codes * gain + offset)
    return np.where(codes == nodata, np.nan, values).astype(np.float32)


def _attribute(data: h5py.Group, dataset: h5py.Group, name: str) -> Any:
    """An attribute of `what`, which may be given for the field or for all of a dataset; None where it is absent."""
    for group in (data, dataset):
        if "what" in group and name in group["what"].attrs:
            return group["what"].attrs[name]
    return None


def _interval(dataset: h5py.Group) -> tuple[datetime.datetime, datetime.datetime] | None:
    """Start and end of what a dataset stands for; None where it does not say."""
    attrs = dataset["what"].attrs if "what" in dataset else {}
    if not {"startdate", "starttime", "enddate", "endtime"} <= set(attrs):
        return None
    return _moment(attrs, "start"), _moment(attrs, "end")


def _lead(nominal: datetime.datetime, interval: tuple[datetime.datetime, ...] | None) -> datetime.timedelta:
    """How far ahead of the nominal time a forecast's interval ends; zero for what began before that time."""
    if interval is None or interval[0] < nominal or interval[1] <= nominal:
        return datetime.timedelta(0)
    return interval[1] - nominal


def _moment(attrs: Any, prefix: str) -> datetime.datetime:
    text = text_of(attrs[f"{prefix}date"]) + text_of(attrs[f"{prefix}time"])[:6].ljust(6, "0")
    return datetime.datetime.strptime(text, "%Y%m%d%H%M%S")


def _grid(file: h5py.File) -> tuple[str, np.ndarray, np.ndarray]:
    """PROJ string, and centres y (north to south) and x in metres."""
    where = dict(file["where"].attrs) | (dict(file["dataset1/where"].attrs) if "where" in file["dataset1"] else {})
    needed = ("projdef", "xsize", "ysize", "xscale", "yscale", "LL_lon", "LL_lat")
    missing = [name for name in needed if name not in where]
    if missing:
        raise ValueError(f"{file.filename} has no georeference: {', '.join(missing)} missing in `where`")
    proj4 = text_of(where["projdef"])
    height, width = int(number_of(where["ysize"])), int(number_of(where["xsize"]))
    dy, dx = number_of(where["yscale"]), number_of(where["xscale"])
    left, bottom = maps.project(proj4, number_of(where["LL_lon"]), number_of(where["LL_lat"]))
    # Corners are stored in degrees, to a millimetre or so.
    left, bottom = round(left, 2), round(bottom, 2)
    return proj4, maps.centres(bottom + dy * height, -dy, height), maps.centres(left, dx, width)
