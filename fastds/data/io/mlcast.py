# SPDX-License-Identifier: Apache-2.0
"""Output in the archive format of MLCast: a Zarr store of projected fields with one chunk for each time."""

import dataclasses
import datetime
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import xarray as xr

from fastds._options import OptionError
from fastds._outputs import atomic_write
from fastds.data.grid.grids import find_grid_mappings
from fastds.data.grid.projections import TOLERANCE, compute_deviation, convert_to_metres, make_cf_attributes
from fastds.data.grid.times import format_time, time_encoding
from fastds.data.grid.units import get_metres_per_unit
from fastds.data.grid.variables import parse_rain_units
from fastds.data.io.files import is_zarr_path, wait_for_zarr_writes
from fastds.data.packages import import_pyproj, require
from fastds.data.radar.reflectivity import ReflectivityInput, to_reflectivity

VALIDATOR = "0.4.0"
# Kind of input -> variable name, standard name, long name and units.
_KINDS = {
    "reflectivity": ("equivalent_reflectivity_factor",) * 2 + ("radar reflectivity", "dBZ"),
    "rate": ("rainfall_flux",) * 2 + ("rain rate", "kg m-2 h-1"),
    "amount": ("rainfall_amount",) * 2 + ("rain amount of the interval before the time", "kg m-2"),
}
_ALTERNATIVE = "--to cf, in Python fastds.data.save_dataset, writes the fields as they are"
_BLOCK_BYTES = 64 << 20
_IDENTIFIER = re.compile(r"[A-Z]{2}-[A-Za-z0-9]+-[A-Za-z0-9_]+$")
_CREATOR = re.compile(r"[^<>]*\S[^<>]*<[^<>@\s]+@[^<>@\s]+>$")


@dataclasses.dataclass(frozen=True)
class ArchiveMetadata:
    """Global metadata of an archive.

    Args:
        license: SPDX identifier of the licence of the data, such as CC-BY-4.0.
        creator: Creator of the archive, "Name <email>".
        identifier: COUNTRY-ENTITY-VARIABLE, such as FI-FMI-reflectivity.
        version: Version of the archive.
        created_with: URL of the repository that created the archive,
            https://github.com/mlcast-community/REPOSITORY@VERSION, which MLCast's catalogue requires; None: left out.

    Raises:
        ValueError: `license` is empty, or `creator` or `identifier` has another form.
    """

    license: str
    creator: str
    identifier: str
    version: str = "0.1.0"
    created_with: str | None = None

    def __post_init__(self):
        if not self.license:
            raise OptionError("license", "must be an SPDX identifier such as CC-BY-4.0")
        if not _CREATOR.match(self.creator):
            raise OptionError("creator", f"must be Name <email>, got {self.creator!r}")
        if not _IDENTIFIER.match(self.identifier):
            raise OptionError("identifier", f"must be such as FI-FMI-reflectivity, got {self.identifier!r}")

    def to_attributes(self) -> dict[str, str]:
        """Return the global attributes of the archive."""
        attributes = {
            "license": self.license,
            "mlcast_created_on": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "mlcast_created_by": self.creator,
            "mlcast_dataset_version": self.version,
            "mlcast_dataset_validator_version": VALIDATOR,
            "mlcast_dataset_identifier": self.identifier,
        }
        return attributes | ({} if self.created_with is None else {"mlcast_created_with": self.created_with})


def save_mlcast(
    dataset: xr.Dataset,
    path: str | os.PathLike,
    metadata: ArchiveMetadata,
    var: str | None = None,
    watch: Callable[[list[range]], Iterable[range]] = iter,
) -> pathlib.Path:
    """Write the radar field of a dataset as an archive that MLCast and its validator accept.

    The archive appears under `path` only when it is complete. Missing values are NaN; the value of no echo is
    preserved. Amounts are in kg m-2 and rates in kg m-2 h-1. The variable missing_times holds times of the cadence
    without a field. The archive is Zarr of format 2 with consolidated metadata and one chunk per time, compressed by
    Zstandard.

    Args:
        dataset: Dataset as for `to_reflectivity`, on projected x and y with a grid mapping; read block by block.
        path: Name that ends in .zarr.
        metadata: Global metadata.
        var: Name of the variable; None: chosen by its attributes.
        watch: Function that wraps the iterable of blocks, for a progress bar.

    Returns:
        pathlib.Path of the archive.

    Raises:
        ImportError: zarr or pyproj is not installed.
        ValueError: The name does not end in .zarr, there are fewer than 2 times, the field has no projection, times are
            irregular, or another error of `to_reflectivity`.
    """
    source, mapping, units = _prepare_source(dataset, path, var)
    path = pathlib.Path(path)
    static = _make_static_part(source, mapping, units).assign_attrs(_get_provenance(dataset) | metadata.to_attributes())
    with atomic_write(path) as temporary:
        _write(source, static, temporary, watch)
    return path


def check_mlcast(dataset: xr.Dataset, path: str | os.PathLike, var: str | None = None) -> None:
    """Raise the errors that save_mlcast would raise, before fields are computed from the dataset.

    Args:
        dataset: See `save_mlcast`.
        path: See `save_mlcast`.
        var: See `save_mlcast`.

    Raises:
        ImportError: See `save_mlcast`.
        ValueError: See `save_mlcast`.
    """
    _prepare_source(dataset, path, var)


def _prepare_source(
    dataset: xr.Dataset, path: str | os.PathLike, var: str | None
) -> tuple[ReflectivityInput, str, list]:
    """Return fields, name of the grid mapping variable, and units of y and x; errors as in `save_mlcast`."""
    if not is_zarr_path(path):
        raise ValueError(f"{path}: archives are Zarr stores, and their names end in .zarr")
    for package in ("zarr", "pyproj"):
        require(package, "archives")
    # Any Z-R relation makes to_reflectivity choose rain without `var`. No value is converted here.
    source = to_reflectivity(dataset, var, z_r=(200.0, 1.6), least=1)
    if source.shape[0] < 2:
        raise ValueError(f"an archive needs at least 2 times, variable {source.source_name} has 1; {_ALTERNATIVE}")
    names = find_grid_mappings(source.dataset, source.raw)
    dims = source.dims[-2:]
    units = [str(source.raw[dim].attrs.get("units", "")) if dim in source.raw.coords else "" for dim in dims]
    if not names or any(get_metres_per_unit(unit) is None for unit in units):
        raise ValueError(
            f"variable {source.source_name} must be on a projection, with x and y in metres and a grid mapping, got "
            f"{dims[0]} [{units[0] or 'no units'}] and {dims[1]} [{units[1] or 'no units'}]; {_ALTERNATIVE}"
        )
    return source, names[0], units


def _get_provenance(dataset: xr.Dataset) -> dict[str, str]:
    """Return the global attributes of the input that describe its origin."""
    names = ("title", "institution", "source", "references", "history")
    found = {name: value for name, value in dataset.attrs.items() if name in names or name.startswith("fastds_")}
    return {"Conventions": "CF-1.8"} | found


def _make_static_part(source: ReflectivityInput, mapping: str, units: list[str]) -> xr.Dataset:
    """Make the time-independent part of the archive: x, y, latitudes, longitudes, grid mapping and missing times."""
    pyproj, dims = import_pyproj(), source.dims[-2:]
    crs, _ = convert_to_metres(pyproj.CRS.from_cf(source.dataset[mapping].attrs))
    y, x = (
        get_metres_per_unit(unit) * source.raw[dim].values.astype(float) for dim, unit in zip(dims, units, strict=True)
    )
    to_degrees = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(*np.meshgrid(x, y))
    attributes = make_cf_attributes(crs, x, y) | {"spatial_ref": crs.to_wkt()}
    _warn_of_projection(crs, attributes, x, y)
    axis = {"standard_name": "projection_{}_coordinate", "units": "m"}
    coords: dict[str, Any] = {
        name: (name, values, {k: v.format(name) for k, v in axis.items()} | {"axis": name.upper()})
        for name, values in (("y", y), ("x", x))
    }
    for name, values, unit in (("latitude", lat, "degrees_north"), ("longitude", lon, "degrees_east")):
        coords[name] = (("y", "x"), values, {"standard_name": name, "units": unit})
    missing, attrs = _find_missing_times(source), {}
    if missing.size:
        coords["missing_times"] = ("missing_times", missing, {"long_name": "times without fields"})
        attrs["consistent_timestep_start"] = format_time(source.raw[source.dims[0]].values[0])
    return xr.Dataset({"crs": ((), np.int32(0), attributes)}, coords, attrs)


def _warn_of_projection(crs, mapping: dict, x: np.ndarray, y: np.ndarray) -> None:
    """Warn (UserWarning) if CF attributes do not describe the projection."""
    if compute_deviation(crs, mapping, x, y) > TOLERANCE:
        method = crs.coordinate_operation.method_name if crs.coordinate_operation else crs.name
        message = f"CF attributes cannot describe the projection {method}, which is in crs_wkt alone"
        warnings.warn(f"{message}: MLCast's validator refuses such an archive", UserWarning, stacklevel=5)


def _find_missing_times(source: ReflectivityInput) -> np.ndarray:
    """Return the times of the cadence in the gaps between segments."""
    times = source.raw[source.dims[0]].values
    step = np.timedelta64(round(source.cadence * 1e9), "ns")
    gaps = [(times[a.stop - 1], times[b.start]) for a, b in zip(source.segments, source.segments[1:], strict=False)]
    found = [np.arange(start + step, stop - step // 2, step) for start, stop in gaps]
    return np.concatenate(found) if found else np.empty(0, "datetime64[ns]")


def _write(source: ReflectivityInput, static: xr.Dataset, path: pathlib.Path, watch) -> None:
    """Write the fields block by block.

    Args:
        source: Input.
        static: Time-independent part of the archive.
        path: Temporary store.
        watch: Function that wraps the iterable of blocks.
    """
    count, height, width = source.shape
    most = max(1, _BLOCK_BYTES // (4 * height * width))
    blocks = [range(start, min(start + most, count)) for start in range(0, count, most)]
    for block in watch(blocks):
        part = _make_block(source, block)
        with wait_for_zarr_writes():
            if block.start:
                # Appending replaces the attributes of the store.
                part.assign_attrs(static.attrs).to_zarr(path, append_dim="time", consolidated=True)
            else:
                _make_first_block(part, static).to_zarr(
                    path, mode="w", zarr_format=2, consolidated=True, encoding=_make_encoding(part, source)
                )


def _make_first_block(part: xr.Dataset, static: xr.Dataset) -> xr.Dataset:
    return part.assign(static.data_vars).assign_coords(static.coords).assign_attrs(static.attrs)


def _make_encoding(part: xr.Dataset, source: ReflectivityInput) -> dict:
    from numcodecs import Zstd

    (name,) = part.data_vars
    chunks = (1, *part[name].shape[1:])
    # The time unit has to suit all times, since appended blocks use the unit of the first.
    units = time_encoding(source.raw[source.dims[0]].values, {"units": "seconds since 1970-01-01"})
    return {name: {"chunks": chunks, "compressors": [Zstd(level=5)], "_FillValue": np.float32("nan")}, "time": units}


def _make_block(source: ReflectivityInput, block: range) -> xr.Dataset:
    """Make the dataset of some consecutive times in the form of the archive."""
    frames = slice(block.start, block.stop)
    values, kind = source.values(frames), source.kind
    attrs: dict[str, Any] = {}
    if kind == "reflectivity":
        attrs["no_echo_value"] = source.no_echo
    else:
        rain = parse_rain_units(source.units)
        assert rain is not None
        millimetres, seconds = rain
        kind = "amount" if seconds is None else "rate"
        values = values * np.float32(millimetres * (1.0 if seconds is None else 3600.0 / seconds))
    name, standard, text, units = _KINDS[kind]
    attrs |= {"standard_name": standard, "long_name": text, "units": units, "grid_mapping": "crs"}
    times = source.raw[source.dims[0]].values[frames]
    time = ("time", times, {"standard_name": "time", "axis": "T"})
    return xr.Dataset({name: (("time", "y", "x"), values.astype(np.float32), attrs)}, {"time": time})
