# SPDX-License-Identifier: Apache-2.0
"""Radar fields as MLCast's archives hold them: Zarr, a chunk per time, projected, with latitudes and longitudes."""

import dataclasses
import datetime
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Iterable

import numpy as np
import xarray as xr

from fastds._outputs import replacing
from fastds.data.grid.grids import grid_mappings
from fastds.data.grid.projections import TOLERANCE, cf_attributes, deviation, in_metres
from fastds.data.grid.times import text_of, time_encoding
from fastds.data.grid.units import metres_of
from fastds.data.grid.variables import rain_units
from fastds.data.io.files import names_zarr, settled_writes
from fastds.data.packages import import_pyproj, require
from fastds.data.radar.reflectivity import ReflectivityInput, to_reflectivity

VALIDATOR = "0.4.0"
# Variable, standard name, long name and units of a kind of input.
_FORMS = {
    "reflectivity": ("equivalent_reflectivity_factor",) * 2 + ("radar reflectivity", "dBZ"),
    "rate": ("rainfall_flux",) * 2 + ("rain rate", "kg m-2 h-1"),
    "amount": ("rainfall_amount",) * 2 + ("rain amount of the interval before the time", "kg m-2"),
}
_AS_THEY_ARE = "--to cf, in Python fastds.data.save_dataset, writes the fields as they are"
_BLOCK_BYTES = 64 << 20
_IDENTIFIER = re.compile(r"[A-Z]{2}-[A-Za-z0-9]+-[A-Za-z0-9_]+$")
_CREATOR = re.compile(r"[^<>]*\S[^<>]*<[^<>@\s]+@[^<>@\s]+>$")


@dataclasses.dataclass(frozen=True)
class Origin:
    """What an archive says of itself.

    Attributes:
        license: SPDX identifier of the data's licence, such as CC-BY-4.0.
        creator: who made the archive, Name <email>.
        identifier: COUNTRY-ENTITY-VARIABLE, such as FI-FMI-reflectivity.
        version: of the archive.
        created_with: URL of the repository that made it, https://github.com/mlcast-community/REPOSITORY@VERSION, which
            MLCast's catalogue asks for; None: left out.

    Raises: ValueError for a creator or identifier of another form, and for no licence.
    """

    license: str
    creator: str
    identifier: str
    version: str = "0.1.0"
    created_with: str | None = None

    def __post_init__(self):
        if not self.license:
            raise ValueError("license must be an SPDX identifier such as CC-BY-4.0")
        if not _CREATOR.match(self.creator):
            raise ValueError(f"creator must be Name <email>, got {self.creator!r}")
        if not _IDENTIFIER.match(self.identifier):
            raise ValueError(f"identifier must be such as FI-FMI-reflectivity, got {self.identifier!r}")

    def attributes(self) -> dict[str, str]:
        """Global attributes of the archive."""
        told = {
            "license": self.license,
            "mlcast_created_on": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "mlcast_created_by": self.creator,
            "mlcast_dataset_version": self.version,
            "mlcast_dataset_validator_version": VALIDATOR,
            "mlcast_dataset_identifier": self.identifier,
        }
        return told | ({} if self.created_with is None else {"mlcast_created_with": self.created_with})


def save_mlcast(
    dataset: xr.Dataset,
    path: str | os.PathLike,
    origin: Origin,
    var: str | None = None,
    watch: Callable[[Iterable[range]], Iterable[range]] = iter,
) -> pathlib.Path:
    """Write the radar field of a dataset as an archive that mlcast and its validator take; nothing appears under `path`
    until it is complete.

    Missing values are NaN, no echo keeps its value; amounts and rates are in kg m-2 and kg m-2 h-1. Times that the
    series lacks are the variable missing_times. Zarr of format 2, consolidated, one chunk a time, by Zstandard.

    Args:
        dataset: as fastds.data.to_reflectivity takes it, on projected x and y with a grid mapping; read block by block.
        path: a name that ends in .zarr. origin: what the archive says of itself. var: the variable, where the
            attributes do not tell. watch: wrapped around the blocks of times, for a progress bar.

    Returns: the path. Raises: ImportError without zarr or pyproj; ValueError for another name and for fields without
        projection, irregular times, and what to_reflectivity refuses.
    """
    source, mapping, units = _archivable(dataset, path, var)
    path = pathlib.Path(path)
    still = _still(source, mapping, units).assign_attrs(_kept(dataset) | origin.attributes())
    with replacing(path) as temporary:
        _write(source, still, temporary, watch)
    return path


def check_mlcast(dataset: xr.Dataset, path: str | os.PathLike, var: str | None = None) -> None:
    """Raise what save_mlcast would raise, for fields that are to be computed from these; arguments as there."""
    _archivable(dataset, path, var)


def _archivable(dataset: xr.Dataset, path: str | os.PathLike, var: str | None) -> tuple[ReflectivityInput, str, list]:
    """The fields, the variable of their grid mapping, and the units of y and x."""
    if not names_zarr(path):
        raise ValueError(f"{path}: archives are Zarr stores, and their names end in .zarr")
    for package in ("zarr", "pyproj"):
        require(package, "archives")
    any_law = (200.0, 1.6)  # so that rain is taken unnamed; nothing is converted by it
    source = to_reflectivity(dataset, var, z_r=any_law, least=1)
    if source.shape[0] < 2:
        raise ValueError(f"an archive needs at least 2 times, variable {source.source_name} has 1; {_AS_THEY_ARE}")
    names = grid_mappings(source.dataset, source.raw)
    dims = source.dims[-2:]
    units = [str(source.raw[dim].attrs.get("units", "")) if dim in source.raw.coords else "" for dim in dims]
    if not names or any(metres_of(unit) is None for unit in units):
        raise ValueError(
            f"variable {source.source_name} must be on a projection, with x and y in metres and a grid mapping, got "
            f"{dims[0]} [{units[0] or 'no units'}] and {dims[1]} [{units[1] or 'no units'}]; {_AS_THEY_ARE}"
        )
    return source, names[0], units


def _kept(dataset: xr.Dataset) -> dict[str, str]:
    """Where the fields come from."""
    names = ("title", "institution", "source", "references", "history")
    kept = {name: value for name, value in dataset.attrs.items() if name in names or name.startswith("fastds_")}
    return {"Conventions": "CF-1.8"} | kept


def _still(source: ReflectivityInput, mapping: str, units: list[str]) -> xr.Dataset:
    """What does not depend on time: x, y, latitudes, longitudes, the grid mapping and the missing times."""
    pyproj, dims = import_pyproj(), source.dims[-2:]
    crs, _ = in_metres(pyproj.CRS.from_cf(source.dataset[mapping].attrs))
    y, x = (metres_of(unit) * source.raw[dim].values.astype(float) for dim, unit in zip(dims, units, strict=True))
    to_degrees = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(*np.meshgrid(x, y))
    mapping = cf_attributes(crs, x, y) | {"spatial_ref": crs.to_wkt()}
    _warn_of_projection(crs, mapping, x, y)
    axis = {"standard_name": "projection_{}_coordinate", "units": "m"}
    coords = {
        name: (name, values, {k: v.format(name) for k, v in axis.items()} | {"axis": name.upper()})
        for name, values in (("y", y), ("x", x))
    }
    for name, values, unit in (("latitude", lat, "degrees_north"), ("longitude", lon, "degrees_east")):
        coords[name] = (("y", "x"), values, {"standard_name": name, "units": unit})
    missing, attrs = _missing(source), {}
    if missing.size:
        coords["missing_times"] = ("missing_times", missing, {"long_name": "times without fields"})
        attrs["consistent_timestep_start"] = text_of(source.raw[source.dims[0]].values[0])
    return xr.Dataset({"crs": ((), np.int32(0), mapping)}, coords, attrs)


def _warn_of_projection(crs, mapping: dict, x: np.ndarray, y: np.ndarray) -> None:
    if deviation(crs, mapping, x, y) > TOLERANCE:
        method = crs.coordinate_operation.method_name if crs.coordinate_operation else crs.name
        said = f"attributes of CF cannot tell the projection {method}, which is in crs_wkt alone"
        warnings.warn(f"{said}: MLCast's validator refuses such an archive", UserWarning, stacklevel=5)


def _missing(source: ReflectivityInput) -> np.ndarray:
    """The times of the cadence that lie in the gaps between segments."""
    times = source.raw[source.dims[0]].values
    step = np.timedelta64(round(source.cadence * 1e9), "ns")
    gaps = [(times[a.stop - 1], times[b.start]) for a, b in zip(source.segments, source.segments[1:], strict=False)]
    found = [np.arange(start + step, stop - step // 2, step) for start, stop in gaps]
    return np.concatenate(found) if found else np.empty(0, "datetime64[ns]")


def _write(source: ReflectivityInput, still: xr.Dataset, path: pathlib.Path, watch) -> None:
    count, height, width = source.shape
    most = max(1, _BLOCK_BYTES // (4 * height * width))
    blocks = [range(start, min(start + most, count)) for start in range(0, count, most)]
    for block in watch(blocks):
        part = _part(source, block)
        with settled_writes():
            if block.start:
                # The attributes of what is appended replace those of the store.
                part.assign_attrs(still.attrs).to_zarr(path, append_dim="time", consolidated=True)
            else:
                _first(part, still).to_zarr(
                    path, mode="w", zarr_format=2, consolidated=True, encoding=_encoding(part, source)
                )


def _first(part: xr.Dataset, still: xr.Dataset) -> xr.Dataset:
    return part.assign(still.data_vars).assign_coords(still.coords).assign_attrs(still.attrs)


def _encoding(part: xr.Dataset, source: ReflectivityInput) -> dict:
    from numcodecs import Zstd

    (name,) = part.data_vars
    chunks = (1, *part[name].shape[1:])
    # Of all times, since what is appended gets the units of the first block.
    units = time_encoding(source.raw[source.dims[0]].values, {"units": "seconds since 1970-01-01"})
    return {name: {"chunks": chunks, "compressors": [Zstd(level=5)], "_FillValue": np.float32("nan")}, "time": units}


def _part(source: ReflectivityInput, block: range) -> xr.Dataset:
    """The fields of some times in the form of the archive."""
    frames = slice(block.start, block.stop)
    values, kind, attrs = source.values(frames), source.kind, {}
    if kind == "reflectivity":
        attrs["no_echo_value"] = source.no_echo
    else:
        millimetres, seconds = rain_units(source.units)
        kind = "amount" if seconds is None else "rate"
        values = values * np.float32(millimetres * (1.0 if seconds is None else 3600.0 / seconds))
    name, standard, text, units = _FORMS[kind]
    attrs |= {"standard_name": standard, "long_name": text, "units": units, "grid_mapping": "crs"}
    times = source.raw[source.dims[0]].values[frames]
    time = ("time", times, {"standard_name": "time", "axis": "T"})
    return xr.Dataset({name: (("time", "y", "x"), values.astype(np.float32), attrs)}, {"time": time})
