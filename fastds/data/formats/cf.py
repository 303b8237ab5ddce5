# SPDX-License-Identifier: Apache-2.0
"""NetCDF-4 (h5netcdf), NetCDF-3 (scipy) and Zarr, opened lazily by xarray."""

import os
import re
import warnings

import h5py
import numpy as np
import xarray as xr

from fastds.data.errors import first_line_of, listed, system_error, warn_left_out
from fastds.data.formats.contents import HDF5, Contents
from fastds.data.formats.hdf5 import check_filters, errors_of_hdf5
from fastds.data.formats.masking import VALID_ATTRIBUTES, decode
from fastds.data.packages import require

_CLASSIC = (b"CDF\x01", b"CDF\x02")


def is_netcdf4(contents: Contents) -> bool:
    """True for HDF5."""
    return contents.start.startswith(HDF5)


def is_netcdf3(contents: Contents) -> bool:
    """True for the classic format with 32 or 64 bit offsets."""
    return contents.start[:4] in _CLASSIC


def is_zarr(contents: Contents) -> bool:
    """True for a Zarr store."""
    return contents.is_zarr


def read_netcdf4(contents: Contents) -> xr.Dataset:
    """Open NetCDF-4: its top level or, where that has no variables, the only group with fields; other groups are named
    in a warning.

    Raises: ValueError for damaged files, and for HDF5 without fields in one place."""
    group = None
    with errors_of_hdf5(contents, "NetCDF-4"), contents.hdf5() as file:
        check_filters(file, contents)
        groups = {name: _count_fields(found) for name, found in file.items() if isinstance(found, h5py.Group)}
        at_top = any(isinstance(found, h5py.Dataset) for found in file.values())
    with_fields = sorted(name for name, count in groups.items() if count)
    if not at_top:
        if len(with_fields) != 1:
            there = ", ".join(sorted(groups)[:5]) or "none"
            raise ValueError(
                f"{contents.path} has no variables at its top level (groups: {there}), so it is no NetCDF file, or one "
                "of several groups: write one to a file with xarray (open_dataset(FILE, group=NAME).to_netcdf) or "
                "ncks -G : -g NAME first"
            )
        group = with_fields[0]
        warnings.warn(f"the fields of {contents.path} are those of its group {group}", UserWarning, stacklevel=2)
    elif with_fields:
        count = len(with_fields)
        warn_left_out(f"the group{'s' * (count > 1)} {listed(with_fields)} of {contents.path}", count)
    # HDF5 without dimensions gets phony ones: it is refused where its axes are asked for.
    return _open(contents, "h5netcdf", "NetCDF-4", phony_dims="access", group=group)


def _count_fields(group: h5py.Group) -> int:
    """The number of arrays over two dimensions or more in a group and those below it."""
    count = 0

    def visit(name: str, found: object) -> None:
        nonlocal count
        count += isinstance(found, h5py.Dataset) and len(found.shape or ()) >= 2

    group.visititems(visit)
    return count


def read_netcdf3(contents: Contents) -> xr.Dataset:
    """Open NetCDF-3. Raises: ValueError for damaged files."""
    return _open(contents, "scipy", "NetCDF-3")


def read_zarr(contents: Contents) -> xr.Dataset:
    """Open a Zarr store. Raises: ImportError without zarr; ValueError for damaged stores."""
    require("zarr", "Zarr stores")
    return _open(contents, "zarr", "Zarr")


def _open(contents: Contents, engine: str, form: str, **how) -> xr.Dataset:
    with contents.unpacked() as path:
        try:
            raw = xr.open_dataset(path, engine=engine, decode_cf=False, cache=False, **how)
            contents.held.append(raw)
            if engine == "zarr":
                _declare_zarr_fill(raw, path)
            dataset = decode(raw, default_fill=engine != "zarr")
            return with_time(_with_times_of_wrf(dataset.load() if contents.compressed else dataset))
        except Exception as error:
            said = first_line_of(error)
            number = system_error(error)
            if number is not None:
                raise OSError(number, f"{contents.path} cannot be opened: {os.strerror(number)}") from error
            if _opens_without_times(path, engine, how):
                said = said.partition(". Try opening")[0]
                raise ValueError(
                    f"the times in {contents.path} cannot be decoded ({said}); give them units such as days since "
                    "2000-01-01 first"
                ) from error
            raise ValueError(
                f"{contents.path} looks like {form} but cannot be read ({said}); it may be truncated or damaged"
            ) from error


def _declare_zarr_fill(raw: xr.Dataset, path: os.PathLike) -> None:
    """Take the fill values of a Zarr store of format 2 as missing only where they mean that.

    xarray writes missing values there as the fill values of arrays, and reads them so; but 0 is what zarr itself gives
    an array: where nothing is packed and no attribute says otherwise it counts as a value."""
    import zarr

    group = zarr.open_group(path, mode="r")
    if group.metadata.zarr_format != 2:
        return
    zeros = []
    for name, variable in raw.variables.items():
        own = group[name].attrs
        if variable.dtype.kind not in "fiu" or group[name].fill_value != 0:
            continue
        declared = not {"missing_value", *VALID_ATTRIBUTES}.isdisjoint(own)
        packed = not declared and ("scale_factor" in own or "add_offset" in own)
        if "_FillValue" in own:
            variable.attrs["_FillValue"] = own["_FillValue"]
        elif not packed:
            variable.attrs.pop("_FillValue", None)
        if variable.ndim >= 2 and "_FillValue" not in own and not declared:
            zeros.append(f"{name} ({'missing, as it is packed' if packed else 'a value'})")
    if zeros:
        said = f"0 is the fill value of the Zarr arrays {', '.join(zeros[:5])}"
        warnings.warn(f"{said}; --missing 0 takes a value as missing", UserWarning, stacklevel=2)


def _opens_without_times(path, engine: str, how: dict) -> bool:
    try:
        xr.open_dataset(path, engine=engine, decode_times=False, **how).close()
    except Exception:
        return False
    return True


def _with_times_of_wrf(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with the dates that WRF writes as letters in `Times` as the coordinate of their dimension."""
    times = dataset.variables.get("Times")
    if times is None or times.dtype.kind not in "SU" or not times.dims or times.dims[0] in dataset.coords:
        return dataset
    letters = np.atleast_2d(times.values) if times.ndim == 2 else times.values[:, None]
    texts = [b"".join(np.asarray(row, "S").tolist()).decode("ascii", "replace") for row in letters]
    dates = [text.replace("_", "T") for text in texts]
    if not all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", date) for date in dates):
        return dataset
    attrs = {"standard_name": "time", "axis": "T"}
    return dataset.drop_vars("Times").assign_coords(
        {times.dims[0]: (times.dims[0], np.array(dates, "datetime64[ns]"), attrs)}
    )


def with_time(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with a dimension `time` of length 1 where the only time is a single value, as in files of one field;
    a `start_time` beside it becomes the start of its bounds."""
    scalars = [
        name
        for name, variable in dataset.variables.items()
        if variable.ndim == 0 and variable.dtype.kind == "M" and variable.attrs.get("standard_name") == "time"
    ]
    has_times = any(variable.dtype.kind in "MO" and variable.ndim for variable in dataset.variables.values())
    if len(scalars) != 1 or has_times or "time" in dataset.dims:
        return dataset
    (name,) = scalars
    dataset = dataset.set_coords(name) if name == "time" else dataset.rename({name: "time"}).set_coords("time")
    planes = [name for name, variable in dataset.data_vars.items() if variable.ndim >= 2]
    start = dataset.variables.get("start_time")
    for plane in planes:
        dataset[plane] = dataset[plane].expand_dims("time")
    time = dataset["time"].variable
    dataset = dataset.drop_vars("time").assign_coords(time=("time", time.values.reshape(1), time.attrs, time.encoding))
    if start is not None and start.ndim == 0 and start.dtype.kind == "M":
        bounds = [[start.values, dataset["time"].values[0]]]
        dataset = dataset.drop_vars("start_time").assign(time_bounds=(("time", "bounds"), bounds))
        dataset["time"].attrs["bounds"] = "time_bounds"
    return dataset
