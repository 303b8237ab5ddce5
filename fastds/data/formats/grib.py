# SPDX-License-Identifier: Apache-2.0
"""GRIB by cfgrib, plain or gzipped, and the composites of NOAA's MRMS, whose parameters ecCodes does not know."""

import contextlib
import re
import tempfile
import warnings

import numpy as np
import xarray as xr

from fastds.data.formats import maps
from fastds.data.formats.contents import Contents
from fastds.data.packages import import_pyproj, require
from fastds.data.radar.reflectivity import NO_ECHO_DBZ

_MRMS_CENTRE = "161"
_MRMS_NAME = re.compile(r"MRMS_([A-Za-z0-9]+(?:_QPE_\d+H)?)")
_HOURS = re.compile(r"QPE_(\d+)H")
# The product of a file is told by its name; these are (missing, no coverage) in its values.
_DRY_MISSING, _ECHO_MISSING = -1.0, -99.0


def recognises(contents: Contents) -> bool:
    """True for GRIB of edition 1 or 2, gzipped or not."""
    return contents.start.startswith(b"GRIB")


def read(contents: Contents) -> xr.Dataset:
    """Open GRIB lazily (gzipped: in memory); times are those the fields are valid at.

    Fields on several kinds of level come as variables of one dataset; of a name that is there on several kinds of level
    each gets the kind as its ending (t_surface). MRMS products become rain rates, amounts or reflectivity by the file's
    name.

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

    how = {"indexpath": "", "time_dims": ["valid_time"], "errors": "raise"}  # else a damaged message is left out
    try:
        dataset = xr.open_dataset(path, engine="cfgrib", backend_kwargs=how)
    except DatasetBuildError:
        dataset = _merged(path)
    if not dataset.variables:
        raise ValueError("no field was found")
    return dataset.rename(valid_time="time") if "valid_time" in dataset.variables else dataset


def _merged(path) -> xr.Dataset:
    """One dataset of the hypercubes that cfgrib finds; scalar levels are left out, each variable tells its own."""
    import cfgrib

    # cfgrib merges trial by trial: by an index it reads the file once. It warns at each future default of xarray.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        how = {"indexpath": f"{folder}/{{short_hash}}.idx", "time_dims": ["valid_time"]}
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
