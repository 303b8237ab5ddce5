# SPDX-License-Identifier: Apache-2.0
"""Read the files that hold fields: NetCDF-4 (h5netcdf), NetCDF-3 (scipy), Zarr (zarr) and GRIB (cfgrib) where the
packages are installed, RADOLAN composites; write NetCDF-4 and Zarr."""

import contextlib
import glob
import importlib.util
import os
import pathlib
import warnings
from collections.abc import Hashable
from typing import Any

import h5netcdf
import h5py
import xarray as xr

from fastds._outputs import replacing
from fastds.data.io.radolan import is_radolan, open_radolan
from fastds.data.io.sink import sink

_HDF5 = b"\x89HDF\r\n\x1a\n"
_CLASSIC = (b"CDF\x01", b"CDF\x02")
_OTHERS = (_HDF5[:4], *_CLASSIC, b"GRIB")
_OTHER_FORMATS = (".grib", ".grib2", ".grb", ".grb2", ".tif", ".tiff", ".csv", ".png", ".npy", ".npz")
_FORMATS = {"h5netcdf": "NetCDF-4", "scipy": "NetCDF-3", "zarr": "Zarr", "cfgrib": "GRIB"}


def open_dataset(path: str | os.PathLike) -> xr.Dataset:
    """Open a NetCDF, GRIB or Zarr file lazily as an xarray.Dataset, with times and fill values decoded.

    Args:
        path: a NetCDF-4, NetCDF-3 or GRIB file, or a Zarr store (a folder, or a name that ends in .zarr). The times of
            GRIB are those the fields are valid at. Also RADOLAN composites of one product, read by open_radolan: a
            file, an archive, a folder of them, or a pattern such as folder/raa01-rx*.
    Returns: xarray.Dataset; close it, or use it in a with statement. Times outside the standard calendar become
        cftime objects.
    Raises: FileNotFoundError where nothing is there; ValueError with one sentence for a folder that is no Zarr store,
        an empty, truncated or damaged file, undecodable times, GRIB of several kinds of level, and a file in another
        format; ImportError where the package for Zarr or GRIB is missing.
    """
    path = pathlib.Path(path)
    composites = _composites(path)
    if composites:
        return open_radolan(composites)
    if not path.exists():
        if glob.glob(str(path)):
            raise ValueError(
                f"{path}: only RADOLAN composites are read from several files; join others first, with "
                "cdo mergetime or xarray.open_mfdataset"
            )
        raise FileNotFoundError(f"no such file: {path}")
    engine = _engine(path)
    try:
        how = {"phony_dims": "access"} if engine == "h5netcdf" else {}  # HDF5 without dimensions: told below, not here
        dataset = _open_grib(path) if engine == "cfgrib" else xr.open_dataset(path, engine=engine, **how)
    except Exception as error:
        if engine != "cfgrib" and _opens_without_times(path, engine):
            raise ValueError(f"the times in {path} cannot be decoded ({_first_line(error)})") from error
        hint = "it may be truncated or damaged"
        if engine == "cfgrib":
            hint += ", or hold several kinds of level: take one out with grib_copy"
        raise ValueError(
            f"{path} looks like {_FORMATS[engine]} but cannot be read ({_first_line(error)}); {hint}"
        ) from error
    if engine == "h5netcdf" and not dataset.variables:
        dataset.close()
        with h5py.File(path) as file:
            groups = ", ".join(sorted(file)[:5])
        raise ValueError(
            f"{path} has no variables at its top level (groups: {groups or 'none'}), so it is no NetCDF file; "
            "convert it to NetCDF first"
        )
    return dataset


def _composites(path: pathlib.Path) -> list[pathlib.Path]:
    """The RADOLAN files that a path, folder or pattern stands for, none of another kind among them; else []."""
    if path.is_dir():
        files = [] if _is_zarr(path) else [p for p in sorted(path.iterdir()) if p.is_file() and p.name[0] != "."]
    elif path.exists():
        files = [path] if path.is_file() else []
    else:
        files = [pathlib.Path(name) for name in sorted(glob.glob(str(path)))]
    return files if files and all(_first_bytes(p)[:4] not in _OTHERS and is_radolan(p) for p in files) else []


def _first_bytes(path: pathlib.Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(8)


def _is_zarr(path: pathlib.Path) -> bool:
    return path.suffix == ".zarr" or any((path / name).exists() for name in (".zgroup", ".zmetadata", "zarr.json"))


def _open_grib(path: pathlib.Path) -> xr.Dataset:
    with contextlib.suppress(ImportError):
        import pyproj  # noqa: F401  after ecCodes, which brings a PROJ of its own, it ends the process with a double free
    how = {"indexpath": "", "time_dims": ["valid_time"], "errors": "raise"}  # else a damaged message is left out
    dataset = xr.open_dataset(path, engine="cfgrib", backend_kwargs=how)
    if not dataset.variables:
        raise ValueError("no field was found")
    return dataset.rename(valid_time="time")


def _opens_without_times(path: pathlib.Path, engine: str) -> bool:
    try:
        xr.open_dataset(path, engine=engine, decode_times=False).close()
    except Exception:
        return False
    return True


def _engine(path: pathlib.Path) -> str:
    if path.is_dir():
        if not _is_zarr(path):
            raise ValueError(
                f"{path} is a folder and no Zarr store; expected a NetCDF file, a Zarr store, or a folder of "
                "nothing but RADOLAN composites"
            )
        _require("zarr", "Zarr stores")
        return "zarr"
    head = _first_bytes(path)
    if head == _HDF5:
        return "h5netcdf"
    if head[:4] in _CLASSIC:
        return "scipy"
    if head[:4] == b"GRIB":
        _require("cfgrib", "GRIB files")
        return "cfgrib"
    if not head:
        raise ValueError(f"{path} is empty; expected a NetCDF file")
    if head[:4] == b"CDF\x05":
        raise ValueError(f"{path} is in the CDF-5 format, which scipy cannot read; convert it with nccopy -k nc4")
    hints = {b"PK": " (it is a zip archive: unpack it first)", b"\x1f\x8b": " (it is gzipped: unpack it first)"}
    hint = hints.get(head[:2], "")
    raise ValueError(
        f"{path} is not a NetCDF file{hint}; expected NetCDF-4, NetCDF-3, GRIB, Zarr or RADOLAN composites"
    )


def _require(package: str, what: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{what} need the package {package}: python -m pip install {package}")


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def check_format(path: str | os.PathLike) -> None:
    """Raise ValueError for a name that promises another format than save_dataset writes."""
    suffix = pathlib.Path(path).suffix.lower()
    if suffix in _OTHER_FORMATS:
        raise ValueError(f"{path}: fields are written as NetCDF (.nc) or Zarr (.zarr), not as {suffix}")


def save_dataset(dataset: xr.Dataset, path: str | os.PathLike) -> pathlib.Path:
    """Write a Dataset compressed to NetCDF-4, or to Zarr if the name ends in .zarr; nothing appears under `path`
    until it is complete.

    Variables keep their own `encoding` (units, calendar, _FillValue, packing); floating fields without one are stored
    as they are with _FillValue NaN, zlib level 4 and one chunk a field. An existing file is replaced in one step.

    Args: dataset: xarray.Dataset; path: file to write.
    Returns: the path. Raises: FileNotFoundError for a folder that is not there; ValueError for variables that cannot
        be stored, for the name of another format (.grib, .tif, ...) and for a device, pipe or socket; OSError in one
        sentence where the disk is full, the old file untouched.
    """
    path = pathlib.Path(path)
    check_format(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {path.parent}")
    as_zarr = path.suffix == ".zarr"
    if as_zarr:
        _require("zarr", "Zarr stores")
    dataset = _storable(dataset)
    with replacing(path) as temporary:
        try:
            (_write_zarr if as_zarr else _write_netcdf)(dataset, temporary)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be written ({_first_line(error)})") from error
    return path


def _write_zarr(dataset: xr.Dataset, path: pathlib.Path) -> None:
    encoding = {name: _plain_encoding(v) for name, v in dataset.variables.items()}
    with warnings.catch_warnings():  # consolidated metadata are read by all, but no part of the format 3 yet
        warnings.filterwarnings("ignore", "Consolidated metadata")
        dataset.to_zarr(path, mode="w", encoding=encoding)


def _write_netcdf(dataset: xr.Dataset, path: pathlib.Path) -> None:
    encoding = {name: _netcdf_encoding(dataset, name) for name in dataset.variables}
    with sink(path) as target, h5netcdf.File(target, "w") as file:
        dataset.dump_to_store(xr.backends.H5NetCDFStore(file), encoding=encoding)


def _plain_encoding(variable: xr.Variable) -> dict[str, Any]:
    kept = {
        key: value
        for key, value in variable.encoding.items()
        if key in ("_FillValue", "dtype", "scale_factor", "add_offset", "units", "calendar")
    }
    if variable.dtype.kind == "f":
        kept.setdefault("_FillValue", None if variable.ndim <= 1 else variable.dtype.type("nan"))
    return kept


def _netcdf_encoding(dataset: xr.Dataset, name: Hashable) -> dict[str, Any]:
    variable = dataset[name].variable
    encoding = _plain_encoding(variable)
    if variable.dtype.kind in "fiu" and variable.ndim >= 2:
        encoding.update(zlib=True, complevel=4, shuffle=True)
        if variable.ndim >= 3 and all(variable.shape):
            encoding["chunksizes"] = (1,) * (variable.ndim - 2) + variable.shape[-2:]
    return encoding


def _storable(dataset: xr.Dataset) -> xr.Dataset:
    """A shallow copy whose attributes are of kinds that files hold: None is left out, truth values become 0 or 1."""
    dataset = dataset.copy(deep=False)
    for holder in (dataset, *dataset.variables.values()):
        holder.attrs = {
            key: int(value) if isinstance(value, bool) else value
            for key, value in holder.attrs.items()
            if value is not None
        }
    return dataset
