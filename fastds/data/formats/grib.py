# SPDX-License-Identifier: Apache-2.0
"""Reader of GRIB with cfgrib and of NOAA's MRMS composites, whose parameters ecCodes lacks."""

import contextlib
import functools
import math
import pathlib
import re
import tempfile
import warnings
from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from fastds.data.errors import warn_left_out
from fastds.data.formats import cf_builder
from fastds.data.formats.file_format import Format
from fastds.data.formats.file_probe import FileProbe
from fastds.data.formats.grib_messages import check_messages
from fastds.data.formats.lazy import map_values
from fastds.data.packages import import_pyproj, require
from fastds.data.radar.reflectivity import NO_ECHO_DBZ

_LONGEST_HEADER = 256  # largest number of bytes before the first message
_SCANNING_KEYS = ["iScansNegatively", "jPointsAreConsecutive", "alternativeRowScanning"]
# For these grid types ecCodes computes coordinates from the first point northwards, even if the scan goes southwards.
_PROJECTED = ("lambert", "polar_stereographic", "albers", "lambert_azimuthal_equal_area")
_POSITION_KEYS = ["jScansPositively", "projString", "DxInMetres", "DyInMetres"]
_POSITION_KEYS += ["latitudeOfFirstGridPointInDegrees", "longitudeOfFirstGridPointInDegrees"]
_READ_KEYS = _SCANNING_KEYS + _POSITION_KEYS
_FIELD_KEYS = (
    "paramId", "shortName", "typeOfLevel", "level", "bottomLevel", "stepType", "dataType", "number", "validityDate",
    "validityTime", "numberOfPoints", "gridType", "latitudeOfFirstGridPoint", "longitudeOfFirstGridPoint",
)  # fmt: skip
_PLANE_DIMS = ("latitude", "longitude", "y", "x", "values")
_MRMS_CENTRE = "161"
_MRMS_NAME = re.compile(r"(?:MRMS_)?([A-Za-z0-9]+(?:_QPE_\d+H)?)")
_HOURS = re.compile(r"QPE_(\d+)H")
# Codes of MRMS. Rain at or below _MRMS_RAIN_MISSING is missing. Reflectivity equal to _MRMS_NO_ECHO means no echo, and
# lower reflectivity is missing.
_MRMS_RAIN_MISSING, _MRMS_NO_ECHO = -1.0, -99.0


def matches(probe: FileProbe) -> bool:
    """Return True for GRIB edition 1 or 2, uncompressed or gzipped, also after a WMO header."""
    at = probe.header.find(b"GRIB", 0, _LONGEST_HEADER)
    return at == 0 or (at > 0 and probe.header[at + 7 : at + 8] in (b"\x01", b"\x02"))


def read(probe: FileProbe) -> xr.Dataset:
    """Open GRIB lazily; a gzipped file is loaded into memory. Times are valid times.

    Rows and columns have the order of the coordinates, however the messages scan the grid. If several fields have the
    same valid time, such as those of two runs, the last in the file is taken and a warning counts the others. Fields on
    several types of level become variables of one dataset; a name that occurs on several types gets the type as suffix,
    such as t_surface. MRMS products become rain rates, amounts or reflectivity according to the file name.

    Raises:
        ImportError: cfgrib is not installed.
        ValueError: cfgrib cannot read the file, or an MRMS product is neither rain nor reflectivity.
    """
    require("cfgrib", "GRIB files")
    with contextlib.suppress(ImportError):
        import_pyproj()  # an ordinary import of pyproj after ecCodes would end in a double free
    with probe.unpack() as path:
        try:
            dataset = _open(path)
            if probe.is_compressed:
                dataset.load()
        except Exception as error:
            text = str(error).strip().splitlines() or [""]
            raise ValueError(
                f"{probe.path} looks like GRIB but cannot be read ({type(error).__name__}: {text[0]}); it may be "
                "truncated or damaged"
            ) from error
    return _convert_mrms(dataset, probe) if str(dataset.attrs.get("GRIB_centre")) == _MRMS_CENTRE else dataset


def _open(path) -> xr.Dataset:
    from cfgrib.dataset import DatasetBuildError

    check_messages(path)
    # errors="raise": by default cfgrib silently leaves out damaged messages.
    options = {"indexpath": "", "time_dims": ["valid_time"], "errors": "raise", "read_keys": _READ_KEYS}
    try:
        dataset = xr.open_dataset(path, engine="cfgrib", backend_kwargs=options)
    except DatasetBuildError:
        dataset = _merge_hypercubes(path)
    if not dataset.variables:
        raise ValueError("no field was found")
    _warn_of_duplicates(path, dataset)
    dataset = _correct_projected_coordinates(dataset).assign(
        {name: _reorder_scan(variable) for name, variable in dataset.data_vars.items()}
    )
    for variable in dataset.data_vars.values():
        variable.attrs.pop("GRIB_projString", None)
    return dataset.rename(valid_time="time") if "valid_time" in dataset.variables else dataset


def _correct_projected_coordinates(dataset: xr.Dataset) -> xr.Dataset:
    """Return the dataset with corrected latitudes and longitudes if its projected grid is scanned from north to south.

    The coordinates begin at the first point and continue southwards (WMO flag table 3.4), whereas ecCodes takes the
    first point as part of the southernmost row. Warns (UserWarning) about the correction.
    """
    for field in dataset.data_vars.values():
        attrs = field.attrs
        if attrs.get("GRIB_gridType") in _PROJECTED and attrs.get("GRIB_jScansPositively") == 0:
            require("pyproj", "projected GRIB that is scanned from north to south")
            projection = import_pyproj().Proj(attrs["GRIB_projString"])
            warnings.warn(
                f"the {attrs['GRIB_gridType']} grid is scanned from north to south: its first point is taken for the "
                "northernmost row's",
                UserWarning,
                stacklevel=3,
            )
            names = ("longitude", "latitude")
            x, y = projection(*(attrs[f"GRIB_{name}OfFirstGridPointInDegrees"] for name in names))
            rows, columns = (np.arange(size) for size in field.shape[-2:])
            plane = np.meshgrid(x + attrs["GRIB_DxInMetres"] * columns, y - attrs["GRIB_DyInMetres"] * rows)
            positions = zip(names, projection(*plane, inverse=True), strict=True)
            return dataset.assign_coords(
                {
                    name: dataset[name].copy(data=values % 360 if name == "longitude" else values)
                    for name, values in positions
                }
            )
    return dataset


def _reorder_scan(field: xr.DataArray) -> xr.Variable:
    """Return the variable of a field with its values in the order of the coordinates.

    cfgrib only takes the vertical scanning direction into account.

    Raises:
        ValueError: A grid with 2-D coordinates is scanned in another order than rows from west to east.
    """
    left, columns, alternate = (int(field.attrs.get(f"GRIB_{key}", 0)) for key in _SCANNING_KEYS)
    if not (left or columns or alternate):
        return field.variable
    if field.dims[-2:] != ("latitude", "longitude"):
        raise ValueError(
            f"{field.name} is scanned from east to west, by columns or with alternating rows on a grid of the type "
            f"{field.attrs.get('GRIB_gridType')}; reorder it first (grib_copy, wgrib2 -order, cdo)"
        )
    order = functools.partial(_undo_scan_order, left=bool(left), columns=bool(columns), alternate=bool(alternate))
    return map_values(field.variable, order, planes=True)


def _undo_scan_order(values: np.ndarray, left: bool, columns: bool, alternate: bool) -> np.ndarray:
    """Reorder planes that cfgrib has read, so that columns run from west to east (scanning modes: WMO code table 3.4).

    cfgrib reverses every second row if the messages alternate, even if the alternating lines are columns.

    Args:
        values: (..., rows, columns), as read by cfgrib.
        left: Whether columns are scanned from east to west.
        columns: Whether consecutive points lie in columns.
        alternate: Whether the scanning direction alternates.
    """
    height, width = values.shape[-2:]
    if columns:
        values = values.copy()
        if alternate:
            values[..., 1::2, :] = values[..., 1::2, ::-1]
        values = values.reshape(*values.shape[:-2], width, height)
        if alternate:
            values[..., 1::2, :] = values[..., 1::2, ::-1]
        values = np.swapaxes(values, -1, -2)
    return values[..., ::-1] if left else values


def _warn_of_duplicates(path, dataset: xr.Dataset) -> None:
    """Warn about messages that have the same field and valid time as another message of the file.

    The keys of the messages are read only if the number of messages differs from the number of fields.
    """
    import eccodes

    fields = sum(math.prod(v.sizes[d] for d in v.dims if d not in _PLANE_DIMS) for v in dataset.data_vars.values())
    with open(path, "rb") as file:
        if eccodes.codes_count_in_file(file) == fields:
            return
    seen: set[tuple] = set()
    hidden = 0
    with open(path, "rb") as file:
        while (handle := eccodes.codes_grib_new_from_file(file, headers_only=True)) is not None:
            field = tuple(_read_key(handle, name) for name in _FIELD_KEYS)
            eccodes.codes_release(handle)
            hidden += field in seen
            seen.add(field)
    if hidden:
        subject = f"{hidden} field{'s' * (hidden > 1)} of {pathlib.Path(path).name}"
        warn_left_out(subject, hidden, "of several at one valid time, as of two runs, the last is taken")


def _read_key(handle: int, name: str) -> object:
    """Return the value of a key of a message, or None if the message has no such key."""
    import eccodes

    try:
        return eccodes.codes_get(handle, name)
    except eccodes.KeyValueNotFoundError:
        return None


def _merge_hypercubes(path) -> xr.Dataset:
    """Merge the hypercubes that cfgrib finds into one dataset.

    Scalar levels become the attribute `level` of each variable.
    """
    import cfgrib

    # cfgrib merges by trial and error; with an index it reads the file once. Its calls of xarray emit FutureWarning.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        options = {"indexpath": f"{folder}/{{short_hash}}.idx", "time_dims": ["valid_time"], "read_keys": _READ_KEYS}
        options["errors"] = "raise"
        parts = cfgrib.open_datasets(path, backend_kwargs=options)
    count: dict[Hashable, int] = {}
    for part in parts:
        for name in part.data_vars:
            count[name] = count.get(name, 0) + 1
    merged: dict[Hashable, Any] = {}
    sizes: dict[Any, Any] = {}  # type of level -> number of levels
    for part in parts:
        for name, variable in part.data_vars.items():
            kind = variable.attrs.get("GRIB_typeOfLevel", "level")
            drop = [c for c, v in variable.coords.items() if not v.ndim and c not in ("valid_time", "time", "step")]
            levels = ", ".join(f"{c} {float(variable[c]):g}" for c in drop if variable[c].dtype.kind in "fiu")
            variable = variable.drop_vars([*drop, "step"], errors="ignore").assign_attrs(level=levels or kind)
            if kind in variable.dims and sizes.setdefault(kind, variable.sizes[kind]) != variable.sizes[kind]:
                variable = variable.rename({kind: f"{kind}_{variable.sizes[kind]}"})
            target = f"{name}_{kind}" if count[name] > 1 else name
            while target in merged:
                target += "_"
            merged[target] = variable
    return xr.Dataset(merged, attrs=parts[0].attrs)


def _convert_mrms(dataset: xr.Dataset, probe: FileProbe) -> xr.Dataset:
    """Convert the only field of an MRMS file to a dataset with standard name, units and missing values."""
    match = _MRMS_NAME.match(probe.path.name)
    product, (name,) = match[1] if match else "", dataset.data_vars
    values = dataset[name].values
    if product == "PrecipRate":
        fields = cf_builder.make_rain_rate_field(np.where(values <= _MRMS_RAIN_MISSING, np.nan, values))
    elif hours := _HOURS.search(product):
        fields = cf_builder.make_rain_amount_field(
            np.where(values <= _MRMS_RAIN_MISSING, np.nan, values), 60.0 * int(hours[1])
        )
    elif "Reflectivity" in product or product == "SeamlessHSR":
        no_echo = np.where(values <= _MRMS_NO_ECHO, NO_ECHO_DBZ, values)
        fields = cf_builder.make_reflectivity_field(np.where(values < _MRMS_NO_ECHO, np.nan, no_echo), NO_ECHO_DBZ)
    else:
        raise ValueError(
            f"{probe.path}: the name of an MRMS file must contain a product of rain or reflectivity, such as "
            "MRMS_PrecipRate_00.00_20250601-005800.grib2.gz"
        )
    attributes = {"title": f"MRMS {product}", "institution": str(dataset.attrs.get("institution", "NOAA"))}
    y, x = (np.round(dataset[axis].values, 5) for axis in ("latitude", "longitude"))
    return cf_builder.make_geographic_dataset(fields, [dataset["time"].values], (y, x), **attributes)


FORMAT = Format(
    name="GRIB",
    files="fields of weather models and reanalyses, MRMS",
    matches=matches,
    read=read,
    order=70,
    lead_is_data=True,
)
