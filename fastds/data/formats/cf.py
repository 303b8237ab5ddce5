# SPDX-License-Identifier: Apache-2.0
"""NetCDF-4 (h5netcdf), NetCDF-3 (scipy) and Zarr, opened lazily by xarray."""

import h5py
import xarray as xr

from fastds.data.formats.contents import HDF5, Contents
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
    """Open NetCDF-4. Raises: ValueError for damaged files and HDF5 without variables at its top level."""
    dataset = _open(contents, "h5netcdf", "NetCDF-4", phony_dims="access")  # HDF5 without dimensions: told below
    if not dataset.variables:
        dataset.close()
        with h5py.File(contents.path) as file:
            groups = ", ".join(sorted(file)[:5])
        raise ValueError(
            f"{contents.path} has no variables at its top level (groups: {groups or 'none'}), so it is no NetCDF file; "
            "convert it to NetCDF first"
        )
    return dataset


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
            dataset = xr.open_dataset(path, engine=engine, **how)
            return with_time(dataset.load() if contents.compressed else dataset)
        except Exception as error:
            lines = str(error).strip().splitlines()
            said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
            if _opens_without_times(path, engine):
                said = said.partition(". Try opening")[0]
                raise ValueError(
                    f"the times in {contents.path} cannot be decoded ({said}); give them units such as days since "
                    "2000-01-01 first"
                ) from error
            raise ValueError(
                f"{contents.path} looks like {form} but cannot be read ({said}); it may be truncated or damaged"
            ) from error


def _opens_without_times(path, engine: str) -> bool:
    try:
        xr.open_dataset(path, engine=engine, decode_times=False).close()
    except Exception:
        return False
    return True


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
