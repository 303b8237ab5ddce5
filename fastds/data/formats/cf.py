# SPDX-License-Identifier: Apache-2.0
"""Reader of NetCDF-4 (h5netcdf), NetCDF-3 (scipy) and Zarr. xarray opens the files lazily."""

import os
import warnings

import h5py
import xarray as xr

from fastds.data.errors import find_system_errno, format_names, summarize_error, warn_left_out
from fastds.data.formats.file_format import Format
from fastds.data.formats.file_probe import HDF5_SIGNATURE, FileProbe
from fastds.data.formats.hdf5 import check_filters, translate_hdf5_errors
from fastds.data.formats.masking import VALID_ATTRIBUTES, decode_dataset
from fastds.data.formats.wrf import apply_wrf_conventions
from fastds.data.packages import require

_CLASSIC = (b"CDF\x01", b"CDF\x02")


def is_netcdf4(probe: FileProbe) -> bool:
    """Return True for HDF5."""
    return probe.header.startswith(HDF5_SIGNATURE)


def is_netcdf3(probe: FileProbe) -> bool:
    """Return True for the classic NetCDF format with 32-bit or 64-bit offsets."""
    return probe.header[:4] in _CLASSIC


def is_zarr(probe: FileProbe) -> bool:
    """Return True for a Zarr store."""
    return probe.is_zarr


def read_netcdf4(probe: FileProbe) -> xr.Dataset:
    """Open a NetCDF-4 file.

    The variables are those of the root group. If the root group has no variables, they are those of the only group that
    holds fields. Warns (UserWarning) if another group than the root is read, or if groups with fields are left out.

    Raises:
        ValueError: The file is damaged, or the root group has no variables and not exactly one group holds fields.
    """
    group = None
    with translate_hdf5_errors(probe, "NetCDF-4"), probe.open_hdf5() as file:
        check_filters(file, probe)
        groups = {name: _count_fields(found) for name, found in file.items() if isinstance(found, h5py.Group)}
        at_top = any(isinstance(found, h5py.Dataset) for found in file.values())
    with_fields = sorted(name for name, count in groups.items() if count)
    if not at_top:
        if len(with_fields) != 1:
            found = ", ".join(sorted(groups)[:5]) or "none"
            raise ValueError(
                f"{probe.path} has no variables at its top level (groups: {found}), so it is no NetCDF file, or one "
                "of several groups: write one to a file with xarray (open_dataset(FILE, group=NAME).to_netcdf) or "
                "ncks -G : -g NAME first"
            )
        group = with_fields[0]
        warnings.warn(f"the fields of {probe.path} are those of its group {group}", UserWarning, stacklevel=2)
    elif with_fields:
        count = len(with_fields)
        warn_left_out(f"the group{'s' * (count > 1)} {format_names(with_fields)} of {probe.path}", count)
    # HDF5 arrays without dimension scales get generated dimension names. `find_axes` raises an error for these later.
    return _open(probe, "h5netcdf", "NetCDF-4", phony_dims="access", group=group)


def _count_fields(group: h5py.Group) -> int:
    """Return the number of arrays with two or more dimensions in a group and its subgroups."""
    count = 0

    def visit(name: str, found: object) -> None:
        nonlocal count
        count += isinstance(found, h5py.Dataset) and len(found.shape or ()) >= 2

    group.visititems(visit)
    return count


def read_netcdf3(probe: FileProbe) -> xr.Dataset:
    """Open a NetCDF-3 file.

    Raises:
        ValueError: The file is damaged.
    """
    return _open(probe, "scipy", "NetCDF-3")


def read_zarr(probe: FileProbe) -> xr.Dataset:
    """Open a Zarr store.

    Raises:
        ImportError: zarr is not installed.
        ValueError: The store is damaged.
    """
    require("zarr", "Zarr stores")
    return _open(probe, "zarr", "Zarr")


def _open(probe: FileProbe, engine: str, form: str, **options) -> xr.Dataset:
    """Open a file lazily with an engine of xarray and decode it.

    Args:
        probe: Probe of the file.
        engine: Engine of xarray.
        form: Name of the format for messages.
        **options: Options of xarray.open_dataset.

    Raises:
        OSError: The operating system could not open the file.
        ValueError: The file is damaged or its times cannot be decoded.
    """
    with probe.unpack() as path:
        try:
            raw = xr.open_dataset(path, engine=engine, decode_cf=False, cache=False, **options)
            probe.open_datasets.append(raw)
            if engine == "zarr":
                _declare_zarr_fill(raw, path)
            dataset = decode_dataset(raw, default_fill=engine != "zarr")
            return add_time_dimension(apply_wrf_conventions(dataset.load() if probe.is_compressed else dataset))
        except Exception as error:
            reason = summarize_error(error)
            number = find_system_errno(error)
            if number is not None:
                raise OSError(number, f"{probe.path} cannot be opened: {os.strerror(number)}") from error
            if _can_open_without_times(path, engine, options):
                reason = reason.partition(". Try opening")[0]
                raise ValueError(
                    f"the times in {probe.path} cannot be decoded ({reason}); give them units such as days since "
                    "2000-01-01 first"
                ) from error
            raise ValueError(
                f"{probe.path} looks like {form} but cannot be read ({reason}); it may be truncated or damaged"
            ) from error


def _declare_zarr_fill(raw: xr.Dataset, path: os.PathLike) -> None:
    """Set `_FillValue` of the variables of a Zarr store of format 2 whose arrays have the fill value 0.

    xarray reads the fill value of a Zarr array as missing. But 0 is also the default that zarr gives to an array. The
    value 0 therefore counts as missing only if an attribute declares it or if the variable is packed. A warning
    (UserWarning) names the affected variables.

    Args:
        raw: Dataset opened without decoding; changed in place.
        path: Store.
    """
    import zarr

    group = zarr.open_group(path, mode="r")
    if group.metadata.zarr_format != 2:
        return
    zeros = []
    for name, variable in raw.variables.items():
        attrs = group[name].attrs
        if variable.dtype.kind not in "fiu" or group[name].fill_value != 0:
            continue
        declared = not {"missing_value", *VALID_ATTRIBUTES}.isdisjoint(attrs)
        packed = not declared and ("scale_factor" in attrs or "add_offset" in attrs)
        if "_FillValue" in attrs:
            variable.attrs["_FillValue"] = attrs["_FillValue"]
        elif not packed:
            variable.attrs.pop("_FillValue", None)
        if variable.ndim >= 2 and "_FillValue" not in attrs and not declared:
            zeros.append(f"{name} ({'missing, as it is packed' if packed else 'a value'})")
    if zeros:
        arrays = ", ".join(zeros[:5])
        message = f"0 is the fill value of the Zarr arrays {arrays}; --missing 0 takes a value as missing"
        warnings.warn(message, UserWarning, stacklevel=2)


def _can_open_without_times(path, engine: str, options: dict) -> bool:
    """Return True if xarray opens the file when times are not decoded."""
    try:
        xr.open_dataset(path, engine=engine, decode_times=False, **options).close()
    except Exception:
        return False
    return True


def add_time_dimension(dataset: xr.Dataset) -> xr.Dataset:
    """Add a dimension `time` of length 1 to a dataset whose only time is a scalar, as in files of one field.

    A scalar `start_time` becomes the start of the time bounds. Datasets with other times are returned unchanged.
    """
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


NETCDF4 = Format(
    name="NetCDF-4",
    files="CF-conforming files; also a file with all fields in one group",
    matches=is_netcdf4,
    read=read_netcdf4,
    order=40,  # after all other formats in HDF5, whose files is_netcdf4 matches, too
    lead_is_data=True,
)
NETCDF3 = Format(
    name="NetCDF-3",
    files="CF-conforming files",
    matches=is_netcdf3,
    read=read_netcdf3,
    order=50,
    lead_is_data=True,
)
ZARR = Format(
    name="Zarr",
    files="CF-conforming stores",
    matches=is_zarr,
    read=read_zarr,
    order=60,
    lead_is_data=True,
)
