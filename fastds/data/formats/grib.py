# SPDX-License-Identifier: Apache-2.0
"""GRIB by cfgrib, plain or gzipped, and the composites of NOAA's MRMS, whose parameters ecCodes does not know."""

import contextlib
import functools
import math
import pathlib
import re
import tempfile
import warnings

import numpy as np
import xarray as xr

from fastds.data.errors import warn_left_out
from fastds.data.formats import maps
from fastds.data.formats.contents import Contents
from fastds.data.formats.grib_messages import check_messages
from fastds.data.formats.lazy import map_values
from fastds.data.packages import import_pyproj, require
from fastds.data.radar.reflectivity import NO_ECHO_DBZ

_LONGEST_HEADER = 256  # bytes before the first message
_SCANNING_KEYS = ["iScansNegatively", "jPointsAreConsecutive", "alternativeRowScanning"]
# Grids whose points ecCodes places from the first point northwards, though messages may scan from north to south.
_PROJECTED = ("lambert", "polar_stereographic", "albers", "lambert_azimuthal_equal_area")
_PLACE_KEYS = ["jScansPositively", "projString", "DxInMetres", "DyInMetres"]
_PLACE_KEYS += ["latitudeOfFirstGridPointInDegrees", "longitudeOfFirstGridPointInDegrees"]
_READ_KEYS = _SCANNING_KEYS + _PLACE_KEYS
_FIELD_KEYS = (
    "paramId", "shortName", "typeOfLevel", "level", "bottomLevel", "stepType", "dataType", "number", "validityDate",
    "validityTime", "numberOfPoints", "gridType", "latitudeOfFirstGridPoint", "longitudeOfFirstGridPoint",
)  # fmt: skip
_PLANE = ("latitude", "longitude", "y", "x", "values")
_MRMS_CENTRE = "161"
_MRMS_NAME = re.compile(r"(?:MRMS_)?([A-Za-z0-9]+(?:_QPE_\d+H)?)")
_HOURS = re.compile(r"QPE_(\d+)H")
# The product of a file is told by its name; these are (missing, no coverage) in its values.
_DRY_MISSING, _ECHO_MISSING = -1.0, -99.0


def recognises(contents: Contents) -> bool:
    """True for GRIB of edition 1 or 2, gzipped or not, behind a header of the WMO, too."""
    at = contents.start.find(b"GRIB", 0, _LONGEST_HEADER)
    return at == 0 or (at > 0 and contents.start[at + 7 : at + 8] in (b"\x01", b"\x02"))


def read(contents: Contents) -> xr.Dataset:
    """Open GRIB lazily (gzipped: in memory); times are those the fields are valid at.

    Rows and columns are those of the coordinates, however the messages scan them. Of several fields at one valid time,
    as of two runs, the last in the file is taken, and a warning counts the others. Fields on several kinds of level
    come as variables of one dataset; of a name that is there on several kinds of level each gets the kind as its ending
    (t_surface). MRMS products become rain rates, amounts or reflectivity by the file's name.

    Raises: ValueError for what cfgrib cannot read and MRMS products that are none of these; ImportError without cfgrib.
    """
    require("cfgrib", "GRIB files")
    with contextlib.suppress(ImportError):
        import_pyproj()  # whoever loads it after ecCodes, and not by this function, gets a double free
    with contents.unpacked() as path:
        try:
            dataset = _open(path)
            if contents.compressed:
                dataset.load()
        except Exception as error:
            text = str(error).strip().splitlines() or [""]
            raise ValueError(
                f"{contents.path} looks like GRIB but cannot be read ({type(error).__name__}: {text[0]}); it may be "
                "truncated or damaged"
            ) from error
    return _mrms(dataset, contents) if str(dataset.attrs.get("GRIB_centre")) == _MRMS_CENTRE else dataset


def _open(path) -> xr.Dataset:
    from cfgrib.dataset import DatasetBuildError

    check_messages(path)
    # "raise": else a damaged message is left out
    how = {"indexpath": "", "time_dims": ["valid_time"], "errors": "raise", "read_keys": _READ_KEYS}
    try:
        dataset = xr.open_dataset(path, engine="cfgrib", backend_kwargs=how)
    except DatasetBuildError:
        dataset = _merged(path)
    if not dataset.variables:
        raise ValueError("no field was found")
    _warn_of_hidden(path, dataset)
    dataset = _placed(dataset).assign({name: _upright(variable) for name, variable in dataset.data_vars.items()})
    for variable in dataset.data_vars.values():
        variable.attrs.pop("GRIB_projString", None)
    return dataset.rename(valid_time="time") if "valid_time" in dataset.variables else dataset


def _placed(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with the latitudes and longitudes of a projected grid whose messages scan from north to south; they
    begin at the first point and go on southwards (WMO, flag table 3.4). Warns (UserWarning), since ecCodes takes the
    first point for the southernmost row's."""
    for field in dataset.data_vars.values():
        attrs = field.attrs
        if attrs.get("GRIB_gridType") in _PROJECTED and attrs.get("GRIB_jScansPositively") == 0:
            require("pyproj", "projected GRIB that is scanned from north to south")
            projection = import_pyproj().Proj(attrs["GRIB_projString"])
            said = f"the {attrs['GRIB_gridType']} grid is scanned from north to south"
            warnings.warn(f"{said}: its first point is taken for the northernmost row's", UserWarning, stacklevel=3)
            names = ("longitude", "latitude")
            x, y = projection(*(attrs[f"GRIB_{name}OfFirstGridPointInDegrees"] for name in names))
            rows, columns = (np.arange(size) for size in field.shape[-2:])
            plane = np.meshgrid(x + attrs["GRIB_DxInMetres"] * columns, y - attrs["GRIB_DyInMetres"] * rows)
            places = zip(names, projection(*plane, inverse=True), strict=True)
            return dataset.assign_coords(
                {
                    name: dataset[name].copy(data=values % 360 if name == "longitude" else values)
                    for name, values in places
                }
            )
    return dataset


def _upright(field: xr.DataArray) -> xr.Variable:
    """The values of a field in the order of its coordinates, which cfgrib gives in that of the scanning rows alone.

    Raises: ValueError for grids with 2-D coordinates that are scanned otherwise."""
    left, columns, alternate = (int(field.attrs.get(f"GRIB_{key}", 0)) for key in _SCANNING_KEYS)
    if not (left or columns or alternate):
        return field.variable
    if field.dims[-2:] != ("latitude", "longitude"):
        raise ValueError(
            f"{field.name} is scanned from east to west, by columns or with alternating rows on a grid of the type "
            f"{field.attrs.get('GRIB_gridType')}; reorder it first (grib_copy, wgrib2 -order, cdo)"
        )
    order = functools.partial(_in_order, left=bool(left), columns=bool(columns), alternate=bool(alternate))
    return map_values(field.variable, order, planes=True)


def _in_order(values: np.ndarray, left: bool, columns: bool, alternate: bool) -> np.ndarray:
    """Planes (..., rows, columns) as cfgrib reads them, with columns from west to east (WMO code table 3.4).

    cfgrib turns every second of its rows where the messages alternate, though these may be of columns."""
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


def _warn_of_hidden(path, dataset: xr.Dataset) -> None:
    """Count the messages behind others of the same field and valid time; they are looked at only where there are not as
    many messages as fields."""
    import eccodes

    fields = sum(math.prod(v.sizes[d] for d in v.dims if d not in _PLANE) for v in dataset.data_vars.values())
    with open(path, "rb") as file:
        if eccodes.codes_count_in_file(file) == fields:
            return
    seen: set[tuple] = set()
    hidden = 0
    with open(path, "rb") as file:
        while (handle := eccodes.codes_grib_new_from_file(file, headers_only=True)) is not None:
            field = tuple(_key(handle, name) for name in _FIELD_KEYS)
            eccodes.codes_release(handle)
            hidden += field in seen
            seen.add(field)
    if hidden:
        what = f"{hidden} field{'s' * (hidden > 1)} of {pathlib.Path(path).name}"
        warn_left_out(what, hidden, "of several at one valid time, as of two runs, the last is taken")


def _key(handle: int, name: str) -> object:
    """The value of a key of a message; None where it has none."""
    import eccodes

    try:
        return eccodes.codes_get(handle, name)
    except eccodes.KeyValueNotFoundError:
        return None


def _merged(path) -> xr.Dataset:
    """One dataset of the hypercubes that cfgrib finds; scalar levels are left out, each variable tells its own."""
    import cfgrib

    # cfgrib merges trial by trial: by an index it reads the file once. It warns at each future default of xarray.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        how = {"indexpath": f"{folder}/{{short_hash}}.idx", "time_dims": ["valid_time"], "read_keys": _READ_KEYS}
        how["errors"] = "raise"
        parts = cfgrib.open_datasets(path, backend_kwargs=how)
    count = {}
    for part in parts:
        for name in part.data_vars:
            count[name] = count.get(name, 0) + 1
    merged, sizes = {}, {}  # sizes: of the dimensions of levels
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


def _mrms(dataset: xr.Dataset, contents: Contents) -> xr.Dataset:
    """The only field of an MRMS file with its name, units and codes."""
    match = _MRMS_NAME.match(contents.path.name)
    product, (name,) = match[1] if match else "", dataset.data_vars
    values = dataset[name].values
    if product == "PrecipRate":
        fields = maps.rainfall_rate(np.where(values <= _DRY_MISSING, np.nan, values))
    elif hours := _HOURS.search(product):
        fields = maps.rainfall_amount(np.where(values <= _DRY_MISSING, np.nan, values), 60.0 * int(hours[1]))
    elif "Reflectivity" in product or product == "SeamlessHSR":
        no_echo = np.where(values <= _ECHO_MISSING, NO_ECHO_DBZ, values)
        fields = maps.reflectivity(np.where(values < _ECHO_MISSING, np.nan, no_echo), NO_ECHO_DBZ)
    else:
        raise ValueError(
            f"{contents.path}: the name of an MRMS file must tell a product of rain or reflectivity, such as "
            "MRMS_PrecipRate_00.00_20250601-005800.grib2.gz"
        )
    named = {"title": f"MRMS {product}", "institution": str(dataset.attrs.get("institution", "NOAA"))}
    axes = tuple(np.round(dataset[axis].values, 5) for axis in ("latitude", "longitude"))
    return maps.geographic_map(fields, [dataset["time"].values], axes, **named)
